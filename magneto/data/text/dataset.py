"""The blocks of one split of prepared text (see module.py for the batches)."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from magneto.data.collate import IGNORE
from magneto.data.dataset import PreparedDataset
from magneto.data.info import DatasetInfo
from magneto.data.rng import random_stream
from magneto.data.text.packing import Pieces, TokenRow
from magneto.data.tokenizers.text import TextTokenizer
from magneto.data.transforms.mask_tokens import Masking


@dataclass(frozen=True, kw_only=True)
class BlockReading:
    """How blocks of a split become items."""

    split: str
    tokenizer: TextTokenizer
    masking: Masking | None
    shift: int  # packed training: blocks are moved by up to this number of tokens less one; 0: not
    seed: int
    bytes_per_token: float | None  # to estimate the bytes; None: they are looked up


class Blocks:
    """How a block of tokens becomes an item: see module.py."""

    def __init__(self, reading: BlockReading) -> None:
        self.reading = reading
        self._special = np.array(sorted(reading.tokenizer.special_ids))
        self.begin = reading.tokenizer.bos_id if reading.masking else None
        """The token before each block; None: there is none."""

    def causal(self, ids: np.ndarray, context: int, index: int, size: int) -> dict[str, Any]:
        """Return an item of tokens, of which the first comes before the block. size: bytes of what is scored."""
        targets = ids[1:].copy()
        targets[:context] = IGNORE
        return {"id": index, "tokens": ids[:-1], "targets": targets, "bytes": size}

    def masked(self, ids: np.ndarray, context: int, epoch: int, index: int) -> dict[str, Any]:
        """Return an item of the tokens of a block, some of them hidden."""
        masking = self.reading.masking
        assert masking is not None
        allowed = ~np.isin(ids, self._special)
        allowed[:context] = False
        if self.begin is not None:
            ids, allowed = np.append(self.begin, ids), np.append(False, allowed)
        random = random_stream(self.reading.seed, f"masks of {self.reading.split}", epoch, index)
        shown, targets = masking(ids, allowed, self.reading.tokenizer, random)
        return {"id": index, "tokens": shown, "targets": targets}


class TextDataset(Blocks, PreparedDataset):
    """The blocks of one split."""

    def __init__(self, row: TokenRow, pieces: Pieces, reading: BlockReading) -> None:
        super().__init__(reading)
        self.row, self.pieces = row, pieces
        self.lengths = pieces.length + (self.begin is not None)  # tokens that the model sees

    def example(self, epoch: int, index: int) -> dict[str, Any]:
        """Return a block: see module.py."""
        start, length = int(self.pieces.start[index]), int(self.pieces.length[index])
        if self.reading.shift:
            start += int(random_stream(self.reading.seed, "shift", epoch).integers(self.reading.shift))
        context = length - int(self.pieces.scored[index])
        if self.reading.masking is not None:
            return self.masked(self.row.tokens(start, length), context, epoch, index)
        if self.reading.bytes_per_token is not None:
            size = round(self.reading.bytes_per_token * (length - context))
        else:
            size = int(self.row.bytes(start + context, length - context).sum())
        return self.causal(self.row.tokens(start - 1, length + 1), context, index, size)


@dataclass(frozen=True, kw_only=True)
class TextInfo(DatasetInfo):
    """Info of prepared text: all that a task needs to know, as plain values."""

    tokenizer: str  # TextTokenizer.to_json()
    vocab_size: int
    block_size: int
    documents: dict[str, int]  # per split
    tokens: dict[str, int]  # per split, the `</s>` of each document included
    bytes: dict[str, int]  # per split, UTF-8
    unknown: dict[str, int]  # per split, tokens that are `<unk>`
    corpus: dict[str, dict[str, Any]]  # by source, what was read: version, digest, how it was got
