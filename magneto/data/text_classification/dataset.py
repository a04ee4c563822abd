"""Info and examples of prepared labelled text.

<s> text </s>          <s> text </s> second text </s>
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from magneto.data.collate import PAD_TO_MULTIPLE, Collate, Pad
from magneto.data.dataset import PreparedDataset
from magneto.data.info import DatasetInfo
from magneto.data.table import SplitTable


@dataclass(frozen=True, kw_only=True)
class TextClassificationInfo(DatasetInfo):
    """Info of prepared labelled text: all that a task needs to know."""

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


def padding(pad_id: int, multiple: int = PAD_TO_MULTIPLE) -> Collate:
    """Return what makes batches of examples that have `tokens` and `second`, (T,) each."""
    tokens = Pad(value=pad_id, multiple=multiple, mask="mask")
    return Collate({"tokens": tokens, "second": Pad(multiple=multiple, dtype=np.bool_)})


class ClassificationDataset(PreparedDataset):
    """The examples of a split.

    Args:
        table: of the split.
        labels: (classes of the data,) their numbers in the model's list; None for regression.
        subsets: (evaluation sets of the data,) likewise.
        texts: whether the examples carry their texts.
    """

    def __init__(
        self, table: SplitTable, labels: np.ndarray | None, subsets: np.ndarray, texts: bool
    ) -> None:
        self.table, self.texts = table, texts
        self.labels = table.numbers("label") if labels is None else labels[table.numbers("label")]
        self.subsets = subsets[table.numbers("subset")]
        self.lengths = np.diff(table.bounds("tokens"))

    def example(self, epoch: int, position: int) -> dict[str, Any]:
        """Return an example: see module.py."""
        tokens = self.table.list("tokens", position)
        item = {
            "id": int(self.table.numbers("row")[position]),
            "tokens": tokens,
            "second": np.arange(len(tokens)) >= self.table.numbers("second")[position],
            "label": self.labels[position].item(),
            "subset": int(self.subsets[position]),
        }
        if self.texts:
            row = self.table.row(position, "text", "pair")
            item |= {"text": row["text"], "pair": row["pair"] or ""}
        return item
