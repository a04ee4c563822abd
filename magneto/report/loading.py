"""From folders on disk to `Run`s: what a finished, diverged, failed or interrupted run left behind.

A report must not fail because one run is broken. So everything that cannot be read is named, with its reason,
in a list of problems, and the rest is compared. Only standard library and numpy: a report is made without
torch.
"""

import csv
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from magneto.errors import UserError

SCHEMA = 1
"""The version of result.json that this code understands."""

_SET_ASIDE = re.compile(r"\.old\d+$")
"""What `resume=never` calls the folder of an older run: superseded, so only read when it is given by name."""

STATUSES = ("finished", "diverged", "failed", "interrupted")


@dataclass(frozen=True)
class Curve:
    """One metric of one run: `steps` (N,), increasing optimizer steps, and `values` (N,), finite or not."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]

    def finite(self) -> "Curve":
        """The points whose value is finite."""
        keep = np.isfinite(self.values)
        return Curve(self.steps[keep], self.values[keep])


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run as its result.json tells it; a value that it did not reach is None, or not in `metrics`."""

    folder: Path
    status: str
    message: str | None
    task: str
    name: str
    backbone: str
    size: str
    data: str
    seed: int
    overrides: tuple[str, ...]
    monitor: str | None
    mode: str | None
    best: float | None
    best_step: int | None
    headline: str | None
    metrics: dict[str, float]
    steps: int | None
    parameters: int | None
    wall_s: float | None
    data_wait_fraction: float | None
    throughput: dict[str, float]
    peak_memory_bytes: int | None
    git: str | None
    versions: dict[str, str]
    config: dict[str, Any]

    @property
    def finished(self) -> bool:
        """Whether the run came to its planned end; only such runs enter a mean."""
        return self.status == "finished"

    @cached_property
    def curves(self) -> dict[str, Curve]:
        """Every metric of metrics.csv; empty when the file is missing."""
        return read_curves(self.folder / "metrics.csv")

    @cached_property
    def samples(self) -> dict[str, dict[str, Any]]:
        """The samples of samples.jsonl by example id: those of the test split where the run came to it."""
        return read_samples(self.folder / "samples.jsonl")


def load_runs(paths: Iterable[str | Path]) -> tuple[list[Run], list[str]]:
    """Read every run at or below `paths`.

    Returns:
        The runs, ordered by folder, each once; and one sentence for each folder that was left out.

    Raises:
        UserError: a path does not exist, or no readable run lies at or below any of them.
    """
    places = [Path(path) for path in paths]
    runs, problems = [], []
    for folder in _run_folders(places):
        file = folder / "result.json"
        if not file.is_file():
            problems.append(
                f"{shown(folder)}: no result.json: still running, or killed (repeat its command to finish)"
            )
            continue
        try:
            runs.append(_parse(folder, json.loads(file.read_text(encoding="utf-8"))))
        except UserError as error:
            problems.append(f"{shown(file)}: {error}")
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            problems.append(f"{shown(file)}: cannot be read ({error})")
    if not runs:
        where = ", ".join(map(str, places)) or "no path was given"
        left_out = "".join(f"\n  left out: {problem}" for problem in problems)
        raise UserError(
            f"no finished run to report on ({where}): a run is a folder with a readable result.json, "
            f"such as runs/asr/magneto-tiny-seed1. Give run folders or folders that contain them.{left_out}"
        )
    return runs, problems


def shown(path: Path) -> str:
    """A path as a message shows it: relative to the working folder when it lies below it."""
    absolute = path.absolute()
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else path)


def _run_folders(paths: list[Path]) -> list[Path]:
    found: dict[Path, Path] = {}  # resolved -> as the user wrote it, so that a run named twice counts once
    for path in paths:
        if not path.is_dir():
            raise UserError(f"{path}: no such folder; give run folders or folders that contain runs")
        for parent, folders, files in os.walk(path):
            if "result.json" in files or "metrics.csv" in files:
                found.setdefault(Path(parent).resolve(), Path(parent))
                folders.clear()  # a run's own folder (checkpoints, wandb) holds no other run
            folders[:] = sorted(name for name in folders if not _SET_ASIDE.search(name))
    return list(found.values())


