"""Builds the prepared folder of a speech corpus: text normalised, features computed by all cores, bad recordings listed."""

import json
import logging
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from magneto.data.cache import short_hash
from magneto.data.corpora.base import SPLITS, Skipped
from magneto.data.corpora.speech.base import SpeechReader, Utterance
from magneto.data.io.audio import Audio, FeatureSettings, Outcome, extract_shard
from magneto.data.speech.dataset import Example, SpeechInfo, shard_name
from magneto.data.tokenizers.ctc import CTCTokenizer, repeats
from magneto.data.transforms.text import normalize_text
from magneto.errors import DataError

log = logging.getLogger(__name__)

DIGITS = "digits in its transcript"
LEAST_SHARD, MOST_SHARDS = 64, 400  # recordings in a shard at least; shards at most (each is one open file)


@dataclass(frozen=True, kw_only=True)
class SpeechBuilder:
    """Settings of `SpeechDataModule` under which `builder(folder)` fills a folder.

    Writes features-*.npy, index.npz, utterances.jsonl, info.json and prepare_report.json. Raises `DataError` when a
    split is left empty. model: of a checkpoint that is to be tested: the test split alone is prepared, with the
    model's tokenizer.
    """

    corpora: Mapping[str, SpeechReader]
    data_dir: Path
    feature_settings: FeatureSettings
    tokenizer_settings: Mapping[str, Any]
    digits: str
    seconds: tuple[float, float]
    subsampling: int
    workers: int
    fingerprint: Mapping[str, Any]
    model: SpeechInfo | None = None

    def __call__(self, folder: Path) -> None:
        utterances, skipped, corpora, advice = self._collect()
        total = len(utterances) + len(skipped)
        # The splits are known before the hours that the features may take.
        self._require_splits(utterances, total, skipped, advice)
        if self.model is not None:
            self.model.require_languages({utterance.language for utterance in utterances})
        examples = self._extract(utterances, folder, skipped)
        settings = "Check the recordings, data.min_seconds and data.max_seconds."
        self._require_splits([example.utterance for example in examples], total, skipped, settings)
        if self.model is not None:
            tokenizer = CTCTokenizer.from_dict(self.model.tokenizer)
        else:
            tokenizer = CTCTokenizer.train(
                (example.utterance.text for example in examples if example.utterance.split == "train"),
                **self.tokenizer_settings,
            )
        examples = self._encode(examples, tokenizer, skipped)
        self._require_splits([example.utterance for example in examples], total, skipped, settings)
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
        info = SpeechInfo(
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
            key=short_hash(self.fingerprint),
        )
        report = {
            "used": info.utterances,
            "hours": info.hours,
            "per_language": info.per_language,
            "corpora": corpora,
            "settings": self.fingerprint,
            "skipped_by_reason": dict(Counter(item.reason for item in skipped).most_common()),
            "skipped": [asdict(item) for item in skipped],
        }
        for name, values in (("info.json", info.to_dict()), ("prepare_report.json", report)):
            text = json.dumps(values, indent=1, ensure_ascii=False) + "\n"
            (folder / name).write_text(text, encoding="utf-8")

    def _collect(self) -> tuple[list[Utterance], list[Skipped], dict[str, dict[str, Any]], str]:
        """All utterances of the splits that are wanted, with normalised text, corpus by corpus; ids carry the
        corpus's name. Last: what to do when a split is empty.
        """
        utterances, skipped, corpora, advice = [], [], {}, []
        sides: dict[Audio, set[str]] = defaultdict(set)
        for name, source in self.corpora.items():
            corpus = source.load(self.data_dir)
            corpora[name] = corpus.origin
            advice.append(corpus.advice)
            skipped += [Skipped(f"{name}/{item.id}", item.file, item.reason) for item in corpus.skipped]
            for utterance in corpus.utterances:
                if utterance.split not in self._splits:
                    continue
                text = normalize_text(utterance.text)
                normalised = replace(utterance, id=f"{name}/{utterance.id}", text=text)
                if not text:
                    skipped.append(_skip(normalised, "empty transcript"))
                elif self.digits == "drop" and any(char.isdigit() for char in text):
                    skipped.append(_skip(normalised, DIGITS))
                else:
                    utterances.append(normalised)
                    sides[utterance.audio].add(utterance.split)
        if shared := [audio.path for audio, splits in sides.items() if len(splits) > 1]:
            log.warning(
                "%d audio files stand on several sides of the split, the first %s: scores will flatter.",
                len(shared),
                shared[0],
            )
        if skipped and not utterances:
            advice = ["Check the corpus: paths in a manifest that are not absolute begin at its folder."]
        return utterances, skipped, corpora, " ".join(filter(None, advice)) or "Check the corpus."

    @property
    def _splits(self) -> tuple[str, ...]:
        return SPLITS if self.model is None else ("test",)

    def _require_splits(
        self, utterances: Sequence[Utterance], total: int, skipped: Sequence[Skipped], advice: str
    ) -> None:
        """Raise `DataError` with the reasons, counted, and the advice when a split is empty."""
        present = {utterance.split for utterance in utterances}
        empty = [split for split in self._splits if split not in present]
        if not empty:
            return
        reasons = Counter(item.reason for item in skipped).most_common(5)
        listed = "; ".join(f"{count} {reason}" for reason, count in reasons) or "none"
        first = f"; the first: {skipped[0].file}" if skipped else ""
        if any(item.reason == DIGITS for item in skipped):
            advice += " Set data.digits to keep."
        raise DataError(
            f"No usable utterance is left for the {' and '.join(empty)} {'split' if len(empty) == 1 else 'splits'} "
            f"({total} were looked at; skipped: {listed}{first}). {advice}"
        )

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
            if not targets and self.model is None:  # a tested model answers for what it cannot write
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
        workers = min(self.workers, len(jobs))
        with Progress(*columns) as progress:
            bar = progress.add_task("computing features", total=sum(map(len, jobs)))
            arguments = [
                (job, self.feature_settings, self.seconds, folder / shard_name(n))
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
                    raise DataError(
                        "A process that computes features was killed, most likely for want of memory: set "
                        f"data.prepare_workers below {workers}. (In a script of your own, call prepare() "
                        "under `if __name__ == '__main__':`.)"
                    ) from error
                finally:
                    pool.shutdown(wait=True, cancel_futures=True)


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
