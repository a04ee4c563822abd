"""Labelled texts and pairs of texts: the example, the corpus, the protocol of their readers."""

import re
from dataclasses import dataclass
from typing import Protocol

from magneto.data.corpora.base import Corpus, Reader


@dataclass(frozen=True, kw_only=True)
class LabelledText:
    """One example: a text or a pair of texts, with a class or a number.

    subset: an evaluation set of its own within the split, such as MNLI's mismatched genres. group: what was kept on one
    side of the split.
    """

    id: str  # unique in its corpus
    text: str
    label: str | float  # one of the corpus's labels, or a number for regression
    split: str  # train, val or test
    pair: str | None = None
    subset: str | None = None
    group: str | None = None


@dataclass(frozen=True, kw_only=True)
class LabelledCorpus(Corpus[LabelledText]):
    """Labelled texts and their metrics.

    labels: the classes in the order of their indices; empty for regression. metrics: see `classification_metrics`.
    An example may be listed for val and again for test, where a corpus has only one labelled evaluation set.
    zero_digits: digits are written as zeros, here and in every text that a model of it is to read.
    """

    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    zero_digits: bool = False


class LabelledReader(Reader[LabelledCorpus], Protocol):
    """The reader of a labelled corpus."""

    name: str
    """For the prepared folder."""


def zero_digits(text: str) -> str:
    """Return the text with zeros for digits, so that no year and no sum gives the class away."""
    return re.sub(r"\d", "0", text)