def _parse(folder: Path, raw: Any) -> Run:
    if not isinstance(raw, dict):
        raise UserError(f"holds a {type(raw).__name__}, not an object")
    if raw.get("schema") != SCHEMA:
        raise UserError(
            f"schema is {raw.get('schema')!r}, this version reads {SCHEMA}; repeat the run with this version"
        )
    status = _get(raw, "status", str, required=True)
    if status not in STATUSES:
        raise UserError(f"status is {status!r}, not one of {', '.join(STATUSES)}")
    monitor = _get(raw, "monitor", dict) or {}
    time = _get(raw, "time", dict) or {}
    return Run(
        folder=folder,
        status=status,
        message=_get(raw, "message", str),
        task=_get(raw, "task", str, required=True),
        name=_get(raw, "name", str, required=True),
        backbone=_get(raw, "backbone", str) or "",
        size=_get(raw, "size", str) or "",
        data=_get(raw, "data", str) or "",
        seed=_get(raw, "seed", int, required=True),
        overrides=tuple(str(item) for item in _get(raw, "overrides", list) or ()),
        monitor=_get(monitor, "metric", str, "monitor."),
        mode=_get(monitor, "mode", str, "monitor."),
        best=_get(monitor, "best", float, "monitor."),
        best_step=_get(monitor, "best_step", int, "monitor."),
        headline=_get(raw, "headline", str),
        metrics=_numbers(_get(raw, "metrics", dict), "metrics"),
        steps=_get(raw, "steps", int),
        parameters=_get(raw, "parameters", int),
        wall_s=_get(time, "wall_s", float, "time."),
        data_wait_fraction=_get(time, "data_wait_fraction", float, "time."),
        throughput=_numbers(_get(raw, "throughput", dict), "throughput"),
        peak_memory_bytes=_get(raw, "peak_memory_bytes", int),
        git=_get(raw, "git", str),
        versions={str(key): str(value) for key, value in (_get(raw, "versions", dict) or {}).items()},
        config=_get(raw, "config", dict, required=True),
    )


def _get(raw: dict[str, Any], key: str, kind: type, prefix: str = "", *, required: bool = False) -> Any:
    """`raw[key]` checked to be of `kind`; a whole number passes for either kind of number; null is None."""
    value = raw.get(key)
    if value is None:
        if required:
            raise UserError(f"{prefix}{key} is missing")
        return None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UserError(f"{prefix}{key} is {value!r}, not a {kind.__name__}")
    return value


def _numbers(raw: dict[str, Any] | None, where: str) -> dict[str, float]:
    """The entries of a name -> number object that are finite; null and NaN mean that there is no value."""
    entries = raw or {}
    numbers = {str(key): _get(entries, key, float, f"{where}.") for key in entries}
    return {key: value for key, value in numbers.items() if value is not None and np.isfinite(value)}


def read_curves(path: Path) -> dict[str, Curve]:
    """Read a tidy `step,metric,value` file; a missing file gives no curves.

    A killed run leaves a truncated last line. `0.4` may be the beginning of `0.4123`, so a last line without
    its line feed is dropped even if it parses, as is every line that does not parse. Of several values at one
    step the last counts: a resumed run repeats the steps after its checkpoint.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return {}
    points: dict[str, dict[int, float]] = {}
    for row in csv.reader(
        line.replace("\0", "") for line in text.splitlines(keepends=True) if line.endswith("\n")
    ):
        try:
            step, metric, value = row
            points.setdefault(metric, {})[int(step)] = float(value)
        except ValueError:  # the header, or a line that was cut
            continue
    curves = {}
    for metric, series in points.items():
        steps = np.array(sorted(series), dtype=np.int64)
        curves[metric] = Curve(steps, np.array([series[step] for step in steps.tolist()], dtype=np.float64))
    return curves


def read_samples(path: Path) -> dict[str, dict[str, Any]]:
    """Read samples.jsonl: the last object of each `id`, of the test split if there are any.

    Lines that do not parse (a killed run) are passed over.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return {}
    samples: dict[bool, dict[str, dict[str, Any]]] = {True: {}, False: {}}  # of the test split or not
    for line in text.splitlines():
        try:
            sample = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(sample, dict) and "id" in sample:
            samples[sample.get("split") == "test"][str(sample["id"])] = sample
    return samples[True] or samples[False]
