"""Tables and sentences of a report as data. `markup` writes them as text, `page` as HTML."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import numpy as np

from magneto.report.axes import row_styles
from magneto.report.comparison import Comparison, Row, Section, differing_keys
from magneto.report.loading import Run
from magneto.training.result import STATUSES

NONE = "–"
ARROWS = {"min": " ↓", "max": " ↑", None: ""}
DAGGER = "†"

_THROUGHPUT = ("audio_seconds_per_s", "tokens_per_s", "images_per_s", "examples_per_s")
"""Units of throughput: the first one that a run measured is shown."""

_MEMORY: dict[str, Callable[[Run], int | None]] = {
    "peak memory": lambda run: run.peak_memory_bytes,
    "peak memory of the run": lambda run: run.run_peak_memory_bytes,
}
"""Two measures that are not comparable: a GPU's (of older CPU runs, the whole process), and a CPU run's own part."""


@dataclass(frozen=True)
class Cell:
    """Cell of a table; `href` is relative to the report's folder; `colour` is shown beside the text."""

    text: str
    bold: bool = False
    href: str | None = None
    colour: str | None = None


@dataclass(frozen=True)
class Table:
    """Table with a header and rows of cells; the columns in `words` hold text, the others numbers."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    words: tuple[int, ...] = field(default=(0,))


def main_table(section: Section) -> Table:
    """Return the main table: configurations with the test metrics that have a direction."""
    columns: list[tuple[str, Callable[[Row], Cell]]] = [
        ("configuration", _label_column(section)),
        ("parameters", _cost_column(lambda run: run.parameters, count_text, finished=False)),
        ("seeds", lambda row: Cell(seeds_text(row))),
    ]
    for metric in section.metrics:
        if metric != section.primary_metric and section.better(metric) is None:
            continue
        arrow = ARROWS[section.better(metric)]
        columns.append((metric + arrow, _metric_column(section, metric)))
        if metric == section.primary_metric and any(section.difference(row, metric) for row in section.rows):
            assert section.reference is not None
            name = f"Δ to {section.reference.label} [95% interval]"
            columns.append((name, _difference_column(section, metric)))
    return _table(section.title, section, columns, _notes(section))


def diagnostics_table(section: Section) -> Table | None:
    """Return the test metrics without a direction, such as a share of blanks; None if there are none."""
    names = [name for name in section.metrics[1:] if section.better(name) is None]
    return _metrics_table("Further test metrics", section, {name: name for name in names}) if names else None


def detail_tables(section: Section) -> list[Table]:
    """Return the tables below the main table: parts, further metrics, costs."""
    further = diagnostics_table(section)
    return [*breakdown_tables(section), *([further] if further else []), cost_table(section)]


def cost_table(section: Section) -> Table:
    """Return the costs of the runs: steps, time, throughput in the task's unit, memory."""
    columns: list[tuple[str, Callable[[Row], Cell]]] = [
        ("configuration", _label_column(section)),
        ("steps", _cost_column(lambda run: run.steps, "{:,.0f}".format)),
        ("time", _cost_column(lambda run: run.wall_s, duration)),
    ]
    measured = {key for run in section.runs for key in run.throughput}
    unit = next((key for key in _THROUGHPUT if key in measured), None)
    if unit is not None:
        name = unit.replace("_per_s", " per second").replace("_", " ")
        columns.append((name, _cost_column(lambda run: run.throughput.get(unit), "{:,.0f}".format)))
    notes = "Means over the finished seeds"
    for name, value in _MEMORY.items():
        if any(value(run) is not None for run in section.runs):
            columns.append((name, _cost_column(value, lambda size: f"{size / 2**30:.2f} GiB", max)))
            notes = "Means over the finished seeds; memory: the largest"
    if any(run.run_peak_memory_bytes is not None for run in section.runs):
        notes += ", of a CPU run what its process held more than before the run"
    return _table("Cost", section, columns, (f"{notes}.",))


def breakdown_tables(section: Section) -> list[Table]:
    """Return a table for each metric that has parts by language, direction or class."""
    return [
        _metrics_table(
            f"{metric} by {_part_name(section, parts)}", section, {part: f"{metric}/{part}" for part in parts}
        )
        for metric, parts in section.breakdowns.items()
    ]


def _metrics_table(title: str, section: Section, metrics: dict[str, str]) -> Table:
    """Return a table with a column for each of the metrics, by its heading."""
    columns = [(name, _metric_column(section, metric)) for name, metric in metrics.items()]
    return _table(title, section, [("configuration", _label_column(section)), *columns])


def _part_name(section: Section, parts: Sequence[str]) -> str:
    """Return the name of the parts of a metric, from the samples of the runs."""
    for key in ("language", "direction"):
        if any(sample.get(key) in parts for run in section.runs for sample in run.samples.values()):
            return key
    return "subset"


