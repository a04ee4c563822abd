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
from magneto.report.comparison import Comparison, Section
from magneto.report.examples import Example, examples
from magneto.report.figures import SavedFigure
from magneto.report.overview import Overview
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

_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --card: #f6f7f9; --ink: #1c2128; --soft: #57606a;
  --line: #d5dae0;
  --link: #0b5cad; --bad: #a3270f; --wrong: #ffd9cf; --extra: #cfe3ff; --missing: #a3270f; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --card: #1d2127; --ink: #e6e9ed;
  --soft: #a0a8b2;
  --line: #39404a; --link: #7db7ff; --bad: #ff9b85; --wrong: #6b2a1c; --extra: #1f4372; --missing: #ff9b85;
  } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, "Segoe UI", Roboto,
  "Helvetica Neue", "Noto Sans", "DejaVu Sans", sans-serif; }
main { max-width: 1440px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .25rem; letter-spacing: -.01em; }
h2 { font-size: 1.4rem; margin: 3rem 0 .75rem; padding-bottom: .3rem; border-bottom: 2px solid var(--line); }
h3 { font-size: 1.08rem; margin: 2rem 0 .6rem; }
a { color: var(--link); }
p { margin: .5rem 0; max-width: 75ch; }
.soft { color: var(--soft); }
code, .text { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: .88em; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .6rem .8rem;
  overflow-x: auto;
  margin: .75rem 0; }
.verdict { font-size: 1.1rem; border-left: 4px solid var(--link); padding: .1rem 0 .1rem .9rem;
  margin: 1rem 0; }
.lost { border-left: 4px solid var(--bad); padding: .1rem 0 .1rem .9rem; margin: 1rem 0; }
.lost ul { margin: .25rem 0; padding-left: 1.2rem; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; min-width: 100%; }
th, td { padding: .42rem .7rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
thead th { vertical-align: bottom; color: var(--soft); font-weight: 600;
  border-bottom: 2px solid var(--line); }
thead th { white-space: normal; min-width: 5rem; }
tbody th { font-weight: 600; }
.word { text-align: left; }
tbody .word { white-space: normal; overflow-wrap: anywhere; min-width: 8rem; max-width: 26rem; }
tbody th.word { min-width: 15rem; }
tbody tr:hover { background: var(--card); }
td b { font-weight: 700; color: var(--ink); }
.chip { display: inline-block; width: .72em; height: .72em; border-radius: 2px; margin-right: .5em; }
p.note { max-width: 110ch; }
.note { font-size: .85rem; color: var(--soft); }
figure { margin: 1.25rem 0; }
figure .scroll { background: #ffffff; border: 1px solid var(--line); border-radius: 8px; padding: .5rem; }
figure img { display: block; width: 100%; max-width: 1000px; min-width: 620px; height: auto; margin: 0 auto; }
figcaption { font-weight: 600; margin-bottom: .4rem; }
.samples { display: grid; gap: .9rem; }
.sample { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .7rem .9rem; }
.sample header { font-size: .8rem; color: var(--soft); margin-bottom: .35rem; overflow-wrap: anywhere; }
.sample dl { display: grid; grid-template-columns: minmax(6rem, max-content) 1fr max-content;
  gap: .2rem .9rem;
  margin: 0; align-items: baseline; }
.sample dt { font-size: .85rem; font-weight: 600; max-width: 16rem; overflow-wrap: anywhere; }
.sample dd { margin: 0; overflow-wrap: anywhere; white-space: pre-wrap; }
.sample img { display: block; width: 100%; max-width: 40rem; height: auto; image-rendering: pixelated; }
.sample dd.count { font-size: .8rem; color: var(--soft); text-align: right; white-space: nowrap; }
mark, ins, del { color: inherit; border-radius: 2px; padding: 0 .06em; }
mark { background: var(--wrong); box-shadow: inset 0 -2px var(--missing); }
ins { background: var(--extra); text-decoration: underline; text-decoration-thickness: 2px; }
del { color: var(--missing); text-decoration: line-through; opacity: .85; }
details { margin: 1rem 0; }
summary { cursor: pointer; font-weight: 600; }
footer { margin-top: 3rem; }
@media (max-width: 640px) {
  main { padding: 1.25rem .9rem 3rem; }
  h1 { font-size: 1.5rem; }
  th, td { padding: .4rem .45rem; white-space: normal; }
  thead th { min-width: 3.5rem; }
  tbody .word, tbody th.word { min-width: 6rem; max-width: 8.5rem; }
  table { font-size: .82rem; }
  .sample dl { grid-template-columns: 1fr max-content; }
  .sample dd.text { grid-column: 1 / -1; grid-row: auto; margin-bottom: .35rem; order: 0; }
  .sample dt { grid-column: 1; }
  .sample dd.count { grid-column: 2; }
}
"""


def render(
    comparison: Comparison,
    overview: Overview | None,
    saved_figures: dict[str, list[SavedFigure]],
    title: str,
    command: str | None,
    folder: Path,
) -> str:
    """Return the page; `saved_figures` by section slug, links relative to `folder`."""
    runs = comparison.runs
    rows = sum(len(section.rows) for section in comparison.sections)
    summary = f"{_plural(len(runs), 'run')} · {_plural(rows, 'configuration')}"
    for status in STATUSES[1:]:
        count = sum(run.status == status for run in runs)
        summary += f" · {count} {status}" if count else ""
    parts = [f"<h1>{_e(title)}</h1>", f'<p class="soft">{summary}</p>']
    if command:
        parts.append(f"<pre><code>{_e(command)}</code></pre>")
    if comparison.problems:
        parts.append(_sentences("Left out", comparison.problems))
    if overview is not None:
        parts.append(f"<h2>{overview.table.title}</h2>{_table(overview.table, heading=False)}")
        parts += [_figure_tag(overview.figure)] if overview.figure else []
    for section in comparison.sections:
        parts += _section(section, saved_figures[section.slug], folder)
    parts.append(f"<h2>Runs</h2>{_table(runs_table(comparison, folder), heading=False)}")
    parts.append(f"<footer><h2>Versions</h2>{_table(versions_table(comparison), heading=False)}</footer>")
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_e(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(parts)
        + "\n</main>\n</body>\n</html>\n"
    )


def _section(section: Section, saved_figures: Sequence[SavedFigure], folder: Path) -> list[str]:
    parts = [f"<h2>{_e(section.title)}</h2>"]
    if sentence := verdict(section):
        parts.append(f'<p class="verdict">{_e(sentence)}</p>')
    if lost := unfinished(section):
        parts.append(_sentences("Runs that did not finish", lost))
    parts.append(_table(main_table(section), heading=False))
    parts += [_table(table) for table in detail_tables(section)]
    parts += [_figure_tag(figure) for figure in saved_figures]
    parts.append(_samples(section, folder))
    if (table := differences_table(section)) is not None:
        parts.append(_table(table))
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


def _table(table: Table, heading: bool = True) -> str:
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
