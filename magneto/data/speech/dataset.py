"""Info and examples of prepared speech, and recordings that a user has (see module.py for the batches)."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from magneto.data.collate import Collate, Pad
from magneto.data.dataset import PreparedDataset
from magneto.data.info import DatasetInfo
from magneto.data.io.audio import AUDIO_SUFFIXES, BadAudio, FeatureSettings, load_audio, log_mel
from magneto.data.io.folders import user_files
from magneto.data.rng import random_stream
from magneto.data.speech.config import SpeechConfig
from magneto.data.speech.texts import least_frames
from magneto.data.table import SplitTable
from magneto.data.tokenizers.ctc import BLANK, CTCTokenizer
from magneto.data.transforms.speech import SpecAugment
from magneto.errors import DataError

TEMPO_KNOTS = 64  # frames from one drawn tempo to the next; lengths between them interpolate


@dataclass(frozen=True, kw_only=True)
class SpeechInfo(DatasetInfo):
    """Info of prepared speech: all that a task needs to know, as plain values."""

    features: dict[str, Any]  # FeatureSettings
    tokenizer: dict[str, Any]  # CTCTokenizer.to_dict()
    languages: list[str]
    subsampling: int  # frames of features per frame of the model's output
    utterances: dict[str, int]  # per split
    hours: dict[str, float]  # per split
    per_language: dict[str, dict[str, int]]  # language -> split -> utterances
    corpora: dict[str, dict[str, Any]]  # what was read: version, digest, how it was got

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return int(self.features["sample_rate"])

    @property
    def feature_dim(self) -> int:
        """Width of a feature frame."""
        return int(self.features["num_mels"])

    @property
    def seconds_per_frame(self) -> float:
        """Distance of neighbouring feature frames in seconds."""
        return float(self.features["hop_ms"]) / 1000

    @property
    def vocab_size(self) -> int:
        """Classes of the CTC head, blank included."""
        return CTCTokenizer.from_dict(self.tokenizer).vocab_size

    def require_languages(self, languages: Iterable[str]) -> None:
        """Raise `DataError` for a language that the model of this info does not know."""
        if unknown := sorted(set(languages) - set(self.languages)):
            raise DataError(
                f"This data has utterances in {', '.join(unknown)}; the checkpoint's model knows "
                f"{', '.join(self.languages)}. Choose those languages, or name them as the model does."
            )


def padding(multiple: int) -> Collate:
    """Return what makes batches of utterances; the length of the features is rounded up to a multiple."""
    features = Pad(multiple=multiple, dtype=np.float32, lengths="feature_lengths")
    return Collate({"features": features, "targets": Pad(value=BLANK, lengths="target_lengths")})


class SpeechDataset(PreparedDataset):
    """The utterances of a split.

    Args:
        table: of the split.
        languages: (languages of the data,) their numbers in the model's list.
        tokenizer: of the model, where it is not that of the data.
        config: settings of the data.
        augment: of training examples.
        seed: of the augmentation.
    """

    def __init__(
        self,
        table: SplitTable,
        languages: np.ndarray,
        tokenizer: CTCTokenizer | None,
        config: SpeechConfig,
        augment: SpecAugment | None = None,
        seed: int = 0,
    ) -> None:
        self.table, self.tokenizer, self.config = table, tokenizer, config
        self.augment, self.seed = augment, seed
        self.languages = languages[table.numbers("language")]
        self.lengths = np.diff(table.bounds("features"))

    def example(self, epoch: int, position: int) -> dict[str, Any]:
        """Return an utterance."""
        row = int(self.table.numbers("row")[position])
        features, text = self.table.list("features", position), self.table.row(position, "text")["text"]
        targets = (
            self.table.list("targets", position).tolist()
            if self.tokenizer is None
            else self.tokenizer.encode(text)
        )
        if self.augment is not None:
            least = least_frames(targets, self.config)
            features = augmented(self.augment, features, least, self.seed, epoch, row)
        return {
            "id": row,
            "features": features,
            "targets": targets,
            "language": int(self.languages[position]),
            "text": text,
        }


def augmented(
    augment: SpecAugment,
    features: np.ndarray,
    least: int,
    seed: int,
    epoch: int,
    row: int,
) -> np.ndarray:
    """Return the features of a training utterance as they are in this epoch, `least` frames or more."""
    tempo = tempo_of(augment, len(features), seed, epoch)
    return augment(features, random_stream(seed, "augment", epoch, row), least, tempo)


def tempo_of(augment: SpecAugment, frames: int, seed: int, epoch: int) -> float:
    """Return the epoch's tempo for recordings of this length: neighbouring lengths have neighbouring tempi.

    Recordings of about one length share batches; tempi of their own would fill these up with padding.
    """
    knot, rest = divmod(frames, TEMPO_KNOTS)
    first, second = (
        augment.tempo(random_stream(seed, "tempo", epoch, number)) for number in (knot, knot + 1)
    )
    return first + (second - first) * rest / TEMPO_KNOTS


def user_recordings(path: str | Path, info: SpeechInfo) -> Iterator[tuple[Path, torch.Tensor]]:
    """Yield a file and its features (frames, num_mels), or all recordings below a folder: see `user_files`."""
    settings = FeatureSettings(**info.features)

    def read(file: Path) -> torch.Tensor:
        return log_mel(load_audio(file, settings.sample_rate), settings)

    return user_files(path, read, AUDIO_SUFFIXES, BadAudio, "audio")
