"""Recordings as log-mel features, computed by all cores, and transcripts, in Arrow tables.

The columns, a row for each utterance: `row`, its number over all splits; `id`, `speaker`, `group`; `language`, a number;
`text`, normalised; `seconds`; `file`, the recording; `features`, (frames, num_mels); `targets`,
token ids.
"""

import logging
import math
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from magneto.data.corpora.base import SPLITS
from magneto.data.corpora.speech.base import Utterance
from magneto.data.io.audio import FEATURES, Audio, Outcome, extract_part
from magneto.data.parts import map_parts
from magneto.data.prepared import Preparation
from magneto.data.speech.config import SpeechConfig
from magneto.data.speech.dataset import SpeechInfo
from magneto.data.speech.streaming import bounded_corpora, training_texts
from magneto.data.speech.texts import DIGITS, cut_off, unaligned, usable_text
from magneto.data.table import with_classes
from magneto.data.tokenizers.ctc import CTCTokenizer

log = logging.getLogger(__name__)

LEAST_SHARD, MOST_SHARDS = 64, 400  # recordings in a shard at least; shards at most
SETTINGS = "Check the recordings, data.min_seconds and data.max_seconds."


@dataclass(frozen=True)
class SpeechExample:
    """An utterance on its way into the tables, with the place of its features in the file of a part."""

    utterance: Utterance
    seconds: float
    part: Path
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
    heard = [*training_texts(target)] if config.streaming and model is None else []
    if model is not None:
        tokenizer = CTCTokenizer.from_dict(model.tokenizer)
    else:
        texts = [one.utterance.text for one in examples if one.utterance.split == "train"]
        texts = [text for _, text in heard] or texts
        tokenizer = CTCTokenizer.train(texts, **asdict(config.tokenizer))
    examples = _encode(examples, tokenizer, target)
    target.require(_count(example.utterance for example in examples), SETTINGS)
    languages = sorted({language for language, _ in heard} | {one.utterance.language for one in examples})
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
    for name, corpus in bounded_corpora(target) if target.config.streaming else target.load():
        advice.append(corpus.advice)
        for utterance in corpus.examples:
            if utterance.split not in target.splits:
                continue
            text, reason = usable_text(utterance.text, target.config.digits)
            normalised = replace(utterance, id=f"{name}/{utterance.id}", text=text)
            if reason is not None:
                _skip(target, normalised, reason)
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
    config: SpeechConfig = target.config
    size = max(LEAST_SHARD, math.ceil(len(utterances) / MOST_SHARDS))
    shards = [utterances[start : start + size] for start in range(0, len(utterances), size)]
    seconds = (config.min_seconds, config.max_seconds)
    parts = map_parts(
        extract_part,
        [([one.audio for one in shard], config.features, seconds) for shard in shards],
        target.parts([[one.id for one in shard] for shard in shards]),
        workers=config.prepare_workers,
        description="computing features",
        weights=[len(shard) for shard in shards],
    )
    examples = []
    for shard, (path, outcomes) in zip(shards, parts, strict=True):
        offset = 0
        for utterance, outcome in zip(shard, (Outcome(**values) for values in outcomes), strict=True):
            reason = outcome.reason
            if reason is None and cut_off(outcome.seconds, utterance.duration):
                reason = "duration differs from the stated one"
            if reason is None:
                examples.append(SpeechExample(utterance, outcome.seconds, path, offset, outcome.frames))
            else:
                _skip(target, utterance, reason)
            offset += outcome.frames
    return examples


def _encode(
    examples: Sequence[SpeechExample], tokenizer: CTCTokenizer, target: Preparation
) -> list[SpeechExample]:
    """Return those that a model can align, with targets."""
    fitting = []
    for example in examples:
        targets = tokenizer.encode(example.utterance.text)
        reason = unaligned(targets, example.frames, target.config)
        # A tested model answers for what it cannot write.
        if reason is None or (not targets and target.given is not None):
            fitting.append(replace(example, targets=targets))
        else:
            _skip(target, example.utterance, reason)
    return fitting


def _write(examples: Sequence[SpeechExample], languages: Sequence[str], target: Preparation) -> None:
    """Move the features from the files of the workers, one after another, into the tables."""
    in_archives = any(one.utterance.audio.size is not None for one in examples)
    columns = {
        "row": pa.int64(),
        "id": pa.string(),
        "language": pa.int64(),
        "speaker": pa.string(),
        "group": pa.string(),
        "text": pa.string(),
        "seconds": pa.float64(),
        "file": pa.string(),
        **dict.fromkeys(("start", "size") if in_archives else (), pa.int64()),
        "features": pa.list_(pa.list_(pa.float16(), target.config.features.num_mels)),
        "targets": pa.list_(pa.int32()),
    }
    number = 0
    with target.tables(with_classes(pa.schema(columns), language=languages)) as tables:
        for part, members in groupby(examples, key=lambda example: example.part):
            features = np.load(part / FEATURES, mmap_mode="r")
            rows: dict[str, list[tuple[Any, ...]]] = {split: [] for split in SPLITS}
            for one in members:
                spoken = one.utterance
                rows[spoken.split].append((
                    number, spoken.id, languages.index(spoken.language), spoken.speaker, spoken.group, spoken.text,
                    round(one.seconds, 3), str(spoken.audio.path.absolute()),
                    *((spoken.audio.start, spoken.audio.size) if in_archives else ()),
                    features[one.offset : one.offset + one.frames], one.targets,
                ))  # fmt: skip
                number += 1
            for split, of_split in rows.items():
                if of_split:
                    tables.write(split, dict(zip(columns, zip(*of_split, strict=True), strict=True)))
            del features, rows
            shutil.rmtree(part)  # so that the disk holds the features once


def _skip(target: Preparation, utterance: Utterance, reason: str) -> None:
    target.skip(utterance.id, str(utterance.audio.path), reason)


def _count(utterances: Iterable[Utterance]) -> dict[str, int]:
    counts = Counter(utterance.split for utterance in utterances)
    return {split: counts[split] for split in SPLITS}
