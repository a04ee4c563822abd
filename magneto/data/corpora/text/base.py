"""Text corpora: the example, the corpus, the protocol of their readers, and the checks of a text."""

import hashlib
import re
from dataclasses import dataclass

import regex

from magneto.data.corpora.base import Corpus, Reader

LINES = 100  # neighbours of a file without documents, or units of a translation memory, that have one split


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A text that is complete in itself: a speech, a page, a file."""

    id: str  # unique in its corpus
    text: str
    group: str  # must not be on two sides of a split: a file, a template
    split: str | None  # train, val or test where the corpus states it; None: by a hash of the group


TextCorpus = Corpus[Document]
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
