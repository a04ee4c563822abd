"""Parallel corpora: the example, the corpus, the protocol of their readers, names of directions."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from magneto.data.corpora.base import Corpus, Reader
from magneto.errors import ConfigError

LANGUAGE = re.compile(r"[a-z]{2,3}(_[A-Za-z]{2,4}|_[0-9]{3})*(@[a-z]+)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """A sentence (or paragraph) and its translation, as the corpus has them."""

    id: str  # unique in its corpus
    source: str
    target: str
    source_language: str
    target_language: str
    group: str  # must not be on two sides of a split: a file, a package, a document
    split: str | None  # train, val or test where the corpus states it; None: by a hash of the group


TranslationCorpus = Corpus[Pair]
TranslationReader = Reader[TranslationCorpus]


def parse_directions(directions: Sequence[str], known: Iterable[str] | None = None) -> list[tuple[str, str]]:
    """Return directions as pairs of languages: ["en-fr", "en-pt_BR"] -> [("en", "fr"), ("en", "pt_BR")].

    Args:
        directions: source and target language, with a hyphen.
        known: the language codes of the corpus; None: any code of the right form.

    Raises:
        ConfigError: a direction of another form, a repeated one, an unknown language, or no direction.
    """
    if isinstance(directions, str):
        directions = [directions]
    if not directions:
        raise ConfigError("data: directions is empty; name at least one, such as [en-fr].")
    parsed = []
    for direction in directions:
        sides = tuple(str(direction).split("-"))
        if len(sides) != 2 or not all(LANGUAGE.fullmatch(side) for side in sides) or sides[0] == sides[1]:
            raise ConfigError(
                f"data: {direction!r} is not a direction. Write two different language codes and one hyphen, such "
                "as en-fr or en-pt_BR (the country after an underscore)."
            )
        for side in sides:
            if known is not None and side not in (names := sorted(known)):
                raise ConfigError(
                    f"data: direction {direction!r}: this corpus has no language {side!r}; it has {', '.join(names)}."
                )
        if sides in parsed:
            raise ConfigError(f"data: the direction {direction!r} is named twice.")
        parsed.append((sides[0], sides[1]))
    return parsed
