"""Tokenizer of the speech task: characters or subwords, blank = 0.

`CTCTokenizer.to_dict()` is complete: plain values of a checkpoint, of which `CTCTokenizer.from_dict` makes the same
tokenizer without any file.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from magneto.errors import ConfigError, DataError

BLANK = 0
BLANK_TOKEN = "<blank>"
KINDS = ("characters", "bpe", "unigram")
WORD_BREAK = "\u200b"  # zero width space: the one format character that divides words


def train_subwords(
    texts: Iterable[str],
    *,
    kind: str,
    vocab_size: int,
    special_tokens: Sequence[str],
    alphabet: Sequence[str],
) -> Tokenizer:
    """Train a BPE or unigram vocabulary of exactly `vocab_size` entries, the special tokens first.

    Raises `ConfigError` if the text does not support that many entries.
    """
    texts = list(texts)
    least = len(alphabet) + len(special_tokens) + 1  # one more for the word boundary that Metaspace adds
    if vocab_size < least:
        raise ConfigError(
            f"data.tokenizer.vocab_size={vocab_size} is too small: this text has {len(alphabet)} distinct "
            f"characters, so a {kind} vocabulary needs at least {least} entries. Raise data.tokenizer.vocab_size "
            "or use data.tokenizer.kind=characters."
        )
    shared: dict[str, Any] = {
        "vocab_size": vocab_size,
        "special_tokens": list(special_tokens),
        "initial_alphabet": [*alphabet, "▁"],
        "show_progress": False,
    }
    if kind == "bpe":
        tokenizer = Tokenizer(models.BPE())
        trainer: Any = trainers.BpeTrainer(**shared)
    else:
        tokenizer = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(**shared)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(texts, trainer)
    reached = tokenizer.get_vocab_size()
    if reached < vocab_size:
        raise ConfigError(
            f"data.tokenizer.vocab_size={vocab_size} is more than the training text supports: {len(texts)} "
            f"transcripts give only {reached} {kind} entries. Set data.tokenizer.vocab_size to {reached} or less."
        )
    return tokenizer


class CTCTokenizer:
    """Characters or subwords with the CTC blank fixed at index 0.

    Args:
        kind: characters, bpe or unigram.
        alphabet: the characters of the training text, sorted. `encode` drops other characters: a model cannot emit a
            character that it has never seen, and in the scores, of the full reference text, it counts as an error.
        subwords: the vocabulary of bpe and unigram.
    """

    def __init__(self, kind: str, alphabet: Sequence[str], subwords: Tokenizer | None = None) -> None:
        if kind not in KINDS:
            raise ConfigError(f"data.tokenizer.kind={kind!r} is not known. Choose from {', '.join(KINDS)}.")
        assert (subwords is None) == (kind == "characters")
        self.kind = kind
        self.alphabet = list(alphabet)
        self._subwords = subwords
        self._ids = {char: index for index, char in enumerate(self.alphabet, start=BLANK + 1)}

    @classmethod
    def train(
        cls, texts: Iterable[str], *, kind: str = "characters", vocab_size: int | None = None
    ) -> "CTCTokenizer":
        """Learn the vocabulary from normalised training transcripts.

        `vocab_size` counts the blank; it is for subwords only, since characters follow from the text. Raises
        `MagnetoError` for an unknown kind, no text at all, or a size that the text does not support.
        """
        if kind not in KINDS:
            raise ConfigError(f"data.tokenizer.kind={kind!r} is not known. Choose from {', '.join(KINDS)}.")
        texts = list(texts)
        alphabet = sorted(set().union(*texts)) if texts else []
        if not alphabet:
            raise DataError(
                "The training split has no text to learn a tokenizer from. Check the corpus and its splits."
            )
        if kind == "characters":
            if vocab_size is not None:
                raise ConfigError(
                    f"data.tokenizer.vocab_size={vocab_size} has no meaning for data.tokenizer.kind=characters (the "
                    f"text has {len(alphabet)} characters). Leave vocab_size unset (null), or use kind=bpe "
                    "or unigram."
                )
            return cls(kind, alphabet)
        if vocab_size is None:
            raise ConfigError(f"data.tokenizer.kind={kind} needs data.tokenizer.vocab_size, for example 256.")
        letters = [char for char in alphabet if char != " "]
        subwords = train_subwords(
            texts, kind=kind, vocab_size=vocab_size, special_tokens=[BLANK_TOKEN], alphabet=letters
        )
        assert subwords.token_to_id(BLANK_TOKEN) == BLANK
        return cls(kind, alphabet, subwords)

    @property
    def vocab_size(self) -> int:
        """Number of classes of the CTC head, the blank included."""
        return self._subwords.get_vocab_size() if self._subwords else len(self.alphabet) + 1

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a normalised text, without blanks."""
        if self._subwords is None:
            return [self._ids[char] for char in text if char in self._ids]
        known = "".join(char for char in text if char in self._ids)
        return [
            index for index in self._subwords.encode(known, add_special_tokens=False).ids if index != BLANK
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids after CTC collapsing; blanks are skipped."""
        ids = [int(index) for index in ids if int(index) != BLANK]
        if self._subwords is None:
            return "".join(self.alphabet[index - 1] for index in ids)
        return str(self._subwords.decode(ids))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON and for a checkpoint."""
        subwords = None if self._subwords is None else self._subwords.to_str()
        return {"kind": self.kind, "alphabet": self.alphabet, "subwords": subwords}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "CTCTokenizer":
        """Return the tokenizer of a `to_dict`."""
        subwords = values["subwords"]
        return cls(
            values["kind"], values["alphabet"], None if subwords is None else Tokenizer.from_str(subwords)
        )


def repeats(ids: Sequence[int]) -> int:
    """Return the number of equal neighbours: CTC needs a blank between them, and one frame more for each."""
    return sum(left == right for left, right in itertools.pairwise(ids))
