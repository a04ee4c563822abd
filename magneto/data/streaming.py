"""Training examples read from the shards of a corpus while a model trains, for corpora that are larger than a disk.

    shards --order by (seed, epoch), dealt to `streams`--> windows of rows --order by (seed, epoch, shard, window)-->
    examples --made into items by the kind of data--> batches, each with the position after it

The streams of a run are fixed (`data.streams`). Processes and their workers share them, so that the batches are the same for
any number of either. A stream's `Position` is six numbers, from which it goes on exactly: the window is read and shuffled
again. (`datasets` does not store its shuffle buffer: a resumed run loses what it held.) Workers run ahead of the training; a
batch therefore carries the position after it, and a checkpoint has the positions of the batches that were handed out.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from magneto.data.batching import RunLoader
from magneto.data.corpora.base import Skipped
from magneto.data.rng import random_stream
from magneto.errors import ConfigError, DataError, MagnetoError

T = TypeVar("T")
Raw = TypeVar("Raw", covariant=True)

POSITIONS, ERROR = "positions", "error"
"""Keys of a batch on its way from a worker: stream -> position after it; what a worker has to report instead of a batch."""


class ShardError(DataError):
    """A shard that cannot be read while a model trains: what it has learned so far is saved."""


class Shard(Protocol[Raw]):
    """A file of a corpus, or a part of a data set, that is read from its beginning to its end."""

    name: str
    split: str | None
    """train, val or test where the corpus states it."""

    def read(self, start: int = 0) -> Iterator[tuple[int, Raw | Skipped]]:
        """Yield examples from row `start` on, each with the row that follows it.

        Raises:
            MagnetoError: the shard is missing, empty or damaged.
        """
        ...


class Position(NamedTuple):
    """Where a stream stands: the next item begins there."""

    epoch: int = 0
    shard: int = 0
    """Index in the order of the stream's shards in that epoch."""
    row: int = 0
    """Of the shard, at which the window begins."""
    place: int = 0
    """Of an example in the shuffled window."""
    offset: int = 0
    """What is done of this example, in a unit of the kind of data, such as tokens."""
    items: int = 0
    """That the stream has given."""


