"""The prepared folder of a parallel corpus, and the way from there to batches.

A batch is a dict: `id` (B,) int64, the line (from 0) in the prepared folder's pairs.jsonl; `source` (B, S) int64, the
source's tokens and `</s>`, after the tag of the target language where there are tags; `source_mask` (B, S) bool, True =
real; `target_in` (B, T) int64, `<s>` and the target's tokens; `target_out` (B, T) int64, the target's tokens and
`</s>`, IGNORE where padded; `target_mask` (B, T) bool; `direction` (B,) int64, an index into the info's `directions`;
in evaluation also `source_text` and `target_text`, lists of B strings.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from magneto.data.corpora.base import SPLITS
from magneto.data.info import DatasetInfo
from magneto.data.text.module import IGNORE as IGNORE  # part of the batches described here
from magneto.data.tokenizers.text import TextTokenizer


@dataclass(frozen=True, kw_only=True)
class TranslationInfo(DatasetInfo):
    """The facts of prepared parallel text: all that a task, and a checkpoint alone, needs to know. Plain values only."""

    source_tokenizer: str  # the JSON text of a TextTokenizer
    target_tokenizer: str
    shared: bool  # whether the two are one
    directions: list[str]  # such as en-fr
    tag: bool  # whether sources begin with the tag of their target language, such as <2fr>
    max_tokens: int  # of a side, the text's own tokens
    pairs: dict[str, int]  # per split
    per_direction: dict[str, dict[str, int]]  # direction -> split -> pairs
    words: dict[str, list[int]]  # per split: of the sources, of the targets, between spaces
    tokens: dict[str, list[int]]  # per split: of the sources, of the targets
    corpora: dict[str, dict[str, Any]]  # name -> origin
    pad_to_multiple: int = (
        1  # lengths in a batch are rounded up to it; no fact of the folder, set by the data module
    )

    @property
    def longest(self) -> int:
        """Places that a side can take in a batch: text, tag, end (or begin) and padding."""
        return _rounded_up(self.max_tokens + 1 + self.tag, self.pad_to_multiple)

    def longest_text(self, places: int) -> int:
        """The largest `max_tokens` for which `longest` is at most `places`."""
        return places // self.pad_to_multiple * self.pad_to_multiple - 1 - self.tag

    @property
    def tokenizers(self) -> list[str]:
        """Of both sides."""
        return [self.source_tokenizer, self.target_tokenizer]

    @cached_property
    def source_text_tokenizer(self) -> TextTokenizer:
        """Of the source side."""
        return TextTokenizer.from_json(self.source_tokenizer)

    @cached_property
    def target_text_tokenizer(self) -> TextTokenizer:
        """Of the target side."""
        return self.source_text_tokenizer if self.shared else TextTokenizer.from_json(self.target_tokenizer)

    @property
    def source_vocab_size(self) -> int:
        """Rows of the source embedding."""
        return self.source_text_tokenizer.vocab_size

    @property
    def target_vocab_size(self) -> int:
        """Rows of the target embedding and of the output."""
        return self.target_text_tokenizer.vocab_size


def _rounded_up(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def token_dtype(vocab_size: int) -> type[np.unsignedinteger[Any]]:
    """The type in which tokens.bin holds tokens."""
    return np.uint16 if vocab_size <= 2**16 else np.uint32


def tag_token(language: str) -> str:
    """The token that asks for a language: <2fr>."""
    return f"<2{language}>"


class Marks:
    """The special tokens that a info puts around texts."""

    def __init__(self, info: TranslationInfo) -> None:
        source, target = info.source_text_tokenizer, info.target_text_tokenizer
        self.source_end, self.target_start, self.target_end = (
            source.require("eos"),
            target.require("bos"),
            target.require("eos"),
        )
        self.source_pad = self.source_end if source.pad_id is None else source.pad_id
        self.target_pad = self.target_end if target.pad_id is None else target.pad_id
        languages = [direction.split("-")[1] for direction in info.directions]
        self.tags = [[source.id(tag_token(language))] if info.tag else [] for language in languages]

    def source(self, tokens: Sequence[int] | np.ndarray, direction: int) -> list[int]:
        """Tokens of a source as the model reads them."""
        return [*self.tags[direction], *map(int, tokens), self.source_end]


@dataclass
class Prepared:
    """A prepared folder, read lazily so that it is cheap to send to a worker."""

    folder: Path

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    @cached_property
    def info(self) -> TranslationInfo:
        return TranslationInfo.from_dict(json.loads((self.folder / "info.json").read_text(encoding="utf-8")))

    @cached_property
    def index(self) -> dict[str, np.ndarray]:
        """Per pair: `start` of its tokens, `source` and `target` lengths in tokens (the target's follow the source's),
        `direction`, `split`, and `text`, the place of its line in pairs.jsonl in bytes.
        """
        with np.load(self.folder / "index.npz") as arrays:
            return dict(arrays)

    @cached_property
    def tokens(self) -> np.ndarray:
        """All tokens, memory-mapped."""
        dtype = token_dtype(max(self.info.source_vocab_size, self.info.target_vocab_size))
        return np.memmap(self.folder / "tokens.bin", dtype, mode="r")

    def sides(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of a pair's source (S,) and target (T,)."""
        start, middle = self.index["start"][row], self.index["source"][row]
        both = self.tokens[start : start + middle + self.index["target"][row]]
        return both[:middle], both[middle:]

    def row(self, row: int) -> dict[str, Any]:
        """What a person would want to know of a pair: id, direction, split, group, source, target."""
        with (self.folder / "pairs.jsonl").open("rb") as file:
            file.seek(int(self.index["text"][row]))
            values: dict[str, Any] = json.loads(file.readline())
        return values

    def rows(self, split: str | None = None) -> Iterator[dict[str, Any]]:
        """All pairs (of a split), in the order of the ids."""
        with (self.folder / "pairs.jsonl").open(encoding="utf-8") as file:
            for line in file:
                values = json.loads(line)
                if split is None or values["split"] == split:
                    yield values


