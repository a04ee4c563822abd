"""Questions and statements about images: the example, the corpus, and the protocol of its corpora."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from magneto.data.corpora.base import Skipped
from magneto.data.corpora.image.base import ImageReader

TRUTH = ("false", "true")
"""The answers to statements."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A question about one image, or a statement about two, with what people answered. It is on its images' side."""

    id: str  # unique in its corpus
    text: str
    images: tuple[str, ...]  # their ids
    answers: tuple[str, ...]  # one of each person who was asked; "" for one that cannot be chosen
    kind: str = ""  # accuracy is told of each kind
    group: str | None = None  # a statement that is made of several pairs of images; None: of this one only


@dataclass(frozen=True)
class QuestionCorpus:
    """The questions of a corpus, what it skipped itself (complete once `questions` has been read), its origin."""

    questions: Iterable[Question]
    skipped: list[Skipped] = field(default_factory=list)
    origin: dict[str, Any] = field(default_factory=dict)


class UsableImages(Protocol):
    """The images of a source that are prepared and stand on a side of the split."""

    @property
    def splits(self) -> Mapping[str, str]:
        """Id -> train, val or test, in the order of the source."""
        ...

    def pixels(self, id: str) -> np.ndarray:
        """(H, W) or (H, W, 3) uint8, as evaluation sees it."""
        ...


class QuestionReader(ImageReader, Protocol):
    """Images with questions. The constructor takes plain values; `load` lists the images, without classes."""

    def questions(self, data_dir: Path, images: UsableImages) -> QuestionCorpus:
        """All questions; those about an image that is not usable may be among them, and are skipped later."""
        ...
