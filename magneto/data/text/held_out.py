"""The documents of a streamed corpus that are prepared: those of val and test, and a sample of the training text."""

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from magneto.data.corpora.base import Skipped
from magneto.data.corpora.text.base import Document
from magneto.data.prepared import Preparation
from magneto.data.rng import random_stream
from magneto.data.streaming import Shard
from magneto.data.text.config import HELD_OUT, TextConfig
from magneto.data.text.documents import Skip, usable_documents

log = logging.getLogger(__name__)

SAMPLE_CHARS = 4_000_000  # of training text that a streamed corpus keeps, to know the bytes of a token
OPEN_SHARDS = 8  # that preparation reads in turn, so that it does not see the beginning of one alone


def training_shards(shards: Iterable[Shard[Document]]) -> list[Shard[Document]]:
    """Return the shards that have training documents."""
    return [shard for shard in shards if shard.split in (None, "train")]


def undivided_documents(
    name: str, shards: Sequence[Shard[Document]], fractions: tuple[float, float], skip: Skip | None = None
) -> Iterator[Document]:
    """Yield the usable documents of the training shards of a corpus, also those that a hash holds out, from several in turn.

    The order of the shards is a random one, and the same for all runs.
    """

    def read(shard: Shard[Document]) -> Iterator[Document]:
        for _, one in shard.read():
            if not isinstance(one, Skipped):
                yield one
            elif skip is not None:
                skip(f"{name}/{one.id}", one.file, one.reason)

    shards = training_shards(shards)
    order = random_stream(0, "shards of the preparation", 0).permutation(len(shards))
    waiting = (usable_documents(name, read(shards[place]), fractions, skip) for place in order)
    running = deque(islice(waiting, OPEN_SHARDS))
    while running:
        documents = running.popleft()
        document = next(documents, None)
        if document is None:
            running.extend(islice(waiting, 1))
        else:
            running.append(documents)
            yield document


def bounded_documents(target: Preparation) -> Iterator[Document]:
    """Yield the documents of a streamed corpus that are prepared.

    All of the splits that a corpus states; else `max_held_out` of val and of test each, with a sample of the training text.
    """
    config: TextConfig = target.config
    limit = config.max_held_out or HELD_OUT
    for name, reader in target.corpora.items():
        target.note(name, reader.load(target.data_dir))
        shards = reader.shards()
        for shard in shards:
            if shard.split in ("val", "test"):
                found = (one for _, one in shard.read() if isinstance(one, Document))
                yield from usable_documents(name, found, config.fractions, target.skip)
        stated = all(shard.split is not None for shard in shards)
        shares = dict(zip(("val", "test"), config.fractions, strict=True))
        left = {
            split: limit for split, share in shares.items() if share and not stated and split in target.splits
        }
        left["train"] = SAMPLE_CHARS if "train" in target.splits else 0
        log.info("text: reading the beginning of %d shards of %s", len(shards), name)
        for document in undivided_documents(name, shards, config.fractions, target.skip):
            split = document.split or "train"
            if left.get(split, 0) > 0:
                left[split] -= len(document.text) if split == "train" else 1
                yield document
            if max(left.values()) <= 0:
                break
