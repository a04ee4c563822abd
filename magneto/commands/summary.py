"""Summarise a run on the screen: results, files, and the next commands.

The imports are light, so that a command whose run has finished already answers at once.
"""

import math
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from magneto.training.result import RunResult


def ended(result: RunResult, folder: Path, full: bool) -> str:
    """Return the summary of a run that the same command does not run again."""
    return summarize(result, folder, f"already {result.status}; use resume=never to start over", full)


def summarize(result: RunResult, folder: Path, status: str, full: bool = False) -> str:
    """Return the summary of a run as text.

    Args:
        result: of the run.
        folder: the run's folder.
        status: what to call its state, such as `finished`.
        full: with every metric.
    """
    shown = _near(folder)
    metrics, primary_metric = result.metrics, result.primary_metric
    rows: list[tuple[str, str]] = []
    if primary_metric in metrics:
        rows.append((primary_metric, f"{number(metrics[primary_metric]):10} primary metric"))
    if result.monitor is not None and result.best is not None:
        step = f"best, at step {result.best_step} of {result.steps}"
        rows.append((result.monitor, f"{number(result.best):10} {step}"))
    if result.message:
        rows.append(("message", result.message))
    if result.wall_s is not None:
        wait = result.data_wait_fraction
        rows.append(
            ("time", duration(result.wall_s) + ("" if wait is None else f", {wait:.0%} of it data loading"))
        )
    for name, path in (("export", folder / "export"), ("samples", folder / "samples.jsonl")):
        if path.exists():
            rows.append((name, str(_near(path))))
    if any(folder.glob("wandb/offline-run-*")):
        rows.append(("W&B", f"wandb sync {shlex.quote(str(shown))}/wandb/offline-run-*"))
    if metrics and not full:
        rows.append(("all metrics", f"{_near(folder / 'result.json')} (summary=full prints them)"))
    width = max((len(name) for name, _ in rows), default=0)
    lines = [f"{shown}: {status}", *(f"  {name:{width}}  {value}" for name, value in rows)]
    if full:
        lines.append(metric_lines(metrics))
    if metrics:
        lines.append("next:")
        if result.example_input and (folder / "export").exists():
            checkpoint = _override("checkpoint", str(shown))
            lines.append(f"  {_program()} mode=predict {checkpoint} {result.example_input}")
        lines.append(f"  python -m magneto.report {shlex.quote(str(shown))}")
    return "\n".join(lines)


def metric_lines(metrics: Mapping[str, float], primary_metric: str | None = None) -> str:
    """Return metrics by their names, a line each, `primary_metric` first."""
    width = max(map(len, metrics), default=0)
    names = sorted(metrics, key=lambda name: (name != primary_metric, name))
    return "\n".join(f"  {name:{width}}  {number(metrics[name])}" for name in names)


def number(value: float) -> str:
    """Return a metric's value as the screen shows it."""
    return f"{value:.4f}" if math.isfinite(value) else str(value)


def duration(seconds: float) -> str:
    """Return seconds as a short text: `45 s`, `12.3 min`, `2.5 h`, `3.1 days`."""
    for unit, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= (2 * unit if name == "days" else unit):
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.0f} s"


def _near(path: Path) -> Path:
    """Return the path from the working folder where it is below it, else as it is."""
    try:
        return path.absolute().relative_to(Path.cwd())
    except (ValueError, FileNotFoundError):  # elsewhere; the working folder was removed
        return path


def _override(key: str, value: str) -> str:
    """Return `key=value` for a shell and for Hydra, which would read a comma as a choice."""
    return shlex.quote(f'{key}="{value}"' if "," in value else f"{key}={value}")


def _program() -> str:
    called = Path(sys.argv[0]).name
    return (
        "magneto" if called == "magneto" else "python run.py" if called == "run.py" else "python -m magneto"
    )
