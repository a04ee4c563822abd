"""Corpora of images with masks, the classes of their pixels: the example, the corpus, the protocol of their readers."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from magneto.data.corpora.base import Corpus, LazyExamples, Reader
from magneto.data.io.image import ImageData
from magneto.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SegmentationExample:
    """One image and its mask, not yet decoded."""

    id: str  # unique in its corpus
    image: ImageData
    mask: ImageData  # of the image's size: see `io.image.read_class_ids`
    group: str | None = None  # must not be on two sides of a split
    split: str | None = None  # train, val or test; None: by a hash of the group


@dataclass(frozen=True, kw_only=True)
class SegmentationCorpus(Corpus[SegmentationExample]):
    """Images with masks, and their classes.

    labels: names of the classes. first: the id in masks of the first of them; the others follow. ignored: further ids,
    whose pixels are neither learnt nor scored. An example with any other id is skipped.
    """

    examples: Sequence[SegmentationExample] | LazyExamples[SegmentationExample]
    labels: tuple[str, ...]
    first: int = 0
    ignored: Collection[int] = ()


SegmentationReader = Reader[SegmentationCorpus]


@dataclass(frozen=True)
class ClassIds:
    """What the ids in the masks of a user's files stand for.

    Args:
        classes: their number.
        first: the id of the first one.
        ignored: ids whose pixels are neither learnt nor scored.

    Raises:
        ConfigError: there are fewer than two classes, or an id is both.
    """

    classes: int
    first: int
    ignored: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.classes < 2:
            raise ConfigError(
                f"data: classes={self.classes}: segmentation needs 2 or more. Set it to their number."
            )
        if both := [id for id in self.ignored if self.first <= id < self.first + self.classes]:
            raise ConfigError(
                f"data: ignored={list(self.ignored)}: {both[0]} is the id of a class, which are {self.first} to "
                f"{self.first + self.classes - 1}. Change `ignored`, `first` or `classes`."
            )

    def names(self) -> tuple[str, ...]:
        """Return names for classes that have none."""
        return tuple(f"class {self.first + number}" for number in range(self.classes))
