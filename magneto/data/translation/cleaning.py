"""Which pairs of a parallel corpus are used: what is unusable, repeated, or on the wrong side of the split.

The pairs go by once (`unusable`, `PairColumns.add`), so a corpus of any size fits: eight bytes are kept of each text. Then
`decide` looks at all of them at once.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from array import array
from dataclasses import dataclass, field

import numpy as np
import regex

from magneto.data.corpora.base import SPLITS

MAX_CHARACTERS = 10_000  # a longer side is no sentence; it is not even looked at
SLACK = 10  # characters added to both sides before their ratio is taken: short texts vary more
ENOUGH = 100  # pairs from which the median ratio of a direction is estimated

DUPLICATE, RATIO, NEAR = "duplicate", "length ratio", "near-duplicate on another side of the split"
VERDICTS = ("", RATIO, DUPLICATE, NEAR)
"""What `decide` says of a pair, by number; "" is: use it."""

_SURROGATE = re.compile(r"[\ud800-\udfff]")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffd]")
# Letters, in the scripts of which a word that holds a digit is a name or an ordinal and is masked whole (libfoo2, 3rd).
# Elsewhere words follow a number without a space, or cling to it, and only the number is masked.
_NAMES = r"[_\p{Nd}\p{No}\p{Latin}\p{Greek}\p{Cyrillic}\u0300-\u036f]"
_UNSPACED = (
    r"[[\p{Han}\p{Hiragana}\p{Katakana}\u30fc\p{Bopomofo}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]"
    r"&&[\p{L}\p{M}\p{Nl}]]"
)
_LETTER = r"[\p{L}\p{Nl}\p{No}]"
_LETTERS = regex.compile(
    rf"{_LETTER}\p{{M}}*{_LETTER}|\p{{L}}\p{{M}}|[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
)
_ADDRESS = regex.compile(  # bounded repeats: a long line without spaces must not take quadratic time
    r"(?<!N)N{2,12}://[[^\s\p{L}\p{M}]||N]+|[N.+-]{1,64}@[N-]{1,64}\.N+"
    r"|(?:N:|~|\.)?[/\\]?(?:[N.+-]{1,64}[/\\]){1,32}[N.+*-]*|(?<!N)(?=N)[N-]{1,64}\.[a-z]N{1,4}(?!N)".replace(
        "N", _NAMES
    ),
    regex.V1,
)
_MAYBE_ADDRESS = re.compile(r"[/\\@]|\.[a-z]")  # quick: most sentences have none
_NUMBER = regex.compile(rf"{_NAMES}{{0,64}}\d{_NAMES}*")
_WORD = regex.compile(rf"{_UNSPACED}+|[[\p{{L}}\p{{N}}\p{{M}}]--{_UNSPACED}]+|\x01|[%$]{_NAMES}+", regex.V1)
_SPACE = regex.compile(rf"(?<={_UNSPACED}) (?={_UNSPACED})", regex.V1)


@dataclass(frozen=True, kw_only=True)
class Cleaning:
    """What is left out beside the unusable; each can be switched off.

    identical: pairs whose sides are equal but for case. letters: a side without two letters in a row (numbers, codes).
    duplicates: repeated pairs. templates: pairs of val and test whose source or target stands in train too when
    words with digits, paths, addresses, case and punctuation are masked.
    """

    identical: bool = True
    letters: bool = True
    duplicates: bool = True
    templates: bool = True


def tidy(text: str) -> str:
    """Unicode NFC, runs of white space (soft hyphens out) as one space, none at the ends."""
    return unicodedata.normalize("NFC", " ".join(text.replace("\u00ad", "").split()))


def template(text: str) -> str:
    """The text with addresses, paths and numbers masked, without case and punctuation.

    Where a script has no spaces between words, those that a writer may put around a number or a foreign word are as good
    as none.
    """
    masked = text.casefold()
    if _MAYBE_ADDRESS.search(masked):
        masked = _ADDRESS.sub(" \x01 ", masked)
    masked = _NUMBER.sub("0", masked)
    return _SPACE.sub("", " ".join(_WORD.findall(masked))) or text


def unusable(source: str, target: str, clean: Cleaning, published: bool = False) -> str:
    """Why a pair (both sides tidy) cannot be used, or "".

    published: of a val or test side that the corpus states: it is left whole, but for what is no text at all.
    """
    if not source or not target:
        return "empty source" if not source else "empty target"
    broken = _SURROGATE if published else _CONTROL
    if broken.search(source) or broken.search(target):
        return "control characters or broken Unicode"
    if published:
        return ""
    if clean.identical and source.casefold() == target.casefold():
        return "source and target are equal"
    if clean.letters and not (_LETTERS.search(source) and _LETTERS.search(target)):
        return "no words"
    return ""


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


@dataclass
class PairColumns:
    """What `decide` must know of each pair."""

    templates: bool
    pair: array[int] = field(default_factory=lambda: array("Q"))
    source: array[int] = field(
        default_factory=lambda: array("Q")
    )  # hashes of the templates, with their languages
    target: array[int] = field(default_factory=lambda: array("Q"))
    ratio: array[float] = field(default_factory=lambda: array("f"))  # log of target's by source's characters
    direction: array[int] = field(default_factory=lambda: array("H"))
    side: array[int] = field(default_factory=lambda: array("B"))  # an index into SPLITS
    stated: array[int] = field(default_factory=lambda: array("B"))  # whether the corpus itself names the side

    def add(
        self, source: str, target: str, languages: tuple[str, str], direction: int, side: int, stated: bool
    ) -> None:
        """Note a pair; direction: its number; side: an index into SPLITS."""
        self.pair.append(_hash(f"{direction}\n{source}\n{target}"))
        for column, text, language in zip(
            (self.source, self.target), (source, target), languages, strict=True
        ):
            column.append(_hash(f"{language}\n{template(text)}") if self.templates else 0)
        self.ratio.append(float(np.log((len(target) + SLACK) / (len(source) + SLACK))))
        self.direction.append(direction)
        self.side.append(side)
        self.stated.append(stated)

    def __len__(self) -> int:
        return len(self.pair)


def decide(columns: PairColumns, clean: Cleaning, max_ratio: float) -> np.ndarray:
    """(pairs,) int8, an index into VERDICTS for each pair.

    max_ratio: how many times longer or shorter than the median of its direction a translation may be. Of duplicates the
    one in train is kept, else the one in test, and of these the first. Val and test sides that a corpus itself states
    are left whole, so that scores stay comparable: there the near-duplicates leave train.
    """
    side, stated = np.array(columns.side), np.array(columns.stated, bool)
    train, val, test = (side == SPLITS.index(name) for name in ("train", "val", "test"))
    published = stated & ~train
    verdict = np.zeros(len(columns), np.int8)

    ratio, direction = np.array(columns.ratio), np.array(columns.direction)
    for number in np.unique(direction):
        rows = np.flatnonzero(direction == number)
        median = np.median(ratio[rows]) if len(rows) >= ENOUGH else 0.0
        verdict[rows[np.abs(ratio[rows] - median) > np.log(max_ratio)]] = VERDICTS.index(RATIO)
    verdict[published] = 0

    if clean.duplicates:
        rows = np.flatnonzero((verdict == 0) & ~published)
        order = rows[np.argsort(np.select([train[rows], test[rows]], [0, 1], 2), kind="stable")]
        _, first = np.unique(np.array(columns.pair)[order], return_index=True)
        repeated = np.ones(len(order), bool)
        repeated[first] = False
        verdict[order[repeated]] = VERDICTS.index(DUPLICATE)

    if clean.templates:
        keys = np.stack([np.array(columns.source), np.array(columns.target)])
        taken = np.unique(keys[:, published])
        for rows in (train, test, val):
            rows = np.flatnonzero(rows & ~published & (verdict == 0))
            near = np.isin(keys[:, rows], taken).any(0)
            verdict[rows[near]] = VERDICTS.index(NEAR)
            taken = np.union1d(taken, keys[:, rows[~near]])
    return verdict
