"""report.html: one file that opens from disk, without network and scripts.

Every text comes from data (transcripts, error messages, configuration values), so every text goes through
`_e`, and the page forbids itself, by its content security policy, to run or to load anything.
"""

import base64
from collections.abc import Sequence
from html import escape as _e
from pathlib import Path

from rapidfuzz.distance import Levenshtein

from magneto.report.axes import Style, row_styles
from magneto.report.comparison import Section
from magneto.report.content import Report
from magneto.report.examples import Example, examples
from magneto.report.figures import SavedFigure
from magneto.report.rates import rates_table
from magneto.report.tables import (
    Table,
    detail_tables,
    differences_table,
    main_table,
    relative_link,
    runs_table,
    unfinished,
    verdict,
    versions_table,
)
from magneto.training.result import STATUSES

_STYLE = Path(__file__).with_name("page.css").read_text(encoding="utf-8")


def render(report: Report) -> str:
    """Return the page."""
    comparison, overview, title = report.comparison, report.overview, report.title
    runs = comparison.runs
    rows = sum(len(section.rows) for section in comparison.sections)
    summary = f"{_plural(len(runs), 'run')} · {_plural(rows, 'configuration')}"
    for status in STATUSES[1:]:
        count = sum(run.status == status for run in runs)
        summary += f" · {count} {status}" if count else ""
    parts = [f"<h1>{_e(title)}</h1>", f'<p class="soft">{summary}</p>']
    if report.command:
        parts.append(f"<pre><code>{_e(report.command)}</code></pre>")
    if report.problems:
        parts.append(_sentences("Left out", report.problems))
    if overview is not None:
        parts.append(f"<h2>{overview.table.title}</h2>{table_html(overview.table, heading=False)}")
        parts += [_figure_tag(overview.figure)] if overview.figure else []
    for section in comparison.sections:
        parts += _section(section, report.figures[section.slug], report.folder)
    parts.append(f"<h2>Runs</h2>{table_html(runs_table(comparison, report.folder), heading=False)}")
    parts.append(f"<footer><h2>Versions</h2>{table_html(versions_table(comparison), heading=False)}</footer>")
    return document(title, parts)


