"""Several tasks in one table: a row a task and corpus, a column a backbone."""

from collections.abc import Sequence

from magneto.report.comparison import BACKBONES, Section
from magneto.report.tables import DAGGER, NONE, Cell, Table, main_table

_ARROWS = {"min": " ↓", "max": " ↑", None: ""}


def overview_table(sections: Sequence[Section]) -> Table | None:
    """The headline metric of every section by backbone; None where fewer than two sections can be shown.

    A section with several configurations of one backbone has no single number for it: its own table tells them apart.
    """
    shown: list[Section] = []
    left_out: list[Section] = []
    for section in sections:
        backbones = [row.backbone for row in section.rows]
        (shown if len(set(backbones)) == len(backbones) else left_out).append(section)
    if len(shown) < 2:
        return None
    present = {row.backbone for section in shown for row in section.rows}
    columns = [name for name in BACKBONES if name in present] + sorted(present - set(BACKBONES))
    rows = []
    for section in shown:
        # The cells of the section's own table, so that the two never disagree.
        own = main_table(section)
        metric = f"{section.headline}{_ARROWS[section.better(section.headline)]}"
        place = own.header.index(metric)
        cells = {row.backbone: line[place] for row, line in zip(section.rows, own.rows, strict=True)}
        finished = [run for row in section.rows for run in row.finished]
        walls = [run.wall_s / 60 for run in finished if run.wall_s is not None]
        rows.append(
            (
                Cell(section.task),
                Cell(section.data),
                Cell(metric),
                *(cells.get(name, Cell(NONE)) for name in columns),
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
        titles = ", ".join(section.title for section in left_out)
        notes.append(f"Not here, for a backbone has several configurations: {titles}.")
    header = ("task", "corpus", "metric", *columns, "seeds", "minutes a run")
    return Table("Overview", header, tuple(rows), tuple(notes), words=(0, 1, 2))


def _seeds(section: Section) -> str:
    """`2`, or `1 to 2` where the backbones have different numbers of finished runs."""
    counts = [len(row.finished) for row in section.rows]
    return str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"
