"""Read and write checkpoints and exports, with `weights_only=True`, plain types and tensors, no pickle of ours.

A checkpoint (`.ckpt`) is Lightning's, with all that a run needs to continue. An export is a folder with
`model.safetensors`, `config.json` and, where the task has one, `tokenizer.json`: all that is needed to use the model.
A run's folder stands for its export, or for its best checkpoint until there is one.
"""

import contextlib
import json
import os
import zipfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from magneto.errors import ConfigError, DataError
from magneto.training import migrate, sharded_checkpoint
from magneto.training.files import CHECKPOINT_REMEDY as REMEDY
from magneto.training.files import write_atomically
from magneto.training.sharding import whole_weights

if TYPE_CHECKING:
    from magneto.training.module import TrainingModule

EXPORT_FORMAT = "magneto-export-1"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint under another name and rename it: a full disk or a killed process leaves the old one.

    Lightning's own goes through the system's temporary folder. Where that is another file system, the old checkpoint is
    overwritten by a copy, which can break off in the middle.

    Args:
        background: copy the tensors to the host and write while the training goes on. An error of a write is raised by the
            next save, or at the end.
    """

    def __init__(self, background: bool = False) -> None:
        super().__init__()
        self._writer = ThreadPoolExecutor(1, "checkpoint") if background else None
        self._writes: list[Future[None]] = []

    def run(self, work: Callable[[], None]) -> None:
        """Do what is to follow the writes so far, now or in the background. Raises what an earlier write did."""
        if self._writer is None:
            work()
            return
        for write in [one for one in self._writes if one.done()]:
            self._writes.remove(write)
            write.result()
        before = self._writes[-1:]

        def follow() -> None:
            for write in before:
                write.result()  # of one that failed, an older file has the name: nothing is made of it
            work()

        self._writes.append(self._writer.submit(follow))

    def teardown(self) -> None:
        """Wait for the last write. Raises ConfigError if it failed."""
        try:
            while self._writes:
                self._writes.pop(0).result()
        except OSError as error:
            self._writes.clear()
            raise ConfigError(
                f"A checkpoint cannot be written ({error}). The last complete one is kept; free space and repeat the "
                "command: the run continues from there."
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """See the base class; also the folder of a sharded run."""
        return dict(_load(Path(path)))

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """See the base class. Raises OSError where the file cannot be written."""
        if self._writer is not None:
            wait(self._writes)  # one copy at a time
            tensors, rest = sharded_checkpoint.split(checkpoint)
            copies = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
            checkpoint = sharded_checkpoint.join(copies, rest)
        self.run(partial(self._write, checkpoint, Path(path)))

    def _write(self, checkpoint: dict[str, Any], path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        try:
            with part.open("wb") as file:
                try:
                    torch.save(checkpoint, file)
                except RuntimeError as error:  # torch's own for a file that takes no more
                    raise OSError(str(error)) from error
                file.flush()
                # Else a crash of the machine may leave the new name without its content.
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def read_checkpoint(path: str | Path, weights: bool = True) -> dict[str, Any]:
    """Return the content of a checkpoint, on the CPU.

    Args:
        path: a file, or the folder of a sharded run's checkpoint.
        weights: False if the shapes of the tensors are enough, which are read faster from a folder.

    Raises:
        ConfigError: the file is missing, truncated, or was not written by magneto.
    """
    path = Path(path)
    check_file(path, f"checkpoint {path}")
    try:
        content = _load(path, weights)
    except DataError:
        raise
    except Exception as error:  # torch raises many types for a damaged or foreign file
        foreign = "weights_only" in str(error)  # torch's message also advises to switch the protection off
        reason = "it holds more than tensors and plain values" if foreign else first_line(error)
        raise ConfigError(f"checkpoint {path}: cannot be read ({reason}). {REMEDY}") from error
    named = content.get("hyper_parameters") if isinstance(content, dict) else None
    if not isinstance(named, dict) or "task" not in named:
        raise ConfigError(
            f"checkpoint {path}: not written by magneto (it names no task). Use a checkpoint of a run."
        )
    _require(f"checkpoint {path}", content, {"state_dict": dict, "global_step": int}, REMEDY)
    named = migrate.hyper_parameters(named)
    parts = {"task": str, "backbone": dict, "info": dict, "total_steps": int}
    _require(f"checkpoint {path}", named, parts, REMEDY)
    kept = {
        key: migrate.weights(content[key])
        for key in ("state_dict", "averaged_state_dict")
        if content.get(key)
    }
    return {**content, **kept, "hyper_parameters": named}


def _load(path: Path, weights: bool = True) -> Any:
    if path.is_dir():
        return sharded_checkpoint.read(path, weights)
    return torch.load(path, map_location="cpu", weights_only=True)


def _require(where: str, values: dict[str, Any], kinds: dict[str, type], remedy: str) -> None:
    for key, kind in kinds.items():
        if not isinstance(values.get(key), kind):
            raise DataError(f"{where}: damaged ({key} is missing or not of type {kind.__name__}). {remedy}")


def is_checkpoint(path: Path) -> bool:
    """Return whether a path is a file, or the folder of a sharded checkpoint, and not that of an export or a run."""
    return path.is_file() or (path / sharded_checkpoint.REST).is_file()


def check_file(path: str | Path, what: str) -> None:
    """Raise `DataError` unless `path`, called `what`, is a whole file that may be a checkpoint."""
    path = Path(path)
    if is_checkpoint(path) and path.is_dir():
        return
    if not path.is_file():
        if path.exists():
            raise DataError(f"{what}: is neither a file nor the folder of a sharded checkpoint. {REMEDY}")
        raise DataError(
            f"{what}: no such file or folder. Name a run's folder, one of its checkpoints or an export."
        )
    if not zipfile.is_zipfile(path):
        raise DataError(f"{what}: truncated or not a checkpoint ({path.stat().st_size} bytes). {REMEDY}")


def first_line(error: BaseException) -> str:
    """Return an exception as one line: its type and the beginning of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def read_model(path: str | Path, weights: bool = True) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return hyper-parameters and weights of a task, from a checkpoint, an export or a run's folder; see `load_task`.

    Without `weights`, those of a sharded checkpoint have shapes alone.
    """
    path = of_run(path)
    if path.is_dir() and not is_checkpoint(path):
        return _read_export(path)
    content = read_checkpoint(path, weights)
    return content["hyper_parameters"], content.get("averaged_state_dict") or content["state_dict"]


def of_run(path: str | Path) -> Path:
    """Return the path of the model in a run's folder; any other path as it is."""
    path = Path(path)
    export, best = path / "export", path / "checkpoints/best.ckpt"
    if (export / "config.json").is_file():
        return export
    return best if best.exists() else path


