"""From folders on disk to `Run`s: what a finished, diverged, failed, interrupted or killed run left behind.

A report must not fail because one run is broken. So everything that cannot be read is named, with its reason,
in a list of problems, and the rest is compared. Without torch: a report is made in seconds.
"""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from magneto.errors import ConfigError, MagnetoError
from magneto.report.curves import HUGE, Curve, current_name, read_curves

SCHEMA = 1
"""The version of result.json that this code understands."""

_DEBUG = re.compile(r"\+{0,2}debug=")

_SET_ASIDE = re.compile(r"\.old\d+$")
"""What `resume=never` calls the folder of an older run: superseded, so only read when it is given by name."""

_OWN_FOLDERS = ("checkpoints", "export", "samples", "wandb")
"""What a run's folder holds besides its files: no other run."""

STATUSES = ("finished", "diverged", "failed", "interrupted", "unfinished")
"""`unfinished`: there is no result.json, as the run was killed or is still running."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run as its result.json (or else its config.yaml) describes it.

    A value that it did not reach is None, or not in `metrics`. `named`: its folder was given, not one above it.
    """

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
    primary_metric: str | None
    metrics: dict[str, float]
    steps: int | None
    parameters: int | None
    wall_s: float | None
    data_wait_fraction: float | None
    throughput: dict[str, float]
    peak_memory_bytes: int | None
    run_peak_memory_bytes: int | None
    git: str | None
    versions: dict[str, str]
    config: dict[str, Any]
    named: bool = False

    @property
    def finished(self) -> bool:
        """Whether the run came to its planned end; only such runs enter a mean."""
        return self.status == "finished"

    @property
    def trained(self) -> bool:
        """Whether the run came to its first optimizer step, as far as its files say."""
        return bool(self.steps) or self.finished or (self.folder / "checkpoints" / "last.ckpt").exists()

    @property
    def debug(self) -> bool:
        """Whether the command said `debug=`."""
        chosen = [text.lstrip("+").partition("=")[2] for text in self.overrides if _DEBUG.match(text)]
        return bool(chosen) and chosen[-1] not in ("null", "")

    @property
    def planned_steps(self) -> int | None:
        """`trainer.max_steps`."""
        steps = setting(self.config, "trainer.max_steps")
        return steps if isinstance(steps, int) else None

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
        The runs, ordered by folder, each once; and one sentence for each folder or file that was left out.

    Raises:
        ConfigError: a path does not exist, or no readable run lies at or below any of them.
    """
    places = [Path(path) for path in paths]
    named = {place.resolve() for place in places}
    runs: list[Run] = []
    problems: list[str] = []
    for folder in _run_folders(places, problems):
        try:
            runs.append(_read_run(folder, folder.resolve() in named))
        except MagnetoError as error:
            problems.append(f"{shown(folder)}: {error}")
            continue
        for name in ("metrics.csv", "samples.jsonl"):
            if reason := _unreadable(folder / name):
                problems.append(
                    f"{shown(folder / name)}: cannot be read ({reason}); the run is shown without it"
                )
    if not runs:
        where = ", ".join(map(str, places)) or "no path was given"
        left_out = "".join(f"\n  left out: {problem}" for problem in problems)
        raise ConfigError(
            f"no run to report on ({where}): a run is a folder with a readable result.json, "
            f"such as runs/asr/magneto-tiny-seed1. Give run folders or folders that contain them.{left_out}"
        )
    return runs, problems


def shown(path: Path) -> str:
    """A path as a message shows it: relative to the working folder when it lies below it."""
    absolute = path.absolute()
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else path)


def setting(config: dict[str, Any], key: str) -> Any:
    """The value of a dotted key of a configuration; None where there is none."""
    node: Any = config
    for name in key.split("."):
        node = node.get(name) if isinstance(node, dict) else None
    return node


def _run_folders(paths: list[Path], problems: list[str]) -> list[Path]:
    """Each run's folder once, as the user wrote it. Links are followed; a folder that was visited is not entered again."""
    found: list[Path] = []
    aside: list[str] = []
    visited: set[Path] = set()

    def unreadable(error: OSError) -> None:
        problems.append(f"{shown(Path(error.filename))}: cannot be read ({error.strerror})")

    for path in paths:
        if not path.is_dir():
            raise ConfigError(f"{path}: no such folder; give run folders or folders that contain runs")
        for parent, folders, files in os.walk(path, onerror=unreadable, followlinks=True):
            real = Path(parent).resolve()
            if real in visited:
                folders.clear()
                continue
            visited.add(real)
            if (
                "result.json" in files
                or "metrics.csv" in files
                or ("config.yaml" in files and "checkpoints" in folders)
            ):
                found.append(Path(parent))
                folders[:] = [name for name in folders if name not in _OWN_FOLDERS]
            aside += [shown(Path(parent) / name) for name in folders if _SET_ASIDE.search(name)]
            folders[:] = sorted(name for name in folders if not _SET_ASIDE.search(name))
    if aside:
        problems.append(
            f"{len(aside)} set aside by resume=never ({few(aside)}): give such a folder itself to include it"
        )
    return found