def runs_table(comparison: Comparison, folder: Path) -> Table:
    """Return all runs with links to their folders; those that are in no section are last."""
    several = len(comparison.sections) > 1
    header = ["run", "status", "steps", *(["task"] if several else []), "configuration", "seed"]
    header += ["result", "best validation", "time", "data loading time"]
    rows = []

    def add(run: Run, status: str, task: str, label: Cell, result: str = NONE, best: str = NONE) -> None:
        cells = [*_status_cells(run, status, folder), *([Cell(task)] if several else []), label]
        rows.append((*cells, Cell(str(run.seed)), Cell(result), Cell(best), *_time_cells(run)))

    for section in comparison.sections:
        label, metric = _label_column(section), section.primary_metric
        digits = decimals([run.metrics.get(metric) for run in section.runs])
        best_digits = decimals([run.best for run in section.runs])
        for row in section.rows:
            for run in row.runs:
                best, step = NONE, run.best_step
                if run.best is not None:
                    best = f"{run.monitor} {number(run.best, best_digits)}"
                    best += f" (step {step:,})" if step is not None else ""
                result = f"{metric} {number(run.metrics[metric], digits)}" if metric in run.metrics else NONE
                add(run, run.status, section.title, label(row), result, best)
    for run, reason in comparison.left_out:
        task = f"{run.task} on {run.data}" if run.data else run.task
        add(run, f"{run.status} ({reason})", task, Cell(NONE))
    numbers = ("steps", "seed", "time", "data loading time")
    words = tuple(index for index, name in enumerate(header) if name not in numbers)
    notes = ("Data loading time: the share of the training time in which a step waited for its batch.",)
    return Table("Runs", tuple(header), tuple(rows), notes, words)


def _status_cells(run: Run, status: str, folder: Path) -> tuple[Cell, Cell, Cell]:
    steps, planned = run.steps, run.planned_steps
    text = NONE if steps is None else f"{steps:,}"
    if steps is not None and planned is not None and steps != planned:
        text += f" of {planned:,}"
    bold = status != "finished"
    return Cell(short_name(run), href=relative_link(run.folder, folder)), Cell(status, bold=bold), Cell(text)


def _time_cells(run: Run) -> tuple[Cell, Cell]:
    waited = run.data_wait_fraction
    return Cell(duration(run.wall_s)), Cell(NONE if waited is None else f"{waited:.1%}")


def differences_table(section: Section) -> Table | None:
    """Return the configuration keys that differ between the rows; None if none do."""
    keys = differing_keys(section.rows)
    if not keys:
        return None
    rows = tuple((Cell(key), *(Cell(row.config.get(key, NONE)) for row in section.rows)) for key in keys)
    header = ("key", *(row.label for row in section.rows))
    return Table("What differs between the configurations", header, rows, words=tuple(range(len(header))))


def versions_table(comparison: Comparison) -> Table:
    """Return git commits and library versions with the number of runs of each."""
    counts: dict[tuple[str, str], int] = {}
    for run in comparison.runs:
        for item in [("git commit", run.git or "unknown"), *sorted(run.versions.items())]:
            counts[item] = counts.get(item, 0) + 1
    total = len(comparison.runs)
    rows = tuple(
        (Cell(name), Cell(version), Cell("all" if count == total else f"{count} of {total}"))
        for (name, version), count in counts.items()
    )
    return Table("Versions", ("", "version", "runs"), rows, words=(0, 1, 2))


def unfinished(section: Section) -> list[str]:
    """Return a sentence for each run that did not finish: status, step and message."""
    return [
        f"{short_name(run)}: {run.status}"
        + (f" at step {run.steps:,}" if run.steps is not None else "")
        + (f" of {run.planned_steps:,}" if run.steps is not None and run.planned_steps else "")
        + (f" ({' '.join(run.message.split())})" if run.message else "")
        for run in section.runs
        if not run.finished
    ]


def verdict(section: Section) -> str | None:
    """Return the result in one sentence, with its interval; None if nothing can be compared."""
    best = section.best(section.primary_metric)
    if best is None:
        return None
    column = _metric_column(section, section.primary_metric)
    winners = [row for row in section.rows if column(row).bold]
    diverged = any(row.count("diverged") for row in section.rows)
    among = " among rows without a diverged seed" if diverged else ""
    extreme = "Lowest" if section.better(section.primary_metric) == "min" else "Highest"
    text = f"{extreme} {section.primary_metric}{among}: {' and '.join(row.label for row in winners)}"
    if len(winners) > 1:
        return f"{text}, equal in the digits shown."
    (winner,) = winners
    count = len(winner.values(section.primary_metric))
    text += f", {column(winner).text} ({count} seed{'s' if count > 1 else ''})."
    gap = section.difference(winner, section.primary_metric)
    if gap is not None and section.reference is not None:
        interval = _difference_column(section, section.primary_metric)(winner).text
        zero = "excludes" if gap.low > 0 or gap.high < 0 else "includes"
        text += f" Difference to {section.reference.label}: {interval}, a 95% interval that {zero} zero."
    return text


def short_name(run: Run) -> str:
    """Return a run's name, without the middle of a long one: the backbone is at its beginning, the last key at its end."""
    return run.name if len(run.name) <= 60 else f"{run.name[:30]}…{run.name[-29:]}"


