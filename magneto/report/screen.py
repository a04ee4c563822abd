"""Comparison on the terminal: a table and the result of each section, and the path of the report."""

from rich.console import Console
from rich.table import Table as ScreenTable
from rich.text import Text

from magneto.report.comparison import Section
from magneto.report.content import Report
from magneto.report.loading import shown
from magneto.report.tables import cost_table, main_table, verdict

_WIDE = 24  # characters: beside a longer label, a terminal of 80 columns has room for one metric
_MOST = 8  # tables


def print_report(report: Report, console: Console | None = None) -> None:
    """Print the tables of a report and the paths of its files, relative to the working folder."""
    console = console or Console()
    sections = [
        section for section in report.comparison.sections if any(row.finished for row in section.rows)
    ]
    for section in sections[:_MOST]:
        console.print(screen_table(section))
        if sentence := verdict(section):
            console.print(Text(sentence))
        console.print()
    if rest := len(report.comparison.sections) - len(sections[:_MOST]):
        console.print(Text(f"{rest} more {'table' if rest == 1 else 'tables'} in the report"))
    console.print(Text(f"report: {shown(report.html)}"), soft_wrap=True)  # a path stays whole, to be copied
    console.print(Text(f"        {shown(report.markdown)}"), soft_wrap=True)


def screen_table(section: Section) -> ScreenTable:
    """Return the configurations with seeds, the first metrics and the time of a run; the best in bold."""
    main, cost = main_table(section), cost_table(section)
    metrics = [index for index, name in enumerate(main.header) if name.endswith((" ↓", " ↑"))]
    count = 1 if max(len(row.label) for row in section.rows) > _WIDE else 2
    columns = [0, main.header.index("seeds"), *(metrics[:count] or [3])]
    table = ScreenTable(title=Text(section.title), title_justify="left")
    for index in columns:
        table.add_column(
            main.header[index], justify="left" if index in main.words else "right", overflow="fold"
        )
    table.add_column("time", justify="right")
    for row, costs in zip(main.rows, cost.rows, strict=True):
        cells = [*(row[index] for index in columns), costs[cost.header.index("time")]]
        table.add_row(*(Text(cell.text, style="bold" if cell.bold else "") for cell in cells))
    return table
