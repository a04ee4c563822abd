"""Run folders: how a run is named, found again, resumed or refused, and what it leaves behind."""

import hashlib
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from magneto.errors import UserError

RESULT_SCHEMA = 1
ENDED = ("finished", "diverged")
"""Statuses of runs that the same command does not run again."""

# Already in the name, or without influence on the result.
_NOT_IN_NAME = ("task", "backbone", "size", "seed", "mode", "resume", "name", "runs_dir", "data_dir")
_VOLATILE = (
    "mode", "resume", "name", "runs_dir", "data_dir", "checkpoint", "input", "output", "logger", "summary",
    "trainer.enable_progress_bar", "trainer.threads", "data.num_workers", "data.data_dir",
)  # fmt: skip


def _is_volatile(key: str) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in _VOLATILE)


def slug(overrides: Sequence[str]) -> str:
    """Overrides as one file name: readable characters only, at most 120 of them (then cut, with a hash)."""
    text = re.sub(r"[^A-Za-z0-9_.=,+-]+", "_", "-".join(overrides)).strip("_")
    if len(text) > 120:
        text = f"{text[:110]}-{hashlib.sha256('-'.join(overrides).encode()).hexdigest()[:8]}"
    return text


def run_name(config: Mapping[str, Any], overrides: Sequence[str]) -> str:
    """The run's name: backbone, size, seed and whatever else was overridden; `name=` replaces it.

    Without a time stamp, so that the same command finds the same run again.
    """
    if config["name"]:
        return slug([config["name"]])
    rest = []
    for override in sorted(overrides):
        key = override.lstrip("+~").split("=", 1)[0].split("@")[0]
        if key not in _NOT_IN_NAME and not _is_volatile(key):
            rest.append(override.lstrip("+~"))
    head = f"{config['backbone']['placement']}-{config['size_name']}-seed{config['seed']}"
    return "-".join([head, slug(rest)]) if rest else head


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lines `key: old -> new` for every key that matters to the result and differs."""
    before, after = flatten(old), flatten(new)
    return [
        f"{key}: {before.get(key, '(absent)')} -> {after.get(key, '(absent)')}"
        for key in sorted(before.keys() | after.keys())
        if not _is_volatile(key) and before.get(key, "(absent)") != after.get(key, "(absent)")
    ]


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader, or a killed writer, never leaves half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"{path}: cannot be written ({error}). Free space or mend the permissions."
        ) from error


@dataclass(frozen=True)
class Start:
    """How a run begins: afresh, from a checkpoint, or not at all because it has finished."""

    checkpoint: Path | None = None
    result: dict[str, Any] | None = None


@dataclass(frozen=True)
class RunFolder:
    """`runs/<task>/<name>/` and the names of what lies in it."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def result(self) -> Path:
        """Status, final metrics and circumstances: the file that a report reads."""
        return self.path / "result.json"

    @property
    def metrics(self) -> Path:
        """All logged values, one `step,metric,value` a line."""
        return self.path / "metrics.csv"

    @property
    def samples(self) -> Path:
        """Examples to look at, one JSON object a line."""
        return self.path / "samples.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The folder of `best.ckpt` and `last.ckpt`."""
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        """The newest checkpoint: where the run goes on."""
        return self.checkpoints / "last.ckpt"

    @property
    def best(self) -> Path:
        """The checkpoint with the best monitored metric."""
        return self.checkpoints / "best.ckpt"

    def begin(self, config: Mapping[str, Any], resume: str) -> Start:
        """Decide how to start, and lay the folder out.

        Args:
            config: the resolved configuration, as plain values.
            resume: `auto` goes on where the folder says, `never` starts anew and keeps the old folder under another
                name, `must` demands a checkpoint, anything else is a checkpoint's path.

        Raises:
            UserError: the folder belongs to another configuration, there is nothing to resume, or a checkpoint from
                elsewhere would overwrite a run.
        """
        if resume == "never" and self.path.exists():
            number = 1
            while (kept := self.path.with_name(f"{self.path.name}.old{number}")).exists():
                number += 1
            self.path.rename(kept)
        if self.config.exists():
            changed = difference(read_config(self.config), config)
            if changed and not self.last.exists() and self.read_result_status() not in ENDED:
                self.config.unlink()  # it never came to a checkpoint: there is nothing to lose
            elif changed:
                raise UserError(
                    f"{self.path} belongs to a run with another configuration:\n  "
                    + "\n  ".join(changed)
                    + "\n"
                    "Give this run a name of its own (name=...), or start anew with resume=never (the old folder is kept)."
                )
        start = self._start(resume)
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        if not self.config.exists():
            write_atomically(self.config, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
        return start

    def _start(self, resume: str) -> Start:
        if resume not in ("auto", "never", "must"):
            if not Path(resume).is_file():
                raise UserError(
                    f"resume={resume}: no such file. Give a checkpoint's path, or auto, never or must."
                )
            own = Path(resume).resolve().parent == self.checkpoints.resolve()
            if not own and (self.last.exists() or self.read_result_status() in ENDED):
                raise UserError(
                    f"resume={resume}: {self.path} holds a run already, which would be overwritten. Give the new run a name "
                    "of its own (name=...), or say resume=auto to go on with that one."
                )
            return Start(checkpoint=Path(resume))
        result = self.read_result()
        if result is not None and result.get("status") in ENDED:
            return Start(result=result)
        if self.last.exists():
            return Start(checkpoint=self.last)
        if resume == "must":
            raise UserError(
                f"resume=must: {self.last} does not exist. Use resume=auto to start from the beginning."
            )
        return Start()

    def read_result(self) -> dict[str, Any] | None:
        """The content of result.json, or None where there is none yet."""
        if not self.result.exists():
            return None
        try:
            return dict(json.loads(self.result.read_text(encoding="utf-8")))
        except ValueError as error:
            raise UserError(
                f"{self.result}: not readable as JSON ({error}). Remove it and repeat the command."
            ) from error

    def read_result_status(self) -> str | None:
        """The status in result.json, or None."""
        result = self.read_result()
        return None if result is None else result.get("status")

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Replace result.json."""
        write_atomically(self.result, json.dumps(result, indent=2, ensure_ascii=False, allow_nan=True) + "\n")


def run_folder(config: Mapping[str, Any], overrides: Sequence[str]) -> RunFolder:
    """Return the folder of the run that `config` describes: `runs_dir/<task>/<name>`."""
    return RunFolder(Path(config["runs_dir"]) / config["task"]["name"] / run_name(config, overrides))


def ended_result(config: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any] | None:
    """Return the result of the run that `config` describes if it has ended and would not be run again; else None."""
    if config["resume"] not in ("auto", "must"):
        return None
    folder = run_folder(config, overrides)
    if not folder.config.is_file() or difference(read_config(folder.config), config):
        return None
    result = folder.read_result()
    return None if result is None or result.get("status") not in ENDED else result


def read_config(path: Path) -> dict[str, Any]:
    """A run's config.yaml as plain values."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(
            f"{path}: not readable ({error}). Remove the run's folder or use resume=never."
        ) from error
    if not isinstance(config, dict):
        raise UserError(
            f"{path}: does not hold a configuration. Remove the run's folder or use resume=never."
        )
    return config


def git_revision() -> str | None:
    """The commit that this package was checked out at, with `-dirty` when files differ; None outside a checkout.

    An installed copy may lie inside a repository of its user, whose commits say nothing of it: git must know this file.
    """
    try:
        subprocess.run(
            ["git", "ls-files", "--error-unmatch", Path(__file__).name],
            cwd=Path(__file__).parent, capture_output=True, timeout=10, check=True,
        )  # fmt: skip
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def versions() -> dict[str, str]:
    """Versions of what the numbers of a run depend on."""
    names = ("magneto", "torch", "torchaudio", "torchvision", "lightning", "hydra-core", "wandb", "numpy")
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
