"""Info, examples and batches of prepared pairs of sentences.

A batch is a dict: `id` (B,) int64, the column `row` of the tables; `source` (B, S) int64, the
source's tokens and `</s>`, after the tag of the target language where there are tags; `source_mask` (B, S) bool, True =
real; `target_in` (B, T) int64, `<s>` and the target's tokens; `target_out` (B, T) int64, the target's tokens and
`</s>`, IGNORE where padded; `target_mask` (B, T) bool; `direction` (B,) int64, an index into the info's `directions`;
in evaluation also `source_text` and `target_text`, lists of B strings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from magneto.data.collate import IGNORE as IGNORE  # part of the batches described here
from magneto.data.collate import Collate, Pad
from magneto.data.dataset import PreparedDataset
from magneto.data.info import DatasetInfo
from magneto.data.table import SplitTable
from magneto.data.tokenizers.text import TextTokenizer


@dataclass(frozen=True, kw_only=True)
class TranslationInfo(DatasetInfo):
    """Info of prepared pairs: all that a task needs to know, as plain values."""

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
    pad_to_multiple: int = 1  # of lengths in a batch; no fact of the folder, set by the data module

    @property
    def longest(self) -> int:
        """Places that a side can take in a batch: text, tag, end (or begin) and padding."""
        return -(-(self.max_tokens + 1 + self.tag) // self.pad_to_multiple) * self.pad_to_multiple

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
        self.source_pad, self.target_pad = source.padding, target.padding
        languages = [direction.split("-")[1] for direction in info.directions]
        self.tags = [[source.id(tag_token(language))] if info.tag else [] for language in languages]

    def source(self, tokens: Sequence[int] | np.ndarray, direction: int) -> list[int]:
        """Return the tokens of a source as the model reads them."""
        return [*self.tags[direction], *map(int, tokens), self.source_end]

    def target(self, tokens: Sequence[int] | np.ndarray) -> dict[str, list[int]]:
        """Return the tokens of a target as the decoder reads them, and as it is to predict them."""
        ids = [*map(int, tokens)]
        return {"target_in": [self.target_start, *ids], "target_out": [*ids, self.target_end]}

    def padding(self, multiple: int = 1) -> Collate:
        """Return what makes batches of examples with a source, and maybe a target."""
        return Collate(
            {
                "source": Pad(value=self.source_pad, multiple=multiple, mask="source_mask"),
                "target_in": Pad(value=self.target_pad, multiple=multiple, mask="target_mask"),
                "target_out": Pad(value=IGNORE, multiple=multiple),
            }
        )


class TranslationDataset(PreparedDataset):
    """The pairs of a split.

    Args:
        table: of the split.
        info: of the model that the examples are for: its tags are used.
        directions: (directions of the data,) their numbers in the model's list.
        texts: whether the examples carry their texts.
    """

    def __init__(
        self, table: SplitTable, info: TranslationInfo, directions: np.ndarray, texts: bool = True
    ) -> None:
        self.table, self.texts, self.marks = table, texts, Marks(info)
        self.directions = directions[table.numbers("direction")]
        source, target = (np.diff(table.bounds(f"{side}_tokens")) for side in ("source", "target"))
        self.lengths = np.maximum(
            source + 1 + info.tag, target + 1
        )  # of the longer side, with special tokens

    def example(self, epoch: int, position: int) -> dict[str, Any]:
        """Return a pair."""
        direction = int(self.directions[position])
        item = {
            "id": int(self.table.numbers("row")[position]),
            "source": self.marks.source(self.table.list("source_tokens", position), direction),
            "direction": direction,
            **self.marks.target(self.table.list("target_tokens", position)),
        }
        if self.texts:
            row = self.table.row(position, "source", "target")
            item |= {"source_text": row["source"], "target_text": row["target"]}
        return item
