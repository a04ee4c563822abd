"""Pairs of sentences: corpora -> cleaned, tokenised pairs on disk -> batches for an encoder-decoder.

    corpora --tidy, unusable out--> all pairs --ratio, duplicates, near-duplicates--> pairs that are used -->
    tokenizer of the training pairs --> memory-mapped tokens --> token-budget buckets --> batch

A corpus passes by three times and is never held in memory: the first pass judges each pair and writes it to disk, the
others read it from there. `magneto/data/translation/dataset.py` says what a batch holds.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, Self

import numpy as np

from magneto.data.collate import Collate
from magneto.data.config import plain
from magneto.data.module import Batching
from magneto.data.prepared import Preparation, PreparedDataModule
from magneto.data.translation.build import build
from magneto.data.translation.config import TranslationConfig
from magneto.data.translation.dataset import TranslationDataset, TranslationInfo
from magneto.errors import DataError


class TranslationDataModule(PreparedDataModule[TranslationInfo, TranslationConfig]):
    """Pairs of sentences from one or more corpora, in one or more directions.

    Corpora: name -> `TranslationReader`; the settings are those of `TranslationConfig`.
    """

    Info, Config = TranslationInfo, TranslationConfig
    kind, noun = "translation", "pair"
    FORMAT = 3
    reads = ("source_tokenizer", "target_tokenizer")

    def settings(self) -> dict[str, Any]:
        """Return the tokenizers, and what decides which pairs are used."""
        config = self.config
        return {
            "tokenizer": config.tokenizer.fingerprint(),
            "clean": asdict(config.clean),
            "fractions": list(config.fractions),
            **plain(config, "tag", "max_tokens", "max_ratio"),
        }

    def info_of_settings(self) -> dict[str, Any]:
        """Return how batches are padded."""
        return {"pad_to_multiple": self.config.pad_to_multiple}

    def build(self, target: Preparation) -> dict[str, Any]:
        """Clean, split and tokenise the corpora."""
        return build(target)

    def warnings(self, report: Mapping[str, Any]) -> Iterator[str]:
        """Warn of pairs that are shortened."""
        if report["shortened"]:
            yield (
                f"{report['shortened']} pairs of the val and test sides that the corpus states have more than "
                f"{self.config.max_tokens} tokens: the model sees their beginning, and their whole reference is what they "
                "are scored by"
            )

    def adapted(self, model: TranslationInfo) -> Self:
        """Return a copy with the tags and the longest text of the model."""
        return self.with_config(tag=model.tag, max_tokens=model.max_tokens)

    def check(self) -> None:
        """Raise `DataError` for a direction that the model does not know."""
        if self.model is not None and (unknown := sorted({*self.info.directions} - {*self.model.directions})):
            raise DataError(
                f"This data has pairs {', '.join(unknown)}; the checkpoint's model translates "
                f"{', '.join(self.model.directions)}. Choose data in those directions."
            )

    def open(self, split: str) -> TranslationDataset:
        """Return the pairs of a split."""
        model = self.model or self.info
        directions = np.array([model.directions.index(name) for name in self.info.directions])
        return TranslationDataset(self.table(split), model, directions, texts=split != "train")

    @property
    def batching(self) -> Batching:
        """By padded tokens of the longer side."""
        config = self.config
        return Batching(
            budget=config.batch_tokens,
            eval_budget=config.eval_batch_tokens,
            pad_to_multiple=config.pad_to_multiple,
            max_batch_size=config.max_batch_size,
            eval_max_batch_size=config.max_batch_size,
            size=config.batch_tokens,
        )

    def collate(self, dataset: TranslationDataset) -> Collate:
        """Return what pads sources and targets."""
        return dataset.marks.padding(self.config.pad_to_multiple)
