"""What all text corpora share: the example (`Document`), what a corpus gives, its protocol, and text read with care."""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import regex

from magneto.data.corpora.base import Skipped

LINES = 100  # of a file without documents, or units of a translation memory, that stand on one side of the split together


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A text that stands for itself: a speech, a page, a file."""

    id: str  # unique in its corpus
    text: str
    group: str  # what must not stand on both sides of a split: a file, a template
    split: str | None  # train, val or test where the corpus states it; None: by a hash of the group


@dataclass(frozen=True)
class TextCorpus:
    """The documents of a corpus, what it skipped itself (complete once `documents` has been read), its origin.

    documents: made while they are read, so that a corpus need not fit into memory.
    """

    documents: Iterable[Document]
    skipped: list[Skipped] = field(default_factory=list)
    origin: dict[str, Any] = field(default_factory=dict)


class TextReader(Protocol):
    """A text corpus. Its constructor takes plain values."""

    def fingerprint(self) -> dict[str, Any]:
        """All settings and versions that decide the documents, as plain values; cheap, without network."""
        ...

    def load(self, data_dir: Path) -> TextCorpus:
        """Find or fetch the corpus. May be called again. Raises `MagnetoError` when it cannot be had."""
        ...


class BadText(ValueError):
    """Bytes that are no text; the message says why, the same for all such bytes (it is counted)."""


def decode_text(raw: bytes) -> str:
    """UTF-8, with or without a byte-order mark. Raises `BadText`."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadText("not UTF-8") from None


def text_of(value: object) -> str:
    """A value of somebody's JSON that should be a text: "", which is listed as empty, for anything else."""
    return value if isinstance(value, str) else ""


def why_unusable(text: str) -> str | None:
    """Why this text cannot be trained on, None where it can."""
    if not text or text.isspace():
        return "empty"
    if "\0" in text:
        return "NUL characters: binary, or text of another encoding"
    if SURROGATE.search(text):
        return "half a character (an unpaired surrogate)"
    return None


SURROGATE = re.compile(r"[\ud800-\udfff]")
# All but letters with their combining marks, which `re` does not count as letters; with and without a number.
VARIABLE = regex.compile(r"N*\d[\dN]*|N+".replace("N", r"[^\p{L}\p{N}\p{M}_]"), regex.V1)


def content_group(text: str) -> str:
    """A name for all texts that differ only in case, numbers, punctuation and white space: a template's copies."""
    plain = VARIABLE.sub(" ", text.casefold()).strip()
    return hashlib.blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


class Lazily(Iterable[Document]):
    """Documents that are made anew each time they are iterated over."""

    def __init__(self, make: Callable[[], Iterator[Document]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[Document]:
        return self._make()
