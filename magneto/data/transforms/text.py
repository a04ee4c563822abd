"""Clean and normalise texts."""

import unicodedata

from magneto.data.corpora.text.base import why_unusable
from magneto.data.tokenizers.ctc import WORD_BREAK
from magneto.errors import DataError


def clean_caption(text: str, lowercase: bool) -> str:
    """Return a text in Unicode NFC, with single spaces for white space, in lower case if `lowercase`."""
    text = " ".join(unicodedata.normalize("NFC", text).split())
    return unicodedata.normalize("NFC", text.lower()) if lowercase else text


def readable_caption(text: str, lowercase: bool, key: str) -> str:
    """Return a user's text, cleaned like captions. Raises `DataError`, which names `key`, if it is unusable."""
    if reason := why_unusable(text):
        raise DataError(f"{key}={text!r}: {reason}. Set it to words in UTF-8.")
    return clean_caption(text, lowercase)


APOSTROPHES = "'\u2019\u2018\u02bc\uff07\u2032`\u00b4"  # quotes, modifier letter, full width, prime, accents


def normalize_text(text: str) -> str:
    """Return the form of a text that a recogniser is trained and scored on.

    Unicode NFC, lower case; letters, their combining marks and digits stay; an apostrophe between two letters stays, as "'"
    ("l'avion"); invisible format characters (joiners, soft hyphens, direction marks) are removed; every other character
    (punctuation, hyphens, currency signs, emoji) becomes a space; runs of spaces become one, without any at the ends. Digits
    are not spelled out, since their reading depends on the language and the speaker.
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
    # Lower case can leave a decomposed pair (Turkish dotted I): compose again.
    return " ".join(unicodedata.normalize("NFC", "".join(kept)).split())
