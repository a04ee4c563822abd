"""The rows of `gpu.py`: what was found, within which time, as a table and as JSON."""

import gc
import json
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from rich import box
from rich.console import Console
from rich.table import Table

OK, FAILED, LEFT_OUT = "ok", "failed", "left out"
LONGEST_NOTE = 160
T = TypeVar("T")


class OutOfTime(BaseException):
    """The minutes are over; no handler of errors takes it for one."""


@dataclass
class Row:
    """One finding.

    Attributes:
        part: correctness, speed, placements, generation or goals.
        name: what was checked or timed.
        outcome: ok, failed or left out.
        note: a deviation beside its tolerance, or the message of an error.
        values: numbers by name: `ms`, `rate` (units a second), `mfu` (a share), `memory_mib`, `waits` (operations at which
            the host waits for the GPU), `relative` (time over that of the row's reference), `deviation`...
        unit: of `rate`.
    """

    part: str
    name: str
    outcome: str = OK
    note: str = ""
    values: dict[str, float] = field(default_factory=dict)
    unit: str = ""

    def cells(self) -> list[str]:
        """Return the row of the table."""
        formats: dict[str, Callable[[float], str]] = {
            "ms": lambda x: f"{x:,.1f}",
            "rate": lambda x: f"{x:,.0f} {self.unit}/s",
            "mfu": lambda x: f"{100 * x:.1f} %",
            "memory_mib": lambda x: f"{x / 1024:.2f}",
            "waits": lambda x: f"{x:g}",
            "relative": lambda x: f"x{x:.2f}",
        }
        shown = [form(self.values[key]) if key in self.values else "" for key, form in formats.items()]
        return [self.part, self.name, self.outcome, *shown, self.note]


class Report:
    """Runs checks, each for itself, until the minutes are over.

    Args:
        minutes: for all checks together. A check that begins later is left out, one that takes longer is cut off.
    """

    def __init__(self, minutes: float) -> None:
        self.minutes = minutes
        self.rows: list[Row] = []
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._started

    def add(
        self, part: str, name: str, outcome: str = OK, note: str = "", unit: str = "", **values: float
    ) -> None:
        """Add a row, and show that it is there: a table comes only at the end."""
        row = Row(part, name, outcome, note, {key: float(value) for key, value in values.items()}, unit)
        self.rows.append(row)
        print(f"{self.seconds:5.0f} s  " + "  ".join(filter(None, row.cells())), flush=True)

    def run(self, part: str, name: str, check: Callable[[], T]) -> T | None:
        """Return what `check` returns; what it raises becomes a row, and so does that there was no time for it: None."""
        left = 60 * self.minutes - self.seconds
        if left <= 0:
            self.add(part, name, LEFT_OUT, f"the {self.minutes:g} minutes were over")
            return None

        def stop(*_: object) -> NoReturn:
            raise OutOfTime

        began = time.monotonic()
        handler = signal.signal(signal.SIGALRM, stop)
        before, _ = signal.setitimer(signal.ITIMER_REAL, left)  # that of an outer check, or of a test
        try:
            return check()
        except OutOfTime:
            self.add(part, name, LEFT_OUT, f"cut off when the {self.minutes:g} minutes were over")
        except ImportError as error:
            self.add(part, name, LEFT_OUT, message(error))
        except Exception as error:
            self.add(part, name, FAILED, message(error))
        finally:
            signal.signal(signal.SIGALRM, handler)
            rest = max(1e-3, before - (time.monotonic() - began)) if before else 0.0
            signal.setitimer(signal.ITIMER_REAL, rest)
            release_memory()
        return None

    @property
    def correct(self) -> bool:
        """Whether no check of correctness failed."""
        return not any(row.part == "correctness" and row.outcome == FAILED for row in self.rows)

    def value(self, part: str, name: str, key: str) -> float | None:
        """Return a number of a row; None where it was not measured."""
        found = (row.values.get(key) for row in self.rows if (row.part, row.name) == (part, name))
        return next(found, None)

    def print_table(self, console: Console) -> None:
        """Print all rows as one Markdown table."""
        heads = ("part", "what", "outcome", "ms", "speed", "MFU", "GiB", "waits", "relative", "note")
        table = Table(*heads, box=box.MARKDOWN)
        for column in table.columns[3:9]:
            column.justify = "right"
        for row in self.rows:
            table.add_row(*row.cells())
        console.print(table)

    def write(self, file: Path, facts: dict[str, Any]) -> None:
        """Write `facts` and the rows as JSON."""
        content = facts | {"seconds": self.seconds, "rows": [asdict(row) for row in self.rows]}
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Goal:
    """A number to reach.

    Args:
        words: what it says.
        row: part, name and key of the row's value.
        least: what the value is to be, or more.
    """

    words: str
    row: tuple[str, str, str]
    least: float

    def judge(self, report: Report, device: str) -> None:
        """Add the row that says whether it was reached; not on a device that it is not meant for."""
        value = report.value(*self.row)
        if value is None:
            report.add("goals", self.words, LEFT_OUT, "not measured")
        elif not any(name in device for name in ("H100", "H200")):
            report.add(
                "goals", self.words, LEFT_OUT, f"{value:.3f} here; meant for an H100 or H200", value=value
            )
        else:
            reached = value >= self.least
            report.add("goals", self.words, OK if reached else FAILED, f"{value:.3f}", value=value)


def judge(goals: Iterable[Goal], report: Report, device: str) -> None:
    """Add a row for each goal."""
    for goal in goals:
        goal.judge(report, device)


def message(error: BaseException) -> str:
    """Return type and first line of an error, on one line of the table."""
    text = str(error).strip().partition("\n")[0].replace("|", "/")
    return f"{type(error).__name__}: {text}"[:LONGEST_NOTE]


@contextmanager
def quiet(log: Path) -> Iterator[None]:
    """Append what is printed to `log`: a run of ten steps prints a page."""
    with log.open("a", encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        yield


def release_memory() -> None:
    """Free what the last check held, on the GPU too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