@dataclass(frozen=True, kw_only=True)
class Streams(Generic[Raw, T]):
    """The order of the examples.

    Attributes:
        shards: all that there are to train on.
        count: of the streams.
        window: examples that are shuffled together.
        room: their size together, at most (and one example beyond it).
        seed: of the run.
        take: returns what is kept of an example, and its size; None: it is not one to train on.
        group: returns what a shuffled window is divided into, such as batches by length, which then are its examples.
    """

    shards: Sequence[Shard[Raw]]
    count: int
    window: int
    room: int
    seed: int
    take: Callable[[Raw], tuple[T, int] | None]
    group: Callable[[list[Any], np.random.Generator], list[Any]] | None = None

    def __post_init__(self) -> None:
        if len(self.shards) < self.count:
            raise ConfigError(
                f"The corpus has {len(self.shards)} shards (files) to train on, and each of data.streams={self.count} reads "
                f"shards of its own. Set data.streams to {max(1, len(self.shards))}, or write the corpus in more files."
            )

    def order(self, stream: int, epoch: int) -> list[int]:
        """Return the indices of a stream's shards in an epoch, in which every shard is of exactly one stream."""
        order = random_stream(self.seed, "shards", epoch).permutation(len(self.shards))
        return [int(shard) for shard in order[stream :: self.count]]

    def examples(self, stream: int, start: Position) -> Iterator[tuple[Position, T]]:
        """Yield the examples of a stream without end, each with its position.

        Raises:
            MagnetoError: a shard cannot be read, or an epoch of the stream has no example.
        """
        epoch, first, row, skip = start[:4]
        while True:
            order, found = self.order(stream, epoch), False
            for number in range(first, len(order)):
                for begin, window in self._windows(order[number], epoch, row):
                    for place in range(skip, len(window)):
                        found = True
                        yield Position(epoch, number, begin, place), window[place]
                    skip = 0
                    window.clear()  # before the next one is read
                row = 0
            if not found:
                raise self._nothing(stream, epoch)
            epoch, first = epoch + 1, 0

    def items(
        self, stream: int, start: Position, make: Callable[[T, int], dict[str, Any] | None]
    ) -> Iterator[tuple[dict[str, Any], Position]]:
        """Yield items of one example each, without end, with the position after each, whose offset says that it is done.

        Args:
            stream: that is read.
            start: where it stands.
            make: returns the item of an example and a number, another one for every item of a run; None: it cannot be used.

        Raises:
            MagnetoError: a shard cannot be read, or an epoch of the stream has no item.
        """
        number, done, epoch = start.items, start.offset, start.epoch
        for position, example in self.examples(stream, start):
            if done:
                done = 0
                continue
            if position.epoch > epoch + 1:
                raise self._nothing(stream, epoch)
            item = make(example, number * self.count + stream)
            if item is not None:
                number, epoch = number + 1, position.epoch
                yield item, position._replace(offset=1, items=number)

    def _nothing(self, stream: int, epoch: int) -> DataError:
        order = self.order(stream, epoch)
        names = ", ".join(self.shards[shard].name for shard in order[:3])
        return DataError(
            f"The shards of stream {stream} ({names}{', ...' if len(order) > 3 else ''}) have no example to train "
            "on: all are held out or cannot be used. Lower data.streams, so that a stream has more shards, or "
            "remove these."
        )

    def epochs(self, positions: Sequence[Position], streams: Sequence[int]) -> float:
        """Return how many epochs these streams have read at these positions, on average, in whole shards."""
        done = [
            positions[stream].epoch
            + positions[stream].shard / len(range(stream, len(self.shards), self.count))
            for stream in streams
        ]
        return sum(done) / len(done)

    def _windows(self, shard: int, epoch: int, start: int) -> Iterator[tuple[int, list[T]]]:
        """Yield the shuffled windows of a shard from row `start` on, each with the row at which it begins.

        They are one list, which is empty again when the next one is asked for: no two are held at once.
        """
        kept: list[T] = []
        size = 0
        for row, example in self.shards[shard].read(start):
            taken = None if isinstance(example, Skipped) else self.take(example)
            if taken is not None:
                kept.append(taken[0])
                size += taken[1]
            if len(kept) == self.window or size >= self.room:
                yield start, self._shuffle(kept, shard, epoch, start)
                start, size = row, 0
        if kept:
            yield start, self._shuffle(kept, shard, epoch, start)

    def _shuffle(self, kept: list[T], shard: int, epoch: int, row: int) -> list[T]:
        random = random_stream(self.seed, f"window at {row}", epoch, shard)
        kept[:] = [kept[place] for place in random.permutation(len(kept))]
        if self.group is not None:
            kept[:] = self.group(kept, random)
        return kept


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Which streams give the items of a batch.

    A share is a batch of one process: share = batch * world_size + rank. With `data.global_batch` the shares of a step take
    equal parts of every stream; without, a share takes all its items from the next stream.

    Attributes:
        streams: how many there are.
        rank: of this process.
        world_size: number of processes.
        batch_size: items of a share, where no global batch is given.
        global_batch: items of an optimizer step, over all processes.
        micro_batches: shares of a process in it.
    """

    streams: int
    rank: int = 0
    world_size: int = 1
    batch_size: int = 1
    global_batch: int | None = None
    micro_batches: int | None = None

    @property
    def per_step(self) -> int:
        """Shares after which the pattern repeats."""
        if self.global_batch is None or self.micro_batches is None:
            return self.streams
        return self.world_size * self.micro_batches

    @property
    def groups(self) -> int:
        """Sets of streams that are read together; each belongs to one worker of one process."""
        return min(self.streams, self.per_step)

    @property
    def items(self) -> int:
        """Of each stream in a share."""
        return (
            self.batch_size
            if self.global_batch is None
            else self.global_batch // max(self.streams, self.per_step)
        )

    def fits(self) -> bool:
        """Return whether the streams can be shared so that each belongs to one process."""
        least, most = sorted((self.streams, self.per_step))
        return (
            most % least == 0
            and self.streams % self.world_size == 0
            and (self.global_batch is None or self.global_batch % most == 0)
        )

    def workers_fit(self, workers: int) -> bool:
        """Return whether each group of streams can belong to one of that number of workers a process."""
        return self.groups % (self.world_size * max(1, workers)) == 0

    def of(self, batch: int) -> range:
        """Return the streams of this process's batch, counted from 0."""
        return range((batch * self.world_size + self.rank) % self.groups, self.streams, self.groups)


