"""The prepared folder of a speech corpus, its splits as data sets, and their batches (see data/speech.py)."""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from magneto.data.corpora.base import SPLITS
from magneto.data.corpora.speech.base import Utterance
from magneto.data.info import DatasetInfo
from magneto.data.io.audio import Audio
from magneto.data.rng import random_stream
from magneto.data.tokenizers.ctc import BLANK, CTCTokenizer, repeats
from magneto.data.transforms.speech import SpecAugment
from magneto.errors import DataError

TEMPO_KNOTS = 64  # frames from one drawn tempo to the next; lengths between them interpolate


@dataclass(frozen=True, kw_only=True)
class SpeechInfo(DatasetInfo):
    """The facts of prepared speech: all that a task, and a checkpoint alone, needs to know. Plain values
    only.
    """

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


@dataclass
class Prepared:
    """A prepared folder, read lazily so that it is cheap to send to a worker."""

    folder: Path
    _shards: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "_shards": {}}

    @cached_property
    def info(self) -> SpeechInfo:
        return SpeechInfo.from_dict(json.loads((self.folder / "info.json").read_text(encoding="utf-8")))

    @cached_property
    def index(self) -> dict[str, np.ndarray]:
        """Per utterance: shard, offset and frames of its features; target_start, target_stop in `targets`;
        language, split.
        """
        with np.load(self.folder / "index.npz") as arrays:
            return dict(arrays)

    @cached_property
    def texts(self) -> list[str]:
        """Normalised transcripts."""
        return [row["text"] for row in self.rows()]

    def rows(self) -> Iterator[dict[str, Any]]:
        """What a person would want to know of each utterance, in the order of the ids."""
        with (self.folder / "utterances.jsonl").open(encoding="utf-8") as file:
            yield from map(json.loads, file)

    def audio(self, row: int) -> Audio | None:
        """Where the recording is, unless an earlier version prepared the folder and did not note it."""
        with (self.folder / "utterances.jsonl").open(encoding="utf-8") as file:
            noted = json.loads(next(itertools.islice(file, row, None))).get("audio")
        return None if noted is None else Audio(Path(noted[0]), *noted[1:])

    def features(self, row: int) -> np.ndarray:
        """(T, num_mels) float16, memory-mapped."""
        shard = int(self.index["shard"][row])
        if shard not in self._shards:
            self._shards[shard] = np.load(self.folder / shard_name(shard), mmap_mode="r")
        offset = self.index["offset"][row]
        return self._shards[shard][offset : offset + self.index["frames"][row]]

    def targets(self, row: int) -> np.ndarray:
        """(U,) int32."""
        return self.index["targets"][self.index["target_start"][row] : self.index["target_stop"][row]]


@dataclass(frozen=True)
class Example:
    """An utterance on its way into the prepared folder."""

    utterance: Utterance
    seconds: float
    shard: int
    offset: int  # of its features in the shard
    frames: int
    targets: Sequence[int] = ()

    def row(self) -> dict[str, Any]:
        """Its line in utterances.jsonl."""
        names = ("id", "split", "language", "speaker", "group", "text")
        audio = self.utterance.audio
        return {
            **{name: getattr(self.utterance, name) for name in names},
            "seconds": round(self.seconds, 3),
            "audio": [str(audio.path.absolute()), audio.start, audio.size],
        }


def shard_name(shard: int) -> str:
    return f"features-{shard:05d}.npy"


class SpeechDataset(Dataset[dict[str, Any]]):
    """One split of a prepared folder. Items are asked for as (epoch, position in the split).

    info: of the model that the items are for, where it is not the folder's own: its tokenizer and languages
    are used.
    """

    def __init__(
        self,
        prepared: Prepared,
        split: str,
        info: SpeechInfo | None = None,
        augment: SpecAugment | None = None,
        seed: int = 0,
    ) -> None:
        self.prepared, self.augment, self.seed = prepared, augment, seed
        own, model = prepared.info, info or prepared.info
        self._tokenizer = (
            None if model.tokenizer == own.tokenizer else CTCTokenizer.from_dict(model.tokenizer)
        )
        self._languages = [model.languages.index(language) for language in own.languages]
        self.rows = np.flatnonzero(prepared.index["split"] == SPLITS.index(split))
        self.lengths = prepared.index["frames"][self.rows]
        self._subsampling = prepared.info.subsampling
        _ = prepared.texts  # read here, once, not in every worker

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Any]:
        epoch, position = place
        row = int(self.rows[position])
        features, text = self.prepared.features(row), self.prepared.texts[row]
        targets = (
            self.prepared.targets(row).tolist() if self._tokenizer is None else self._tokenizer.encode(text)
        )
        if self.augment is not None:
            least = self._subsampling * (len(targets) + repeats(targets))
            tempo = self._tempo(epoch, len(features))
            features = self.augment(features, random_stream(self.seed, "augment", epoch, row), least, tempo)
        return {
            "id": row,
            "features": features,
            "targets": targets,
            "language": self._languages[self.prepared.index["language"][row]],
            "text": text,
        }

    def _tempo(self, epoch: int, frames: int) -> float:
        """The epoch's tempo for recordings of this length: neighbouring lengths have neighbouring tempi.

        Recordings of about one length share batches; tempi of their own would fill these up with padding.
        """
        assert self.augment is not None
        knot, place = divmod(frames, TEMPO_KNOTS)
        first, second = (
            self.augment.tempo(random_stream(self.seed, "tempo", epoch, number))
            for number in (knot, knot + 1)
        )
        return first + (second - first) * place / TEMPO_KNOTS


class Collate:
    """Items -> a padded batch; the length of the features is rounded up to a multiple of
    `pad_to_multiple`.
    """

    def __init__(self, pad_to_multiple: int) -> None:
        self.pad_to_multiple = pad_to_multiple

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        frames = [len(item["features"]) for item in items]
        padded = -(-max(frames) // self.pad_to_multiple) * self.pad_to_multiple
        features = np.zeros((len(items), padded, items[0]["features"].shape[1]), np.float32)
        units = [len(item["targets"]) for item in items]
        targets = np.full((len(items), max(units)), BLANK, np.int64)
        for row, item in enumerate(items):
            features[row, : frames[row]] = item["features"]
            targets[row, : units[row]] = item["targets"]
        return {
            "id": torch.tensor([item["id"] for item in items]),
            "features": torch.from_numpy(features),
            "feature_lengths": torch.tensor(frames),
            "targets": torch.from_numpy(targets),
            "target_lengths": torch.tensor(units),
            "language": torch.tensor([item["language"] for item in items]),
            "text": [item["text"] for item in items],
        }
