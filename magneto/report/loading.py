"""From folders on disk to `Run`s, whether the run finished, diverged, failed, was interrupted or was killed.

A report must not fail because one run is broken: what cannot be read is in a list of problems with its reason, and the
rest is compared. This module does not import torch, so that a report takes seconds.
"""

import csv
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from magneto.errors import ConfigError, MagnetoError
from magneto.report.curves import HUGE, Curve, read_curves
from magneto.report.ending import Ending
from magneto.training.result import SCHEMA, RunResult

_DEBUG = re.compile(r"\+{0,2}debug=")

_SET_ASIDE = re.compile(r"\.old\d+$")
"""Suffix of an older run's folder that `resume=never` set aside; it is read only if its own path is given."""

_OWN_FOLDERS = ("checkpoints", "export", "samples", "wandb")
"""Folders inside of a run's folder, which hold no other run."""


@dataclass(frozen=True, kw_only=True)
class Run(RunResult):
    """Run as its result.json, or else its config.yaml, describes it.

    `metrics` and `throughput` hold finite values only. `named`: its folder was given, not one above it.
    """

    folder: Path
    named: bool = False
    recorded: Ending | None = None
    """How it went, where a results.csv says so and there are no curves."""

    @property
    def finished(self) -> bool:
        """Whether the run reached its planned end; means are over such runs only."""
        return self.status == "finished"

    @property
    def trained(self) -> bool:
        """Whether the run reached its first optimizer step, as far as its files show."""
        return bool(self.steps) or self.finished or (self.folder / "checkpoints" / "last.ckpt").exists()

    @property
    def debug(self) -> bool:
        """Whether the command had `debug=`."""
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
    def ending(self) -> Ending:
        """How the training went."""
        return self.recorded or Ending.of_curves(self.curves)

    @cached_property
    def samples(self) -> dict[str, dict[str, Any]]:
        """Samples of samples.jsonl by example id, of the test split if there are any."""
        return read_samples(self.folder / "samples.jsonl")


def load_runs(paths: Iterable[str | Path]) -> tuple[list[Run], list[str]]:
    """Read every run at or below `paths`, or in the results.csv of an earlier report.

    Returns:
        The runs, ordered by folder, each once; and one sentence for each folder or file that was left out.

    Raises:
        ConfigError: a path does not exist, or no readable run lies at or below any of them.
    """
    given = [Path(path) for path in paths]
    named = {path.resolve() for path in given}
    runs: list[Run] = []
    problems: list[str] = []
    tables = [path for path in given if path.suffix == ".csv" and path.is_file()]
    for table in tables:
        runs += _read_results(table)
    for folder in _run_folders([path for path in given if path not in tables], problems):
        try:
            runs.append(_read_run(folder, folder.resolve() in named))
        except MagnetoError as error:
            problems.append(f"{shown(folder)}: {error}")
            continue
        for name in ("metrics.csv", "samples.jsonl"):
            if reason := _unreadable(folder / name):
                file = shown(folder / name)
                problems.append(f"{file}: cannot be read ({reason}); the run is shown without it")
    if not runs:
        where = ", ".join(map(str, given)) or "no path was given"
        left_out = "".join(f"\n  left out: {problem}" for problem in problems)
        raise ConfigError(
            f"no run to report on ({where}): a run is a folder with a readable result.json, "
            f"such as runs/asr/magneto-tiny-seed1. Give run folders or folders that contain them.{left_out}"
        )
    return runs, problems


COLUMNS = (
    "seed",
    "status",
    "primary_metric",
    "monitor",
    "mode",
    "steps",
    "best_step",
    "parameters",
    "gain",
    "wall_s",
    "fit_s",
)
"""Fields of a run that results.csv has by their own names."""


_FIXED = {
    "task",
    "data",
    "configuration",
    "backbone",
    "size",
    "first_loss",
    *COLUMNS,
    *(field.name for field in fields(Ending)),
}
"""Columns of results.csv that are neither metrics, which have a `/`, nor keys of the configuration."""


