"""Batches by token budget: length-bucketed, rank-aware, a pure function of (seed, epoch), exact to resume.

    lengths --round up--> classes --sort, ties shuffled by (seed, epoch)--> cut by budget --order shuffled-->
    global batches --every world_size-th example, starting at the rank--> the batches of one rank

Examples are shuffled among those of the same rounded length, so the sequence of sorted lengths, and with it
the places where batches are cut, is the same in every epoch: an epoch always has `batches_per_epoch` batches,
and the n-th batch of a run is found without replaying the run. Cutting is done on the global budget (budget
of a rank x world size), so that many ranks see together, batch by batch, what one rank with the global budget
sees. With the budget of a whole optimizer step (`data.global_batch`) its batch is shared out over ranks and micro-batches,
and is the same for any number of either.
"""

import atexit
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Sampler

from magneto.data.rng import random_stream
from magneto.errors import DataError

Batch = list[
    tuple[int, int]
]  # (epoch, example): the epoch travels with the example, so workers need no state


def cut(lengths: np.ndarray, budget: int, least: int = 1, most: int | None = None) -> list[slice]:
    """Cut examples, sorted by falling length, into batches: number of examples x longest length <= budget.

    A batch holds at least `least` examples, even beyond the budget (an example longer than the budget is a
    batch of its own), and at most `most`. The last two batches share their examples evenly, so that no tiny
    one is left over; where that would leave fewer than `least`, they become one.
    """
    cuts: list[slice] = []
    start = 0
    for end in (*(np.flatnonzero(np.diff(lengths)) + 1).tolist(), len(lengths)):  # of examples of one length
        if start < end:
            count = max(least, budget // max(1, int(lengths[start])))
            count = count if most is None else max(least, min(count, most))
            cuts += [slice(first, min(first + count, len(lengths))) for first in range(start, end, count)]
            start = cuts[-1].start + count
    if len(cuts) > 1 and cuts[-1].stop - cuts[-1].start < cuts[-2].stop - cuts[-2].start:
        first, last = cuts[-2].start, cuts[-1].stop
        middle = (first + last + 1) // 2
        cuts[-2:] = (
            [slice(first, middle), slice(middle, last)] if last - middle >= least else [slice(first, last)]
        )
    return cuts


def _classes(lengths: np.ndarray, multiple: int) -> np.ndarray:
    return -(-np.asarray(lengths, dtype=np.int64) // multiple) * multiple


class TokenBudgetSampler(Sampler[Batch]):
    """The training batches of one rank for a whole run, from batch `start` to batch `total_batches`.

    lengths: (examples,) in tokens or frames; budget: padded tokens of one batch on one rank; max_batch_size:
    examples of one batch on one rank; pad_to_multiple: what collate rounds lengths up to. Every rank has the
    same number of batches, and in each epoch every example is in exactly one batch of exactly one rank.
    A run of `world_size` ranks equals a run of one rank with `world_size` times the budget (and
    max_batch_size) as long as no example is longer than a rank's budget and the two batches of the shortest
    examples have two for every rank.

    With `micro_batches`, how many of each rank make an optimizer step, budget and max_batch_size are those of the whole
    step, whose batch does not depend on world_size and micro_batches.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        *,
        budget: int,
        total_batches: int,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        pad_to_multiple: int = 1,
        max_batch_size: int | None = None,
        micro_batches: int | None = None,
    ) -> None:
        assert 0 <= rank < world_size and 0 <= start <= total_batches
        if budget < 1:
            raise DataError(f"The token budget of a batch is {budget}; it must be at least 1.")
        if len(lengths) < world_size:
            raise DataError(
                f"{len(lengths)} training examples cannot be shared by {world_size} processes: use fewer "
                "processes (trainer.devices) or more data."
            )
        self.lengths = _classes(lengths, pad_to_multiple)
        self.total_batches, self.start, self.seed = total_batches, start, seed
        self.rank, self.world_size, self.micro_batches = rank, world_size, micro_batches or 1
        factor = world_size if micro_batches is None else 1
        self._cuts = cut(
            np.sort(self.lengths)[::-1],
            budget * factor,
            least=factor,
            most=None if max_batch_size is None else max_batch_size * factor,
        )
        fewest = min(piece.stop - piece.start for piece in self._cuts)
        if fewest < world_size * self.micro_batches:
            raise DataError(
                f"A batch of the budget {budget} has {fewest} examples, fewer than {world_size} processes with "
                f"{self.micro_batches} micro-batches each: use fewer processes, or a larger data.global_batch."
            )
        self._plan: tuple[int, list[np.ndarray]] = (-1, [])

    @property
    def batches_per_epoch(self) -> int:
        """The same for every epoch and rank."""
        return len(self._cuts) * self.micro_batches

    def epoch_of(self, batch: int) -> int:
        """The epoch of the run's `batch`-th batch, both counted from 0."""
        return batch // self.batches_per_epoch

    def plan(self, epoch: int) -> list[np.ndarray]:
        """The epoch's global batches in order: arrays of example indices."""
        if self._plan[0] != epoch:
            random = random_stream(self.seed, "batches", epoch)
            shuffled = random.permutation(len(self.lengths))
            by_length = shuffled[np.argsort(-self.lengths[shuffled], kind="stable")]
            order = random.permutation(len(self._cuts))
            self._plan = (epoch, [by_length[self._cuts[place]] for place in order])
        return self._plan[1]

    def __len__(self) -> int:
        return self.total_batches - self.start

    def __iter__(self) -> Iterator[Batch]:
        for batch in range(self.start, self.total_batches):
            step, micro_batch = divmod(batch, self.micro_batches)
            epoch, place = divmod(step, len(self._cuts))
            share = micro_batch * self.world_size + self.rank
            whole = self.plan(epoch)[place]
            yield [(epoch, int(example)) for example in whole[share :: self.world_size * self.micro_batches]]


class EvaluationSampler(Sampler[Batch]):
    """Every example once, longest first, in batches of at most `budget` padded tokens, shared out over the
    ranks.

    No example is repeated to make the ranks equal; a rank has a batch less only when the whole set has fewer
    examples than there are ranks.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        *,
        budget: int,
        rank: int = 0,
        world_size: int = 1,
        pad_to_multiple: int = 1,
        max_batch_size: int | None = None,
    ) -> None:
        classes = _classes(lengths, pad_to_multiple)
        order = np.argsort(-classes, kind="stable")
        most = None if max_batch_size is None else max_batch_size * world_size
        cuts = cut(classes[order], budget * world_size, least=world_size, most=most)
        shares = [order[piece][rank::world_size] for piece in cuts]
        self._batches: list[Batch] = [
            [(0, int(example)) for example in share] for share in shares if len(share)
        ]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches)


def ignore_signals(worker: int) -> None:
    """Let the main process alone answer a request to stop, which `timeout` and schedulers send to every process.

    A worker that ended would take with it the step in which the run's state is saved. To be a loader's `worker_init_fn`.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a forked process cannot use the threads of the library
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


@atexit.register  # before multiprocessing's own, which sends SIGTERM and waits
def _end_workers() -> None:
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


class RunLoader(DataLoader[Any]):
    """A DataLoader over all training batches of a run, from the first step to the last.

    Its length is the length of the run, also when it resumes in the middle. `state_dict` and `load_state_dict` are the
    protocol by which Lightning keeps a loader's position in its checkpoints.

    Args:
        dataset, batch_sampler and the rest: as for DataLoader; the batch sampler has `total_batches` and `start`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.consumed = 0
        self._wait_seconds = 0.0

    def __len__(self) -> int:
        return int(self.batch_sampler.total_batches)  # type: ignore[union-attr]

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self._begin()
        batches = super().__iter__()
        while True:
            started = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._wait_seconds += time.perf_counter() - started
            self._take(batch)
            self.consumed += 1
            yield batch

    @property
    def epochs(self) -> float:
        """Epochs of the data that have been handed out."""
        return self.consumed / self.batch_sampler.batches_per_epoch  # type: ignore[union-attr]

    def _begin(self) -> None:
        """Prepare to give the batches after those that are consumed."""
        self.batch_sampler.start = self.consumed  # type: ignore[union-attr]

    def _take(self, batch: Any) -> None:
        """Note a batch that is handed out."""

    def take_wait_seconds(self) -> float:
        """Seconds that the training loop has waited for batches since the last call."""
        seconds, self._wait_seconds = self._wait_seconds, 0.0
        return seconds

    def state_dict(self) -> dict[str, Any]:
        """Batches handed out so far."""
        return {"consumed": self.consumed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after `state["consumed"]` batches."""
        consumed = state.get("consumed") if isinstance(state, dict) else None
        if not isinstance(consumed, int) or not 0 <= consumed <= len(self):
            raise DataError(
                f"The checkpoint stands at batch {consumed!r} of a run of {len(self)}. Use the other checkpoint of the run "
                "(best.ckpt or last.ckpt), or start again with resume=never."
            )
        self.consumed = consumed
