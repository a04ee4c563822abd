"""Several tasks in one table and one figure: a row a task and corpus, a column a backbone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from magneto.report.comparison import BACKBONES, Row, Section, is_difference
from magneto.report.figures import Picture, draw_overview
from magneto.report.tables import DAGGER, NONE, Cell, Table, main_table

_ARROWS = {"min": " ↓", "max": " ↑", None: ""}


@dataclass(frozen=True)
class Overview:
    """All tasks at once."""

    table: Table
    picture: Picture | None


def overview_of(sections: Sequence[Section], folder: Path) -> Overview | None:
    """The headline metric of every section by backbone, its figure in `folder`; None of fewer than two rows.

    Runs of one task with other overrides (shorter ones, say) have a row of their own. Where even so a backbone has several
    configurations, there is no single number for it: the section's own table tells them apart.
    """
    named: list[tuple[str, Section]] = []
    left_out: list[str] = []
    for section in sections:
        for name, part in _alternatives(section):
            if _one_row_a_backbone(part.rows):
                named.append((name, part))
            else:
                left_out.append(part.title)
    if len(named) < 2:
        return None
    measured = [(name, part) for name, part in named if any(row.values(part.headline) for row in part.rows)]
    labels = [f"{name} on {part.data}" if part.data else name for name, part in measured]
    picture = draw_overview([part for _, part in measured], labels, folder) if measured else None
    return Overview(_table(named, left_out), picture)


def _one_row_a_backbone(rows: Sequence[Row]) -> bool:
    return len({row.backbone for row in rows}) == len(rows)


def _alternatives(section: Section) -> list[tuple[str, Section]]:
    """The section under its task's name; or, if that makes one row a backbone, its parts by what was overridden."""
    if _one_row_a_backbone(section.rows):
        return [(section.task, section)]
    parts: dict[frozenset[str], list[Row]] = {}
    for row in section.rows:
        parts.setdefault(_overridden(row), []).append(row)
    shared = frozenset.intersection(*parts)
    return [
        (" ".join([section.task, *sorted(chosen - shared)]), replace(section, rows=tuple(rows)))
        for chosen, rows in parts.items()
    ]


def _overridden(row: Row) -> frozenset[str]:
    """What was set on the command line besides the backbone and what makes no difference."""
    names = {text: text.lstrip("+~").partition("=")[0] for run in row.runs for text in run.overrides}
    return frozenset(text for text, key in names.items() if key != "backbone" and is_difference(key))


def _table(named: Sequence[tuple[str, Section]], left_out: Sequence[str]) -> Table:
    present = {row.backbone for _, section in named for row in section.rows}
    columns = [name for name in BACKBONES if name in present] + sorted(present - set(BACKBONES))
    rows = []
    for name, section in named:
        # The cells of the section's own table, so that the two never disagree.
        own = main_table(section)
        metric = f"{section.headline}{_ARROWS[section.better(section.headline)]}"
        place = own.header.index(metric)
        cells = {row.backbone: line[place] for row, line in zip(section.rows, own.rows, strict=True)}
        finished = [run for row in section.rows for run in row.finished]
        walls = [run.wall_s / 60 for run in finished if run.wall_s is not None]
        rows.append(
            (
                Cell(name),
                Cell(section.data),
                Cell(metric),
                *(cells.get(column, Cell(NONE)) for column in columns),
                Cell(_seeds(section)),
                Cell(f"{sum(walls) / len(walls):.1f}" if walls else NONE),
            )
        )
    notes = ["Mean ± sample standard deviation over seeds. Bold: the best mean of its row."]
    if any(DAGGER in cell.text for row in rows for cell in row):
        notes.append(
            f"{DAGGER} mean over the finished seeds only; such a mean does not compete for the best."
        )
    if left_out:
        titles = ", ".join(dict.fromkeys(left_out))
        notes.append(f"Not here, for a backbone has several configurations: {titles}.")
    header = ("task", "corpus", "metric", *columns, "seeds", "minutes a run")
    return Table("Overview", header, tuple(rows), tuple(notes), words=(0, 1, 2))


def _seeds(section: Section) -> str:
    """`2`, or `1 to 2` where the backbones have different numbers of finished runs."""
    counts = [len(row.finished) for row in section.rows]
    return str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"
