"""Checkpoints of sharded training: a folder to which each process writes its own parts of the tensors.

    step-00001200/
        shard-00001-model-00001-of-00001.safetensors    the parts of process 0, of weights and optimizer state
        shard-00002-model-00001-of-00001.safetensors    those of process 1
        rest.pt                                         everything else, and the shapes of the whole tensors
    last.ckpt -> step-00001200
    best.ckpt -> step-00001200

Written and read by `torch.distributed.checkpoint` in its safetensors form, which holds no pickle, unlike its own. Any number
of processes reads it. The folder has its name only when it is whole, and the links are replaced at once: whatever breaks
off leaves the checkpoint before.
"""

import contextlib
import itertools
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load as load_shards
from torch.distributed.checkpoint.state_dict_saver import save as save_shards
from torch.distributed.tensor import DTensor

from magneto.errors import DataError
from magneto.training.files import CHECKPOINT_REMEDY as REMEDY

REST = "rest.pt"


def save(checkpoint: dict[str, Any], path: Path, written: Path | None = None) -> Path:
    """Write a checkpoint whose sharded tensors are `DTensor`, and let `path` point to it. To be called by all processes.

    Args:
        checkpoint: of Lightning.
        path: the link, such as `last.ckpt`.
        written: a folder that has this very checkpoint already; None: it is to be written.

    Returns:
        the folder.

    Raises:
        OSError: a process cannot write; the checkpoint before is left.
    """
    first = dist.get_rank() == 0
    if written is None:
        written = _write(checkpoint, path.parent, first)
    folder = written
    _together(lambda: _point(path, folder) if first else None)
    return folder


def _write(checkpoint: dict[str, Any], parent: Path, first: bool) -> Path:
    stem = f"step-{checkpoint['global_step']:08d}"
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    chosen: list[Any] = [next(name for name in names if not (parent / name).exists()) if first else None]
    dist.broadcast_object_list(chosen, 0)
    folder = parent / chosen[0]
    part = folder.with_name(f".{folder.name}.part")
    tensors, rest = split(checkpoint, sharded_only=True)

    def begin() -> None:
        for old in parent.glob(".step-*.part"):  # of a run that was killed while it wrote
            shutil.rmtree(old, ignore_errors=True)
        part.mkdir(parents=True)

    def end() -> None:
        shapes = {name: list(value.shape) for name, value in tensors.items()}
        with (part / REST).open("wb") as file:
            torch.save({"content": rest, "shapes": shapes}, file)
            file.flush()
            os.fsync(file.fileno())
        part.rename(folder)

    writer = HuggingFaceStorageWriter(str(part), save_distributed=True)
    _together(lambda: begin() if first else None)
    _together(lambda: save_shards(tensors, storage_writer=writer))
    _together(lambda: end() if first else None)
    return folder


def _point(path: Path, folder: Path) -> None:
    """Replace the link `path`, and remove the folders that no link points to any more."""
    link = path.with_name(f".{path.name}.link")
    link.unlink(missing_ok=True)
    link.symlink_to(folder.name)
    link.replace(path)
    used = {one.resolve() for one in path.parent.glob("*.ckpt")}
    for old in path.parent.glob("step-*"):
        if old.resolve() not in used:
            shutil.rmtree(old, ignore_errors=True)


def _together(work: Callable[[], Any]) -> None:
    """Do the work of each process; where one fails, all raise OSError, so that none waits for it."""
    reason: str | None = None
    try:
        work()
    except (OSError, RuntimeError, SafetensorError, CheckpointException) as error:
        cause = next(iter(getattr(error, "failures", {}).values()), (error,))[0]
        reason = str(cause) or type(cause).__name__
    reasons: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(reasons, reason)
    for rank, one in enumerate(reasons):
        if one is not None:
            raise OSError(f"process {rank}: {one}")


