"""Speech with transcripts: corpora -> log-mel features on disk -> batches for CTC.

    corpora --text normalised--> recordings --all cores--> float16 features, memory-mapped --> sampler -->
    SpecAugment --> batch

A batch is a dict: `id` (B,) int64, the column `row` of the tables; `features` (B, T, num_mels) float32, zero where padded;
`feature_lengths` (B,) int64; `targets` (B, U) int64, blank where padded; `target_lengths` (B,) int64; `language` (B,)
int64, an index into `info.languages`; `text` list of B normalised transcripts.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import numpy as np

from magneto.config.validate import from_mapping
from magneto.data.cache import cpu_count
from magneto.data.collate import Collate
from magneto.data.corpora.base import SPLITS
from magneto.data.corpora.speech.base import SpeechReader
from magneto.data.io.audio import Audio, FeatureSettings
from magneto.data.module import Batching
from magneto.data.prepared import Preparation, PreparedDataModule
from magneto.data.speech.build import CTCTokenizerSettings, SpeechBuilder
from magneto.data.speech.dataset import SpeechDataset, SpeechInfo, padding
from magneto.data.tokenizers.ctc import CTCTokenizer
from magneto.data.transforms.speech import SpecAugment
from magneto.errors import ConfigError, DataError

FEW = 10  # utterances: a split with fewer is warned of


class SpeechDataModule(PreparedDataModule[SpeechInfo]):
    """Transcribed speech from one or more corpora.

    Args:
        corpora: name -> corpus.
        features: `FeatureSettings` as a dict.
        tokenizer: `CTCTokenizerSettings` as a dict.
        digits: "keep", or "drop" to leave out utterances whose transcript has digits (they are read out as words that
            the text does not show).
        min_seconds: shorter recordings are skipped.
        max_seconds: longer recordings are skipped.
        subsampling: feature frames per output frame of the model; an utterance whose transcript does not fit into its
            output frames is skipped.
        batch_frames: padded feature frames of a training batch on one rank (a tempo below 1 can exceed it by that
            factor).
        eval_batch_frames: of an evaluation batch; None: the same.
        max_batch_size: utterances of a batch.
        pad_to_multiple: what lengths are rounded up to.
        augment: `SpecAugment` as a dict, None for none.
        prepare_workers: processes that compute features; None: all cores.
        data_dir, num_workers, seed: see `PreparedDataModule`.
    """

    Info = SpeechInfo
    kind, noun = "speech", "utterance"
    FORMAT = 4

    def __init__(
        self,
        corpora: Mapping[str, SpeechReader],
        *,
        data_dir: str = "data",
        features: Mapping[str, Any] | None = None,
        tokenizer: Mapping[str, Any] | None = None,
        digits: str = "keep",
        min_seconds: float = 0.2,
        max_seconds: float = 30.0,
        subsampling: int = 4,
        batch_frames: int = 12_000,
        eval_batch_frames: int | None = None,
        max_batch_size: int | None = None,
        pad_to_multiple: int = 32,
        augment: Mapping[str, Any] | None = None,
        num_workers: int = 0,
        prepare_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(corpora, data_dir=data_dir, num_workers=num_workers, seed=seed)
        if digits not in ("keep", "drop"):
            raise ConfigError(f"data.digits={digits!r} must be keep or drop.")
        if not 0 < min_seconds < max_seconds:
            raise ConfigError(
                f"data.min_seconds={min_seconds} must be above 0 and below data.max_seconds={max_seconds}."
            )
        counts = {
            "batch_frames": batch_frames,
            "eval_batch_frames": eval_batch_frames,
            "max_batch_size": max_batch_size,
            "pad_to_multiple": pad_to_multiple,
            "prepare_workers": prepare_workers,
            "subsampling": subsampling,
        }
        for name, value in counts.items():
            if value is not None and value < 1:
                raise ConfigError(f"data.{name}={value} must be at least 1.")
        self.features = FeatureSettings.from_dict(dict(features or {}))
        self.tokenizer = from_mapping(CTCTokenizerSettings, tokenizer or {}, "data.tokenizer")
        self.digits = digits
        self.seconds = (min_seconds, max_seconds)
        self.subsampling = subsampling
        self.batch_frames = batch_frames
        self.eval_batch_frames = eval_batch_frames or batch_frames
        self.max_batch_size = max_batch_size
        self.pad_to_multiple = pad_to_multiple
        self.augment = None if augment is None else from_mapping(SpecAugment, augment, "data.augment")
        self.prepare_workers = prepare_workers or cpu_count()

    def settings(self) -> dict[str, Any]:
        """Return the features, the tokenizer, and what decides which recordings are used."""
        return {
            "features": self.features.to_dict(),
            "tokenizer": asdict(self.tokenizer),
            "digits": self.digits,
            "seconds": list(self.seconds),
            "subsampling": self.subsampling,
        }

    def build(self, target: Preparation) -> dict[str, Any]:
        """Compute features and tokenizer."""
        builder = SpeechBuilder(
            corpora=self.corpora,
            data_dir=self.data_dir,
            features=self.features,
            tokenizer=self.tokenizer,
            digits=self.digits,
            seconds=self.seconds,
            subsampling=self.subsampling,
            workers=self.prepare_workers,
            model=self.given,
        )
        return builder.build(target)

    def details(self) -> str:
        """Return the hours of all splits."""
        return f", {sum(self.info.hours.values()):.2f} h"

    def warnings(self, report: Mapping[str, Any]) -> Iterator[str]:
        """Warn of small splits."""
        if few := [f"{count} {split}" for split, count in report["used"].items() if 0 < count < FEW]:
            yield (
                f"only {' and '.join(few)} utterances: scores are coarse, and the one of val chooses the checkpoint. Use "
                "more data, or raise data.corpora.manifest.val_fraction and test_fraction."
            )

    def adapted(self, model: SpeechInfo) -> Self:
        """Return a copy. Raises `DataError` where the model takes other features."""
        if model.features != self.features.to_dict():
            raise DataError(
                f"The checkpoint's model takes features {model.features}, this data has {self.features.to_dict()}: "
                "give data.features the checkpoint's values."
            )
        return self.copy()

    def serves(self, model: SpeechInfo) -> bool:
        """Return True: the model's tokenizer is applied to the texts when they are read."""
        return True

    def check(self) -> None:
        """Raise `DataError` for a language that the model does not know."""
        if self.model is not None:
            self.model.require_languages(self.info.languages)

    def open(self, split: str) -> SpeechDataset:
        """Return the utterances of a split."""
        own, model, training = self.info, self.model or self.info, split == "train"
        return SpeechDataset(
            self.table(split),
            np.array([model.languages.index(language) for language in own.languages]),
            None if model.tokenizer == own.tokenizer else CTCTokenizer.from_dict(model.tokenizer),
            own.subsampling,
            self.augment if training else None,
            self.seed if training else 0,
        )

    def audio(self, row: int) -> Audio | None:
        """Return where the recording of an utterance of this number is; None for a number that there is not."""
        for split in SPLITS:
            table = self.table(split)
            found = np.flatnonzero(table.numbers("row") == row)
            if len(found):
                at = table.row(int(found[0]), "file", "start", "size")
                return Audio(Path(at["file"]), at["start"], at["size"])
        return None

    @property
    def batching(self) -> Batching:
        """By padded frames."""
        return Batching(
            budget=self.batch_frames,
            eval_budget=self.eval_batch_frames,
            pad_to_multiple=self.pad_to_multiple,
            max_batch_size=self.max_batch_size,
            eval_max_batch_size=self.max_batch_size,
        )

    def collate(self, dataset: SpeechDataset) -> Collate:
        """Return what pads features and targets."""
        return padding(self.pad_to_multiple)