def _read_results(file: Path) -> list[Run]:
    """Read the rows of a results.csv (`markup.run_records`), of this version or of one that had fewer keys.

    Raises:
        ConfigError: the file cannot be read, a column is missing, or a row does not describe a run; the message says which.
    """
    runs = []
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(f"{file}: cannot be read ({error}).") from error
    for number, row in enumerate(rows, start=2):
        values = {key: _plain(value) for key, value in row.items() if value not in ("", None)}
        try:
            name = f"{values['configuration']}, seed {values['seed']}"
            config = _nested(
                {key: value for key, value in values.items() if "/" not in key and key not in _FIXED}
            )
            for part in ("task", "data"):
                config.setdefault(part, {})["name"] = values[part]
            config.setdefault("backbone", {})["placement"] = values["backbone"]
            content: dict[str, Any] = {"schema": SCHEMA, "config": config, "name": name}
            content |= {key: values.get(key) for key in ("task", "data", "backbone", "size", *COLUMNS)}
            monitored = {"metric": content.pop("monitor"), "mode": content.pop("mode")}
            content["monitor"] = monitored | {"best_step": content.pop("best_step")}
            content["time"] = {key: content.pop(key) for key in ("wall_s", "fit_s")}
            content["metrics"] = {key: value for key, value in values.items() if "/" in key}
            content["probe"] = {"first_loss": values.get("first_loss")}
            ending = Ending(values.get("loss_middle"), values.get("loss_end"), values.get("spike_score", 0.0))
            run = Run.from_dict(content, folder=file.parent / name, recorded=ending)
        except KeyError as error:
            raise ConfigError(
                f"{file}: line {number} has no {error}: it is no results.csv of a report, which has a row for each run."
            ) from error
        except MagnetoError as error:
            raise ConfigError(f"{file}: line {number}: {error}") from error
        runs.append(run)
    return runs


def _plain(text: str | None) -> Any:
    """Return a number, a truth value or else the text."""
    try:
        return json.loads(text or "")
    except ValueError:
        return text


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    """Return `{"a": {"b": 1}}` for `{"a.b": 1}`."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *path, last = key.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return tree


def shown(path: Path) -> str:
    """Return a path for a message: relative to the working folder if it is inside of it."""
    absolute = path.absolute()
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else path)


def setting(config: dict[str, Any], key: str) -> Any:
    """Return the value of a dotted key of a configuration; None if there is none."""
    node: Any = config
    for name in key.split("."):
        node = node.get(name) if isinstance(node, dict) else None
    return node


def _run_folders(paths: list[Path], problems: list[str]) -> list[Path]:
    """Return each run's folder once, as the user wrote it. Links are followed, but no folder is entered twice."""
    runs: list[Path] = []
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
            started = "config.yaml" in files and "checkpoints" in folders
            if started or "result.json" in files or "metrics.csv" in files:
                runs.append(Path(parent))
                folders[:] = [name for name in folders if name not in _OWN_FOLDERS]
            aside += [shown(Path(parent) / name) for name in folders if _SET_ASIDE.search(name)]
            folders[:] = sorted(name for name in folders if not _SET_ASIDE.search(name))
    if aside:
        problems.append(
            f"{len(aside)} set aside by resume=never ({few(aside)}): give such a folder itself to include it"
        )
    return runs


def few(names: list[str]) -> str:
    """Return the first three names of a list, and the number of the others."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _unreadable(path: Path) -> str | None:
    """Return why a file cannot be read; None if it can or does not exist."""
    try:
        path.open("rb").close()
    except FileNotFoundError:
        return None
    except OSError as error:
        return error.strerror
    return None


def _read_run(folder: Path, named: bool) -> Run:
    """Read the run in `folder`.

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
        reason = str(error)
        if not isinstance(error, MagnetoError):
            reason = f"cannot be read ({' '.join(reason.split())})"
        raise ConfigError(f"{file.name}: {reason}") from error


def _unfinished(folder: Path, config: Any) -> dict[str, Any]:
    """Return the result.json of a run that is still running or was killed, from its configuration."""
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
    run = Run.from_dict(raw, folder=folder, named=named)
    steps = _last_step(folder) if run.steps is None else run.steps
    return replace(run, steps=steps, metrics=_measured(run.metrics), throughput=_measured(run.throughput))


def _measured(values: dict[str, float]) -> dict[str, float]:
    """Return the finite values; null, NaN and absurd ones mean that there is no value."""
    return {key: value for key, value in values.items() if abs(value) < HUGE}


def _last_step(folder: Path) -> int | None:
    """Return the last step in metrics.csv, for a run whose result does not have it."""
    return max((int(curve.steps[-1]) for curve in read_curves(folder / "metrics.csv").values()), default=None)


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
