"""Clean and normalise texts."""

import unicodedata

from magneto.data.corpora.text.base import why_unusable
from magneto.data.tokenizers.ctc import WORD_BREAK
from magneto.errors import DataError


def clean_caption(text: str, lowercase: bool) -> str:
    """Unicode NFC, white space as single spaces, in small letters if `lowercase`."""
    text = " ".join(unicodedata.normalize("NFC", text).split())
    return unicodedata.normalize("NFC", text.lower()) if lowercase else text


def readable_caption(text: str, lowercase: bool, key: str) -> str:
    """A user's text, cleaned as captions are. Raises `DataError`, naming `key`, for one that cannot be read."""
    if reason := why_unusable(text):
        raise DataError(f"{key}={text!r}: {reason}. Give words, in UTF-8.")
    return clean_caption(text, lowercase)


APOSTROPHES = "'\u2019\u2018\u02bc\uff07\u2032`\u00b4"  # quotes, modifier letter, full width, prime, accents


def normalize_text(text: str) -> str:
    """The written form that a recogniser is trained on and scored against.

    Unicode NFC, lower case; letters, their combining marks and digits stay; an apostrophe between two letters
    stays, as "'" ("l'avion"); invisible format characters (joiners, soft hyphens, direction marks) vanish;
    every other character (punctuation, hyphens, currency signs, emoji) becomes a space; runs of spaces become
    one; none at the ends. Digits stay digits: they are not spelled out, since the reading depends on the
    language and the speaker.
    """
    text = "".join(char for char in text if char == WORD_BREAK or unicodedata.category(char) != "Cf")
    text = unicodedata.normalize("NFC", text).lower()
    kept: list[str] = []
    for position, char in enumerate(text):
        if char in APOSTROPHES:
            beside = (text[position - 1 : position], text[position + 1 : position + 2])
            between = all(one.isalpha() and one not in APOSTROPHES for one in beside)
            kept.append("'" if between else " ")
        elif unicodedata.category(char)[0] in "LM" or char.isdigit():
            kept.append(char)
        else:
            kept.append(" ")
    # Lower-casing can leave a decomposed pair behind (Turkish dotted I): compose once more.
    return " ".join(unicodedata.normalize("NFC", "".join(kept)).split())
