"""Overview of several tasks: a table with a row per task and corpus and a column per backbone, and a figure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from magneto.report.comparison import BACKBONES, Row, Section
from magneto.report.figures import SavedFigure, draw_overview
from magneto.report.tables import ARROWS, DAGGER, NONE, Cell, Table, duration, main_table

PICKED = "‡"
ENDED = ("finished", "diverged")
"""Statuses of a run with a result."""


@dataclass(frozen=True)
class Overview:
    """Table and figure of all tasks."""

    table: Table
    figure: SavedFigure | None


def overview_of(sections: Sequence[Section], folder: Path) -> Overview | None:
    """Return the primary metric of every section by backbone, with its figure in `folder`.

    It is None if fewer than two sections have a result. Of several configurations of a backbone the best in validation is
    shown.
    """
    sections = [section for section in sections if any(run.status in ENDED for run in section.runs)]
    if len(sections) < 2:
        return None
    picked = [replace(section, rows=_one_a_backbone(section)) for section in sections]
    several = [len(part.rows) < len(section.rows) for part, section in zip(picked, sections, strict=True)]
    measured = [
        section for section in picked if any(row.values(section.primary_metric) for row in section.rows)
    ]
    figure = draw_overview(measured, folder) if measured else None
    return Overview(_table(picked, several), figure)


def _one_a_backbone(section: Section) -> tuple[Row, ...]:
    """Return the best row of each backbone in the monitored metric, among those with the most finished seeds."""
    sign = -1 if section.monitor_mode == "max" else 1

    def rank(row: Row) -> tuple[float, float]:
        bests = [run.best for run in row.finished if run.best is not None]
        return -len(row.finished) + row.count("diverged"), sign * sum(bests) / len(
            bests
        ) if bests else math.inf

    best: dict[str, Row] = {}
    for row in section.rows:
        if row.backbone not in best or rank(row) < rank(best[row.backbone]):
            best[row.backbone] = row
    return tuple(best.values())


def _table(sections: Sequence[Section], several: Sequence[bool]) -> Table:
    present = {row.backbone for section in sections for row in section.rows}
    columns = [name for name in BACKBONES if name in present] + sorted(present - set(BACKBONES))
    rows = []
    for section, is_picked in zip(sections, several, strict=True):
        # The cells of the section's own table, so that the two never disagree.
        own = main_table(section)
        metric = f"{section.primary_metric}{ARROWS[section.better(section.primary_metric)]}"
        column = own.header.index(metric)
        cells = {row.backbone: cells[column] for row, cells in zip(section.rows, own.rows, strict=True)}
        finished = [run for row in section.rows for run in row.finished]
        walls = [run.wall_s for run in finished if run.wall_s is not None]
        rows.append(
            (
                Cell(", ".join([section.task, *section.conditions]) + (f" {PICKED}" if is_picked else "")),
                Cell(section.data),
                Cell(metric),
                *(cells.get(column, Cell(NONE)) for column in columns),
                Cell(_seeds(section)),
                Cell(duration(sum(walls) / len(walls) if walls else None)),
            )
        )
    notes = ["Mean ± sample standard deviation over seeds. Bold: the best mean of its row."]
    if any(DAGGER in cell.text for row in rows for cell in row):
        notes.append(
            f"{DAGGER} mean over the finished seeds only; such a mean does not compete for the best."
        )
    if any(several):
        notes.append(
            f"{PICKED} A backbone has several configurations here: the one with the best validation is shown."
        )
    header = ("task", "corpus", "metric", *columns, "seeds", "time a run")
    return Table("Overview", header, tuple(rows), tuple(notes), words=(0, 1, 2))


def _seeds(section: Section) -> str:
    """Return `2`, or `1 to 2` if the backbones have different numbers of finished runs."""
    counts = [len(row.finished) for row in section.rows]
    return str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"