def load(folder: Path, like: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return a checkpoint with the parts of the calling process, laid out as `like` by path. To be called by all processes.

    A tensor that `like` does not have, or has in another shape, is read whole.

    Raises:
        DataError: a file is missing or damaged.
    """
    whole, rest = _open(folder)
    tensors = {
        name: torch.empty_like(like[name])
        if name in like and like[name].shape == one.shape
        else torch.empty_like(one, device="cpu")
        for name, one in whole.items()
    }
    _fill(tensors, folder)
    return join(tensors, rest)


def read(folder: Path, weights: bool = True) -> dict[str, Any]:
    """Return a checkpoint whole, on the CPU, in a single process.

    Args:
        folder: of the checkpoint.
        weights: whether to read the tensors; else they have shapes and no values.

    Raises:
        DataError: a file is missing or damaged.
    """
    tensors, rest = _open(folder)
    if weights:
        tensors = {name: torch.empty_like(one, device="cpu") for name, one in tensors.items()}
        _fill(tensors, folder, alone=True)
    return join(tensors, rest)


def _open(folder: Path) -> tuple[dict[str, Tensor], Any]:
    """Return the whole sharded tensors, with shapes and no values, and everything else."""
    file = folder / REST
    if not file.is_file():
        raise DataError(f"checkpoint {folder}: {REST} is missing. {REMEDY}")
    with _damage(folder):
        stored = torch.load(file, map_location="cpu", weights_only=True)
        shapes, rest = stored["shapes"], stored["content"]
        found: Mapping[str, Any] = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    tensors = {}
    for name, shape in shapes.items():
        chunks = getattr(found.get(name), "chunks", ())
        if sum(math.prod(chunk.sizes) for chunk in chunks) != math.prod(shape):
            raise DataError(
                f"checkpoint {folder}: a part of {name} is missing, so that a shard-*.safetensors must be. {REMEDY}"
            )
        tensors[name] = torch.empty(shape, dtype=found[name].properties.dtype, device="meta")
    return tensors, rest


def _fill(tensors: dict[str, Tensor], folder: Path, alone: bool = False) -> None:
    """Read the values of tensors, by all processes together or by one alone."""
    with _damage(folder), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.distributed is disabled", UserWarning)  # which is meant
        load_shards(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=alone)


@contextlib.contextmanager
def _damage(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # torch and safetensors raise many types for a damaged file
        raise DataError(f"checkpoint {folder}: cannot be read ({type(error).__name__}). {REMEDY}") from error


_HOLE = "(in the shards)"


def split(checkpoint: Any, path: str = "", *, sharded_only: bool = False) -> tuple[dict[str, Tensor], Any]:
    """Return the tensors of nested values by their paths (`state_dict/stem.weight`), and the values with holes for them.

    Args:
        checkpoint: dictionaries, lists and tuples of plain values and tensors.
        path: of `checkpoint` itself.
        sharded_only: leave tensors that every process has whole where they are.
    """
    if isinstance(checkpoint, Tensor):
        if sharded_only and not isinstance(checkpoint, DTensor):
            return {}, checkpoint
        return {path: checkpoint.detach()}, _HOLE
    if not isinstance(checkpoint, Mapping | list | tuple):
        return {}, checkpoint
    tensors: dict[str, Tensor] = {}
    items = checkpoint.items() if isinstance(checkpoint, Mapping) else enumerate(checkpoint)
    parts = {}
    for key, value in items:
        found, parts[key] = split(value, f"{path}/{key}" if path else str(key), sharded_only=sharded_only)
        tensors |= found
    return tensors, parts if isinstance(checkpoint, Mapping) else type(checkpoint)(parts.values())


def join(tensors: Mapping[str, Tensor], rest: Any, path: str = "") -> Any:
    """Return what `split` has taken apart."""
    if isinstance(rest, str) and rest == _HOLE and path in tensors:
        return tensors[path]
    if isinstance(rest, Mapping):
        return {
            key: join(tensors, value, f"{path}/{key}" if path else str(key)) for key, value in rest.items()
        }
    if isinstance(rest, list | tuple):
        return type(rest)(
            join(tensors, value, f"{path}/{key}" if path else str(key)) for key, value in enumerate(rest)
        )
    return rest
