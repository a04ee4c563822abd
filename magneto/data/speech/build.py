"""Recordings as log-mel features, computed by all cores, and transcripts, in Arrow tables.

The columns, a row for each utterance: `row`, its number over all splits; `id`, `speaker`, `group`; `language`, a number;
`text`, normalised; `seconds`; `file`, the recording; `features`, (frames, num_mels); `targets`,
token ids.
"""

import logging
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from multiprocessing import get_context
from typing import Any

import numpy as np
import pyarrow as pa

from magneto.data.cache import cpu_count, progress
from magneto.data.corpora.base import SPLITS
from magneto.data.corpora.speech.base import Utterance
from magneto.data.io.audio import Audio, Outcome, extract_shard
from magneto.data.prepared import Preparation
from magneto.data.speech.config import SpeechConfig
from magneto.data.speech.dataset import SpeechInfo
from magneto.data.table import with_classes
from magneto.data.tokenizers.ctc import CTCTokenizer, repeats
from magneto.data.transforms.text import normalize_text
from magneto.errors import DataError

log = logging.getLogger(__name__)

DIGITS = "digits in its transcript"
LEAST_SHARD, MOST_SHARDS = 64, 400  # recordings in a shard at least; shards at most
SETTINGS = "Check the recordings, data.min_seconds and data.max_seconds."


@dataclass(frozen=True)
class SpeechExample:
    """An utterance on its way into the tables, with the place of its features in a file of many."""

    utterance: Utterance
    seconds: float
    shard: int
    offset: int
    frames: int
    targets: Sequence[int] = ()


def build(target: Preparation) -> dict[str, Any]:
    """Write the tables; return the fields of the info that describe the corpus.

    For the model of a checkpoint (`target.given`) the test split alone is prepared, with the model's tokenizer.
    """
    config: SpeechConfig = target.config
    model: SpeechInfo | None = target.given
    utterances, advice = _collect(target)
    # The splits are known before the hours that the features may take.
    target.require(_count(utterances), advice)
    if model is not None:
        model.require_languages({utterance.language for utterance in utterances})
    examples = _extract(utterances, target)
    target.require(_count(example.utterance for example in examples), SETTINGS)
    if model is not None:
        tokenizer = CTCTokenizer.from_dict(model.tokenizer)
    else:
        texts = (one.utterance.text for one in examples if one.utterance.split == "train")
        tokenizer = CTCTokenizer.train(texts, **asdict(config.tokenizer))
    examples = _encode(examples, tokenizer, target)
    target.require(_count(example.utterance for example in examples), SETTINGS)
    languages = sorted({example.utterance.language for example in examples})
    _write(examples, languages, target)
    seconds = dict.fromkeys(SPLITS, 0.0)
    for example in examples:
        seconds[example.utterance.split] += example.seconds
    return {
        "features": asdict(config.features),
        "tokenizer": tokenizer.to_dict(),
        "languages": languages,
        "subsampling": config.subsampling,
        "utterances": dict(target.rows),
        "hours": {split: round(seconds[split] / 3600, 4) for split in SPLITS},
        "per_language": {
            language: _count(one.utterance for one in examples if one.utterance.language == language)
            for language in languages
        },
        "corpora": target.origins,
    }


def _collect(target: Preparation) -> tuple[list[Utterance], str]:
    """Return all utterances of the splits that are needed, with normalised text, and what to do if a split is empty.

    Ids carry the corpus's name.
    """
    utterances, advice = [], []
    sides: dict[Audio, set[str]] = defaultdict(set)
    for name, corpus in target.load():
        advice.append(corpus.advice)
        for utterance in corpus.examples:
            if utterance.split not in target.splits:
                continue
            text = normalize_text(utterance.text)
            normalised = replace(utterance, id=f"{name}/{utterance.id}", text=text)
            if not text:
                _skip(target, normalised, "empty transcript")
            elif target.config.digits == "drop" and any(char.isdigit() for char in text):
                _skip(target, normalised, DIGITS)
            else:
                utterances.append(normalised)
                sides[utterance.audio].add(utterance.split)
    if shared := [audio.path for audio, splits in sides.items() if len(splits) > 1]:
        log.warning(
            "%d audio files stand on several sides of the split, the first %s: scores will flatter.",
            len(shared),
            shared[0],
        )
    if target.skipped and not utterances:
        advice = ["Check the corpus: paths in a manifest that are not absolute begin at its folder."]
    if DIGITS in target.skipped:
        advice.append("Set data.digits to keep.")
    return utterances, " ".join(filter(None, advice)) or "Check the corpus."


