"""Speech with transcripts: corpora -> log-mel features on disk -> batches for CTC.

    sources --text normalised--> recordings --all cores--> float16 shards, memory-mapped --> sampler -->
    SpecAugment --> batch

A batch is a dict: `id` (B,) int64, the row in the prepared folder's utterances.jsonl; `features` (B, T,
num_mels) float32, zero where padded; `feature_lengths` (B,) int64; `targets` (B, U) int64, blank where
padded; `target_lengths` (B,) int64; `language` (B,) int64, an index into `spec.languages`; `text` list of B
normalised transcripts.
"""

import json
import logging
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch.utils.data import DataLoader, Dataset

from magneto.data.base import DataModule, cpu_count, fingerprint, prepare_once
from magneto.data.features import (
    AUDIO_SUFFIXES,
    Audio,
    BadAudio,
    FeatureSettings,
    Outcome,
    extract_shard,
    load_audio,
    log_mel,
)
from magneto.data.loader import RunLoader
from magneto.data.rng import random_stream
from magneto.data.sampler import EvaluationSampler, TokenBudgetSampler
from magneto.data.sources import SPLITS, Skipped, SpeechSource, Utterance
from magneto.data.tokenizer import BLANK, CTCTokenizer, normalize_text, repeats
from magneto.errors import UserError

log = logging.getLogger(__name__)

__all__ = ["SpecAugment", "SpeechDataModule", "SpeechSpec", "load_audio", "log_mel", "predict_dataset"]

FORMAT = 2  # of the prepared folder: raise it when the code below makes other files from the same settings
TEMPO_KNOTS = 64  # frames from one drawn tempo to the next; lengths between them interpolate
LEAST_SHARD, MOST_SHARDS = 64, 400  # recordings in a shard at least; shards at most (each is one open file)


@dataclass(frozen=True, kw_only=True)
class SpeechSpec:
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
    key: str  # of the prepared folder

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

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for a checkpoint's hyper-parameters."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SpeechSpec":
        """The spec that `to_dict` described."""
        return cls(**{field.name: values[field.name] for field in fields(cls)})


@dataclass(frozen=True, kw_only=True)
class SpecAugment:
    """Masks over bands and over time, drawn anew for each utterance and epoch, and a change of tempo.

    freq_masks: number of band masks, each of 0..freq_width bands; time_masks: number of time masks, each of
    0..time_ratio x length frames (so short utterances lose no larger share than long ones); speed: (slowest,
    fastest) tempo, or None for none: the features are stretched in time by interpolation, pitch unchanged.
    Masked features become 0, their mean. After Park et al. 2019 (arXiv 1904.08779) and 2020 (1912.05533).
    """

    freq_masks: int = 2
    freq_width: int = 15
    time_masks: int = 2
    time_ratio: float = 0.1
    speed: Sequence[float] | None = None

    def __post_init__(self) -> None:
        for name in ("freq_masks", "freq_width", "time_masks"):
            if getattr(self, name) < 0:
                raise UserError(f"augment.{name}={getattr(self, name)} must be 0 or more.")
        if not 0 <= self.time_ratio < 1:
            raise UserError(f"augment.time_ratio={self.time_ratio} must be at least 0 and below 1.")
        if self.speed is not None and not (
            len(self.speed) == 2 and 0.5 <= self.speed[0] <= self.speed[1] <= 2
        ):
            raise UserError(
                f"augment.speed={self.speed} must be two tempi within 0.5 and 2, slowest first: [0.9, 1.1]."
            )

    def tempo(self, random: np.random.Generator) -> float:
        """A tempo, 1 when `speed` is None."""
        return 1.0 if self.speed is None else float(random.uniform(self.speed[0], self.speed[1]))

    def __call__(
        self, features: np.ndarray, random: np.random.Generator, least_frames: int = 1, tempo: float = 1.0
    ) -> np.ndarray:
        """Features (T, num_mels) -> (T', num_mels) float32, a new array; T' = T / tempo, but >= least_frames."""
        features = features.astype(np.float32)
        if tempo != 1.0:
            features = _stretch(features, max(min(least_frames, len(features)), round(len(features) / tempo)))
        frames, bands = features.shape
        for _ in range(self.freq_masks):
            width = random.integers(0, min(self.freq_width, bands) + 1)
            start = random.integers(0, bands - width + 1)
            features[:, start : start + width] = 0
        for _ in range(self.time_masks):
            width = random.integers(0, int(self.time_ratio * frames) + 1)
            start = random.integers(0, frames - width + 1)
            features[start : start + width] = 0
        return features