def _read_export(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    config_file, weights_file = folder / "config.json", folder / "model.safetensors"
    for file in (config_file, weights_file):
        if not file.is_file():
            raise DataError(
                f"{folder}: neither a run's folder with a model in it nor an export, {file.name} is missing. Write an "
                "export with mode=export checkpoint=..."
            )
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        weights = load_file(weights_file)
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(
            f"{folder}: damaged export ({error}). Write it again with mode=export checkpoint=..."
        ) from error
    form = config.get("format") if isinstance(config, dict) else None
    if form != EXPORT_FORMAT:
        raise DataError(f"{config_file}: format {form!r}, expected {EXPORT_FORMAT!r}.")
    again = "Write it again with mode=export checkpoint=..."
    _require(str(config_file), config, {"hyper_parameters": dict}, again)
    hyper_parameters = migrate.hyper_parameters(config["hyper_parameters"])
    _require(str(config_file), hyper_parameters, {"task": str, "backbone": dict, "info": dict}, again)
    return hyper_parameters, migrate.weights(weights)


def export(
    task: "TrainingModule", folder: str | Path, weights: dict[str, torch.Tensor] | None = None
) -> Path:
    """Write `task` as an export folder; the files appear whole or not at all.

    Args:
        task: what to export.
        folder: to write to.
        weights: the state dict on the CPU; None: that of `task`, which is not sharded.

    Returns:
        the folder.
    """
    folder = Path(folder)
    weights = whole_weights(task) if weights is None else weights
    temporary = folder / ".model.safetensors"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(weights, temporary, metadata={"format": EXPORT_FORMAT})
        temporary.replace(folder / "model.safetensors")
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise DataError(
            f"{folder}: the export cannot be written ({error}). Free space, change the permissions or "
            "set output= to another folder."
        ) from error
    config = {"format": EXPORT_FORMAT, "hyper_parameters": dict(task.hparams)}
    write_atomically(folder / "config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    tokenizer = task.tokenizer_json()
    if tokenizer is not None:
        write_atomically(folder / "tokenizer.json", tokenizer)
    return folder
