"""Which utterances are used, prepared or streamed: by their transcript, its tokens, and their duration."""

from collections.abc import Sequence

from magneto.data.speech.config import SpeechConfig
from magneto.data.tokenizers.ctc import repeats
from magneto.data.transforms.text import normalize_text

DIGITS = "digits in its transcript"


def usable_text(text: str, digits: str) -> tuple[str, str | None]:
    """Return a transcript, normalised, and why it is not used, or None. digits: keep, or drop those that have some."""
    text = normalize_text(text)
    if not text:
        return text, "empty transcript"
    return text, DIGITS if digits == "drop" and any(char.isdigit() for char in text) else None


def least_frames(targets: Sequence[int], config: SpeechConfig) -> int:
    """Return the frames of features that a model needs to align tokens: CTC an output frame for each token and repeat."""
    return config.subsampling * (1 if config.keep_long_transcripts else len(targets) + repeats(targets))


def unaligned(targets: Sequence[int], frames: int, config: SpeechConfig) -> str | None:
    """Return why a model cannot align tokens with a recording, or None."""
    if not targets:
        return "no character of the training text in its transcript"
    return "transcript too long for its audio" if least_frames(targets, config) > frames else None


def cut_off(seconds: float, stated: float | None) -> bool:
    """Return whether a recording was most likely cut off: codecs pad and people round, but not by that much."""
    return stated is not None and abs(seconds - stated) > max(0.5, 0.1 * stated)
