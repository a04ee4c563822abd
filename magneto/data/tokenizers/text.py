"""The tokenizer of the text tasks: byte-level BPE, BPE or unigram subwords, or any given `tokenizer.json`.

It is one JSON text (`to_json`), which an info, a checkpoint and an export contain, and which is all that encoding and
decoding need. `byte_bpe` loses nothing: `decode(encode(text)) == text` for every text. `bpe` and `unigram` read text as a
line: Unicode NFC, every run of white space one space, none at the ends; no subword joins letters with punctuation.
Training `unigram` twice can give slightly different vocabularies (its trainer sums in no fixed order); the other two are
exact.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import regex
from tokenizers import (
    AddedToken,
    Encoding,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from magneto.errors import ConfigError, DataError, MagnetoError, nearest

KINDS = ("byte_bpe", "bpe", "unigram")
SPECIALS = ("<pad>", "<s>", "</s>", "<unk>", "[MASK]")
NAMES = {
    "pad": ("<pad>", "[PAD]", "<|pad|>", "<|padding|>"),
    "bos": ("<s>", "<bos>", "<|begin_of_text|>", "[CLS]", "<|endoftext|>"),
    "eos": ("</s>", "<eos>", "<|end_of_text|>", "[SEP]", "<|endoftext|>"),
    "unk": ("<unk>", "[UNK]", "<|unk|>"),
    "mask": ("[MASK]", "<mask>", "<|mask|>"),
}
"""Role -> its names in existing tokenizers; the first name that a vocabulary has is used."""
METASPACE = "▁"
LONGEST_WORD = 10_000  # characters; longer ones are not text, and training on them would take hours
# Runs that no kind of tokenizer divides: Chinese or Thai without spaces has punctuation.
_ENDLESS = regex.compile(
    rf"([^\s\p{{P}}]{{{LONGEST_WORD}}})[^\s\p{{P}}]+|([^\s\p{{L}}\p{{N}}]{{{LONGEST_WORD}}})[^\s\p{{L}}\p{{N}}]+"
)
NEVER = -1e6  # log-probability of a special token's name as ordinary text


class TextTokenizer:
    """Text <-> token ids.

    `pad_id`, `bos_id`, `eos_id`, `unk_id`, `mask_id`: int, or None if the vocabulary has no such token (`require` returns
    the id or raises an error).
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1
        """Rows of an embedding: the highest id + 1."""
        self._roles = {
            role: next((vocabulary[name] for name in names if name in vocabulary), None)
            for role, names in NAMES.items()
        }
        self.pad_id, self.bos_id, self.eos_id, self.unk_id, self.mask_id = (
            self._roles[role] for role in ("pad", "bos", "eos", "unk", "mask")
        )
        self.special_ids = frozenset(
            {index for index in self._roles.values() if index is not None}
            | {index for index, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        )
        """Ids of tokens that are not text."""

    @cached_property
    def ordinary_ids(self) -> np.ndarray:
        """Ids of tokens that stand for text, in order."""
        return np.array([index for index in range(self.vocab_size) if index not in self.special_ids])

    @property
    def padding(self) -> int:
        """The id that shorter texts are filled up with: `<pad>`, or `</s>`. Raises `DataError` if there is neither."""
        return self.require("eos") if self.pad_id is None else self.pad_id

    # ------------------------------------------------------------------ making one

    @classmethod
    def train(
        cls, texts: Iterable[str], *, kind: str, vocab_size: int, extra: Sequence[str] = ()
    ) -> TextTokenizer:
        """Learn a vocabulary of exactly `vocab_size` entries.

        Ids 0-4 are `<pad>`, `<s>`, `</s>`, `<unk>`, `[MASK]`, then come the tokens of `extra`. `bpe` and `unigram` keep
        the most frequent characters, up to half of the vocabulary; the others become `<unk>`.

        Raises:
            MagnetoError: an unknown kind, no text, or a size that is too small for the characters or larger than the
                text supports (the message says how many entries it gives).
        """
        if kind not in KINDS:
            raise ConfigError(f"data.tokenizer.kind={kind!r} is not known. Choose from {', '.join(KINDS)}.")
        specials = [*SPECIALS, *extra]
        if len(set(specials)) < len(specials):
            raise DataError(
                f"The extra tokens {list(extra)} repeat one another or one of {', '.join(SPECIALS)}."
            )
        texts = [_without_endless_words(text) for text in texts]
        if not any(texts):
            raise DataError(
                "There is no training text to learn a tokenizer from. Check the corpus and its splits."
            )
        tokenizer, trainer, texts = (_byte_level if kind == "byte_bpe" else _words)(
            kind, texts, vocab_size, specials
        )
        tokenizer.train_from_iterator(texts, trainer, length=len(texts))
        reached = tokenizer.get_vocab_size()
        if reached < vocab_size:
            raise ConfigError(
                f"data.tokenizer.vocab_size={vocab_size} is more than the training text supports: {len(texts)} texts of "
                f"{sum(map(len, texts))} characters give only {reached} {kind} entries. Set data.tokenizer.vocab_size to "
                f"{reached} or less, or use more text."
            )
        return cls(_hide_specials(tokenizer, specials) if kind == "unigram" else tokenizer)

    @classmethod
    def from_file(cls, path: str | Path) -> TextTokenizer:
        """Read a `tokenizer.json` of the tokenizers library, such as GPT-2's or BERT's. Raises `DataError`."""
        path = Path(path).expanduser()
        if not path.is_file():
            raise DataError(f"tokenizer.file={path}: there is no such file. Name a tokenizer.json.")
        try:
            return cls.from_json(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(
                f"tokenizer.file={path}: not text, so no tokenizer.json of the tokenizers library (.model and .spm are "
                "SentencePiece's). Convert it: docs/data.md shows how for one of them."
            ) from error
        except MagnetoError as error:
            raise DataError(f"tokenizer.file={path}: {error}") from error

    @classmethod
    def from_json(cls, text: str) -> TextTokenizer:
        """Return the tokenizer of a `to_json`. Raises `DataError` for any other text."""
        try:
            return cls(Tokenizer.from_str(text))
        except Exception as error:  # the library raises plain Exception
            raise DataError(f"this is not a tokenizer.json of the tokenizers library ({error}).") from error

    def to_json(self) -> str:
        """Return the text of a `tokenizer.json`; equal tokenizers have equal texts."""
        return str(self._tokenizer.to_str())

    # ------------------------------------------------------------------ text <-> ids

    def encode(self, text: str, specials: bool = False) -> list[int]:
        """Return the ids of a text; no special token is added.

        specials: whether the name of a special token in the text (`[MASK]`) is that token, or just text.
        """
        return self.encode_batch([text], specials)[0]

    def encode_batch(self, texts: Sequence[str], specials: bool = False) -> list[list[int]]:
        """Encode many texts, on all cores."""
        self._tokenizer.encode_special_tokens = not specials
        return [
            found.ids for found in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        ]

    def encode_batch_bytes(self, texts: Sequence[str]) -> list[tuple[list[int], np.ndarray]]:
        """Encode many texts, and return for each token the number of UTF-8 bytes of its text.

        The bytes of a text's tokens sum to the bytes of the text: those between two tokens (white space that the
        tokenizer drops) count for the later one, those at the end for the last one.
        """
        self._tokenizer.encode_special_tokens = True
        found = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [(one.ids, _token_bytes(text, one)) for text, one in zip(texts, found, strict=True)]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Return the text of token ids. Bytes that are not UTF-8 (an incomplete character) become U+FFFD."""
        kept = [int(index) for index in ids]
        if skip_special:
            kept = [index for index in kept if index not in self.special_ids]
        return str(self._tokenizer.decode(kept, skip_special_tokens=skip_special))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TextTokenizer) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.to_json())

    # ------------------------------------------------------------------ single tokens

    def token(self, index: int) -> str:
        """Return the token of an id as the vocabulary has it."""
        token = self._tokenizer.id_to_token(int(index))
        if token is None:
            raise DataError(f"Token {index} is not in the vocabulary of {self.vocab_size}.")
        return str(token)

    def id(self, token: str) -> int:
        """Return the id of a token of the vocabulary. Raises `DataError` for any other."""
        index = self._tokenizer.token_to_id(token)
        if index is None:
            names = (self.token(special) for special in sorted(self.special_ids))
            raise DataError(f"The vocabulary has no token {token!r}.{nearest(token, names)}")
        return int(index)

    def __contains__(self, token: str) -> bool:
        return self._tokenizer.token_to_id(token) is not None

    def require(self, role: str) -> int:
        """Return the id of `pad`, `bos`, `eos`, `unk` or `mask`. Raises `DataError` if the vocabulary has none."""
        index = self._roles[role]
        if index is None:
            raise DataError(
                f"The tokenizer has no {role} token, which is needed here: none of {', '.join(NAMES[role])} is in its "
                "vocabulary. Set tokenizer.file to another one, or to null to train one."
            )
        return index


def _without_endless_words(text: str) -> str:
    """Shorten each run of more than LONGEST_WORD characters without white space or punctuation."""
    if max(map(len, text.split()), default=0) <= LONGEST_WORD:
        return text
    return str(_ENDLESS.sub(lambda run: run[1] or run[2], text))


def _special_tokens(names: Sequence[str]) -> list[AddedToken]:
    # A mask includes the space before it, so that "the [MASK] is" masks a whole word whose space belongs to it.
    return [AddedToken(name, lstrip=name == "[MASK]", normalized=False, special=True) for name in names]


def _byte_level(
    kind: str, texts: list[str], vocab_size: int, specials: Sequence[str]
) -> tuple[Tokenizer, Any, list[str]]:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _require_room(kind, vocab_size, len(alphabet), len(specials))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=_special_tokens(specials),
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    return tokenizer, trainer, texts


def _words(
    kind: str, texts: list[str], vocab_size: int, specials: Sequence[str]
) -> tuple[Tokenizer, Any, list[str]]:
    """Prepare `bpe` or `unigram`: subwords of the words between white space; a space belongs to the following word."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True) if kind == "bpe" else models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="always"), pre_tokenizers.Punctuation("contiguous")]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    seen = [
        char for char, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if not char.isspace()
    ]
    frequent = seen[: max(vocab_size // 2, 1)]
    # With the letters of the special tokens, their names can be written as ordinary text (see _hide_specials).
    alphabet = sorted({METASPACE, *frequent, *"".join(specials)})
    _require_room(kind, vocab_size, len(alphabet), len(specials))
    if rare := set(seen) - set(alphabet):
        table = dict.fromkeys(map(ord, rare))
        texts = [text.translate(table) for text in texts]
    shared: dict[str, Any] = {
        "vocab_size": vocab_size,
        "special_tokens": _special_tokens(specials),
        "initial_alphabet": alphabet,
        "show_progress": False,
    }
    trainer = (
        trainers.BpeTrainer(**shared)
        if kind == "bpe"
        else trainers.UnigramTrainer(unk_token="<unk>", **shared)
    )
    return tokenizer, trainer, texts


def _require_room(kind: str, vocab_size: int, alphabet: int, specials: int) -> None:
    least = alphabet + specials
    if vocab_size < least:
        raise ConfigError(
            f"data.tokenizer.vocab_size={vocab_size} is too small: a {kind} vocabulary needs at least {least} entries here "
            f"({alphabet} characters or bytes and {specials} special tokens)."
        )


def _hide_specials(tokenizer: Tokenizer, specials: Sequence[str]) -> Tokenizer:
    """Keep a unigram model from reading the name of a special token, in ordinary text, as that token.

    Its trainer gives these names the log-probability 0, the highest one.
    """
    values = json.loads(tokenizer.to_str())
    for entry in values["model"]["vocab"][: len(specials)]:
        entry[1] = NEVER
    return Tokenizer.from_str(json.dumps(values, ensure_ascii=False))


def _token_bytes(text: str, encoding: Encoding) -> np.ndarray:
    """Return (tokens,) int64: UTF-8 bytes from the end of the previous token to the end of this one."""
    ends = np.array([end for _, end in encoding.offsets], np.int64)
    if not len(ends):
        return ends
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + (points > 0x7F).astype(np.int64) + (points > 0x7FF) + (points > 0xFFFF)
    offsets = np.concatenate([[0], np.cumsum(widths)])
    ends = offsets[np.maximum.accumulate(ends)]
    ends[-1] = offsets[-1]
    return np.diff(ends, prepend=0)
