"""Speech corpora: the example, the corpus, the protocol of their readers."""

from dataclasses import dataclass

from magneto.data.corpora.base import Corpus, Reader
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
class SpeechCorpus(Corpus[Utterance]):
    """Recordings; `advice`: what a user can do about their splits, for messages."""

    advice: str = ""


SpeechReader = Reader[SpeechCorpus]
