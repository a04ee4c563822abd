"""Settings of pairs of sentences."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from annotated_types import Gt

from magneto.data.config import Count, HeldOutConfig
from magneto.data.tokenizers.settings import TokenizerSettings
from magneto.data.translation.cleaning import Cleaning
from magneto.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PairTokenizerSettings(TokenizerSettings):
    """One tokenizer for both sides, or one for each."""

    file: str | Sequence[str] | None = None  # type: ignore[assignment]
    """A tokenizer.json; where not shared, a list of two, [source, target]."""
    kind: str = "unigram"
    """Of a vocabulary that is learnt from the training pairs."""
    vocab_size: int = 8_000
    shared: bool = True
    """One vocabulary for both sides, or one of that size for each."""

    def __post_init__(self) -> None:
        files = "one tokenizer.json" if self.shared else "two tokenizer.json files, [source, target]"
        if self.file is not None and len(self.sides) != (1 if self.shared else 2):
            raise ConfigError(
                f"data.tokenizer.file={self.file}: with tokenizer.shared={str(self.shared).lower()} name {files}."
            )

    @property
    def sides(self) -> list[TokenizerSettings]:
        """The settings of both sides, or of the one tokenizer that they share."""
        if self.file is None:
            files: Sequence[str | None] = [None] * (1 if self.shared else 2)
        else:
            files = [self.file] if isinstance(self.file, str) else self.file
        return [TokenizerSettings(file=file, kind=self.kind, vocab_size=self.vocab_size) for file in files]

    def fingerprint(self) -> dict[str, Any]:
        """Return what decides the tokens."""
        return {"shared": self.shared, "sides": [side.fingerprint() for side in self.sides]}


@dataclass(frozen=True, kw_only=True)
class TranslationConfig(HeldOutConfig):
    """Settings of `TranslationDataModule`."""

    tokenizer: PairTokenizerSettings = PairTokenizerSettings()
    tag: bool = False
    """Put the tag of the target language (<2fr>) before each source; needed as soon as a source language has two target
    languages."""
    clean: Cleaning = field(default_factory=Cleaning)
    max_tokens: Count = 128
    """Pairs with more on a side are skipped; of val and test sides that a corpus states the beginning is read."""
    max_ratio: Annotated[float, Gt(1)] = 3.0
    """Pairs are skipped whose lengths differ by this factor from the median of their direction."""
    val_fraction: Annotated[float, Gt(0)] = 0.03
    """Of the groups of corpora without a split."""
    test_fraction: Annotated[float, Gt(0)] = 0.05
    batch_tokens: Count = 4096
    """Padded tokens of the longer side of a training batch on one rank."""
    eval_batch_tokens: Count | None = None
    """Of an evaluation batch; None: the same."""
    max_batch_size: Count | None = None
    """Pairs of a batch."""
    pad_to_multiple: Count = 8
    """What lengths are rounded up to."""
