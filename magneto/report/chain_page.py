"""The table of a chain of runs beside that of the paper: table.md, table.csv and table.html."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from statistics import stdev

from magneto.errors import ConfigError
from magneto.report.markup import to_markdown
from magneto.report.page import document, table_html
from magneto.report.tables import NONE, Cell, Table, relative_link

Value = float | str


@dataclass(frozen=True, kw_only=True)
class ChainTable:
    """What is written.

    Attributes:
        title: of the page.
        note: what the runs are and what they are not.
        columns: headings.
        rows: of each row a value or the word in its place, and the values of its seeds, for each column.
        lower: whether lower is better.
        paper_columns: headings of the paper's table.
        paper_rows: its numbers, or the word in their place.
        runs: name, status, message and folder of each run.
    """

    title: str
    note: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[tuple[Value, Sequence[float]]]]
    lower: bool
    paper_columns: Sequence[str]
    paper_rows: Mapping[str, Sequence[float] | str]
    runs: Sequence[tuple[str, str, str | None, Path | None]]


def write_table(folder: Path, content: ChainTable) -> list[Path]:
    """Write the table as Markdown, CSV and a page for the browser; return the files.

    Raises:
        ConfigError: `folder` cannot be written.
    """
    ours, paper, runs = _ours(content), _paper(content), _runs(content, folder)
    page = [
        f"<h1>{escape(content.title)}</h1>", f"<p>{escape(content.note)}</p>",
        *map(table_html, (ours, paper, runs)),
    ]  # fmt: skip
    markdown = [f"# {content.title}", content.note]
    markdown += [f"## {table.title}\n\n{to_markdown(table)}" for table in (ours, paper, runs)]
    files = [folder / name for name in ("table.md", "table.csv", "table.html")]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files[0].write_text("\n\n".join(markdown), encoding="utf-8", errors="replace")
        with files[1].open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["row", *content.columns])
            writer.writerows([row, *(value for value, _ in cells)] for row, cells in content.rows.items())
        files[2].write_text(document(content.title, page), encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(
            f"{error.filename or folder}: cannot be written ({error.strerror}). Set runs_dir to a writable folder."
        ) from error
    return files


def _ours(content: ChainTable) -> Table:
    best = []
    for number in range(len(content.columns)):
        values = [cells[number][0] for cells in content.rows.values()]
        numbers = [value for value in values if not isinstance(value, str)]
        best.append((min if content.lower else max)(numbers, default=None))
    rows = []
    for row, cells in content.rows.items():
        texts = [_text(value, seeds) for value, seeds in cells]
        bold = [not isinstance(value, str) and value == best[n] for n, (value, _) in enumerate(cells)]
        rows.append((Cell(row), *(Cell(text, bold=one) for text, one in zip(texts, bold, strict=True))))
    arrow = " ↓" if content.lower else " ↑"
    header = ("", *(f"{name}{arrow}" for name in content.columns))
    counts = {len(seeds) for cells in content.rows.values() for _, seeds in cells if seeds}
    notes = ("± is the standard deviation over seeds.",) if any(count > 1 for count in counts) else ()
    return Table("Here", header, tuple(rows), notes)


def _text(value: Value, seeds: Sequence[float]) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.2f} ± {stdev(seeds):.2f}" if len(seeds) > 1 else f"{value:.2f}"


def _paper(content: ChainTable) -> Table:
    width = len(content.paper_columns)
    rows = []
    for row, values in content.paper_rows.items():
        texts = (
            [values, *[NONE] * (width - 1)] if isinstance(values, str) else [f"{value:g}" for value in values]
        )
        rows.append((Cell(row), *map(Cell, texts)))
    notes = ("Its data, sizes and steps are others: only the order of the rows can be compared.",)
    return Table("In the paper", ("", *content.paper_columns), tuple(rows), notes)


def _runs(content: ChainTable, folder: Path) -> Table:
    rows = [
        (
            Cell(name, href=None if path is None else relative_link(path, folder)),
            Cell(status),
            Cell(message or ""),
        )
        for name, status, message, path in content.runs
    ]
    return Table("Runs", ("run", "status", "message"), tuple(rows), words=(0, 1, 2))
