"""What a report says, as data: tables and sentences. `markup` writes them as text, `page` as HTML."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import numpy as np

from magneto.report.comparison import Comparison, Row, Section, differing_keys
from magneto.report.figures import row_styles
from magneto.report.loading import Run

NONE = "–"
DAGGER = "†"

_THROUGHPUT = ("audio_seconds_per_s", "tokens_per_s", "images_per_s", "examples_per_s")
"""The first of these that a run measured is its throughput: the unit of work of its task."""


@dataclass(frozen=True)
class Cell:
    """One entry of a table; `href` is relative to the report's folder; `colour` is shown beside the text."""

    text: str
    bold: bool = False
    href: str | None = None
    colour: str | None = None


@dataclass(frozen=True)
class Table:
    """A header and rows of cells; the columns in `words` are set flush left, the others hold numbers."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    words: tuple[int, ...] = field(default=(0,))


def main_table(section: Section) -> Table:
    """Configurations against the test metrics that are better low or high: the table of the paper."""
    columns: list[tuple[str, Callable[[Row], Cell]]] = [
        ("configuration", _label_column(section)),
        ("parameters", _cost_column(lambda run: run.parameters, count_text, finished=False)),
        ("seeds", lambda row: Cell(seeds_text(row))),
    ]
    for metric in section.metrics:
        if metric != section.headline and section.better(metric) is None:
            continue
        arrow = {"min": " ↓", "max": " ↑", None: ""}[section.better(metric)]
        columns.append((metric + arrow, _metric_column(section, metric)))
        if metric == section.headline and any(section.difference(row, metric) for row in section.rows):
            assert section.reference is not None
            name = f"Δ to {section.reference.label} [95% interval]"
            columns.append((name, _difference_column(section, metric)))
    return _table(section.title, section, columns, _notes(section))


def diagnostics_table(section: Section) -> Table | None:
    """The test metrics that tell what happens but not what is better, such as a share of blanks."""
    names = [name for name in section.metrics if name != section.headline and section.better(name) is None]
    columns = [
        ("configuration", _label_column(section)),
        *((name, _metric_column(section, name)) for name in names),
    ]
    return _table("Further test metrics", section, columns) if names else None


def detail_tables(section: Section) -> list[Table]:
    """What stands below the main table: parts, further metrics, costs."""
    further = diagnostics_table(section)
    return [*breakdown_tables(section), *([further] if further else []), cost_table(section)]


def cost_table(section: Section) -> Table:
    """What the runs took: steps, minutes, throughput in the task's unit of work, memory."""
    columns: list[tuple[str, Callable[[Row], Cell]]] = [
        ("configuration", _label_column(section)),
        ("steps", _cost_column(lambda run: run.steps, "{:,.0f}".format)),
        ("minutes", _cost_column(lambda run: run.wall_s, lambda value: f"{value / 60:.1f}")),
    ]
    measured = {key for run in section.runs for key in run.throughput}
    unit = next((key for key in _THROUGHPUT if key in measured), None)
    if unit is not None:
        name = unit.replace("_per_s", " per second").replace("_", " ")
        columns.append((name, _cost_column(lambda run: run.throughput.get(unit), "{:,.0f}".format)))
    memory = _cost_column(lambda run: run.peak_memory_bytes, lambda value: f"{value / 2**30:.2f} GiB", max)
    columns.append(("peak memory", memory))
    return _table("Cost", section, columns, ("Means over the finished seeds; memory: the largest.",))


def breakdown_tables(section: Section) -> list[Table]:
    """One table for each metric that is also known by language, direction or class."""
    return [
        _table(
            f"{metric} by {'language' if section.task in ('asr', 'mt') else 'subset'}",
            section,
            [
                ("configuration", _label_column(section)),
                *((part, _metric_column(section, f"{metric}/{part}")) for part in parts),
            ],
        )
        for metric, parts in section.breakdowns.items()
    ]


def runs_table(section: Section, folder: Path) -> Table:
    """Every run, also those that did not finish, with a link to its folder."""
    header = ["run", "configuration", "seed", "status", "steps", section.headline]
    header += [f"best {section.monitor}" if section.monitor else "best", "minutes", "data loading"]
    values = [run.metrics.get(section.headline) for run in section.runs]
    bests = [run.best for run in section.runs]
    label = _label_column(section)
    rows = []
    for row in section.rows:
        for run in row.runs:
            best = number(run.best, decimals(bests))
            at = f" (step {run.best_step:,})" if run.best is not None and run.best_step is not None else ""
            rows.append(
                (
                    Cell(run.name, href=relative_link(run.folder, folder)),
                    label(row),
                    Cell(str(run.seed)),
                    Cell(run.status, bold=not run.finished),
                    Cell(NONE if run.steps is None else f"{run.steps:,}"),
                    Cell(number(run.metrics.get(section.headline), decimals(values))),
                    Cell(best + at),
                    Cell(NONE if run.wall_s is None else f"{run.wall_s / 60:.1f}"),
                    Cell(NONE if run.data_wait_fraction is None else f"{run.data_wait_fraction:.1%}"),
                )
            )
    return Table("Runs", tuple(header), tuple(rows), words=(0, 1, 3))


def differences_table(section: Section) -> Table | None:
    """The configuration keys that differ between the rows; None when there is one row."""
    keys = differing_keys(section.rows)
    if not keys:
        return None
    rows = tuple((Cell(key), *(Cell(row.config.get(key, NONE)) for row in section.rows)) for key in keys)
    header = ("key", *(row.label for row in section.rows))
    return Table("What differs between the configurations", header, rows, words=tuple(range(len(header))))