def seeds_text(row: Row) -> str:
    """Return `2`, or `1 of 2 (1 diverged) †` if not all seeds finished."""
    if row.complete:
        return str(len(row.runs))
    reasons = [f"{row.count(status)} {status}" for status in STATUSES[1:] if row.count(status)]
    text = f"{len(row.finished)} of {len(row.runs)} ({', '.join(reasons)})"
    return f"{text} {DAGGER}" if row.finished else text


def decimals(values: Sequence[float | None]) -> int:
    """Return the number of decimals for a column of such values."""
    largest = max((abs(value) for value in values if value is not None), default=1.0)
    if largest == 0:
        return 3
    if largest >= 1000:
        return 1
    return 2 if largest >= 10 else 3 if largest >= 0.1 else min(8, 3 - math.floor(math.log10(largest)) - 1)


def number(value: float | None, digits: int) -> str:
    """Return a number with a typographic minus, or a dash for None."""
    return NONE if value is None else f"{value:,.{digits}f}".replace("-", "−")


def duration(seconds: float | None) -> str:
    """Return `12 s`, `3.4 min` or `2.1 h`; a dash for None."""
    if seconds is None:
        return NONE
    if seconds < 59.5:
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"


def relative_link(target: Path, folder: Path) -> str:
    """Return a URL from the report's folder to a run's folder, relative, so that both can be moved together."""
    return quote(os.fsencode(Path(os.path.relpath(target.resolve(), folder.resolve())).as_posix()))


def _table(
    title: str,
    section: Section,
    columns: Sequence[tuple[str, Callable[[Row], Cell]]],
    notes: tuple[str, ...] = (),
) -> Table:
    rows = tuple(tuple(column(row) for _, column in columns) for row in section.rows)
    return Table(title, tuple(name for name, _ in columns), rows, notes)


def _label_column(section: Section) -> Callable[[Row], Cell]:
    styles = row_styles(section.rows)
    return lambda row: Cell(row.label, colour=styles[row.label].colour)


def _cost_column(
    value: Callable[[Run], float | None],
    text: Callable[[float], str],
    pick: Callable[[list[float]], float] = lambda values: float(np.mean(values)),
    *,
    finished: bool = True,
) -> Callable[[Row], Cell]:
    """Return a column of `value` as text, averaged over the finished (or all) runs of a row, or as `pick` does it."""

    def cell(row: Row) -> Cell:
        runs = row.finished if finished else row.runs
        known = [known for run in runs if (known := value(run)) is not None]
        return Cell(text(pick(known)) if known else NONE)

    return cell


def _metric_column(section: Section, metric: str) -> Callable[[Row], Cell]:
    stats = {row.label: row.stat(metric) for row in section.rows}
    digits = decimals([stat.mean for stat in stats.values() if stat])
    best = section.best(metric)

    def cell(row: Row) -> Cell:
        stat = stats[row.label]
        if stat is None:
            return Cell("diverged" if row.count("diverged") == len(row.runs) else NONE)
        text = number(stat.mean, digits)
        bold = best is not None and not row.count("diverged") and text == number(best, digits)
        text += f" ± {number(stat.sd, digits)}" if stat.sd is not None else ""
        return Cell(text + (f" {DAGGER}" if stat.n < len(row.runs) else ""), bold)

    return cell


def _difference_column(section: Section, metric: str) -> Callable[[Row], Cell]:
    gaps = {row.label: section.difference(row, metric) for row in section.rows}
    digits = decimals([stat.mean for row in section.rows if (stat := row.stat(metric))])

    def cell(row: Row) -> Cell:
        gap = gaps[row.label]
        if gap is None:
            return Cell("reference" if row is section.reference else NONE)
        assert section.reference is not None
        text = f"{'+' if gap.mean > 0 else ''}{number(gap.mean, digits)}"
        text += f" [{number(gap.low, digits)}, {number(gap.high, digits)}]"
        return Cell(text if row.complete and section.reference.complete else f"{text} {DAGGER}")

    return cell


def count_text(value: float) -> str:
    """Return a number of parameters, as `5.2 M`."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f}"


def _notes(section: Section) -> tuple[str, ...]:
    several = any(len(row.finished) > 1 for row in section.rows)
    notes = []
    if several:
        notes.append("Mean ± sample standard deviation over seeds.")
    if section.best(section.primary_metric) is not None:
        notes.append("Bold: the best mean of its column.")
    if any(0 < len(row.values(name)) < len(row.runs) for row in section.rows for name in section.metrics):
        notes.append(f"{DAGGER} mean over the finished seeds only.")
    if any(row.finished and row.count("diverged") for row in section.rows) and len(section.rows) > 1:
        notes.append("A row with a diverged seed does not compete for the best.")
    gaps = [gap for row in section.rows if (gap := section.difference(row, section.primary_metric))]
    if gaps and section.reference is not None:
        ways = {True: "paired by seed", False: "Welch"}
        used = " or ".join(ways[paired] for paired in sorted({gap.paired for gap in gaps}, reverse=True))
        how = f"95% interval of Student's t ({used})"
        notes.append(f"Δ: mean difference to {section.reference.label}, {how}.")
    if any(len(row.finished) == 1 for row in section.rows):
        notes.append("A single finished seed has no spread.")
    return tuple(notes)
