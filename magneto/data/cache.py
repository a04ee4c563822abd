"""Folders that are prepared once: locked, atomic, checked."""

import errno
import glob
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from magneto.errors import DataError

log = logging.getLogger(__name__)


SENTINEL = "complete.json"


FORBIDDEN = (errno.EACCES, errno.EPERM)


UNWRITABLE = (*FORBIDDEN, errno.EROFS, errno.ENOSPC, errno.EDQUOT)


def short_hash(values: Any) -> str:
    """A short hash of plain values; equal values give equal hashes on every machine."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def is_complete(folder: Path) -> bool:
    """Whether a prepared folder has all its files in the sizes that they had when it was finished."""
    try:
        sizes = json.loads((folder / SENTINEL).read_text())["files"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def prepare_once(folder: Path, build: Callable[[Path], None]) -> bool:
    """Make `folder` by `build(temporary folder)` unless it is there and whole; returns whether it was built.

    Only one process builds, the others wait. The folder appears at once and complete (built beside, then
    renamed); one that is broken is built again; what a killed build left is removed. Raises `DataError` when
    the folder cannot be written, or a file that `build` reads has no permission.
    """
    try:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"{folder.parent} cannot be made ({error.strerror}). Set data_dir to a folder that you may write."
            ) from error
        lock = FileLock(folder.with_name(f".{folder.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("waiting for another process that prepares %s", folder)
            lock.acquire()
        try:
            if is_complete(folder):
                return False
            if folder.exists():
                log.warning("%s is incomplete or damaged: it is prepared again", folder)
                shutil.rmtree(folder)
            for leftover in folder.parent.glob(f".{glob.escape(folder.name)}-*.tmp"):
                shutil.rmtree(leftover)
            fresh = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-", suffix=".tmp"))
            try:
                build(fresh)
                files = {
                    p.relative_to(fresh).as_posix(): p.stat().st_size
                    for p in sorted(fresh.rglob("*"))
                    if p.is_file()
                }
                (fresh / SENTINEL).write_text(json.dumps({"files": files}, indent=1))
                fresh.chmod(0o755)  # mkdtemp makes it private
                fresh.rename(folder)
            except BaseException:
                shutil.rmtree(fresh, ignore_errors=True)
                raise
            return True
        finally:
            lock.release()
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        data_dir = folder.parent.parent  # corpora keep there what they fetch
        if error.errno in FORBIDDEN and not _within(error.filename, data_dir):
            raise DataError(
                f"{error.filename} cannot be read ({error.strerror}). Correct its permissions or leave it out."
            ) from error
        raise DataError(
            f"{error.filename or folder} cannot be written ({error.strerror}). Choose another data_dir or "
            "correct its permissions or free space."
        ) from error


def _within(name: str | bytes | int | None, folder: Path) -> bool:
    """Whether the file of an `OSError` lies in `folder` or on the way to it; an unknown file does."""
    if not isinstance(name, str | bytes):
        return True
    path, folder = Path(os.fsdecode(name)).absolute(), folder.absolute()
    return path.is_relative_to(folder) or folder.is_relative_to(path)


@contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on stderr (stdout has the results); the function that is given advances it by a number."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total)
        yield lambda count: bar.advance(task, count)


def cpu_count() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
