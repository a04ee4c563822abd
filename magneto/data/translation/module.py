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

from magneto.config.validate import from_mapping
from magneto.data.collate import Collate
from magneto.data.corpora.translation.base import TranslationReader
from magneto.data.module import Batching
from magneto.data.prepared import Preparation, PreparedDataModule
from magneto.data.tokenizers.text import TextTokenizer
from magneto.data.translation.build import PairTokenizerSettings, Recipe, build
from magneto.data.translation.cleaning import Cleaning
from magneto.data.translation.dataset import TranslationDataset, TranslationInfo
from magneto.errors import ConfigError, DataError


class TranslationDataModule(PreparedDataModule[TranslationInfo]):
    """Pairs of sentences from one or more corpora, in one or more directions.

    Args:
        corpora: name -> corpus.
        tokenizer: `PairTokenizerSettings` as a dict.
        tag: put the tag of the target language (<2fr>) before each source; needed as soon as a source language has two
            target languages.
        clean: `Cleaning` as a dict.
        max_tokens: pairs with more on a side are skipped; of val and test sides that a corpus states the beginning is
            read.
        max_ratio: pairs are skipped whose lengths differ by this factor from the median of their direction.
        val_fraction: of the groups of corpora without a split.
        test_fraction: likewise.
        batch_tokens: padded tokens of the longer side of a training batch on one rank.
        eval_batch_tokens: of an evaluation batch; None: the same.
        max_batch_size: pairs of a batch.
        pad_to_multiple: what lengths are rounded up to.
        data_dir, num_workers, seed: see `PreparedDataModule`.
    """

    Info = TranslationInfo
    kind, noun = "translation", "pair"
    FORMAT = 3
    reads = ("source_tokenizer", "target_tokenizer")

    def __init__(
        self,
        corpora: Mapping[str, TranslationReader],
        *,
        data_dir: str = "data",
        tokenizer: Mapping[str, Any] | None = None,
        tag: bool = False,
        clean: Mapping[str, Any] | None = None,
        max_tokens: int = 128,
        max_ratio: float = 3.0,
        val_fraction: float = 0.03,
        test_fraction: float = 0.05,
        batch_tokens: int = 4096,
        eval_batch_tokens: int | None = None,
        max_batch_size: int | None = None,
        pad_to_multiple: int = 8,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(corpora, data_dir=data_dir, num_workers=num_workers, seed=seed)
        counts = {
            "max_tokens": max_tokens,
            "batch_tokens": batch_tokens,
            "eval_batch_tokens": eval_batch_tokens,
            "max_batch_size": max_batch_size,
            "pad_to_multiple": pad_to_multiple,
        }
        for name, value in counts.items():
            if value is not None and value < 1:
                raise ConfigError(f"data.{name}={value} must be at least 1.")
        if max_ratio <= 1:
            raise ConfigError(f"data.max_ratio={max_ratio} must be above 1.")
        if not (val_fraction > 0 and test_fraction > 0 and val_fraction + test_fraction < 1):
            raise ConfigError(
                f"data.val_fraction={val_fraction} and data.test_fraction={test_fraction} must be above 0 and together "
                "below 1."
            )
        self.tokenizer = from_mapping(PairTokenizerSettings, tokenizer or {}, "data.tokenizer")
        self.tag = tag
        self.clean = from_mapping(Cleaning, clean or {}, "data.clean")
        self.max_tokens, self.max_ratio = max_tokens, max_ratio
        self.fractions = (val_fraction, test_fraction)
        self.batch_tokens = batch_tokens
        self.eval_batch_tokens = eval_batch_tokens or batch_tokens
        self.max_batch_size = max_batch_size
        self.pad_to_multiple = pad_to_multiple

    def settings(self) -> dict[str, Any]:
        """Return the tokenizers, and what decides which pairs are used."""
        return {
            "tokenizer": self.tokenizer.fingerprint(),
            "tag": self.tag,
            "clean": asdict(self.clean),
            "max_tokens": self.max_tokens,
            "max_ratio": self.max_ratio,
            "fractions": list(self.fractions),
        }

    def info_of_settings(self) -> dict[str, Any]:
        """Return how batches are padded."""
        return {"pad_to_multiple": self.pad_to_multiple}

    def build(self, target: Preparation) -> dict[str, Any]:
        """Clean, split and tokenise the corpora."""
        given = None if self.given is None else [*map(TextTokenizer.from_json, self.given.tokenizers)]
        recipe = Recipe(
            corpora=self.corpora,
            data_dir=self.data_dir,
            tokenizer=self.tokenizer,
            tag=self.tag,
            clean=self.clean,
            max_tokens=self.max_tokens,
            max_ratio=self.max_ratio,
            fractions=self.fractions,
            given=given,
        )
        return build(target, recipe)

    def warnings(self, report: Mapping[str, Any]) -> Iterator[str]:
        """Warn of pairs that are shortened."""
        if report["shortened"]:
            yield (
                f"{report['shortened']} pairs of the val and test sides that the corpus states have more than "
                f"{self.max_tokens} tokens: the model sees their beginning, and their whole reference is what they are "
                "scored by"
            )

    def adapted(self, model: TranslationInfo) -> Self:
        """Return a copy with the tags and the longest text of the model."""
        data = self.copy()
        data.tag, data.max_tokens = model.tag, model.max_tokens
        return data

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
        return Batching(
            budget=self.batch_tokens,
            eval_budget=self.eval_batch_tokens,
            pad_to_multiple=self.pad_to_multiple,
            max_batch_size=self.max_batch_size,
            eval_max_batch_size=self.max_batch_size,
        )

    def collate(self, dataset: TranslationDataset) -> Collate:
        """Return what pads sources and targets."""
        return dataset.marks.padding(self.pad_to_multiple)