def _stretch(features: np.ndarray, frames: int) -> np.ndarray:
    """Linear interpolation of (T, bands) to (frames, bands)."""
    places = np.linspace(0, len(features) - 1, frames)
    left = places.astype(np.int64)
    right = np.minimum(left + 1, len(features) - 1)
    weight = (places - left).astype(np.float32)[:, None]
    stretched: np.ndarray = features[left] * (1 - weight) + features[right] * weight
    return stretched


# ------------------------------------------------------------------------------------------------------------
# The prepared folder


@dataclass
class Prepared:
    """A prepared folder, read lazily so that it is cheap to send to a worker."""

    folder: Path
    _shards: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "_shards": {}}

    @cached_property
    def spec(self) -> SpeechSpec:
        return SpeechSpec.from_dict(json.loads((self.folder / "spec.json").read_text(encoding="utf-8")))

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

    def features(self, row: int) -> np.ndarray:
        """(T, num_mels) float16, memory-mapped."""
        shard = int(self.index["shard"][row])
        if shard not in self._shards:
            self._shards[shard] = np.load(self.folder / _shard_name(shard), mmap_mode="r")
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
        return {**{name: getattr(self.utterance, name) for name in names}, "seconds": round(self.seconds, 3)}


def _shard_name(shard: int) -> str:
    return f"features-{shard:05d}.npy"


class SpeechDataset(Dataset[dict[str, Any]]):
    """One split of a prepared folder. Items are asked for as (epoch, position in the split).

    spec: of the model that the items are for, where it is not the folder's own: its tokenizer and languages
    are used.
    """

    def __init__(
        self,
        prepared: Prepared,
        split: str,
        spec: SpeechSpec | None = None,
        augment: SpecAugment | None = None,
        seed: int = 0,
    ) -> None:
        self.prepared, self.augment, self.seed = prepared, augment, seed
        own, model = prepared.spec, spec or prepared.spec
        self._tokenizer = (
            None if model.tokenizer == own.tokenizer else CTCTokenizer.from_dict(model.tokenizer)
        )
        self._languages = [model.languages.index(language) for language in own.languages]
        self.rows = np.flatnonzero(prepared.index["split"] == SPLITS.index(split))
        self.lengths = prepared.index["frames"][self.rows]
        self._subsampling = prepared.spec.subsampling
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


