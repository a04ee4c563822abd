"""The documents of a streamed corpus that are prepared: those of val and test, and a sample of the training text."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

from magneto.data.corpora.base import Skipped
from magneto.data.corpora.text.base import Document
from magneto.data.held_out import bounded, undivided
from magneto.data.prepared import Preparation
from magneto.data.streamed import HELD_OUT
from magneto.data.streaming import Shard
from magneto.data.text.config import TextConfig
from magneto.data.text.documents import Skip, usable_documents

log = logging.getLogger(__name__)

SAMPLE_CHARS = 4_000_000  # of training text that a streamed corpus keeps, to know the bytes of a token


def usable_rows(
    name: str,
    rows: Iterable[Document | Skipped],
    fractions: tuple[float, float],
    skip: Skip | None = None,
) -> Iterator[Document]:
    """Yield the usable documents of a shard with their splits. skip: takes what is not used."""

    def documents() -> Iterator[Document]:
        for one in rows:
            if not isinstance(one, Skipped):
                yield one
            elif skip is not None:
                skip(f"{name}/{one.id}", one.file, one.reason)

    return usable_documents(name, documents(), fractions, skip)


def undivided_documents(
    name: str, shards: Sequence[Shard[Document]], fractions: tuple[float, float]
) -> Iterator[Document]:
    """Yield the usable documents of the training shards of a corpus: see `undivided`."""
    return undivided(shards, partial(usable_rows, name, fractions=fractions))


def bounded_documents(target: Preparation) -> Iterator[Document]:
    """Yield the documents of a streamed corpus that are prepared: see `bounded`."""
    config: TextConfig = target.config
    shares = dict(zip(("val", "test"), config.fractions, strict=True))
    for name, reader in target.corpora.items():
        target.note(name, reader.load(target.data_dir))
        shards = reader.shards()
        log.info("text: reading the beginning of %d shards of %s", len(shards), name)
        yield from bounded(
            shards,
            partial(usable_rows, name, fractions=config.fractions, skip=target.skip),
            shares={split: share for split, share in shares.items() if split in target.splits},
            limit=config.max_held_out or HELD_OUT,
            sample=SAMPLE_CHARS if "train" in target.splits else 0,
            size=lambda document: len(document.text),
        )
