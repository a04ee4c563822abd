"""Finished runs -> one comparison: tables (Markdown, CSV, LaTeX), figures (PNG) and a page for the browser.

    loading     folders on disk  -> Run           what can be read; the rest with its reason
    curves      metrics.csv      -> Curve, Band   values over steps, averaged over seeds
    ending      Curve            -> Ending        how a training went, in three numbers
    comparison  Run              -> Section, Row  one section per task and corpus, one row per configuration
    labels      Run              -> text          names of rows, by what differs
    statistics  values           -> Stat          means, spreads and differences over seeds
    examples    Section          -> Example       the same inputs, with the output of each row
    rates       Section          -> Line          results over the learning rate, and their measures; rate_figures draws them
    tables      Section          -> Table         results, costs, parts, runs, differences; verdict
    overview    Sections         -> Overview      several tasks in one table and one figure
    figures     Section          -> PNG           result, learning curves, stability probe
    content     all of these     -> Report        what the files below show
    axes        Row              -> Style         colours, titles, legends and scales of figures
    markup      Report           -> report.md, table.csv, table.tex, results.csv
    page        Report           -> report.html, with examples side by side
    screen      tables           -> the terminal
    wandb_run   table, figures   -> a W&B run, when asked

`python -m magneto.report PATHS` is the command line of `write_report`.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from magneto.errors import ConfigError
from magneto.report import markup, page
from magneto.report.comparison import compare
from magneto.report.content import Report
from magneto.report.figures import draw
from magneto.report.loading import load_runs
from magneto.report.overview import overview_of


def write_report(
    paths: Iterable[str | Path],
    out_dir: str | Path,
    title: str | None = None,
    command: str | None = None,
    metric: str | None = None,
    include_debug: bool = False,
) -> Report:
    """Compare the runs at or below `paths` and write the report's files into `out_dir`, replacing older ones.

    The same runs give the same bytes: nothing in the files depends on the time or on the machine.

    Args:
        paths: run folders, or folders that contain them.
        out_dir: created if missing.
        title: title of the page; None: the names of the tasks.
        command: shown as the command that made the runs or the report.
        metric: the primary metric (`test/cer`); None takes the task's own, else the monitored one on the test split.
        include_debug: compare debug runs too, not only those whose own folder is one of `paths`.

    Raises:
        ConfigError: a path does not exist, there is no readable run, no run has `metric`, or `out_dir` cannot be written.
    """
    comparison = compare(*load_runs(paths), metric=metric, include_debug=include_debug)
    names = [section.title for section in comparison.sections]
    if len(names) > 1:
        names = list(dict.fromkeys(section.task for section in comparison.sections))
    title = title or f"Comparison: {', '.join(names)}"
    folder = Path(out_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        figures = {section.slug: draw(section, folder) for section in comparison.sections}
        overview = overview_of(comparison.sections, folder)
        report = Report(folder, title, command, comparison, overview, figures)
        markup.write_csv(markup.records(comparison), report.csv)
        markup.write_csv(markup.run_records(comparison), report.results)
        texts = {
            report.latex: "\n".join(map(markup.to_latex, markup.paper_tables(report))),
            report.markdown: markup.markdown_report(report),
            report.html: page.render(report),
        }
        for file, text in texts.items():
            file.write_text(text, encoding="utf-8", errors="replace")  # a folder's name need not be UTF-8
        return report
    except OSError as error:
        raise ConfigError(
            f"{error.filename or folder}: cannot be written ({error.strerror}). Give another folder (--out DIR)."
        ) from error


def folder_name(overrides: Sequence[str]) -> str:
    """Return a short name for the report of a sweep: the values of its first choice, and a hash of all overrides."""
    swept = [text.partition("=")[2] for text in overrides if "," in text.partition("=")[2]]
    words = re.sub(r"[^A-Za-z0-9_.]+", "-", swept[0] if swept else "sweep").strip("-.")[:40]
    return f"{words}-{hashlib.sha256(' '.join(overrides).encode(errors='replace')).hexdigest()[:8]}"
