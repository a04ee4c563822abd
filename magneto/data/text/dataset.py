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


class TextDataset(PreparedDataset):
    """The blocks of one split."""

    def __init__(self, row: TokenRow, pieces: Pieces, reading: BlockReading) -> None:
        self.row, self.pieces, self.reading = row, pieces, reading
        self._special = np.array(sorted(reading.tokenizer.special_ids))
        self._begin = reading.tokenizer.bos_id if reading.masking else None
        self.lengths = pieces.length + (self._begin is not None)  # tokens that the model sees

    def example(self, epoch: int, index: int) -> dict[str, Any]:
        """Return a block: see module.py."""
        start, length = int(self.pieces.start[index]), int(self.pieces.length[index])
        if self.reading.shift:
            start += int(random_stream(self.reading.seed, "shift", epoch).integers(self.reading.shift))
        context = length - int(self.pieces.scored[index])
        if self.reading.masking is not None:
            return {"id": index, **self._masked(self.row.tokens(start, length), context, epoch, index)}
        ids = self.row.tokens(start - 1, length + 1)
        targets = ids[1:].copy()
        targets[:context] = IGNORE
        if self.reading.bytes_per_token is not None:
            size = round(self.reading.bytes_per_token * (length - context))
        else:
            size = int(self.row.bytes(start + context, length - context).sum())
        return {"id": index, "tokens": ids[:-1], "targets": targets, "bytes": size}

    def _masked(self, ids: np.ndarray, context: int, epoch: int, index: int) -> dict[str, np.ndarray]:
        masking = self.reading.masking
        assert masking is not None
        allowed = ~np.isin(ids, self._special)
        allowed[:context] = False
        if self._begin is not None:
            ids, allowed = np.append(self._begin, ids), np.append(False, allowed)
        random = random_stream(self.reading.seed, f"masks of {self.reading.split}", epoch, index)
        shown, targets = masking(ids, allowed, self.reading.tokenizer, random)
        return {"tokens": shown, "targets": targets}


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
