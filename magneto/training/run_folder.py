"""Run folders: how a run is named, found again, resumed or refused, and what it leaves behind."""

import contextlib
import json
import math
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, SoftFileLock, Timeout

from magneto.errors import ConfigError
from magneto.training.files import finite, write_atomically
from magneto.training.run_config import difference, run_name

RESULT_SCHEMA = 1
ENDED = ("finished", "diverged")
"""Statuses of runs that the same command does not run again."""


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

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for this process alone; the system releases it when the process ends, however it ends.

        The lock lies beside the folder, which `resume=never` renames.

        Raises:
            ConfigError: another process holds it.
        """
        lock = FileLock(self._lock_file)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            raise ConfigError(self._busy()) from None
        except OSError as error:
            raise ConfigError(
                f"{self._lock_file}: cannot be written ({error.strerror}). Set runs_dir to a folder that you may write, or "
                "mend its permissions."
            ) from error
        try:
            if not isinstance(
                lock, SoftFileLock
            ):  # what a disk without locks falls back on keeps its own notes there
                self._lock_file.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
            yield
        finally:
            lock.release()

    @property
    def _lock_file(self) -> Path:
        return self.path.with_name(f".{self.path.name}.lock")

    def _busy(self) -> str:
        try:
            owner = re.fullmatch(r"process \d+ on \S+", self._lock_file.read_text().strip())
        except (OSError, ValueError):
            owner = None
        return (
            f"{self.path} is being trained by {owner[0] if owner else 'another process'}. Wait until it has ended, or give "
            "this run a name of its own (name=...)."
        )

    def look(self, config: Mapping[str, Any], resume: str) -> Start:
        """Decide how to start, as `begin` does, without changing anything: what is wrong is found before the work.

        Raises:
            ConfigError: as `begin`; or the run is being trained; or its folder cannot be made or written.
        """
        try:
            anew = resume == "never" and self.path.exists()
            if not anew:
                self._check_config(config)
            start = Start() if anew else self._start(resume)
        except OSError as error:
            raise ConfigError(
                f"{error.filename or self.path}: cannot be read ({error.strerror}). Mend its permissions, or give this run "
                "a name of its own (name=...)."
            ) from error
        if start.result is None:
            if self.path.exists() and not (self.path.is_dir() and os.access(self.path, os.W_OK | os.X_OK)):
                raise ConfigError(
                    f"{self.path}: is no folder that can be written. Mend its permissions, or give this run a name of its "
                    "own (name=...)."
                )
            if self._lock_file.exists():
                with self.lock():
                    pass
        return start

    def begin(self, config: Mapping[str, Any], resume: str) -> Start:
        """Decide how to start, and lay the folder out. To be called while the lock is held.

        Args:
            config: the resolved configuration, as plain values.
            resume: `auto` goes on where the folder says, `never` starts anew and keeps the old folder under another
                name, `must` demands a checkpoint, anything else is a checkpoint's path.

        Raises:
            MagnetoError: the folder belongs to another configuration, there is nothing to resume, or a checkpoint from
                elsewhere would overwrite a run.
        """
        if resume == "never" and self.path.exists():
            number = 1
            while (kept := self.path.with_name(f"{self.path.name}.old{number}")).exists():
                number += 1
            self.path.rename(kept)
        replaced = self._check_config(config)
        start = self._start(resume)
        if start.result is not None:
            return start
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        if replaced or not self.config.exists():
            write_atomically(self.config, yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
        self.result.unlink(missing_ok=True)  # of an attempt that has ended: this one is running
        return start

    def _check_config(self, config: Mapping[str, Any]) -> bool:
        """Whether the folder has another configuration, which may be replaced as there is nothing to lose."""
        if not self.config.exists():
            return False
        changed = difference(read_config(self.config), config)
        if changed and (self.last.exists() or self.read_result_status() in ENDED):
            raise ConfigError(
                f"{self.path} belongs to a run with another configuration:\n  " + "\n  ".join(changed) + "\n"
                "Give this run a name of its own (name=...), or start anew with resume=never (the old folder is kept)."
            )
        return bool(changed)

    def _start(self, resume: str) -> Start:
        if resume not in ("auto", "never", "must"):
            if not Path(resume).is_file():
                raise ConfigError(
                    f"resume={resume}: no such file. Give a checkpoint's path, or auto, never or must."
                )
            own = Path(resume).resolve().parent == self.checkpoints.resolve()
            if not own and (self.last.exists() or self.read_result_status() in ENDED):
                raise ConfigError(
                    f"resume={resume}: {self.path} holds a run already, which would be overwritten. Give the new run a name "
                    "of its own (name=...), or say resume=auto to go on with that one."
                )
            return Start(checkpoint=Path(resume))
        result = self.read_result()
        if result is not None and result["status"] in ENDED:
            return Start(result=result)
        if self.last.exists():
            return Start(checkpoint=self.last)
        if resume == "must":
            raise ConfigError(
                f"resume=must: {self.last} does not exist. Use resume=auto to start from the beginning."
            )
        return Start()

    def rewind_samples(self, step: int) -> None:
        """Forget the samples after `step`, those of the test, which is made again, and lines that are damaged."""
        if not self.samples.exists():
            return
        kept = []
        # Not splitlines(): a text may hold U+2028, which JSON does not escape.
        for line in self.samples.read_bytes().split(b"\n")[:-1]:
            try:
                sample = json.loads(line)
                if sample["step"] <= step and sample["split"] != "test":
                    kept.append(line + b"\n")
            except (ValueError, KeyError, TypeError):
                continue
        write_atomically(self.samples, b"".join(kept))

    def read_result(self) -> dict[str, Any] | None:
        """The content of result.json, or None where there is none yet.

        Raises:
            ConfigError: it cannot be read, or it is no result.
        """
        try:
            result = json.loads(self.result.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{self.result}: not readable as JSON ({error}). Remove it and repeat the command."
            ) from error
        status = result.get("status") if isinstance(result, dict) else None
        metrics = result.get("metrics", {}) if isinstance(result, dict) else None
        numbers = isinstance(metrics, dict) and all(
            value is None or isinstance(value, int | float) for value in metrics.values()
        )
        if not isinstance(status, str) or not numbers or (status in ENDED and "metrics" not in result):
            raise ConfigError(
                f"{self.result}: does not hold a run's status and metrics. Remove it and repeat the command: the run goes "
                "on from its last checkpoint."
            )
        values = {key: math.nan if value is None else value for key, value in (metrics or {}).items()}
        return {**result, "metrics": values}

    def read_result_status(self) -> str | None:
        """The status in result.json, or None."""
        result = self.read_result()
        return None if result is None else str(result["status"])

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Replace result.json. A number that is not finite, which JSON does not have, becomes null."""
        write_atomically(self.result, json.dumps(finite(result), indent=2, ensure_ascii=False) + "\n")


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
        config = yaml.safe_load(path.read_bytes())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(
            f"{path}: not readable ({' '.join(str(error).split())}). Remove the run's folder or use resume=never."
        ) from error
    if not isinstance(config, dict):
        raise ConfigError(
            f"{path}: does not hold a configuration. Remove the run's folder or use resume=never."
        )
    return config
