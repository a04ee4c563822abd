"""Settings of transcribed speech."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Gt

from magneto.data.config import Count, StreamConfig
from magneto.data.io.audio import FeatureSettings
from magneto.data.transforms.speech import SpecAugment
from magneto.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class CTCTokenizerSettings:
    """A tokenizer that is trained on the training transcripts."""

    kind: Literal["characters", "bpe", "unigram"] = "characters"
    vocab_size: int | None = None
    """Entries of subwords, the blank included; characters follow from the text."""


@dataclass(frozen=True, kw_only=True)
class SpeechConfig(StreamConfig):
    """Settings of `SpeechDataModule`."""

    features: FeatureSettings = field(default_factory=FeatureSettings)
    tokenizer: CTCTokenizerSettings = CTCTokenizerSettings()
    digits: Literal["keep", "drop"] = "keep"
    """drop: leave out utterances whose transcript has digits (read out as words that the text does not show)."""
    min_seconds: Annotated[float, Gt(0)] = 0.2
    """Shorter recordings are skipped."""
    max_seconds: float = 30.0
    """Longer recordings are skipped."""
    subsampling: Count = 4
    """Feature frames per output frame of the model."""
    keep_long_transcripts: bool = False
    """Keep an utterance whose transcript has more tokens than its recording has output frames, repeats counted twice: a
    transducer learns it, CTC cannot."""
    batch_frames: Count = 12_000
    """Padded feature frames of a training batch on one rank (a tempo below 1 can exceed it by that factor)."""
    eval_batch_frames: Count | None = None
    """Of an evaluation batch; None: the same."""
    max_batch_size: Count | None = None
    """Utterances of a batch."""
    pad_to_multiple: Count = 32
    """What lengths are rounded up to."""
    augment: SpecAugment | None = None
    prepare_workers: Count | None = None
    """Processes that compute features; None: all cores."""

    def __post_init__(self) -> None:
        if self.streaming and self.global_batch is not None:
            raise ConfigError(
                "data.global_batch needs the lengths of all recordings, which data.streaming=true does not know. Set it to "
                "null, and data.batch_frames to the frames of a batch of one process."
            )
        if self.min_seconds >= self.max_seconds:
            raise ConfigError(
                f"data.min_seconds={self.min_seconds} must be below data.max_seconds={self.max_seconds}."
            )
