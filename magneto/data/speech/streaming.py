"""Recordings that are read from tar shards while a model trains: their features are those of preparation."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from magneto.data.batching import cut
from magneto.data.collate import Collate
from magneto.data.corpora.base import Skipped
from magneto.data.corpora.speech.base import SpeechCorpus, Utterance
from magneto.data.corpora.tar_shards import shard_bytes
from magneto.data.held_out import bounded, undivided
from magneto.data.io.audio import BadAudio, features_of, seconds_of
from magneto.data.io.tar import Slice
from magneto.data.prepared import Preparation
from magneto.data.speech.config import SpeechConfig
from magneto.data.speech.dataset import augmented
from magneto.data.speech.texts import cut_off, least_frames, unaligned, usable_text
from magneto.data.streamed import HELD_OUT
from magneto.data.streaming import Position, Streams
from magneto.data.tokenizers.ctc import CTCTokenizer

SAMPLE = 100  # training utterances that are prepared
SAMPLE_CHARS = 10_000_000  # of training transcripts of each corpus that a tokenizer is trained on


def _read(rows: Iterator[Utterance | Skipped], skipped: list[Skipped] | None = None) -> Iterator[Utterance]:
    for one in rows:
        if not isinstance(one, Skipped):
            yield one
        elif skipped is not None:
            skipped.append(one)


def bounded_corpora(target: Preparation) -> Iterator[tuple[str, SpeechCorpus]]:
    """Yield by name what is prepared of the corpora: see `bounded`."""
    config: SpeechConfig = target.config
    for name, reader in target.corpora.items():
        skipped: list[Skipped] = []
        shards = reader.shards()
        shares = dict(zip(("val", "test"), reader.fractions, strict=True))
        examples = bounded(
            shards,
            partial(_read, skipped=skipped),
            shares={split: share for split, share in shares.items() if split in target.splits},
            limit=config.max_held_out or HELD_OUT,
            sample=SAMPLE if "train" in target.splits else 0,
        )
        corpus = SpeechCorpus([*examples], skipped, {"shards": len(shards)})
        yield name, corpus
        target.note(name, corpus)


def training_texts(target: Preparation) -> Iterator[tuple[str, str]]:
    """Yield language and transcript of the first training utterances of each corpus."""
    for reader in target.corpora.values():
        room = SAMPLE_CHARS
        for utterance in undivided(reader.shards(), _read):
            text, reason = usable_text(utterance.text, target.config.digits)
            if utterance.split == "train" and reason is None:
                yield utterance.language, text
                room -= len(text)
            if room <= 0:
                break


def training_utterance(digits: str, languages: Sequence[str], one: Utterance) -> tuple[Utterance, int] | None:
    """Return a training utterance with its normalised text, not yet read, and its characters; None for another one."""
    text, reason = usable_text(one.text, digits)
    if one.split != "train" or reason is not None or one.language not in languages:
        return None
    return replace(one, text=text), len(text)


def by_length(
    config: SpeechConfig, window: Sequence[Utterance], random: np.random.Generator
) -> list[list[Utterance]]:
    """Return the batches of a window, in a random order: utterances of similar length are in one.

    The lengths are those that the corpus states, or of the recordings' headers.
    """
    most = round(config.max_seconds * 1000 / config.features.hop_ms) + 1
    frames = [
        most if (seconds := _seconds(one)) is None else seconds * 1000 / config.features.hop_ms
        for one in window
    ]
    lengths = np.minimum(
        np.array(frames, np.int64) // config.pad_to_multiple + 1, -(-most // config.pad_to_multiple)
    )
    order = np.argsort(-lengths, kind="stable")
    cuts = cut(lengths[order] * config.pad_to_multiple, config.batch_frames, most=config.max_batch_size)
    batches = [[window[place] for place in order[piece]] for piece in cuts]
    return [batches[place] for place in random.permutation(len(batches))]


def _seconds(one: Utterance) -> float | None:
    if one.duration is not None:
        return one.duration
    _require(one)
    return seconds_of(one.audio)


def _require(one: Utterance) -> None:
    """Raise `DataError` if the shard of a recording has gone; the decoder would take that for a bad recording."""
    audio = one.audio
    if audio.size is not None:
        shard_bytes(Slice(audio.path, audio.start + audio.size - 1, 1))


class StreamedSpeech:
    """Training batches of utterances, read in the order of streams. See `ItemSource`; an item is a batch.

    Args:
        streams: of the batches of each window.
        config: of the data.
        tokenizer: of the transcripts.
        languages: of the model.
        collate: what pads features and targets.
    """

    def __init__(
        self,
        streams: Streams[Utterance, Any],
        config: SpeechConfig,
        tokenizer: CTCTokenizer,
        languages: Sequence[str],
        collate: Collate,
    ) -> None:
        self.streams, self.config, self.tokenizer = streams, config, tokenizer
        self.languages, self._pad = list(languages), collate

    def items(self, stream: int, start: Position) -> Iterator[tuple[dict[str, Any], Position]]:
        """See `ItemSource`."""
        return self.streams.items(stream, start, self._batch)

    def collate(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return a batch: see module.py."""
        return self._pad([*chain.from_iterable(item["utterances"] for item in items)])

    def _batch(self, batch: Sequence[Utterance], index: int) -> dict[str, Any] | None:
        first = index * self.streams.window
        found = [self._utterance(one, first + place, index) for place, one in enumerate(batch)]
        usable = [one for one in found if one is not None]
        return {"utterances": usable} if usable else None

    def _utterance(self, one: Utterance, row: int, batch: int) -> dict[str, Any] | None:
        """Return an utterance with its features; None if it cannot be used, for the reasons of preparation."""
        config = self.config
        _require(one)
        try:
            features, seconds = features_of(
                one.audio, config.features, (config.min_seconds, config.max_seconds)
            )
        except BadAudio:
            return None
        targets = self.tokenizer.encode(one.text)
        if cut_off(seconds, one.duration) or unaligned(targets, len(features), config):
            return None
        if config.augment is not None:
            # The tempi are those of the batch, in which lengths then stay similar.
            least = least_frames(targets, config)
            features = augmented(config.augment, features, least, config.seed, batch, row)
        return {
            "id": row,
            "features": features,
            "targets": targets,
            "language": self.languages.index(one.language),
            "text": one.text,
        }
