"""Run folders: find a run, resume or refuse it, and keep what it leaves behind."""

import contextlib
import itertools
import json
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
from magneto.training.result import ENDED, RunResult
from magneto.training.run_config import difference, run_name


@dataclass(frozen=True)
class Start:
    """Start of a run: at its first step, from a checkpoint, or not at all because it has ended."""

    checkpoint: Path | None = None
    result: RunResult | None = None


class RunFolder:
    """`runs/<task>/<name>/` and the names of what lies in it.

    Attributes:
        config: complete configuration of the run.
        given: the configuration before prepared data completed it, where that made a difference: the same command gives it.
        result: status, final metrics and circumstances: the file that a report reads.
        metrics: all logged values, one `step,metric,value` a line.
        samples: examples to look at, one JSON object a line.
        checkpoints: the folder of `last`, where the run continues, and `best`, by the monitored metric.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.given = path / "config.yaml", path / "command.yaml"
        self.result, self.metrics = path / "result.json", path / "metrics.csv"
        self.samples = path / "samples.jsonl"
        self.checkpoints = path / "checkpoints"
        self.last, self.best = self.checkpoints / "last.ckpt", self.checkpoints / "best.ckpt"
        self._lock_file = path.with_name(f".{path.name}.lock")

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
                "change its permissions."
            ) from error
        try:
            if not isinstance(lock, SoftFileLock):  # of a disk without locks, which keeps its own notes there
                self._lock_file.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
            yield
        finally:
            lock.release()

    def _busy(self) -> str:
        try:
            owner = re.fullmatch(r"process \d+ on \S+", self._lock_file.read_text().strip())
        except (OSError, ValueError):
            owner = None
        return (
            f"{self.path} is being trained by {owner[0] if owner else 'another process'}. Wait until it has ended, or set "
            "name= to another name."
        )

    def look(self, given: Mapping[str, Any], resume: str) -> Start:
        """Decide how to start, as `begin` does, without changing anything: errors are found before the work.

        Raises:
            ConfigError: as `begin`; or the run is being trained; or its folder cannot be made or written.
        """
        try:
            over = resume == "never" and self.path.exists()
            if not over:
                self._check_config(given)
            start = Start() if over else self._start(resume)
        except OSError as error:
            raise ConfigError(
                f"{error.filename or self.path}: cannot be read ({error.strerror}). Change its permissions, or set name= "
                "to another name."
            ) from error
        if start.result is None:
            if self.path.exists() and not (self.path.is_dir() and os.access(self.path, os.W_OK | os.X_OK)):
                raise ConfigError(
                    f"{self.path}: is not a folder that can be written. Change its permissions, or set name= to another "
                    "name."
                )
            if self._lock_file.exists():
                with self.lock():
                    pass
        return start

    def begin(self, config: Mapping[str, Any], resume: str, given: Mapping[str, Any] | None = None) -> Start:
        """Decide how to start, and write the folder's first files. To be called while the lock is held.

        Args:
            config: the complete configuration, as plain values.
            resume: `auto` continues where the folder ends, `never` starts over and keeps the old folder under another
                name, `must` demands a checkpoint, anything else is a checkpoint's path.
            given: the configuration before prepared data completed it; None: there was nothing to complete.

        Raises:
            MagnetoError: the folder belongs to another configuration, there is nothing to resume, or a checkpoint from
                elsewhere would overwrite a run.
        """
        if resume == "never" and self.path.exists():
            names = (self.path.with_name(f"{self.path.name}.old{index}") for index in itertools.count(1))
            self.path.rename(next(path for path in names if not path.exists()))
        given = config if given is None else given
        replaced = self._check_config(given)
        start = self._start(resume)
        if start.result is not None:
            return start
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        if replaced or not self.config.exists():
            self.given.unlink(missing_ok=True)
            for path, content in [(self.given, given)] * (given != config) + [(self.config, config)]:
                write_atomically(path, to_yaml(content))
        self.result.unlink(missing_ok=True)  # of an attempt that has ended: this one is running
        return start

    def read_given(self) -> dict[str, Any]:
        """Return what a repeated command is compared with. Older versions kept no more than `config`."""
        return read_config(self.given if self.given.exists() else self.config)

    def recorded(self, given: Mapping[str, Any], resume: str) -> dict[str, Any] | None:
        """Return the complete configuration of the run that is to be continued; None where one begins."""
        if resume == "never" or not self.config.exists() or difference(self.read_given(), given):
            return None
        return read_config(self.config)

    def _check_config(self, given: Mapping[str, Any]) -> bool:
        """Return whether the folder has another configuration, which may be replaced as there is nothing to lose."""
        if not self.config.exists():
            return False
        changed = difference(self.read_given(), given)
        if changed and (self.last.exists() or self.read_result_status() in ENDED):
            raise ConfigError(
                f"{self.path} belongs to a run with another configuration:\n  " + "\n  ".join(changed) + "\n"
                "Set name= to another name, or use resume=never to start over (the old folder is kept)."
            )
        return bool(changed)

    def _start(self, resume: str) -> Start:
        if resume not in ("auto", "never", "must"):
            if not Path(resume).exists():
                raise ConfigError(
                    f"resume={resume}: no such file. Set resume to a checkpoint's path, or to auto, never or must."
                )
            own = Path(resume).resolve().parent == self.checkpoints.resolve()
            if not own and (self.last.exists() or self.read_result_status() in ENDED):
                raise ConfigError(
                    f"resume={resume}: {self.path} holds a run already, which would be overwritten. Set name= to another "
                    "name, or set resume to auto to continue that run."
                )
            return Start(checkpoint=Path(resume))
        result = self.read_result()
        if result is not None and result.status in ENDED:
            return Start(result=result)
        if self.last.exists():
            return Start(checkpoint=self.last)
        if resume == "must":
            raise ConfigError(
                f"resume=must: {self.last} does not exist. Set resume to auto to start from the beginning."
            )
        return Start()

    def rewind_samples(self, step: int) -> None:
        """Remove the samples after `step`, those of the test, which is made again, and lines that are damaged."""
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

    def read_result(self) -> RunResult | None:
        """Return the content of result.json, or None where there is none yet.

        Raises:
            ConfigError: it is not readable, or it is no result.
        """
        try:
            return RunResult.from_dict(json.loads(self.result.read_bytes()))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            reason = str(error) if isinstance(error, ConfigError) else f"not readable as JSON ({error})"
            raise ConfigError(
                f"{self.result}: {reason}. Remove it and repeat the command: the run continues from its last checkpoint."
            ) from error

    def read_result_status(self) -> str | None:
        """Return the status in result.json, or None."""
        result = self.read_result()
        return None if result is None else result.status

    def write_result(self, result: RunResult) -> None:
        """Replace result.json. A number that is not finite, which JSON does not have, becomes null."""
        text = json.dumps(finite(result.to_dict()), indent=2, ensure_ascii=False)
        write_atomically(self.result, text + "\n")


def to_yaml(config: Mapping[str, Any]) -> str:
    """Return a configuration as YAML, its keys in their order."""
    return str(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))


def run_folder(config: Mapping[str, Any], overrides: Sequence[str]) -> RunFolder:
    """Return the folder of the run that `config` describes: `runs_dir/<task>/<name>`."""
    return RunFolder(Path(config["runs_dir"]) / config["task"]["name"] / run_name(config, overrides))


def ended_result(config: Mapping[str, Any], overrides: Sequence[str]) -> RunResult | None:
    """Return the result of the run that `config` describes if it has ended and would not be run again; else None."""
    if config["resume"] not in ("auto", "must"):
        return None
    folder = run_folder(config, overrides)
    if not folder.config.is_file() or difference(folder.read_given(), config):
        return None
    result = folder.read_result()
    return None if result is None or result.status not in ENDED else result


def read_config(path: Path) -> dict[str, Any]:
    """Return a YAML file of a run as plain values."""
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
