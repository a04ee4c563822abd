"""Tables and reports as text: Markdown for a README, LaTeX (booktabs) for a paper, CSV for a script."""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from magneto.report.comparison import Comparison, Section, differing_keys
from magneto.report.content import Report
from magneto.report.examples import examples
from magneto.report.figures import SavedFigure
from magneto.report.loading import COLUMNS
from magneto.report.rates import rates_table
from magneto.report.tables import (
    Cell,
    Table,
    breakdown_tables,
    cost_table,
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

_EXAMPLES = 3  # of report.md


def to_markdown(table: Table) -> str:
    """Return a GitHub table with its notes below."""

    def text(cell: Cell) -> str:
        value = markdown_text(cell.text)
        value = f"[{value}]({cell.href})" if cell.href else value
        return f"**{value}**" if cell.bold else value

    lines = ["| " + " | ".join(map(markdown_text, table.header)) + " |"]
    lines.append(
        "|" + "|".join(":--" if index in table.words else "--:" for index in range(len(table.header))) + "|"
    )
    lines += ["| " + " | ".join(map(text, row)) + " |" for row in table.rows]
    return "\n".join(lines) + ("\n\n" + " ".join(table.notes) if table.notes else "") + "\n"


def markdown_text(text: str) -> str:
    """Escape text for Markdown, on one line; `_` inside of a word, as in `pre_ln`, needs no escape."""
    text = re.sub(r"([\\`*|<>\[\]])", r"\\\1", " ".join(text.split()))
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)


_LATEX = {
    "\\": r"\textbackslash{}",
    **{char: f"\\{char}" for char in "{}$&#%_"},
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "±": r"$\pm$",
    "−": "$-$",
    "†": r"$^\dagger$",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "Δ": r"$\Delta$",
    "·": r"$\cdot$",
    "–": "--",
}


def latex_text(text: str) -> str:
    """Escape the special characters of LaTeX."""
    return "".join(_LATEX.get(char, char) for char in " ".join(text.split()))


def to_latex(table: Table) -> str:
    """Return a floating table, which needs `booktabs` in the preamble."""

    def text(cell: Cell) -> str:
        value = latex_text(cell.text)
        return rf"\textbf{{{value}}}" if cell.bold else value

    columns = "".join("l" if index in table.words else "r" for index in range(len(table.header)))
    caption = latex_text(" ".join([f"{table.title}.", *table.notes]))
    body = [" & ".join(map(latex_text, table.header)), *(" & ".join(map(text, row)) for row in table.rows)]
    lines = [
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{caption}}}",
        rf"\begin{{tabular}}{{{columns}}}",
    ]
    lines += [
        r"\toprule",
        body[0] + r" \\",
        r"\midrule",
        *(f"{line} \\\\" for line in body[1:]),
        r"\bottomrule",
    ]
    return "\n".join([*lines, r"\end{tabular}", r"\end{table}"]) + "\n"


def records(comparison: Comparison) -> list[dict[str, Any]]:
    """Return a row per configuration in full precision: the values by the names of their columns."""
    rows: list[dict[str, Any]] = []
    for section in comparison.sections:
        names = [*section.metrics]
        names += [f"{metric}/{part}" for metric, parts in section.breakdowns.items() for part in parts]
        for row in section.rows:
            record: dict[str, Any] = {"task": section.task, "data": section.data}
            record |= {"conditions": ", ".join(section.conditions), "configuration": row.label}
            record |= {"backbone": row.backbone, "size": row.size, "runs": len(row.runs)}
            record |= {status: row.count(status) for status in STATUSES}
            for name in names:
                stat = row.stat(name)
                record[f"{name} mean"] = stat.mean if stat else None
                record[f"{name} sd"] = stat.sd if stat else None
            for name in ("parameters", "steps", "wall_s", "peak_memory_bytes", "run_peak_memory_bytes"):
                record[name] = _mean([getattr(run, name) for run in row.finished])
            for name in sorted({key for run in row.finished for key in run.throughput}):
                record[name] = _mean([run.throughput.get(name) for run in row.finished])
            rows.append(record)
    return rows


