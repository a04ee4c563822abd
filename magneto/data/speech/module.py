"""Speech with transcripts: corpora -> log-mel features on disk -> batches for CTC.

    corpora --text normalised--> recordings --all cores--> float16 shards, memory-mapped --> sampler -->
    SpecAugment --> batch

A batch is a dict: `id` (B,) int64, the row in the prepared folder's utterances.jsonl; `features` (B, T,
num_mels) float32, zero where padded; `feature_lengths` (B,) int64; `targets` (B, U) int64, blank where
padded; `target_lengths` (B,) int64; `language` (B,) int64, an index into `info.languages`; `text` list of B
normalised transcripts.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from magneto.data.cache import cpu_count, is_complete, prepare_once, short_hash
from magneto.data.corpora.speech.base import SpeechReader
from magneto.data.io.audio import FeatureSettings
from magneto.data.messages import counts, skipped
from magneto.data.module import Batching, BucketedDataModule
from magneto.data.speech.build import SpeechBuilder
from magneto.data.speech.dataset import Collate, Prepared, SpeechDataset, SpeechInfo
from magneto.data.transforms.speech import SpecAugment
from magneto.errors import ConfigError, DataError

log = logging.getLogger(__name__)

FEW = 10  # utterances: a split with fewer is warned of
FORMAT = 3  # of the prepared folder: raise it when the code makes other files from the same settings


class SpeechDataModule(BucketedDataModule):
    """Transcribed speech from one or more corpora.

    corpora: name -> corpus. features: FeatureSettings as a dict. tokenizer: {"kind": characters | bpe |
    unigram, "vocab_size": int}. digits: "keep", or "drop" to leave out utterances whose transcript has digits
    (they are read out as words that the text does not show). min_seconds, max_seconds: durations outside are
    skipped. subsampling: feature frames per output frame of the model; an utterance whose transcript does not
    fit into its output frames is skipped. batch_frames: padded feature frames of a training batch on one rank
    (a tempo below 1 can exceed it by that factor); eval_batch_frames: of an evaluation batch (None: the
    same). augment: SpecAugment as a dict, None for none. prepare_workers: processes that compute features
    (None: all cores).
    """

    Info = SpeechInfo

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
        super().__init__(data_dir=data_dir, num_workers=num_workers, seed=seed)
        if not corpora:
            raise ConfigError("data.corpora is empty: name at least one corpus.")
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
        self.corpora = dict(corpora)
        self.feature_settings = FeatureSettings.from_dict(dict(features or {}))
        self.tokenizer_settings = _strict(tokenizer or {}, ("kind", "vocab_size"), "tokenizer")
        self.digits = digits
        self.seconds = (min_seconds, max_seconds)
        self.subsampling = subsampling
        self.batch_frames = batch_frames
        self.eval_batch_frames = eval_batch_frames or batch_frames
        self.max_batch_size = max_batch_size
        self.pad_to_multiple = pad_to_multiple
        names = tuple(field.name for field in fields(SpecAugment))
        self.augment = None if augment is None else SpecAugment(**_strict(augment, names, "augment"))
        self.prepare_workers = prepare_workers or cpu_count()
        self._prepared: Prepared | None = None
        self._info: SpeechInfo | None = None  # of a checkpoint, where it differs
        self._tested: SpeechInfo | None = None  # of a checkpoint: only what tests it is prepared

    # ------------------------------------------------------------------------------------------------- prepar

    @cached_property
    def _fingerprint(self) -> dict[str, Any]:
        """All that the prepared folder depends on."""
        return {
            "format": FORMAT,
            "corpora": {name: source.fingerprint() for name, source in self.corpora.items()},
            "features": self.feature_settings.to_dict(),
            "tokenizer": self.tokenizer_settings,
            "digits": self.digits,
            "seconds": list(self.seconds),
            "subsampling": self.subsampling,
        }

    @cached_property
    def folder(self) -> Path:
        """The prepared folder; its name carries a hash of all that its contents depend on."""
        return self.data_dir / "prepared" / f"speech-{'-'.join(self.corpora)}-{short_hash(self._fingerprint)}"

    def prepare(self) -> None:
        """Fetch the corpora and compute features, tokenizer and index, unless that is done. Says what was
        skipped.
        """
        built = prepare_once(self.folder, self._builder())
        report = json.loads((self.folder / "prepare_report.json").read_text(encoding="utf-8"))
        if built:
            log.info("prepared %s", self.folder)
        used, hours = report["used"], sum(report["hours"].values())
        log.info("speech: %s, %.2f h", counts(used, "utterances"), hours)
        if few := [f"{count} {split}" for split, count in used.items() if 0 < count < FEW]:
            log.warning(
                "speech: only %s utterances: scores are coarse, and the one of val chooses the checkpoint. Use more "
                "data, or raise data.corpora.manifest.val_fraction and test_fraction.",
                " and ".join(few),
            )
        if report["skipped_by_reason"]:
            where = self.folder / "prepare_report.json"
            log.warning("speech: %s", skipped(report["skipped_by_reason"], where))

    def _builder(self) -> SpeechBuilder:
        return SpeechBuilder(
            corpora=self.corpora,
            data_dir=self.data_dir,
            feature_settings=self.feature_settings,
            tokenizer_settings=self.tokenizer_settings,
            digits=self.digits,
            seconds=self.seconds,
            subsampling=self.subsampling,
            workers=self.prepare_workers,
            fingerprint=self._fingerprint,
            model=self._tested,
        )

    # ------------------------------------------------------------------------------------------------ reading

    @property
    def prepared(self) -> Prepared:
        """The prepared folder. Raises `DataError` when `prepare` has not been run."""
        if self._prepared is None:
            if not (self.folder / "info.json").is_file():
                raise DataError(
                    f"The speech data is not prepared ({self.folder} is not there): run with mode=prepare "
                    "first."
                )
            self._prepared = Prepared(self.folder)
        return self._prepared

    @property
    def info(self) -> SpeechInfo:
        """The facts of the prepared data."""
        return self.prepared.info

    def for_model(self, info: Mapping[str, Any]) -> Self:
        """Targets by the tokenizer of a checkpoint, languages by its list; the features must be the same.

        Where the data is not prepared, the test split alone is.
        """
        model, features = SpeechInfo.from_dict(info), self.feature_settings.to_dict()
        if model.features != features:
            raise DataError(
                f"The checkpoint's model takes features {model.features}, this data has {features}: "
                "give data.features the checkpoint's values."
            )
        if not is_complete(self.folder):
            self._tested = model
            self._fingerprint |= {"tests": short_hash(model.tokenizer)}
            del self.folder  # its name is that of other contents
        self.prepare()
        model.require_languages(self.info.languages)
        self._info = model
        return self

    def setup(self, stage: str | None = None) -> None:
        """Open the splits."""
        self.train_set = SpeechDataset(self.prepared, "train", self._info, self.augment, self.seed)
        self.val_set = SpeechDataset(self.prepared, "val", self._info)
        self.test_set = SpeechDataset(self.prepared, "test", self._info)

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
        """Padded batches."""
        return Collate(self.pad_to_multiple)


def _strict(values: Mapping[str, Any], known: Sequence[str], name: str) -> dict[str, Any]:
    for key in values:
        if key not in known:
            raise ConfigError(f"data.{name}.{key} is not a setting; the settings are {', '.join(known)}.")
    return dict(values)
