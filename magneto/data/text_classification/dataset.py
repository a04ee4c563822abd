"""Labelled texts as token ids: what a prepared corpus says of itself, how texts are framed, how batches are padded.

<s> text </s>          <s> text </s> second text </s>
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from magneto.data.info import DatasetInfo
from magneto.data.io.digest import file_digest
from magneto.data.tokenizers.encode import Encoded
from magneto.data.tokenizers.text import TextTokenizer
from magneto.errors import ConfigError

PAD_TO_MULTIPLE = 8  # tokens; equal lengths reuse kernels and compiled graphs


@dataclass(frozen=True, kw_only=True)
class TextClassificationInfo(DatasetInfo):
    """The facts of prepared labelled text: all that a task, and a checkpoint alone, needs to know."""

    tokenizer: str  # content of tokenizer.json
    vocab_size: int
    max_tokens: int
    labels: list[str]  # empty: regression
    metrics: list[str]
    subsets: list[str]  # of the evaluation sets; the first is the main one
    pairs: bool
    range: list[float]  # smallest and largest label of regression in training; empty for classes
    examples: dict[str, int]  # per split
    label_counts: dict[str, dict[str, int]]  # split -> label -> examples; empty for regression
    truncated: int  # examples longer than max_tokens
    corpus: dict[str, Any]
    zero_digits: bool = False  # digits are read as zeros


@dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """`data.tokenizer`: a given tokenizer.json, or what to train on the texts of the training split."""

    file: str | None = None
    kind: str | None = None
    vocab_size: int | None = None

    def __post_init__(self) -> None:
        if self.file is None and (self.kind is None or self.vocab_size is None):
            raise ConfigError(
                "data.tokenizer needs a file (init_from= gives the one of the pretrained model), or kind and "
                "vocab_size to train one."
            )

    def fingerprint(self) -> dict[str, Any]:
        """What decides the tokenizer: the content of the file, wherever it lies."""
        if self.file is None:
            return {"kind": self.kind, "vocab_size": self.vocab_size}
        path = Path(self.file).expanduser()
        if not path.is_file():
            raise ConfigError(f"data.tokenizer.file={path}: there is no such file. Name a tokenizer.json.")
        return {"sha256": file_digest(path)}

    def make(self, texts: Sequence[str]) -> TextTokenizer:
        """Read it, or train it on `texts`."""
        if self.file is not None:
            return TextTokenizer.from_file(self.file)
        assert self.kind is not None and self.vocab_size is not None
        return TextTokenizer.train(texts, kind=self.kind, vocab_size=self.vocab_size)


def collate(
    items: Sequence[dict[str, Any]], pad_id: int, pad_to_multiple: int = PAD_TO_MULTIPLE
) -> dict[str, Any]:
    """Items of `tokens` and `second` (the others become tensors or lists of the batch) -> a padded batch."""
    longest = max(len(item["tokens"]) for item in items)
    width = -(-longest // pad_to_multiple) * pad_to_multiple
    tokens = np.full((len(items), width), pad_id, np.int64)
    mask = np.zeros((len(items), width), bool)
    second = np.zeros((len(items), width), bool)
    for row, item in enumerate(items):
        size = len(item["tokens"])
        tokens[row, :size] = item["tokens"]
        mask[row, :size] = True
        second[row, item["second"] : size] = True
    batch: dict[str, Any] = {
        "tokens": torch.from_numpy(tokens),
        "mask": torch.from_numpy(mask),
        "second": torch.from_numpy(second),
    }
    for key in items[0].keys() - batch.keys():
        values = [item[key] for item in items]
        batch[key] = values if isinstance(values[0], str | None) else torch.tensor(values)
    return batch


class ClassificationDataset(Dataset[dict[str, Any]]):
    """Rows of a prepared folder. Items are asked for as (epoch, position).

    encoded: of all rows of the folder; rows: those of this split; texts: (text, pair) of these rows, or None to leave
    them out of the items.
    """

    def __init__(
        self,
        info: TextClassificationInfo,
        encoded: Encoded,
        index: Mapping[str, np.ndarray],
        rows: np.ndarray,
        texts: Sequence[tuple[str, str]] | None = None,
    ) -> None:
        self.encoded, self.index, self.rows, self.texts = encoded, index, rows, texts
        self.regression = not info.labels
        self.lengths = np.diff(encoded.start)[rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Any]:
        position = place[1]
        row = int(self.rows[position])
        label = float(self.index["label"][row])
        item = {
            "id": row,
            "tokens": self.encoded.tokens[self.encoded.start[row] : self.encoded.start[row + 1]],
            "second": int(self.encoded.second[row]),
            "label": label if self.regression else int(label),
            "subset": int(self.index["subset"][row]),
        }
        if self.texts is not None:
            item["text"], item["pair"] = self.texts[position]
        return item


class Collate:
    """`collate` with the tokenizer's padding, to be sent to workers."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return collate(items, self.pad_id)