def versions_table(comparison: Comparison) -> Table:
    """Git commit and library versions with the number of runs that had each."""
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
    """One sentence for each run that did not finish: what happened to it, when, and why."""
    return [
        f"{run.name}: {run.status}"
        + (f" at step {run.steps:,}" if run.steps is not None else "")
        + (f" ({' '.join(run.message.split())})" if run.message else "")
        for run in section.runs
        if not run.finished
    ]


def verdict(section: Section) -> str | None:
    """The result in one sentence, with what its interval allows to say; None when nothing can be compared."""
    best = section.best(section.headline)
    if best is None:
        return None
    column = _metric_column(section, section.headline)
    winners = [row for row in section.rows if column(row).bold]
    among = (
        " among rows without a diverged seed" if any(row.count("diverged") for row in section.rows) else ""
    )
    extreme = "Lowest" if section.better(section.headline) == "min" else "Highest"
    text = f"{extreme} {section.headline}{among}: {' and '.join(row.label for row in winners)}"
    if len(winners) > 1:
        return f"{text}, equal in the digits shown."
    (winner,) = winners
    count = len(winner.values(section.headline))
    text += f", {column(winner).text} ({count} seed{'s' if count > 1 else ''})."
    gap = section.difference(winner, section.headline)
    if gap is not None and section.reference is not None:
        interval = _difference_column(section, section.headline)(winner).text
        zero = "excludes" if gap.low > 0 or gap.high < 0 else "includes"
        text += f" Difference to {section.reference.label}: {interval}, a 95% interval that {zero} zero."
    return text


def seeds_text(row: Row) -> str:
    """`2`, or `1 of 2 (1 diverged) †`: a mean over survivors says so."""
    if row.complete:
        return str(len(row.runs))
    reasons = [
        f"{row.count(status)} {status}"
        for status in ("diverged", "failed", "interrupted")
        if row.count(status)
    ]
    return f"{len(row.finished)} of {len(row.runs)} ({', '.join(reasons)})" + (
        f" {DAGGER}" if row.finished else ""
    )


def decimals(values: Sequence[float | None]) -> int:
    """How many decimals a column of such values is printed with."""
    largest = max((abs(value) for value in values if value is not None), default=1.0)
    if largest == 0:
        return 3
    if largest >= 1000:
        return 1
    return 2 if largest >= 10 else 3 if largest >= 0.1 else min(8, 3 - math.floor(math.log10(largest)) - 1)


def number(value: float | None, places: int) -> str:
    """A number with a typographic minus, or a dash for none."""
    return NONE if value is None else f"{value:,.{places}f}".replace("-", "−")


def relative_link(target: Path, folder: Path) -> str:
    """A URL from the report's folder to a run's folder, so that the two can be moved together."""
    return quote(Path(os.path.relpath(target.resolve(), folder.resolve())).as_posix())


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
    """`value` over the finished (or all) runs of a row, averaged (or picked otherwise) and put into words."""

    def cell(row: Row) -> Cell:
        runs = row.finished if finished else row.runs
        known = [known for run in runs if (known := value(run)) is not None]
        return Cell(text(pick(known)) if known else NONE)

    return cell


def _metric_column(section: Section, metric: str) -> Callable[[Row], Cell]:
    stats = {row.label: row.stat(metric) for row in section.rows}
    places = decimals([stat.mean for stat in stats.values() if stat])
    best = section.best(metric)

    def cell(row: Row) -> Cell:
        stat = stats[row.label]
        if stat is None:
            return Cell("diverged" if row.count("diverged") == len(row.runs) else NONE)
        text = number(stat.mean, places)
        bold = best is not None and not row.count("diverged") and text == number(best, places)
        text += f" ± {number(stat.sd, places)}" if stat.sd is not None else ""
        return Cell(text + (f" {DAGGER}" if stat.n < len(row.runs) else ""), bold)

    return cell


def _difference_column(section: Section, metric: str) -> Callable[[Row], Cell]:
    gaps = {row.label: section.difference(row, metric) for row in section.rows}
    places = decimals([stat.mean for row in section.rows if (stat := row.stat(metric))])

    def cell(row: Row) -> Cell:
        gap = gaps[row.label]
        if gap is None:
            return Cell("reference" if row is section.reference else NONE)
        assert section.reference is not None
        text = f"{'+' if gap.mean > 0 else ''}{number(gap.mean, places)}"
        text += f" [{number(gap.low, places)}, {number(gap.high, places)}]"
        return Cell(text if row.complete and section.reference.complete else f"{text} {DAGGER}")

    return cell


def count_text(value: float) -> str:
    """`5.2 M`: a parameter count as people say it."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.0f}"


def _notes(section: Section) -> tuple[str, ...]:
    several = any(len(row.finished) > 1 for row in section.rows)
    notes = []
    if several:
        notes.append("Mean ± sample standard deviation over seeds.")
    if section.best(section.headline) is not None:
        notes.append("Bold: the best mean of its column.")
    if any(0 < len(row.values(name)) < len(row.runs) for row in section.rows for name in section.metrics):
        notes.append(f"{DAGGER} mean over the finished seeds only.")
    if any(row.finished and row.count("diverged") for row in section.rows) and len(section.rows) > 1:
        notes.append("A row with a diverged seed does not compete for the best.")
    gaps = [gap for row in section.rows if (gap := section.difference(row, section.headline))]
    if gaps and section.reference is not None:
        ways = [
            way
            for way, used in (("paired by seed", True), ("Welch", False))
            if used in {gap.paired for gap in gaps}
        ]
        how = f"95% interval of Student's t ({' or '.join(ways)})"
        notes.append(f"Δ: mean difference to {section.reference.label}, {how}.")
    if any(len(row.finished) == 1 for row in section.rows):
        notes.append("A single finished seed has no spread.")
    return tuple(notes)
