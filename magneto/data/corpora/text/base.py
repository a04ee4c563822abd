"""Text corpora: the example, the corpus, the protocol of their readers, and the checks of a text."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import regex

from magneto.data.corpora.base import Reader, Skipped

LINES = 100  # neighbours of a file without documents, or units of a translation memory, that have one split


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A text that is complete in itself: a speech, a page, a file."""

    id: str  # unique in its corpus
    text: str
    group: str  # must not be on two sides of a split: a file, a template
    split: str | None  # train, val or test where the corpus states it; None: by a hash of the group


@dataclass(frozen=True)
class TextCorpus:
    """The documents of a corpus, what its reader skipped (complete once `documents` has been read), its origin.

    documents: made while they are read, so that a corpus need not fit into memory.
    """

    documents: Iterable[Document]
    skipped: list[Skipped] = field(default_factory=list)
    origin: dict[str, Any] = field(default_factory=dict)


TextReader = Reader[TextCorpus]


def text_of(value: object) -> str:
    """Return a value of a JSON file that should be a text; for any other type "", which is listed as empty."""
    return value if isinstance(value, str) else ""


def why_unusable(text: str) -> str | None:
    """Return why a text cannot be used, or None if it can."""
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
    """Return a name that is the same for texts that differ only in case, numbers, punctuation and white space."""
    plain = VARIABLE.sub(" ", text.casefold()).strip()
    return hashlib.blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