def run_records(comparison: Comparison) -> list[dict[str, Any]]:
    """Return a row per run that is compared: keys that differ between rows, how it ended, metrics, the other keys.

    It has every key that can make a difference, so that runs that are read from it can be compared with any others.
    """
    rows: list[dict[str, Any]] = []
    for section in comparison.sections:
        keys = [key for key in differing_keys(section.rows) if key != "backbone.placement"]
        for row in section.rows:
            for run in row.runs:
                record: dict[str, Any] = {"task": section.task, "data": section.data}
                record |= {"configuration": row.label, "backbone": row.backbone, "size": row.size}
                record |= {key: row.config.get(key) for key in keys}
                record |= {name: getattr(run, name) for name in COLUMNS}
                record |= {"first_loss": run.probe.get("first_loss"), **asdict(run.ending)}
                record |= {name: run.metrics[name] for name in sorted(run.metrics)}
                rows.append(record | {key: value for key, value in row.config.items() if key not in record})
    return rows


def write_csv(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows of values by name for a script; empty where there is no value."""
    header = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", encoding="utf-8", errors="replace", newline="") as file:
        writer = csv.DictWriter(file, header)
        writer.writeheader()
        writer.writerows(rows)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def paper_tables(report: Report) -> list[Table]:
    """Return the tables for a paper: the overview, and results, parts and costs of each section."""
    tables = [report.overview.table] if report.overview else []
    for section in report.comparison.sections:
        tables += [main_table(section), *breakdown_tables(section), cost_table(section)]
    return tables


def markdown_report(report: Report) -> str:
    """Return report.md: tables and figures for GitHub."""
    comparison, overview, command = report.comparison, report.overview, report.command
    parts = [f"# {markdown_text(report.title)}"]
    if command:
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", command)), default=0))
        parts.append(f"{fence}\n{command}\n{fence}")
    if report.problems:
        parts.append("Left out:\n\n" + _bullets(report.problems))
    if overview is not None:
        parts.append(f"## {overview.table.title}\n\n{to_markdown(overview.table)}")
        parts += [_figure_tag(overview.figure)] if overview.figure else []
    for section in comparison.sections:
        parts.append(f"## {markdown_text(section.title)}")
        if sentence := verdict(section):
            parts.append(markdown_text(sentence))
        if lost := unfinished(section):
            parts.append("Runs that did not finish:\n\n" + _bullets(lost))
        if (rates := rates_table(section)) is not None:
            parts.append(f"### {rates.title}\n\n{to_markdown(rates)}")
            parts += [_figure_tag(figure) for figure in report.figures[section.slug] if figure.leading]
            parts.append("### All configurations")
        parts.append(to_markdown(main_table(section)))
        for table in detail_tables(section):
            parts.append(f"### {markdown_text(table.title)}\n\n{to_markdown(table)}")
        parts += [_figure_tag(figure) for figure in report.figures[section.slug] if not figure.leading]
        parts += _examples(section, report.folder)
        if (differences := differences_table(section)) is not None:
            parts.append(f"### {differences.title}\n\n{to_markdown(differences)}")
    parts.append(f"## Runs\n\n{to_markdown(runs_table(comparison, report.folder))}")
    parts.append(f"## Versions\n\n{to_markdown(versions_table(comparison))}")
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _figure_tag(figure: SavedFigure) -> str:
    return f"![{markdown_text(figure.alt)}]({quote(figure.path.name)})"


def _examples(section: Section, folder: Path) -> list[str]:
    """Return the first examples with the outputs of every row; report.html has all, with errors marked."""
    parts = []
    for example in examples(section)[0][:_EXAMPLES]:
        texts = [*example.given, *([("reference", example.reference)] if example.reference else [])]
        texts += [(row.label, output) for row, output in example.outputs]
        parts.append(markdown_text(example.about))
        if texts:
            parts.append(_bullets([f"{name}: {text}" for name, text in texts]))
        parts += [
            f"![{markdown_text(row.label)}]({relative_link(file, folder)})" for row, file in example.images
        ]
    return ["### Examples", *parts] if parts else []


def _bullets(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {markdown_text(sentence)}" for sentence in sentences)
