"""The settings of a tokenizer, `data.tokenizer`."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from magneto.data.tokenizers.text import TextTokenizer
from magneto.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """A tokenizer that is given, or one that is trained on the training texts.

    Attributes:
        file: a tokenizer.json; the other settings then say nothing.
        kind: byte_bpe, bpe or unigram.
        vocab_size: entries of the vocabulary.
    """

    file: str | None = None
    kind: str | None = None
    vocab_size: int | None = None

    def __post_init__(self) -> None:
        if self.file is None and (self.kind is None or self.vocab_size is None):
            raise ConfigError(
                "data.tokenizer needs a file (init_from= gives the one of the pretrained model), or kind and "
                "vocab_size to train one."
            )

    def fingerprint(self) -> dict[str, Any]:
        """Return what decides the tokenizer: the content of the file, wherever it lies."""
        if self.file is None:
            return {"kind": self.kind, "vocab_size": self.vocab_size}
        return {"sha256": hashlib.sha256(TextTokenizer.from_file(self.file).to_json().encode()).hexdigest()}

    def make(self, texts: Iterable[str], extra: Sequence[str] = ()) -> TextTokenizer:
        """Return the given tokenizer, or one that is trained on `texts` and has the tokens of `extra`."""
        if self.file is not None:
            return TextTokenizer.from_file(self.file)
        assert self.kind is not None and self.vocab_size is not None
        return TextTokenizer.train(texts, kind=self.kind, vocab_size=self.vocab_size, extra=extra)
