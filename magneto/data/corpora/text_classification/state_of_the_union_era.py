"""Paragraphs of the State of the Union, labelled with the period of their speech.

The label needs no annotator: the year is in the name of the speech's file. Key words alone do not give it away, since
the digits in a paragraph (years, sums of money) are written as zeros.
"""

import re
from pathlib import Path
from typing import Any

from magneto.data.corpora.text.state_of_the_union import StateOfTheUnionReader
from magneto.data.corpora.text_classification.base import LabelledCorpus, LabelledText, zero_digits
from magneto.errors import ConfigError

FIRST, LAST = 1790, 2026  # years of the corpus
_PARAGRAPH = re.compile(r"\n\s*\n")


class StateOfTheUnionEraReader:
    """Paragraphs of the annual messages, and their periods as classes.

    Splits are those of `StateOfTheUnionReader`, by year: the same speeches are held out as in pretraining on data=sotu.

    Args:
        years: length of a period, from 1790 on.
        min_words: shorter paragraphs (salutations, headings) are left out.
        folder: see `StateOfTheUnionReader`.
    """

    name = "sotu-era"

    def __init__(self, years: int = 40, min_words: int = 20, folder: str | None = None) -> None:
        if not 20 <= years <= (LAST - FIRST) // 2:
            raise ConfigError(
                f"data.corpus.years={years} must lie between 20 (each period then has a held-out year) and "
                f"{(LAST - FIRST) // 2} (two periods)."
            )
        if min_words < 1:
            raise ConfigError(f"data.corpus.min_words={min_words} must be at least 1.")
        self.years, self.min_words = years, min_words
        self.speeches = StateOfTheUnionReader(folder)

    def fingerprint(self) -> dict[str, Any]:
        """See `Reader`."""
        return {"recipe": 1, "years": self.years, "min_words": self.min_words, **self.speeches.fingerprint()}

    def period(self, year: int) -> str:
        """Return the period of a year, such as `1830-1869`; the last may be shorter, as the corpus ends."""
        start = year - (year - FIRST) % self.years
        return f"{start}-{start + self.years - 1}"

    def load(self, data_dir: Path) -> LabelledCorpus:
        """Return all paragraphs that are long enough, each distinct text once."""
        corpus = self.speeches.load(data_dir)
        seen: dict[str, LabelledText] = {}
        for document in corpus.examples:
            assert document.split is not None
            for number, paragraph in enumerate(_PARAGRAPH.split(document.text), 1):
                text, year = zero_digits(" ".join(paragraph.split())), document.group
                if len(text.split()) >= self.min_words and text not in seen:
                    name, label = f"{document.id}:{number}", self.period(int(year))
                    seen[text] = LabelledText(
                        id=name, text=text, label=label, split=document.split, group=year
                    )
        labels = f"periods of {self.years} years"
        return LabelledCorpus(
            examples=list(seen.values()),
            labels=tuple(dict.fromkeys(map(self.period, range(FIRST, LAST + 1)))),
            metrics=("accuracy",),
            skipped=corpus.skipped,
            zero_digits=True,
            origin={**corpus.origin, "corpus": "State of the Union", "labels": labels},
        )
