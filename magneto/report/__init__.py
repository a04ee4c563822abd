"""Finished runs -> one comparison: tables (Markdown, CSV, LaTeX), figures (PNG) and a page for the browser.

    loading     folders on disk  -> Run           what can be read; the rest is named
    comparison  Run              -> Section, Row  one section a task and corpus, one row a configuration
    examples    Section          -> Example       the same few inputs, with what each row made of them
    tables      Section          -> Table         results, costs, parts, runs, differences; verdict
    overview    Sections         -> Overview      several tasks in one table and one figure
    figures     Section          -> PNG           result, learning curves, stability probe
    markup      tables, figures  -> report.md, table.csv, table.tex
    page        tables, figures  -> report.html, with examples side by side
    wandb_run   table, figures   -> a W&B run, when asked

`python -m magneto.report PATHS` is the command line of `write_report`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from magneto.report import figures, markup, page
from magneto.report.comparison import compare
from magneto.report.figures import Picture
from magneto.report.loading import load_runs
from magneto.report.overview import overview_of


@dataclass(frozen=True)
class ReportFiles:
    """What `write_report` wrote, and what it had to leave out (one sentence each)."""

    folder: Path
    markdown: Path
    html: Path
    csv: Path
    latex: Path
    pictures: tuple[Picture, ...]
    problems: tuple[str, ...]
    title: str


def write_report(
    paths: Iterable[str | Path],
    out_dir: str | Path,
    title: str | None = None,
    command: str | None = None,
    metric: str | None = None,
) -> ReportFiles:
    """Compare the runs at or below `paths` and write the report's files into `out_dir`, replacing older ones.

    The same runs give the same bytes: nothing in the files depends on the time or on the machine.

    Args:
        paths: run folders, or folders that contain them.
        out_dir: made if missing.
        title: of the page; None names the tasks.
        command: shown as the command that made the runs or the report.
        metric: the headline metric (`test/cer`); None takes the task's own, else the monitored one on the test split.

    Raises:
        UserError: a path does not exist, there is no readable run, or no run has `metric`.
    """
    comparison = compare(*load_runs(paths), metric=metric)
    title = title or "Comparison: " + ", ".join(section.title for section in comparison.sections)
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {section.slug: figures.draw(section, folder) for section in comparison.sections}
    overview = overview_of(comparison.sections, folder)
    files = ReportFiles(
        folder=folder,
        markdown=folder / "report.md",
        html=folder / "report.html",
        csv=folder / "table.csv",
        latex=folder / "table.tex",
        pictures=(
            *([overview.picture] if overview and overview.picture else []),
            *(picture for drawn in pictures.values() for picture in drawn),
        ),
        problems=comparison.problems,
        title=title,
    )
    markup.write_csv(comparison, files.csv)
    files.latex.write_text(
        "\n".join(markup.to_latex(table) for table in markup.paper_tables(comparison, overview)),
        encoding="utf-8",
    )
    files.markdown.write_text(
        markup.markdown_report(comparison, overview, pictures, title, command, folder), encoding="utf-8"
    )
    files.html.write_text(
        page.render(comparison, overview, pictures, title, command, folder), encoding="utf-8"
    )
    return files