class ItemSource(Protocol):
    """What a kind of data makes of the examples of its streams."""

    streams: Streams[Any, Any]

    def items(self, stream: int, start: Position) -> Iterator[tuple[dict[str, Any], Position]]:
        """Yield the items of a stream from a position on, without end, each with the position after it."""
        ...


class StreamDataset(IterableDataset[dict[str, Any]]):
    """The training batches of one process, from batch `start` to batch `total`.

    Args:
        source: of the items.
        collate: makes a batch of items.
        shares: of the streams.
        total: batches of the whole run.

    Attributes:
        start: the first batch.
        positions: of every stream.
    """

    def __init__(
        self,
        source: ItemSource,
        collate: Callable[[Any], dict[str, Any]],
        shares: Shares,
        total: int,
    ) -> None:
        self.source, self.collate, self.shares, self.total = source, collate, shares, total
        self.start = 0
        self.positions = [Position()] * shares.streams

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        running: dict[int, Iterator[tuple[dict[str, Any], Position]]] = {}
        for batch in range(self.start + first, self.total, step):
            items: list[dict[str, Any]] = []
            positions: dict[int, Position] = {}
            try:
                for stream in self.shares.of(batch):
                    if stream not in running:
                        running[stream] = self.source.items(stream, self.positions[stream])
                    for item, position in islice(running[stream], self.shares.items):
                        items.append(item)
                        positions[stream] = position
            except MagnetoError as error:
                # Raised in a worker, it would arrive with a traceback in its message.
                yield {ERROR: str(error)}
                return
            yield {**self.collate(items), POSITIONS: positions}


def as_it_is(batch: dict[str, Any]) -> dict[str, Any]:
    """Return the batch: the `collate_fn` of a loader of whole batches."""
    return batch


class StreamLoader(RunLoader):
    """A loader over all training batches of a run that keeps the positions of the streams.

    Args:
        dataset: a `StreamDataset`.
        others: as for DataLoader.
    """

    dataset: StreamDataset

    def __init__(self, dataset: StreamDataset, **others: Any) -> None:
        super().__init__(dataset, batch_size=None, collate_fn=as_it_is, **others)

    def __len__(self) -> int:
        return self.dataset.total

    @property
    def epochs(self) -> float:
        """Epochs that this process's streams have read so far, in whole shards."""
        shares = self.dataset.shares
        mine = range(shares.rank, shares.streams, shares.world_size)
        return self.dataset.source.streams.epochs(self.dataset.positions, mine)

    def _begin(self) -> None:
        self.dataset.start = self.consumed

    def _take(self, batch: dict[str, Any]) -> None:
        if ERROR in batch:
            raise ShardError(batch[ERROR])
        for stream, position in batch.pop(POSITIONS).items():
            self.dataset.positions[stream] = position

    def state_dict(self) -> dict[str, Any]:
        """Return the batches handed out so far, and where each stream stands after them. Every process calls it."""
        known = [self.dataset.positions]
        if self.dataset.shares.world_size > 1:
            known = [self.dataset.positions] * self.dataset.shares.world_size
            torch.distributed.all_gather_object(known, self.dataset.positions)
        # Only the process that reads a stream knows where it stands.
        places = [known[stream % len(known)][stream] for stream in range(self.dataset.shares.streams)]
        return {**super().state_dict(), POSITIONS: [list(place) for place in places]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the batches of a `state_dict`."""
        super().load_state_dict(state)
        positions = state.get(POSITIONS)
        if not isinstance(positions, list) or len(positions) != self.dataset.shares.streams:
            raise DataError(
                f"The checkpoint has no positions of the {self.dataset.shares.streams} streams of data.streaming=true. Set "
                "data.streaming and data.streams as they were, or start again with resume=never."
            )
        self.dataset.positions = [Position(*map(int, position)) for position in positions]
