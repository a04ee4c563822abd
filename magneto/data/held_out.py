"""The examples of a streamed corpus that are prepared: those of val and test, and a sample of the training examples."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Protocol, TypeVar

from magneto.data.corpora.base import Skipped
from magneto.data.rng import random_stream
from magneto.data.streaming import Shard


class Example(Protocol):
    """An example that knows its split, None for train."""

    @property
    def split(self) -> str | None: ...


Raw = TypeVar("Raw")
T = TypeVar("T", bound=Example)
Usable = Callable[[Iterator[Raw | Skipped]], Iterator[T]]
"""Yields, of the rows of a shard, the examples that can be used, with their splits."""

OPEN_SHARDS = 8  # that preparation reads in turn, so that it does not see the beginning of one alone


def training_shards(shards: Iterable[Shard[Raw]]) -> list[Shard[Raw]]:
    """Return the shards that have training examples."""
    return [shard for shard in shards if shard.split in (None, "train")]


def undivided(shards: Sequence[Shard[Raw]], usable: Usable[Raw, T]) -> Iterator[T]:
    """Yield the usable examples of the training shards, also those that a hash holds out, from several in turn.

    The order of the shards is a random one, and the same for all runs.
    """
    shards = training_shards(shards)
    order = random_stream(0, "shards of the preparation", 0).permutation(len(shards))
    waiting = (usable(one for _, one in shards[place].read()) for place in order)
    running = deque(islice(waiting, OPEN_SHARDS))
    while running:
        examples = running.popleft()
        example = next(examples, None)
        if example is None:
            running.extend(islice(waiting, 1))
        else:
            running.append(examples)
            yield example


def bounded(
    shards: Sequence[Shard[Raw]],
    usable: Usable[Raw, T],
    *,
    shares: dict[str, float],
    limit: int,
    sample: int,
    size: Callable[[T], int] = lambda _: 1,
) -> Iterator[T]:
    """Yield the examples of a corpus that are prepared.

    All of the splits that it states; else a limited number of val and of test each, with a sample of the training examples.

    Args:
        shards: of the corpus.
        usable: see `Usable`.
        shares: of the examples that the hash gives to the splits that are needed beside train.
        limit: examples of each of them.
        sample: of the training examples, in what `size` counts.
        size: of an example.
    """
    for shard in shards:
        if shard.split in ("val", "test"):
            yield from usable(one for _, one in shard.read())
    stated = all(shard.split is not None for shard in shards)
    left = {} if stated else {split: limit for split, share in shares.items() if share}
    left["train"] = sample
    for example in undivided(shards, usable):
        split = example.split or "train"
        if left.get(split, 0) > 0:
            left[split] -= size(example) if split == "train" else 1
            yield example
        if max(left.values()) <= 0:
            break