def document(title: str, parts: Sequence[str]) -> str:
    """Return a whole page of these pieces of HTML, in the style of reports."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_e(title)}</title>\n<style>\n{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def _section(section: Section, saved_figures: Sequence[SavedFigure], folder: Path) -> list[str]:
    parts = [f"<h2>{_e(section.title)}</h2>"]
    if sentence := verdict(section):
        parts.append(f'<p class="verdict">{_e(sentence)}</p>')
    if lost := unfinished(section):
        parts.append(_sentences("Runs that did not finish", lost))
    if (rates := rates_table(section)) is not None:
        parts.append(table_html(rates))
        parts += [_figure_tag(figure) for figure in saved_figures if figure.leading]
    parts.append(table_html(main_table(section), heading=rates is not None))
    parts += [table_html(table) for table in detail_tables(section)]
    parts += [_figure_tag(figure) for figure in saved_figures if not figure.leading]
    parts.append(_samples(section, folder))
    if (table := differences_table(section)) is not None:
        parts.append(table_html(table))
    shared = dict(set.intersection(*(set(row.config.items()) for row in section.rows)))
    lines = "\n".join(f"{key}: {value}" for key, value in sorted(shared.items()))
    parts.append(
        f"<details><summary>The configuration that all rows share ({_plural(len(shared), 'key')})</summary>"
        f"<pre><code>{_e(lines)}</code></pre></details>"
    )
    return parts


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _sentences(title: str, sentences: Sequence[str]) -> str:
    items = "".join(f"<li>{_e(sentence)}</li>" for sentence in sentences)
    return f'<div class="lost"><strong>{_e(title)}</strong><ul>{items}</ul></div>'


def table_html(table: Table, heading: bool = True) -> str:
    """Return a table with its notes, below its title where `heading` is True."""

    def cell(index: int, text: str, tag: str, scope: str = "") -> str:
        kind = ' class="word"' if index in table.words else ""
        return f"<{tag}{scope}{kind}>{text}</{tag}>"

    header = [_e(text).replace(" ↓", "&nbsp;↓").replace(" ↑", "&nbsp;↑") for text in table.header]
    head = "".join(cell(index, text, "th", ' scope="col"') for index, text in enumerate(header))
    body = []
    for row in table.rows:
        cells = []
        for index, entry in enumerate(row):
            text = _e(entry.text)
            text = f'<a href="{_e(entry.href)}">{text}</a>' if entry.href else text
            text = f"<b>{text}</b>" if entry.bold else text
            text = f"{_chip(entry.colour)}{text}" if entry.colour else text
            cells.append(cell(index, text, "td") if index else cell(0, text, "th", ' scope="row"'))
        body.append(f"<tr>{''.join(cells)}</tr>")
    title = f"<h3>{_e(table.title)}</h3>" if heading else ""
    notes = f'<p class="note">{_e(" ".join(table.notes))}</p>' if table.notes else ""
    return (
        f'{title}<div class="scroll" role="region" tabindex="0" aria-label="Table: {_e(table.title)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>{notes}"
    )


def _chip(colour: str) -> str:
    return f'<span class="chip" style="background:{colour}"></span>'


def _figure_tag(figure: SavedFigure) -> str:
    return (
        f"<figure><figcaption>{_e(figure.title)}</figcaption>"
        f'<div class="scroll" role="region" tabindex="0" aria-label="Figure: {_e(figure.title)}">'
        f"{_image(figure.path, figure.alt)}</div></figure>"
    )


def _image(file: Path, alt: str) -> str:
    """Return a PNG file as part of the page, which then needs no other file."""
    try:
        data = base64.b64encode(file.read_bytes()).decode("ascii")
    except OSError as error:
        return f'<span class="soft">{_e(file.name)} cannot be read ({_e(str(error.strerror))})</span>'
    return f'<img alt="{_e(alt)}" src="data:image/png;base64,{data}">'


def _samples(section: Section, folder: Path) -> str:
    """Return the examples with the outputs of all rows side by side."""
    shown, runs = examples(section)
    if not shown:
        return ""
    colours = row_styles(section.rows)
    cards = "".join(_card(example, colours) for example in shown)
    sources = ", ".join(
        f'<a href="{_e(relative_link(run.folder, folder))}">{_e(run.name)}</a>' for run in runs
    )
    legend = "<mark>wrong</mark>, <ins>not in the reference</ins>, <del>missing from the output</del>"
    marks = f" Marked against the reference: {legend}." if any(map(_compared, shown)) else ""
    return (
        f'<h3>Examples</h3><p class="note">From {sources}, at the last step logged.{marks}</p>'
        f'<div class="samples">{cards}</div>'
    )


def _compared(example: Example) -> bool:
    """Return whether the outputs are marked; a continuation is not, as it may differ from the reference and be good."""
    return bool(example.reference and example.reference.strip()) and example.kind != "continuation"


def _card(example: Example, colours: dict[str, Style]) -> str:
    lang = f' lang="{_e(example.language)}"' if example.language else ""
    lines = [_line(_e(name), _e(text), "", "") for name, text in example.given]
    if example.reference:
        lines.append(_line("reference", _e(example.reference), "", lang))
    for row, output in example.outputs:
        marked, wrong = _marked(example, output)
        lines.append(_line(_chip(colours[row.label].colour) + _e(row.label), marked, wrong, lang))
    for row, file in example.images:
        image = _image(file, f"{row.label}: {example.about}")
        lines.append(_line(_chip(colours[row.label].colour) + _e(row.label), image, "", ""))
    return f'<article class="sample"><header>{_e(example.about)}</header><dl>{"".join(lines)}</dl></article>'


def _line(label: str, text: str, count: str, lang: str) -> str:
    text = f'<dd class="text" dir="auto"{lang}>{text or "&nbsp;"}</dd>'
    return f'<dt>{label}</dt>{text}<dd class="count">{count}</dd>'


def _marked(example: Example, output: str) -> tuple[str, str]:
    """Return an output as HTML with its errors marked, and their number in words.

    Speech is compared by characters, other text by words.
    """
    if not _compared(example):
        return _e(output), ""
    assert example.reference is not None
    if example.kind == "transcript":
        noun, unit, glue = "error", "character", ""
        theirs, ours = list(example.reference.strip()), list(output.strip())
    else:
        noun, unit, glue = "difference", "word", " "
        theirs, ours = example.reference.split(), output.split()
    wrong, pieces = 0, []
    for block in Levenshtein.opcodes(theirs, ours):
        left = _e(glue.join(theirs[block.src_start : block.src_end]))
        right = _e(glue.join(ours[block.dest_start : block.dest_end]))
        if block.tag == "equal":
            pieces.append(right)
            continue
        wrong += max(block.src_end - block.src_start, block.dest_end - block.dest_start)
        if block.tag == "replace":
            pieces.append(f'<mark title="instead of: {left}">{right}</mark>')
        else:
            pieces.append(f"<ins>{right}</ins>" if block.tag == "insert" else f"<del>{left}</del>")
    count = f"{_plural(wrong, noun)} in {_plural(len(theirs), unit)}" if wrong else "as the reference"
    return glue.join(pieces), count
