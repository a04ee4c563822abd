"""Documents as one long row of tokens, and the pieces that models see of it.

doc </s> doc </s> doc </s>      the table of a split; read as a circle, so that the first token of the split
|---block---|---block---|       follows a `</s>` as all others do
"""

from dataclasses import dataclass

import numpy as np

from magneto.data.table import Flat, SplitTable


class TokenRow:
    """The tokens of one split, memory-mapped and read as a circle. Cheap to send to a worker."""

    def __init__(self, table: SplitTable) -> None:
        self.table = table

    def __len__(self) -> int:
        return len(self.table.values("tokens"))

    @property
    def offsets(self) -> np.ndarray:
        """(documents,) int64: where each begins."""
        return self.table.bounds("tokens")[:-1]

    def tokens(self, start: int, count: int) -> np.ndarray:
        """Return (count,) int64 from any index on, also -1; after the last token comes the first."""
        return _circular(self.table.values("tokens"), start, count)

    def bytes(self, start: int, count: int) -> np.ndarray:
        """Return (count,) int64, likewise: UTF-8 bytes of each token. Only for val and test."""
        return _circular(self.table.values("bytes"), start, count)


def _circular(row: Flat, start: int, count: int) -> np.ndarray:
    if start >= 0 and start + count <= len(row):
        return row.span(start, start + count).astype(np.int64)
    return row.take(np.arange(start, start + count) % len(row)).astype(np.int64)


@dataclass(frozen=True)
class Pieces:
    """Stretches of a split, one for each example, in parallel arrays (examples,) int64.

    start: first token of the stretch; length: its tokens; scored: this number of its last tokens is scored, what comes
    before is context.
    """

    start: np.ndarray
    length: np.ndarray
    scored: np.ndarray

    def __len__(self) -> int:
        return len(self.start)


def training_pieces(row: TokenRow, block_size: int, separate: bool) -> Pieces:
    """Blocks to train on.

    Packed: all of `block_size`; they are counted from 0, and the reader may shift them around the circle. separate:
    each document is cut into blocks of its own, the last of which is shorter.
    """
    if separate:
        starts, lengths = _cut_documents(row, block_size)
    else:
        starts = np.arange(len(row) // block_size) * block_size
        lengths = np.full(len(starts), block_size)
    return Pieces(starts, lengths, lengths)


def evaluation_pieces(row: TokenRow, block_size: int, stride: int, separate: bool) -> Pieces:
    """Windows in which every token of the split is scored exactly once.

    The first window of the split (separate: of a document) scores all of its tokens; each next one goes `stride`
    tokens on and scores what is new, so that a token has at least `block_size - stride` tokens of context.
    """
    segments = np.append(row.offsets, len(row)) if separate else np.array([0, len(row)])
    starts, lengths, scored = [], [], []
    for first, last in zip(segments[:-1].tolist(), segments[1:].tolist(), strict=True):
        done, stop = first, min(first + block_size, last)
        while done < last:
            start = max(first, stop - block_size)
            starts.append(start)
            lengths.append(stop - start)
            scored.append(stop - done)
            done, stop = stop, min(stop + stride, last)
    return Pieces(np.array(starts, np.int64), np.array(lengths, np.int64), np.array(scored, np.int64))


def _cut_documents(row: TokenRow, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    bounds = np.append(row.offsets, len(row))
    lengths = np.diff(bounds)
    blocks = -(-lengths // block_size)
    document = np.repeat(np.arange(len(lengths)), blocks)
    number = np.arange(len(document)) - np.repeat(np.cumsum(blocks) - blocks, blocks)
    start = bounds[document] + number * block_size
    return start, np.minimum(block_size, bounds[document + 1] - start)