class SpeechDataModule(DataModule):
    """Transcribed speech from one or more corpora.

    sources: name -> corpus. features: FeatureSettings as a dict. tokenizer: {"kind": characters | bpe |
    unigram, "vocab_size": int}. digits: "keep", or "drop" to leave out utterances whose transcript has digits
    (they are read out as words that the text does not show). min_seconds, max_seconds: durations outside are
    skipped. subsampling: feature frames per output frame of the model; an utterance whose transcript does not
    fit into its output frames is skipped. batch_frames: padded feature frames of a training batch on one rank
    (a tempo below 1 can exceed it by that factor); eval_batch_frames: of an evaluation batch (None: the
    same). augment: SpecAugment as a dict, None for none. prepare_workers: processes that compute features
    (None: all cores).
    """

    def __init__(
        self,
        sources: Mapping[str, SpeechSource],
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
        if not sources:
            raise UserError("data.sources is empty: name at least one corpus.")
        if digits not in ("keep", "drop"):
            raise UserError(f"data.digits={digits!r} must be keep or drop.")
        if not 0 < min_seconds < max_seconds:
            raise UserError(
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
                raise UserError(f"data.{name}={value} must be at least 1.")
        self.sources = dict(sources)
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
        self._spec: SpeechSpec | None = None  # of a checkpoint, where it differs
        self._batches_per_epoch: dict[int, int] = {}

    # ------------------------------------------------------------------------------------------------- prepar

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """All that the prepared folder depends on."""
        return {
            "format": FORMAT,
            "sources": {name: source.identity() for name, source in self.sources.items()},
            "features": self.feature_settings.to_dict(),
            "tokenizer": self.tokenizer_settings,
            "digits": self.digits,
            "seconds": list(self.seconds),
            "subsampling": self.subsampling,
        }

    @cached_property
    def folder(self) -> Path:
        """The prepared folder; its name carries a hash of all that its contents depend on."""
        return self.data_dir / "prepared" / f"speech-{'-'.join(self.sources)}-{fingerprint(self._identity)}"

    def prepare(self) -> None:
        """Fetch the corpora and compute features, tokenizer and index, unless that is done. Says what was
        skipped.
        """
        built = prepare_once(self.folder, self._build)
        report = json.loads((self.folder / "prepare_report.json").read_text(encoding="utf-8"))
        if built:
            log.info("prepared %s", self.folder)
        used, hours = report["used"], sum(report["hours"].values())
        log.info("speech: %d utterances, %.2f h %s", sum(used.values()), hours, used)
        if report["skipped_by_reason"]:
            reasons = ", ".join(f"{count} {reason}" for reason, count in report["skipped_by_reason"].items())
            log.warning(
                "speech: %d skipped (%s); listed in %s",
                len(report["skipped"]),
                reasons,
                self.folder / "prepare_report.json",
            )

    def _build(self, folder: Path) -> None:
        utterances, skipped, corpora = self._collect()
        examples = self._extract(utterances, folder, skipped)
        _require_all_splits(examples, len(utterances), skipped)
        tokenizer = CTCTokenizer.train(
            (example.utterance.text for example in examples if example.utterance.split == "train"),
            **self.tokenizer_settings,
        )
        examples = self._encode(examples, tokenizer, skipped)
        _require_all_splits(examples, len(utterances), skipped)
        languages = sorted({example.utterance.language for example in examples})
        _write_index(folder / "index.npz", examples, languages)
        with (folder / "utterances.jsonl").open("w", encoding="utf-8") as file:
            for example in examples:
                file.write(json.dumps(example.row(), ensure_ascii=False) + "\n")
        seconds = dict.fromkeys(SPLITS, 0.0)
        counts: Counter[tuple[str, str]] = Counter()
        for example in examples:
            seconds[example.utterance.split] += example.seconds
            counts[example.utterance.language, example.utterance.split] += 1
        spec = SpeechSpec(
            features=self.feature_settings.to_dict(),
            tokenizer=tokenizer.to_dict(),
            languages=languages,
            subsampling=self.subsampling,
            utterances={split: sum(counts[language, split] for language in languages) for split in SPLITS},
            hours={split: round(seconds[split] / 3600, 4) for split in SPLITS},
            per_language={
                language: {split: counts[language, split] for split in SPLITS} for language in languages
            },
            corpora=corpora,
            key=fingerprint(self._identity),
        )
        report = {
            "used": spec.utterances,
            "hours": spec.hours,
            "per_language": spec.per_language,
            "corpora": corpora,
            "settings": self._identity,
            "skipped_by_reason": dict(Counter(item.reason for item in skipped).most_common()),
            "skipped": [asdict(item) for item in skipped],
        }
        for name, values in (("spec.json", spec.to_dict()), ("prepare_report.json", report)):
            text = json.dumps(values, indent=1, ensure_ascii=False) + "\n"
            (folder / name).write_text(text, encoding="utf-8")

    def _collect(self) -> tuple[list[Utterance], list[Skipped], dict[str, dict[str, Any]]]:
        """All utterances with normalised text, corpus by corpus; ids carry the corpus's name."""
        utterances, skipped, corpora = [], [], {}
        for name, source in self.sources.items():
            corpus = source.load(self.data_dir)
            corpora[name] = corpus.origin
            skipped += [Skipped(f"{name}/{item.id}", item.file, item.reason) for item in corpus.skipped]
            for utterance in corpus.utterances:
                text = normalize_text(utterance.text)
                normalised = replace(utterance, id=f"{name}/{utterance.id}", text=text)
                if not text:
                    skipped.append(_skip(normalised, "empty transcript"))
                elif self.digits == "drop" and any(char.isdigit() for char in text):
                    skipped.append(_skip(normalised, "digits in its transcript"))
                else:
                    utterances.append(normalised)
        return utterances, skipped, corpora

    def _extract(
        self, utterances: Sequence[Utterance], folder: Path, skipped: list[Skipped]
    ) -> list[Example]:
        """Compute the shards; the recordings that can be used, and where their features are."""
        size = max(LEAST_SHARD, math.ceil(len(utterances) / MOST_SHARDS))
        parts = [utterances[start : start + size] for start in range(0, len(utterances), size)]
        results: list[list[Outcome]] = [[] for _ in parts]
        for shard, outcomes in self._run_jobs(
            [[utterance.audio for utterance in part] for part in parts], folder
        ):
            results[shard] = outcomes
        examples = []
        for shard, (part, outcomes) in enumerate(zip(parts, results, strict=True)):
            offset = 0
            for utterance, outcome in zip(part, outcomes, strict=True):
                reason = outcome.reason
                if reason is None and _cut_off(outcome.seconds, utterance.duration):
                    reason = "duration differs from the stated one"
                if reason is None:
                    examples.append(Example(utterance, outcome.seconds, shard, offset, outcome.frames))
                else:
                    skipped.append(_skip(utterance, reason))
                offset += outcome.frames
        return examples

    def _encode(
        self, examples: Sequence[Example], tokenizer: CTCTokenizer, skipped: list[Skipped]
    ) -> list[Example]:
        """Add the targets; leave out what CTC cannot align: it needs an output frame for each token and
        repeat.
        """
        fitting = []
        for example in examples:
            targets = tokenizer.encode(example.utterance.text)
            if not targets:
                skipped.append(
                    _skip(example.utterance, "no character of the training text in its transcript")
                )
            elif len(targets) + repeats(targets) > example.frames // self.subsampling:
                skipped.append(_skip(example.utterance, "transcript too long for its audio"))
            else:
                fitting.append(replace(example, targets=targets))
        return fitting

    def _run_jobs(self, jobs: list[list[Audio]], folder: Path) -> Iterator[tuple[int, list[Outcome]]]:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        workers = min(self.prepare_workers, len(jobs))
        with Progress(*columns) as progress:
            bar = progress.add_task("computing features", total=sum(map(len, jobs)))
            arguments = [
                (job, self.feature_settings, self.seconds, folder / _shard_name(n))
                for n, job in enumerate(jobs)
            ]
            if workers == 1:
                for shard, job in enumerate(arguments):
                    yield shard, extract_shard(*job)
                    progress.advance(bar, len(job[0]))
                return
            # spawn: a forked child of a process that has used torch's threads can hang
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                futures = {pool.submit(extract_shard, *job): shard for shard, job in enumerate(arguments)}
                try:
                    for future in as_completed(futures):
                        yield futures[future], future.result()
                        progress.advance(bar, len(jobs[futures[future]]))
                except BrokenProcessPool as error:
                    raise UserError(
                        "A process that computes features was killed, most likely for want of memory: set "
                        f"data.prepare_workers below {workers}. (In a script of your own, call prepare() "
                        "under `if __name__ == '__main__':`.)"
                    ) from error
                finally:
                    pool.shutdown(wait=True, cancel_futures=True)

    # ------------------------------------------------------------------------------------------------ reading

    @property
    def prepared(self) -> Prepared:
        """The prepared folder. Raises `UserError` when `prepare` has not been run."""
        if self._prepared is None:
            if not (self.folder / "spec.json").is_file():
                raise UserError(
                    f"The speech data is not prepared ({self.folder} is not there): run with mode=prepare "
                    "first."
                )
            self._prepared = Prepared(self.folder)
        return self._prepared

    @property
    def spec(self) -> SpeechSpec:
        """The facts of the prepared data."""
        return self.prepared.spec

    def use_spec(self, spec: Mapping[str, Any]) -> None:
        """Targets by the tokenizer of a checkpoint, languages by its list; the features must be the same."""
        model, own = SpeechSpec.from_dict(spec), self.spec
        if model.features != own.features:
            raise UserError(
                f"The checkpoint's model takes features {model.features}, this data has {own.features}: "
                "give data.features the checkpoint's values."
            )
        if unknown := sorted(set(own.languages) - set(model.languages)):
            raise UserError(
                f"This data has utterances in {', '.join(unknown)}; the checkpoint's model knows "
                f"{', '.join(model.languages)}. Choose those languages, or name them as the model does."
            )
        self._spec = model

    def setup(self, stage: str | None = None) -> None:
        """Open the splits."""
        self.train_set = SpeechDataset(self.prepared, "train", self._spec, self.augment, self.seed)
        self.val_set = SpeechDataset(self.prepared, "val", self._spec)
        self.test_set = SpeechDataset(self.prepared, "test", self._spec)

    @property
    def examples_per_epoch(self) -> int:
        """Training utterances."""
        return self.spec.utterances["train"]

    def _train_sampler(self, total: int, start: int, rank: int, world_size: int) -> TokenBudgetSampler:
        lengths = self.prepared.index["frames"][self.prepared.index["split"] == SPLITS.index("train")]
        return TokenBudgetSampler(
            lengths,
            budget=self.batch_frames,
            total_batches=total,
            start=start,
            rank=rank,
            world_size=world_size,
            seed=self.seed,
            pad_to_multiple=self.pad_to_multiple,
            max_batch_size=self.max_batch_size,
        )

    def batches_per_epoch(self, world_size: int = 1) -> int:
        """Training batches that one rank sees in an epoch: the same number in every epoch."""
        if world_size not in self._batches_per_epoch:
            self._batches_per_epoch[world_size] = self._train_sampler(0, 0, 0, world_size).batches_per_epoch
        return self._batches_per_epoch[world_size]

    def train_dataloader(self) -> DataLoader[Any]:
        """The batches that are left of the run."""
        assert self.total_batches is not None, "configure_run comes before train_dataloader"
        sampler = self._train_sampler(self.total_batches, 0, self.rank, self.world_size)
        return self._loader(self.train_set, sampler, RunLoader)

    def val_dataloader(self) -> DataLoader[Any]:
        """Each validation utterance once, over all ranks."""
        return self._evaluation_loader(self.val_set)

    def test_dataloader(self) -> DataLoader[Any]:
        """Each test utterance once, over all ranks."""
        return self._evaluation_loader(self.test_set)

    def _evaluation_loader(self, dataset: SpeechDataset) -> DataLoader[Any]:
        sampler = EvaluationSampler(
            dataset.lengths,
            budget=self.eval_batch_frames,
            rank=self.rank,
            world_size=self.world_size,
            pad_to_multiple=self.pad_to_multiple,
            max_batch_size=self.max_batch_size,
        )
        return self._loader(dataset, sampler)

    def _loader(
        self, dataset: SpeechDataset, sampler: Any, kind: type[DataLoader[Any]] = DataLoader
    ) -> DataLoader[Any]:
        return kind(
            dataset,
            batch_sampler=sampler,
            collate_fn=Collate(self.pad_to_multiple),
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )


def _strict(values: Mapping[str, Any], known: Sequence[str], name: str) -> dict[str, Any]:
    for key in values:
        if key not in known:
            raise UserError(f"data.{name}.{key} is not a setting; the settings are {', '.join(known)}.")
    return dict(values)


def _skip(utterance: Utterance, reason: str) -> Skipped:
    return Skipped(utterance.id, str(utterance.audio.path), reason)


def _cut_off(seconds: float, stated: float | None) -> bool:
    """Whether a recording was most likely cut off: codecs pad and people round, but not by that much."""
    return stated is not None and abs(seconds - stated) > max(0.5, 0.1 * stated)


def _write_index(path: Path, examples: Sequence[Example], languages: Sequence[str]) -> None:
    """See `Prepared.index`."""
    stops = np.cumsum([len(example.targets) for example in examples])
    np.savez(
        path,
        shard=np.array([example.shard for example in examples], np.int32),
        offset=np.array([example.offset for example in examples], np.int64),
        frames=np.array([example.frames for example in examples], np.int64),
        target_start=np.concatenate([[0], stops[:-1]]),
        target_stop=stops,
        targets=np.concatenate([np.array(example.targets, np.int32) for example in examples]),
        language=np.array([languages.index(example.utterance.language) for example in examples], np.int16),
        split=np.array([SPLITS.index(example.utterance.split) for example in examples], np.int8),
    )


def _require_all_splits(examples: Sequence[Example], total: int, skipped: Sequence[Skipped]) -> None:
    for split in SPLITS:
        if not any(example.utterance.split == split for example in examples):
            reasons = Counter(item.reason for item in skipped).most_common(5)
            listed = "; ".join(f"{count} {reason}" for reason, count in reasons) or "none was skipped"
            raise UserError(
                f"No usable utterance is left for the {split} split ({total} were looked at; skipped: "
                f"{listed}). Check the corpus, its splits, and data.min_seconds, data.max_seconds and "
                "data.digits."
            )


# ------------------------------------------------------------------------------------------------------------
# Prediction: from a checkpoint's spec alone


class PredictDataset(Dataset[dict[str, Any]]):
    """Audio files as items of a batch; `id` is the place in `paths`."""

    def __init__(self, paths: Sequence[Path], spec: SpeechSpec, skipped: Sequence[Skipped] = ()) -> None:
        self.paths, self.skipped = list(paths), list(skipped)
        self._settings = FeatureSettings.from_dict(spec.features)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> dict[str, Any]:
        waveform = _load_or_explain(self.paths[position], self._settings.sample_rate)
        features = log_mel(waveform, self._settings).numpy()
        return {"id": position, "features": features, "targets": [], "language": -1, "text": ""}


def _load_or_explain(path: Path, sample_rate: int) -> torch.Tensor:
    try:
        return load_audio(path, sample_rate)
    except BadAudio as bad:
        raise UserError(f"{path}: {bad}. Give a readable {', '.join(AUDIO_SUFFIXES)} file.") from bad


def predict_dataset(paths: Sequence[str | Path], spec: SpeechSpec) -> PredictDataset:
    """Files to transcribe, or folders (searched for audio files). Use it with `Collate(1)`.

    A file that was named and cannot be read is an error; one that was found in a folder is skipped and listed
    in `skipped`. Raises `UserError`.
    """
    chosen: list[Path] = []
    skipped: list[Skipped] = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in AUDIO_SUFFIXES)
            if not found:
                raise UserError(f"{path}: no audio file in this folder ({', '.join(AUDIO_SUFFIXES)}).")
            for file in found:
                try:
                    load_audio(file, spec.sample_rate)
                    chosen.append(file)
                except BadAudio as bad:
                    skipped.append(Skipped(str(file), str(file), str(bad)))
        else:
            if not path.is_file():
                raise UserError(f"{path}: there is no such file or folder.")
            _load_or_explain(path, spec.sample_rate)
            chosen.append(path)
    if not chosen:
        raise UserError(
            f"None of the {len(skipped)} audio files can be read; the first: {skipped[0].file}: "
            f"{skipped[0].reason}."
        )
    if skipped:
        log.warning("%d of %d audio files cannot be read: %s", len(skipped), len(skipped) + len(chosen),
                    "; ".join(f"{item.file}: {item.reason}" for item in skipped))  # fmt: skip
    return PredictDataset(chosen, spec, skipped)
