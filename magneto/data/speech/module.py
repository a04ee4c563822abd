"""Speech with transcripts: corpora -> log-mel features on disk -> batches for CTC.

    corpora --text normalised--> recordings --all cores--> float16 features, memory-mapped --> sampler -->
    SpecAugment --> batch

A batch is a dict: `id` (B,) int64, the column `row` of the tables; `features` (B, T, num_mels) float32, zero where padded;
`feature_lengths` (B,) int64; `targets` (B, U) int64, blank where padded; `target_lengths` (B,) int64; `language` (B,)
int64, an index into `info.languages`; `text` list of B normalised transcripts.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np

from magneto.data.collate import Collate
from magneto.data.config import plain
from magneto.data.corpora.base import SPLITS
from magneto.data.corpora.speech.base import Utterance
from magneto.data.io.audio import Audio
from magneto.data.module import Batching
from magneto.data.prepared import Preparation
from magneto.data.speech.build import build
from magneto.data.speech.config import SpeechConfig
from magneto.data.speech.dataset import SpeechDataset, SpeechInfo, padding
from magneto.data.speech.streaming import StreamedSpeech, by_length, training_utterance
from magneto.data.streamed import StreamedDataModule
from magneto.data.tokenizers.ctc import CTCTokenizer
from magneto.errors import DataError

FEW = 10  # utterances: a split with fewer is warned of


class SpeechDataModule(StreamedDataModule[SpeechInfo, SpeechConfig]):
    """Transcribed speech from one or more corpora: name -> `SpeechReader`; the settings are those of `SpeechConfig`."""

    Info, Config = SpeechInfo, SpeechConfig
    kind, noun = "speech", "utterance"
    FORMAT = 4

    def settings(self) -> dict[str, Any]:
        """Return the features, the tokenizer, and what decides which recordings are used."""
        config = self.config
        return {
            "features": asdict(config.features),
            "tokenizer": asdict(config.tokenizer),
            "seconds": [config.min_seconds, config.max_seconds],
            **plain(config, "digits", "subsampling"),
            **({"keep_long_transcripts": True} if config.keep_long_transcripts else {}),
            **super().settings(),
        }

    def build(self, target: Preparation) -> dict[str, Any]:
        """Compute features and tokenizer."""
        return build(target)

    def details(self) -> str:
        """Return the hours of all splits."""
        return f", {sum(self.info.hours.values()):.2f} h{super().details()}"

    def warnings(self, report: Mapping[str, Any]) -> Iterator[str]:
        """Warn of small splits."""
        if few := [f"{count} {split}" for split, count in report["used"].items() if 0 < count < FEW]:
            yield (
                f"only {' and '.join(few)} utterances: scores are coarse, and the one of val chooses the checkpoint. Use "
                "more data, or raise data.corpora.manifest.val_fraction and test_fraction."
            )

    def adapted(self, model: SpeechInfo) -> Self:
        """Return a copy. Raises `DataError` where the model takes other features."""
        if model.features != (own := asdict(self.config.features)):
            raise DataError(
                f"The checkpoint's model takes features {model.features}, this data has {own}: "
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
            self.config,
            self.config.augment if training else None,
            self.seed if training else 0,
        )

    def audio(self, row: int) -> Audio | None:
        """Return where the recording of an utterance of this number is; None for a number that there is not."""
        for split in SPLITS:
            table = self.table(split)
            found = np.flatnonzero(table.numbers("row") == row)
            if len(found):
                names = [name for name in ("file", "start", "size") if name in table.arrow.column_names]
                file, *part = table.row(int(found[0]), *names).values()
                return Audio(Path(file), *part)
        return None

    # ------------------------------------------------------------------ streaming

    @property
    def take(self) -> Callable[[Utterance], tuple[Utterance, int] | None]:
        """What returns a training utterance and its size: see `Streams.take`."""
        return partial(training_utterance, self.config.digits, self.info.languages)

    @property
    def group(self) -> Callable[[list[Any], np.random.Generator], list[Any]]:
        """What makes batches of a window: see `Streams.group`."""
        return partial(by_length, self.config)

    @property
    def batch_items(self) -> int:
        """Return 1: an item is a batch."""
        return 1

    def item_source(self) -> tuple[StreamedSpeech, Callable[[Any], dict[str, Any]]]:
        """Return what computes features of the recordings, and what makes batches of them."""
        info, tokenizer = self.info, CTCTokenizer.from_dict(self.info.tokenizer)
        pad = self.collate(self.train_set)
        source = StreamedSpeech(self.streamed, self.config, tokenizer, info.languages, pad)
        return source, source.collate

    @property
    def batching(self) -> Batching:
        """By padded frames."""
        config = self.config
        return Batching(
            budget=config.batch_frames,
            eval_budget=config.eval_batch_frames,
            pad_to_multiple=config.pad_to_multiple,
            max_batch_size=config.max_batch_size,
            eval_max_batch_size=config.max_batch_size,
            size=config.batch_frames,
        )

    def collate(self, dataset: SpeechDataset) -> Collate:
        """Return what pads features and targets."""
        return padding(self.config.pad_to_multiple)