def _extract(utterances: Sequence[Utterance], target: Preparation) -> list[SpeechExample]:
    """Compute the features; return the recordings that can be used, and where their features are."""
    size = max(LEAST_SHARD, math.ceil(len(utterances) / MOST_SHARDS))
    parts = [utterances[start : start + size] for start in range(0, len(utterances), size)]
    results = dict(_run_jobs([[utterance.audio for utterance in part] for part in parts], target))
    examples = []
    for shard, part in enumerate(parts):
        offset = 0
        for utterance, outcome in zip(part, results[shard], strict=True):
            reason = outcome.reason
            if reason is None and _cut_off(outcome.seconds, utterance.duration):
                reason = "duration differs from the stated one"
            if reason is None:
                examples.append(SpeechExample(utterance, outcome.seconds, shard, offset, outcome.frames))
            else:
                _skip(target, utterance, reason)
            offset += outcome.frames
    return examples


def _encode(
    examples: Sequence[SpeechExample], tokenizer: CTCTokenizer, target: Preparation
) -> list[SpeechExample]:
    """Return those that CTC can align, with targets: it needs an output frame for each token and repeat."""
    fitting = []
    for example in examples:
        targets = tokenizer.encode(example.utterance.text)
        if not targets and target.given is None:  # a tested model answers for what it cannot write
            reason = "no character of the training text in its transcript"
        elif len(targets) + repeats(targets) > example.frames // target.config.subsampling:
            reason = "transcript too long for its audio"
        else:
            fitting.append(replace(example, targets=targets))
            continue
        _skip(target, example.utterance, reason)
    return fitting


def _write(examples: Sequence[SpeechExample], languages: Sequence[str], target: Preparation) -> None:
    """Move the features from the files of the workers, one after another, into the tables."""
    columns = {
        "row": pa.int64(),
        "id": pa.string(),
        "language": pa.int64(),
        "speaker": pa.string(),
        "group": pa.string(),
        "text": pa.string(),
        "seconds": pa.float64(),
        "file": pa.string(),
        "features": pa.list_(pa.list_(pa.float16(), target.config.features.num_mels)),
        "targets": pa.list_(pa.int32()),
    }
    number = 0
    with target.tables(with_classes(pa.schema(columns), language=languages)) as tables:
        for shard, members in groupby(examples, key=lambda example: example.shard):
            file = target.path / _shard_name(shard)
            features = np.load(file, mmap_mode="r")
            rows: dict[str, list[tuple[Any, ...]]] = {split: [] for split in SPLITS}
            for one in members:
                spoken = one.utterance
                rows[spoken.split].append((
                    number, spoken.id, languages.index(spoken.language), spoken.speaker, spoken.group, spoken.text,
                    round(one.seconds, 3), str(spoken.audio.path.absolute()),
                    features[one.offset : one.offset + one.frames], one.targets,
                ))  # fmt: skip
                number += 1
            for split, of_split in rows.items():
                if of_split:
                    tables.write(split, dict(zip(columns, zip(*of_split, strict=True), strict=True)))
            del features, rows
            file.unlink()
    for file in target.path.glob(_shard_name("*")):  # those without a usable recording
        file.unlink()


def _run_jobs(jobs: list[list[Audio]], target: Preparation) -> Iterator[tuple[int, list[Outcome]]]:
    config: SpeechConfig = target.config
    workers = min(config.prepare_workers or cpu_count(), len(jobs))
    seconds = (config.min_seconds, config.max_seconds)
    with progress("computing features", sum(map(len, jobs))) as advance:
        arguments = [
            (job, config.features, seconds, target.path / _shard_name(n)) for n, job in enumerate(jobs)
        ]
        if workers == 1:
            for shard, job in enumerate(arguments):
                yield shard, extract_shard(*job)
                advance(len(job[0]))
            return
        # spawn: a forked child of a process that has used torch's threads can hang
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            futures = {pool.submit(extract_shard, *job): shard for shard, job in enumerate(arguments)}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
                    advance(len(jobs[futures[future]]))
            except BrokenProcessPool as error:
                raise DataError(
                    "A process that computes features was killed, most likely for want of memory: set "
                    f"data.prepare_workers below {workers}. (In a script of your own, call prepare() "
                    "under `if __name__ == '__main__':`.)"
                ) from error
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


def _skip(target: Preparation, utterance: Utterance, reason: str) -> None:
    target.skip(utterance.id, str(utterance.audio.path), reason)


def _cut_off(seconds: float, stated: float | None) -> bool:
    """Whether a recording was most likely cut off: codecs pad and people round, but not by that much."""
    return stated is not None and abs(seconds - stated) > max(0.5, 0.1 * stated)


def _shard_name(shard: int | str) -> str:
    return f"features-{shard}.npy"


def _count(utterances: Iterable[Utterance]) -> dict[str, int]:
    counts = Counter(utterance.split for utterance in utterances)
    return {split: counts[split] for split in SPLITS}