def few(names: list[str]) -> str:
    """The first names of a list that may be long."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _unreadable(path: Path) -> str | None:
    """Why a file that is there cannot be read; None where it can or is not there."""
    try:
        path.open("rb").close()
    except FileNotFoundError:
        return None
    except OSError as error:
        return error.strerror
    return None


def _read_run(folder: Path, named: bool) -> Run:
    """The run in `folder`.

    Raises:
        ConfigError: neither result.json nor config.yaml can be read; the message names the file.
    """
    result, config = folder / "result.json", folder / "config.yaml"
    file = result if result.exists() else config
    try:
        if not file.is_file():
            raise ConfigError("is not there: no run, or one that was deleted in part")
        text = file.read_text(encoding="utf-8")
        raw = json.loads(text) if file == result else _unfinished(folder, yaml.safe_load(text))
        # Half a character, as a name that is not UTF-8 leaves it, cannot be written into a report.
        raw = json.loads(json.dumps(raw, ensure_ascii=False, default=str).encode(errors="replace"))
        return _parse(folder, raw, named)
    except (OSError, ValueError, ArithmeticError, RecursionError, yaml.YAMLError) as error:
        reason = (
            str(error)
            if isinstance(error, MagnetoError)
            else f"cannot be read ({' '.join(str(error).split())})"
        )
        raise ConfigError(f"{file.name}: {reason}") from error


def _unfinished(folder: Path, config: Any) -> dict[str, Any]:
    """What result.json would say of a run that is still running or was killed, from its configuration."""
    if not isinstance(config, dict):
        raise ConfigError("does not hold a configuration")
    return {
        "schema": SCHEMA,
        "status": "unfinished",
        "message": "no result.json: still running, or killed; the same command resumes it",
        "task": setting(config, "task.name"),
        "name": folder.resolve().name,
        "backbone": setting(config, "backbone.placement"),
        "size": config.get("size_name"),
        "data": setting(config, "data.name"),
        "seed": config.get("seed"),
        "config": config,
    }


def _parse(folder: Path, raw: Any, named: bool) -> Run:
    if not isinstance(raw, dict):
        raise ConfigError(f"holds a {type(raw).__name__}, not an object")
    if raw.get("schema") != SCHEMA:
        raise ConfigError(
            f"schema is {raw.get('schema')!r}, this version reads {SCHEMA}; repeat the run with this version"
        )
    status = _get(raw, "status", str, required=True)
    if status not in STATUSES:
        raise ConfigError(f"status is {status!r}, not one of {', '.join(STATUSES)}")
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
        primary_metric=_get(raw, "primary_metric", str) or _get(raw, "headline", str),
        metrics=_numbers(_get(raw, "metrics", dict), "metrics"),
        steps=_last_step(folder) if (steps := _get(raw, "steps", int)) is None else steps,
        parameters=_get(raw, "parameters", int),
        wall_s=_get(time, "wall_s", float, "time."),
        data_wait_fraction=_get(time, "data_wait_fraction", float, "time."),
        throughput=_numbers(_get(raw, "throughput", dict), "throughput"),
        peak_memory_bytes=_get(raw, "peak_memory_bytes", int),
        run_peak_memory_bytes=_get(raw, "run_peak_memory_bytes", int),
        git=_get(raw, "git", str),
        versions={str(key): str(value) for key, value in (_get(raw, "versions", dict) or {}).items()},
        config=_get(raw, "config", dict, required=True),
        named=named,
    )


def _last_step(folder: Path) -> int | None:
    """The last step in metrics.csv, of a run that could not note how far it came."""
    return max((int(curve.steps[-1]) for curve in read_curves(folder / "metrics.csv").values()), default=None)


def _get(raw: dict[str, Any], key: str, kind: type, prefix: str = "", *, required: bool = False) -> Any:
    """`raw[key]` checked to be of `kind`; a whole number passes for either kind of number; null is None."""
    value = raw.get(key)
    if value is None:
        if required:
            raise ConfigError(f"{prefix}{key} is missing")
        return None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ConfigError(f"{prefix}{key} is {value!r}, not a {kind.__name__}")
    return value


def _numbers(raw: dict[str, Any] | None, where: str) -> dict[str, float]:
    """The entries of a name -> number object that are finite; null, NaN and absurd ones mean that there is no value."""
    entries = raw or {}
    numbers = {current_name(str(key)): _get(entries, key, float, f"{where}.") for key in entries}
    return {key: value for key, value in numbers.items() if value is not None and abs(value) < HUGE}


def read_samples(path: Path) -> dict[str, dict[str, Any]]:
    """Read samples.jsonl: the last object of each `id`, of the test split if there are any.

    Lines that do not parse (a killed run) are skipped.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    samples: dict[bool, dict[str, dict[str, Any]]] = {True: {}, False: {}}  # of the test split or not
    for line in text.split("\n"):  # only here: a text may hold U+2028
        try:
            sample = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(sample, dict) and "id" in sample:
            samples[sample.get("split") == "test"][str(sample["id"])] = sample
    return samples[True] or samples[False]
