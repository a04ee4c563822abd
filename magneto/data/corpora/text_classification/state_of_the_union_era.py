"""Paragraphs of the State of the Union with labels that need no annotator: tasks in the three forms that GLUE has.

One text and a class (the period of the speech), two texts and a class (whether they stand next to each other), one text and
a number (the year). The year is in the name of the speech's file. Key words alone do not give it away, since
the digits in a paragraph (years, sums of money) are written as zeros.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from magneto.data.corpora.text.base import Document, TextCorpus
from magneto.data.corpora.text.state_of_the_union import StateOfTheUnionReader
from magneto.data.corpora.text_classification.base import LabelledCorpus, LabelledText, zero_digits
from magneto.errors import ConfigError

FIRST, LAST = 1790, 2026  # years of the corpus
_PARAGRAPH = re.compile(r"\n\s*\n")


class _ParagraphReader:
    """Paragraphs of the annual messages.

    Splits are those of `StateOfTheUnionReader`, by year: the same speeches are held out as in pretraining on data=sotu.

    Args:
        min_words: shorter paragraphs (salutations, headings) are left out.
        folder: see `StateOfTheUnionReader`.
    """

    name: str

    def __init__(self, min_words: int = 20, folder: str | None = None) -> None:
        if min_words < 1:
            raise ConfigError(f"data.corpus.min_words={min_words} must be at least 1.")
        self.min_words = min_words
        self.speeches = StateOfTheUnionReader(folder)

    def fingerprint(self) -> dict[str, Any]:
        """See `Reader`."""
        return {"recipe": 1, "min_words": self.min_words, **self.speeches.fingerprint()}

    def paragraphs(self, document: Document) -> Iterator[tuple[int, str]]:
        """Yield number and text of the paragraphs of a speech that are long enough."""
        for number, paragraph in enumerate(_PARAGRAPH.split(document.text), 1):
            text = zero_digits(" ".join(paragraph.split()))
            if len(text.split()) >= self.min_words:
                yield number, text

    def singles(self, corpus: TextCorpus, label: Callable[[int], str | float]) -> list[LabelledText]:
        """Return all paragraphs, each distinct text once, with what `label` makes of the year."""
        found: dict[str, LabelledText] = {}
        for document in corpus.examples:
            for number, text in self.paragraphs(document):
                if text not in found:
                    found[text] = LabelledText(
                        id=f"{document.id}:{number}", text=text, label=label(int(document.group)),
                        split=str(document.split), group=document.group,
                    )  # fmt: skip
        return list(found.values())

    def labelled(
        self,
        corpus: TextCorpus,
        examples: list[LabelledText],
        about: str,
        *metrics: str,
        labels: tuple[str, ...] = (),
    ) -> LabelledCorpus:
        """Return the corpus of these examples."""
        return LabelledCorpus(
            examples=examples,
            labels=labels,
            metrics=metrics,
            skipped=corpus.skipped,
            zero_digits=True,
            origin={**corpus.origin, "corpus": "State of the Union", "labels": about},
        )


class StateOfTheUnionEraReader(_ParagraphReader):
    """Paragraphs, and their periods as classes.

    Args:
        years: length of a period, from 1790 on.
        min_words: see `_ParagraphReader`.
        folder: see `StateOfTheUnionReader`.
    """

    name = "sotu-era"

    def __init__(self, years: int = 40, min_words: int = 20, folder: str | None = None) -> None:
        if not 20 <= years <= (LAST - FIRST) // 2:
            raise ConfigError(
                f"data.corpus.years={years} must lie between 20 (each period then has a held-out year) and "
                f"{(LAST - FIRST) // 2} (two periods)."
            )
        super().__init__(min_words, folder)
        self.years = years

    def fingerprint(self) -> dict[str, Any]:
        """See `Reader`."""
        return {"years": self.years, **super().fingerprint()}

    def period(self, year: int) -> str:
        """Return the period of a year, such as `1830-1869`; the last may be shorter, as the corpus ends."""
        start = year - (year - FIRST) % self.years
        return f"{start}-{start + self.years - 1}"

    def load(self, data_dir: Path) -> LabelledCorpus:
        """Return all paragraphs that are long enough, each distinct text once."""
        corpus = self.speeches.load(data_dir)
        examples = self.singles(corpus, self.period)
        labels = tuple(dict.fromkeys(map(self.period, range(FIRST, LAST + 1))))
        return self.labelled(corpus, examples, f"periods of {self.years} years", "accuracy", labels=labels)


class StateOfTheUnionYearReader(_ParagraphReader):
    """Paragraphs, and their years as numbers: centuries since 1790."""

    name = "sotu-year"

    def load(self, data_dir: Path) -> LabelledCorpus:
        """Return all paragraphs that are long enough, each distinct text once."""
        corpus = self.speeches.load(data_dir)
        examples = self.singles(corpus, lambda year: (year - FIRST) / 100)
        return self.labelled(corpus, examples, "centuries since 1790", "pearson", "spearman")


class StateOfTheUnionFollowsReader(_ParagraphReader):
    """Pairs of paragraphs of a speech, and whether the second follows the first.

    A paragraph is the first of two pairs: with the next one, and with one that stands three or more paragraphs away, which
    its number and the speech's length alone decide.
    """

    name = "sotu-follows"
    labels = ("elsewhere", "follows")

    def load(self, data_dir: Path) -> LabelledCorpus:
        """Return the pairs of the speeches of eight paragraphs or more."""
        corpus = self.speeches.load(data_dir)
        examples = []
        for document in corpus.examples:
            texts = list(self.paragraphs(document))
            for index in range(len(texts) - 1) if len(texts) >= 8 else ():
                number, text = texts[index]
                away = (index + 3 + number * 7919 % (len(texts) - 5)) % len(texts)
                for label, other in (("follows", index + 1), ("elsewhere", away)):
                    examples.append(
                        LabelledText(
                            id=f"{document.id}:{number}:{label}", text=text, pair=texts[other][1], label=label,
                            split=str(document.split), group=document.group,
                        )
                    )  # fmt: skip
        return self.labelled(corpus, examples, "whether a paragraph follows", "accuracy", labels=self.labels)
