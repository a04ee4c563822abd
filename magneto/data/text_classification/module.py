"""Labelled texts and pairs of texts: corpus -> token ids on disk -> batches for text_classification.

A batch is a dict: `id` (B,) int64; `tokens` (B, T) int64; `mask` (B, T) bool, True = real; `second` (B, T) bool, True in
the second text; `label` (B,) int64, or float32 for regression; `subset` (B,) int64, an index into `info.subsets`; and for
evaluation `text` and `pair`, lists of B strings.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np

from magneto.data.collate import PAD_TO_MULTIPLE, Collate
from magneto.data.corpora.text_classification.base import LabelledReader
from magneto.data.module import Batching
from magneto.data.prepared import Preparation, PreparedDataModule
from magneto.data.text_classification.build import build
from magneto.data.text_classification.config import TextClassificationConfig
from magneto.data.text_classification.dataset import ClassificationDataset, TextClassificationInfo, padding
from magneto.data.tokenizers.text import TextTokenizer
from magneto.errors import DataError

ROOM = 2**20
"""Tokens that a budget has for each example: more than a text has."""


class TextClassificationDataModule(PreparedDataModule[TextClassificationInfo, TextClassificationConfig]):
    """A labelled corpus.

    Args:
        corpus: its reader.
        settings: fields of `TextClassificationConfig`.
    """

    Info, Config = TextClassificationInfo, TextClassificationConfig
    kind = "text_classification"
    FORMAT = 3
    reads = ("tokenizer", "zero_digits")

    def __init__(self, corpus: LabelledReader, **settings: Any) -> None:
        super().__init__({corpus.name: corpus}, **settings)

    def settings(self) -> dict[str, Any]:
        """Return the tokenizer and the longest text."""
        return {"tokenizer": self.config.tokenizer.fingerprint(), "max_tokens": self.config.max_tokens}

    def build(self, target: Preparation) -> dict[str, Any]:
        """Read the corpus and encode it."""
        return build(target)

    def details(self) -> str:
        """Return the labels, or the range of the numbers."""
        info = self.info
        labels = f", labels {', '.join(info.labels)}" if info.labels else f", scores {info.range}"
        if "f1" in info.metrics and len(info.labels) == 2 and self.model is None:
            labels += f"; f1 is that of the label {info.labels[1]}"
        return labels

    def warnings(self, report: Mapping[str, Any]) -> Iterator[str]:
        """Warn of examples that are cut."""
        if self.info.truncated:
            yield f"{self.info.truncated} examples truncated to {self.info.max_tokens} tokens"

    def adapted(self, model: TextClassificationInfo) -> Self:
        """Return a copy with texts as long as those of the model."""
        return self.with_config(max_tokens=model.max_tokens)

    def check(self) -> None:
        """Raise `DataError` for labels, pairs or evaluation sets that the model does not know; it may know more."""
        own, model = self.info, self.model
        if model is None:
            return
        if bool(own.labels) != bool(model.labels) or not set(own.labels) <= set(model.labels):
            theirs, ours = (", ".join(labels) or "numbers" for labels in (model.labels, own.labels))
            raise DataError(
                f"The checkpoint's model tells apart {theirs}; this data has the labels {ours}. Choose the data that "
                "the model was trained for."
            )
        if own.pairs != model.pairs:
            theirs, ours = ("pairs of texts" if one.pairs else "single texts" for one in (model, own))
            raise DataError(
                f"The checkpoint's model reads {theirs}; this data has {ours}. Choose the data that the model was trained "
                "for, or set data.corpus.pair."
            )
        if own.subsets != [""] and not set(own.subsets) <= set(model.subsets):
            raise DataError(
                f"This data has the evaluation sets {', '.join(own.subsets)}; the checkpoint's model knows "
                f"{', '.join(model.subsets)}. Choose the data that the model was trained for."
            )

    def open(self, split: str) -> ClassificationDataset:
        """Return the examples of a split."""
        own, model = self.info, self.model or self.info
        labels = np.array([model.labels.index(name) for name in own.labels]) if own.labels else None
        # Where an evaluation set has no name, it is the main one.
        known = [model.subsets.index(name) if name in model.subsets else 0 for name in own.subsets]
        return ClassificationDataset(self.table(split), labels, np.array(known), texts=split != "train")

    @property
    def batching(self) -> Batching:
        """By examples: the budgets are never what limits a batch."""
        config = self.config
        eval_batch_size = config.eval_batch_size or config.batch_size
        return Batching(
            budget=config.batch_size * ROOM,
            eval_budget=eval_batch_size * ROOM,
            pad_to_multiple=PAD_TO_MULTIPLE,
            max_batch_size=config.batch_size,
            eval_max_batch_size=eval_batch_size,
            size=config.batch_size,
        )

    def collate(self, dataset: ClassificationDataset) -> Collate:
        """Return what pads tokens with the model's padding."""
        tokenizer = TextTokenizer.from_json((self.model or self.info).tokenizer)
        return padding(tokenizer.pad_id or 0)