class TranslationDataset(Dataset[dict[str, Any]]):
    """One split of a prepared folder. Items are asked for as (epoch, position in the split).

    info: of the model that the items are for, where it is not the folder's own: its tags and the order of its directions
    are used. texts: whether the items carry their texts.
    """

    def __init__(
        self, prepared: Prepared, split: str, info: TranslationInfo | None = None, texts: bool = True
    ) -> None:
        self.prepared, self.texts = prepared, texts
        own, model = prepared.info, info or prepared.info
        self.rows = np.flatnonzero(prepared.index["split"] == SPLITS.index(split))
        self.marks = Marks(model)
        self._directions = np.array([model.directions.index(name) for name in own.directions])
        source, target = (prepared.index[side][self.rows].astype(np.int64) for side in ("source", "target"))
        self.lengths: np.ndarray = np.maximum(source + 1 + model.tag, target + 1)
        """(pairs,) int64: places that the longer side takes in a batch, special tokens included."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Any]:
        row = int(self.rows[place[1]])
        direction = int(self._directions[self.prepared.index["direction"][row]])
        source, target = self.prepared.sides(row)
        item = {
            "id": row,
            "source": self.marks.source(source, direction),
            "target": target,
            "direction": direction,
        }
        if self.texts:
            values = self.prepared.row(row)
            item |= {"source_text": values["source"], "target_text": values["target"]}
        return item


class Collate:
    """Items -> a padded batch; both lengths are rounded up to a multiple of `pad_to_multiple`.

    Items without `target` (lines to translate) give a batch without targets.
    """

    def __init__(self, marks: Marks, pad_to_multiple: int = 1) -> None:
        self.marks, self.pad_to_multiple = marks, pad_to_multiple

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        source, source_mask = self._pad([item["source"] for item in items], self.marks.source_pad)
        batch: dict[str, Any] = {
            "id": torch.tensor([item["id"] for item in items]),
            "source": torch.from_numpy(source),
            "source_mask": torch.from_numpy(source_mask),
            "direction": torch.tensor([item["direction"] for item in items]),
        }
        if "target" in items[0]:
            targets = [np.asarray(item["target"], np.int64) for item in items]
            inputs, mask = self._pad(
                [[self.marks.target_start, *ids] for ids in targets], self.marks.target_pad
            )
            outputs, _ = self._pad([[*ids, self.marks.target_end] for ids in targets], IGNORE)
            batch |= {
                "target_in": torch.from_numpy(inputs),
                "target_out": torch.from_numpy(outputs),
                "target_mask": torch.from_numpy(mask),
            }
        for name in ("source_text", "target_text"):
            if name in items[0]:
                batch[name] = [item[name] for item in items]
        return batch

    def _pad(self, rows: Sequence[Sequence[int]], value: int) -> tuple[np.ndarray, np.ndarray]:
        lengths = np.array([len(row) for row in rows])
        width = _rounded_up(int(lengths.max()), self.pad_to_multiple)
        padded = np.full((len(rows), width), value, np.int64)
        for place, row in enumerate(rows):
            padded[place, : len(row)] = row
        return padded, np.arange(width) < lengths[:, None]
