"""Preparation in parts: a map over them on all cores, each part atomic, so that a killed preparation goes on."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from magneto.data.cache import cpu_count, progress
from magneto.errors import DataError

RESULT = "result.json"
JobT = TypeVar("JobT")


class WorkerKilled(DataError):
    """A process that prepares data was killed: the next attempt goes on with the parts that are there."""


def map_parts(
    work: Callable[[JobT, Path], Any],
    jobs: Sequence[JobT],
    folder: Path,
    *,
    workers: int | None,
    description: str,
    weights: Sequence[int] | None = None,
) -> list[tuple[Path, Any]]:
    """Do the work of each job in a folder of its own; those that an earlier call finished are not done again.

    Args:
        work: called with a job and an empty folder, in which it writes its files; returns plain values (JSON). A function of
            a module, since processes call it.
        jobs: one for each part. They decide what is in it: give other jobs another folder.
        folder: of the parts; it is made.
        workers: processes; None: one for each core. With one the work is done in this process.
        description: of the progress bar.
        weights: of the jobs on that bar; None: equal.

    Returns:
        The folder and the values of each part, in the order of the jobs.

    Raises:
        WorkerKilled: a process was killed.
    """
    folder.mkdir(exist_ok=True)
    weights = weights or [1] * len(jobs)
    paths = [folder / f"{number:05d}" for number in range(len(jobs))]
    missing = [number for number, path in enumerate(paths) if not (path / RESULT).is_file()]
    workers = min(workers or cpu_count(), max(len(missing), 1))
    with progress(description, sum(weights)) as advance:
        advance(sum(weights) - sum(weights[number] for number in missing))
        calls = [(number, (work, jobs[number], paths[number])) for number in missing]
        for number in _serial(calls) if workers == 1 else _parallel(calls, workers):
            advance(weights[number])
    return [(path, json.loads((path / RESULT).read_text(encoding="utf-8"))) for path in paths]


_Call = tuple[int, tuple[Callable[[Any, Path], Any], Any, Path]]


def _serial(calls: Sequence[_Call]) -> Iterator[int]:
    for number, call in calls:
        _do(*call)
        yield number


def _parallel(calls: Sequence[_Call], workers: int) -> Iterator[int]:
    # spawn: a forked child of a process that has used torch's threads can hang
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_one_thread) as pool:
        futures = {pool.submit(_do, *call): number for number, call in calls}
        try:
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        except BrokenProcessPool as error:
            raise WorkerKilled(
                "A process that prepares data was killed, most likely for want of memory. Set data.prepare_workers "
                f"below {workers}. (In a script of your own, call prepare() under `if __name__ == '__main__':`.)"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _do(work: Callable[[Any, Path], Any], job: Any, path: Path) -> None:
    """Do the work of one part; its folder appears at once and complete."""
    fresh = path.with_name(f"{path.name}.tmp")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    values = work(job, fresh)
    (fresh / RESULT).write_text(json.dumps(values), encoding="utf-8")
    shutil.rmtree(path, ignore_errors=True)
    fresh.rename(path)


def _one_thread() -> None:
    """A process for each core does the work; more threads would only compete."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
