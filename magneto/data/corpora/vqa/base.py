"""Questions and statements about images: the example, the corpus, the protocol of their readers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from magneto.data.corpora.base import Corpus, Reader
from magneto.data.corpora.image.base import ImageCorpus

TRUTH = ("false", "true")
"""The answers to statements."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A question about one image, or a statement about two, with people's answers. It has the split of its images."""

    id: str  # unique in its corpus
    text: str
    images: tuple[str, ...]  # their ids
    answers: tuple[str, ...]  # one of each person who was asked; "" for one that cannot be chosen
    kind: str = ""  # accuracy is reported of each kind
    group: str | None = None  # the same statement about several pairs of images; None: about this one only


QuestionCorpus = Corpus[Question]


class UsableImages(Protocol):
    """The images of a corpus that are prepared and have a split."""

    @property
    def splits(self) -> Mapping[str, str]:
        """Id -> train, val or test, in the order of the corpus."""
        ...

    def pixels(self, id: str) -> np.ndarray:
        """Return (H, W) or (H, W, 3) uint8, as evaluation sees it."""
        ...


class QuestionReader(Reader[ImageCorpus], Protocol):
    """The reader of images and of questions about them."""

    def questions(self, data_dir: Path, images: UsableImages) -> QuestionCorpus:
        """Return the questions about `images`. A question about another image may be among them; it is skipped."""
        ...
