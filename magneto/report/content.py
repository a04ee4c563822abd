"""Content of a report, and the names of its files."""

from dataclasses import dataclass
from pathlib import Path

from magneto.report.comparison import Comparison
from magneto.report.figures import SavedFigure
from magneto.report.overview import Overview


@dataclass
class Report:
    """Comparison with its figures; `folder` holds report.md, report.html, table.csv, table.tex,
    results.csv and the figures.

    `figures` are those of each section, by its slug; `command` made the runs or the report.
    """

    folder: Path
    title: str
    command: str | None
    comparison: Comparison
    overview: Overview | None
    figures: dict[str, list[SavedFigure]]

    def __post_init__(self) -> None:
        """Name the files."""
        self.markdown, self.html = self.folder / "report.md", self.folder / "report.html"
        self.csv, self.latex = self.folder / "table.csv", self.folder / "table.tex"
        self.results = self.folder / "results.csv"

    @property
    def saved_figures(self) -> list[SavedFigure]:
        """All figures, that of the overview first."""
        first = [self.overview.figure] if self.overview and self.overview.figure else []
        return [*first, *(figure for figures in self.figures.values() for figure in figures)]

    @property
    def problems(self) -> tuple[str, ...]:
        """One sentence for each run or file that was left out."""
        return self.comparison.problems
