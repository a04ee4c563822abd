"""Speech corpora: the example, the corpus, the protocol of their readers."""

from dataclasses import dataclass, field
from typing import Any

from magneto.data.corpora.base import Reader, Skipped
from magneto.data.io.audio import Audio


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One recording with its transcript, as the corpus has it (text not yet normalised)."""

    id: str  # unique in its corpus
    audio: Audio
    text: str
    language: str
    speaker: str
    group: str  # must not be on two sides of a split
    split: str  # train, val or test
    duration: float | None = None  # seconds, where the corpus states it


@dataclass(frozen=True)
class SpeechCorpus:
    """The recordings of a corpus, what its reader skipped, and where it came from (plain values).

    advice: what a user can do about its splits, for messages.
    """

    utterances: list[Utterance]
    skipped: list[Skipped] = field(default_factory=list)
    origin: dict[str, Any] = field(default_factory=dict)
    advice: str = ""


SpeechReader = Reader[SpeechCorpus]
