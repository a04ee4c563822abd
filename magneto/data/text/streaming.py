"""Blocks of documents that are read, tokenised and packed while a model trains."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from magneto.data.corpora.text.base import Document
from magneto.data.streaming import Position, Streams
from magneto.data.text.dataset import BlockReading, Blocks
from magneto.data.text.documents import pieces, portions, split_of
from magneto.data.tokenizers.text import TextTokenizer

TOGETHER, TOGETHER_CHARS = 64, 200_000  # documents, and their characters, that are tokenised together


def training_text(fractions: tuple[float, float], document: Document) -> tuple[str, int] | None:
    """Return the text of a document and its size; None: it is held out, or cannot be used."""
    return (document.text, len(document.text)) if split_of(document, fractions) == "train" else None


class StreamedBlocks(Blocks):
    """The training blocks of streams: a stream's documents, each followed by `</s>`, are cut into blocks without a gap.

    Args:
        streams: of the documents.
        reading: how blocks become items.
        block_size: tokens of a block, without the `<s>` of a masked one.
    """

    def __init__(self, streams: Streams[Document, str], reading: BlockReading, block_size: int) -> None:
        super().__init__(reading)
        self.streams, self.block_size = streams, block_size
        self._end = reading.tokenizer.require("eos")

    def items(self, stream: int, start: Position) -> Iterator[tuple[dict[str, Any], Position]]:
        """See `ItemSource`. An offset counts tokens of a document."""
        documents = self.streams.examples(stream, start)
        offset, number = start.offset, start.items
        parts: list[np.ndarray] = []
        missing, before = self.block_size, self._end  # the token before the block
        for position, ids in encoded(self.reading.tokenizer, self._end, documents):
            at, offset = offset, 0
            if at:  # the first document, which an earlier block has begun
                before = int(ids[at - 1])
            while at < len(ids):
                parts.append(ids[at : at + missing])
                at, missing = at + len(parts[-1]), missing - len(parts[-1])
                if missing == 0:
                    block = np.concatenate(parts)
                    item = self._item(before, block, number * self.streams.count + stream)
                    number += 1
                    yield item, position._replace(offset=at, items=number)
                    before, parts, missing = int(block[-1]), [], self.block_size

    def _item(self, before: int, block: np.ndarray, index: int) -> dict[str, Any]:
        if self.reading.masking is not None:
            return self.masked(block, 0, 0, index)
        size = round((self.reading.bytes_per_token or 0) * len(block))
        return self.causal(np.append(before, block), 0, index, size)


def encoded(
    tokenizer: TextTokenizer, end: int, documents: Iterator[tuple[Position, str]]
) -> Iterator[tuple[Position, np.ndarray]]:
    """Yield the tokens of each document, (T,) int64, with `end` after them; some documents are tokenised together."""
    waiting: list[tuple[Position, str]] = []
    size = 0
    for one in documents:
        waiting.append(one)
        size += len(one[1])
        if len(waiting) == TOGETHER or size >= TOGETHER_CHARS:
            texts = [list(pieces(text)) for _, text in waiting]
            flat = [piece for parts in texts for piece in parts]
            found = (ids for some in portions(flat) for ids in tokenizer.encode_batch(some))
            for (position, _), parts in zip(waiting, texts, strict=True):
                ids = [token for _ in parts for token in next(found)]
                yield position, np.array([*ids, end], np.int64)
            waiting, size = [], 0
