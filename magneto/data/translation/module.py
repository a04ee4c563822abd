"""Parallel text: corpora -> cleaned, tokenised pairs on disk -> batches for an encoder-decoder.

    corpora --tidy, unusable out--> all pairs --ratio, duplicates, near-duplicates--> pairs that are used -->
    tokenizer of the training pairs --> memory-mapped tokens --> token-budget buckets --> batch

A corpus passes by three times and is never held in memory: the first pass judges each pair and writes it to disk, the
others read it from there. `magneto/data/translation/dataset.py` says what a batch holds.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from magneto.config.validate import from_mapping
from magneto.data.cache import prepare_once, short_hash
from magneto.data.corpora.base import SPLITS
from magneto.data.corpora.translation.base import Pair, TranslationCorpus, TranslationReader
from magneto.data.messages import counts, skipped
from magneto.data.module import Batching, BucketedDataModule
from magneto.data.text.module import IGNORE
from magneto.data.tokenizers.text import TextTokenizer
from magneto.data.translation.build import Recipe, TokenizerSettings, build
from magneto.data.translation.cleaning import Cleaning
from magneto.data.translation.dataset import Collate, Prepared, TranslationDataset, TranslationInfo
from magneto.errors import ConfigError, DataError

log = logging.getLogger(__name__)

__all__ = [
    "IGNORE",
    "Pair",
    "TranslationCorpus",
    "TranslationDataModule",
    "TranslationReader",
    "TranslationInfo",
]

FORMAT = 2  # of the prepared folder: raise it when other files are made from the same settings


class TranslationDataModule(BucketedDataModule):
    """Pairs of sentences from one or more corpora, in one or more directions.

    corpora: name -> corpus. tokenizer: TokenizerSettings as a dict. tag: put the tag of the target language (<2fr>)
    before each source; needed as soon as a source language has two target languages. clean: Cleaning as a dict.
    max_tokens: pairs with more on a side are skipped; of val and test sides that a corpus states the beginning is read.
    max_ratio: pairs are skipped whose lengths differ by this factor
    from what is usual in their direction. val_fraction, test_fraction: of the groups of corpora without a split.
    batch_tokens: padded tokens of the longer side of a training batch on one rank; eval_batch_tokens: of an evaluation
    batch (None: the same). max_batch_size: pairs.
    """

    Info = TranslationInfo

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
        super().__init__(data_dir=data_dir, num_workers=num_workers, seed=seed)
        if not corpora:
            raise ConfigError("data.corpora is empty: name at least one corpus.")
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
        self.corpora = dict(corpora)
        self.tokenizer = from_mapping(TokenizerSettings, tokenizer or {}, "data.tokenizer")
        self.tag = tag
        self.clean = from_mapping(Cleaning, clean or {}, "data.clean")
        self.max_tokens, self.max_ratio = max_tokens, max_ratio
        self.fractions = (val_fraction, test_fraction)
        self.batch_tokens = batch_tokens
        self.eval_batch_tokens = eval_batch_tokens or batch_tokens
        self.max_batch_size = max_batch_size
        self.pad_to_multiple = pad_to_multiple
        self._prepared: Prepared | None = None
        self._model_info: TranslationInfo | None = None  # of a checkpoint, in evaluation
        self._given: list[str] | None = None  # its tokenizers, where the data has other ones

    # ------------------------------------------------------------------------------------------------- prepare

    @cached_property
    def _fingerprint(self) -> dict[str, Any]:
        """All that the prepared folder depends on."""
        return {
            "format": FORMAT,
            "corpora": {name: source.fingerprint() for name, source in self.corpora.items()},
            "tokenizer": self.tokenizer.fingerprint() if self._given is None else {"given": self._given},
            "tag": self.tag,
            "clean": asdict(self.clean),
            "max_tokens": self.max_tokens,
            "max_ratio": self.max_ratio,
            "fractions": list(self.fractions),
        }

    @cached_property
    def folder(self) -> Path:
        """The prepared folder; its name carries a hash of all that its contents depend on."""
        return (
            self.data_dir / "prepared" / f"parallel-{'-'.join(self.corpora)}-{short_hash(self._fingerprint)}"
        )

    def prepare(self) -> None:
        """Fetch, clean, split and tokenise the corpora, unless that is done. Says what was skipped and shortened."""
        if prepare_once(self.folder, self._build):
            log.info("prepared %s", self.folder)
        report = json.loads((self.folder / "prepare_report.json").read_text(encoding="utf-8"))
        log.info("parallel text: %s", counts(report["used"], "pairs"))
        if reasons := report["skipped_by_reason"]:
            log.warning("parallel text: %s", skipped(reasons, self.folder / "prepare_report.json"))
        if report["shortened"]:
            log.warning(
                "parallel text: %d pairs of the val and test sides that the corpus states have more than %d tokens: the "
                "model sees their beginning, and their whole reference is what they are scored by",
                report["shortened"], self.max_tokens,
            )  # fmt: skip

    def _build(self, folder: Path) -> None:
        recipe = Recipe(
            corpora=self.corpora,
            tokenizer=self.tokenizer,
            tag=self.tag,
            clean=self.clean,
            max_tokens=self.max_tokens,
            max_ratio=self.max_ratio,
            fractions=self.fractions,
            fingerprint=self._fingerprint,
            key=short_hash(self._fingerprint),
            given=None if self._given is None else [TextTokenizer.from_json(text) for text in self._given],
            splits=SPLITS if self._model_info is None else ("test",),
        )
        build(recipe, self.data_dir, folder)

    # ------------------------------------------------------------------------------------------------- reading

    @property
    def prepared(self) -> Prepared:
        """The prepared folder. Raises `DataError` when `prepare` has not been run."""
        if self._prepared is None:
            if not (self.folder / "info.json").is_file():
                raise DataError(
                    f"The parallel text is not prepared ({self.folder} is not there): run with mode=prepare first."
                )
            self._prepared = Prepared(self.folder)
        return self._prepared

    @cached_property
    def info(self) -> TranslationInfo:
        """The facts of the prepared data, and how its batches are padded."""
        return replace(self.prepared.info, pad_to_multiple=self.pad_to_multiple)

    def for_model(self, info: Mapping[str, Any]) -> Self:
        """Tokenizers, tags, longest text and directions of a checkpoint; a test split is enough.

        Raises `DataError` for a direction that the checkpoint does not know.
        """
        model = self._model_info = TranslationInfo.from_dict(info)
        self.tag, self.max_tokens = model.tag, model.max_tokens
        tokenizers = [model.source_tokenizer, model.target_tokenizer]
        self._forget()
        if not (self.folder / "info.json").is_file() or self.info.tokenizers != tokenizers:
            self._given = tokenizers
            self._forget()
        self.prepare()
        if unknown := sorted(set(self.info.directions) - set(model.directions)):
            raise DataError(
                f"This data has pairs {', '.join(unknown)}; the checkpoint's model translates "
                f"{', '.join(model.directions)}. Choose data in those directions."
            )
        return self

    def _forget(self) -> None:
        """What was read with other settings."""
        self._prepared = None
        for name in ("_fingerprint", "folder", "info"):
            self.__dict__.pop(name, None)

    def setup(self, stage: str | None = None) -> None:
        """Open the splits."""
        self.train_set = TranslationDataset(self.prepared, "train", self._model_info, texts=False)
        self.val_set = TranslationDataset(self.prepared, "val", self._model_info)
        self.test_set = TranslationDataset(self.prepared, "test", self._model_info)

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
        """Padded batches."""
        return Collate(dataset.marks, self.pad_to_multiple)
