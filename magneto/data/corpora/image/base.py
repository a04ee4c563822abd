"""Corpora of images with classes or captions: the example, the corpus, the protocol of their readers, their splits."""

import hashlib
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from magneto.data.corpora.base import SPLITS, Corpus, Groups, LazyExamples, Reader, hash_split
from magneto.data.io.digest import file_digest, files_digest
from magneto.data.io.image import ImageData
from magneto.data.transforms.text import normalize_text
from magneto.errors import DataError, MagnetoError

Captions = Mapping[str, str | Sequence[str]]
"""Language -> text, or several texts."""


@dataclass(frozen=True, kw_only=True)
class ImageExample:
    """One image, not yet decoded."""

    id: str  # unique in its corpus
    image: ImageData
    label: str | None = None  # one of the corpus's labels; None: it has no class
    group: str | None = None  # must not be on two sides of a split
    split: str | None = None  # train, val or test; None: by a hash of the group
    captions: Captions = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ImageCorpus(Corpus[ImageExample]):
    """Images, whose number is known, and their classes.

    labels: in the order of their indices; empty: the corpus has no classes. evaluation_only: it is a test set for
    models that were trained on another corpus.
    """

    examples: Sequence[ImageExample] | LazyExamples[ImageExample]
    labels: tuple[str, ...] = ()
    evaluation_only: bool = False


ImageReader = Reader[ImageCorpus]


def annotated(reader: ImageReader, corpus: str, files: Any, **settings: Any) -> dict[str, Any]:
    """Return the fingerprint of images that the user's files name: of these their contents, of images sizes and times.

    files: a path, or paths in mappings and lists; None stands for a missing one, which `load` explains.
    """

    def content(value: Any) -> Any:
        if isinstance(value, Path):
            return file_digest(value) if value.is_file() else None
        if isinstance(value, Mapping):
            return {key: content(one) for key, one in value.items()}
        return [content(one) for one in value]

    try:
        examples = reader.load(Path()).examples
        images = files_digest(example.image for example in examples if isinstance(example.image, Path))
    except MagnetoError:
        images = None
    return {"corpus": corpus, "recipe": 2, "files": content(files), "images": images, **settings}


def existing(path: Path) -> Path:
    """Return `path`, or the file whose name is the same in another Unicode form: macOS decomposes accents."""
    name = str(path)
    if name.isascii():
        return path
    forms = [path, *(Path(unicodedata.normalize(form, name)) for form in ("NFC", "NFD"))]
    return next((form for form in forms if form.exists()), path)


def each_caption(captions: Captions) -> Iterator[tuple[str, str]]:
    """Yield (language, text) of all captions."""
    for language, texts in captions.items():
        yield from ((language, text) for text in ([texts] if isinstance(texts, str) else texts))


def caption_key(text: str) -> str:
    """Return a key that is equal for captions with the same letters and digits; a text without any is its own."""
    return normalize_text(text) or text


def held_out(names: Sequence[str], count: int, kind: str = "image") -> set[int]:
    """Return the indices of exactly `count` names (all, if there are fewer), fixed by a hash of each name alone."""
    order = sorted(
        range(len(names)), key=lambda index: hashlib.sha256(f"{kind}:{names[index]}".encode()).digest()
    )
    return set(order[:count])


def images_of_arrays(
    sides: Mapping[str, tuple[np.ndarray, Sequence[int]]],
    labels: tuple[str, ...],
    validation: int,
    root: Path,
    origin: dict[str, Any],
) -> ImageCorpus:
    """Return the corpus of a published training and test set, of which training images are held out by a hash.

    Args:
        sides: train and test -> images (N, H, W) or (N, H, W, 3) uint8, and the indices of their labels.
        labels: names of the classes.
        validation: the number of images that are held out.
        root: of the files, for messages.
        origin: of the corpus.

    Raises:
        DataError: the labels of a side do not belong to its images.
    """
    for side, (images, numbers) in sides.items():
        if len(images) != len(numbers) or not set(numbers) <= set(range(len(labels))):
            raise DataError(f"{root}: the labels of {side} do not belong to its images. Fetch them again.")
    held = held_out([f"train/{number}" for number in range(len(sides["train"][0]))], validation)

    def examples() -> Iterator[ImageExample]:
        for side, (images, numbers) in sides.items():
            for number, (image, label) in enumerate(zip(images, numbers, strict=True)):
                split = "val" if side == "train" and number in held else side
                yield ImageExample(id=f"{side}/{number}", image=image, label=labels[label], split=split)

    count = sum(len(images) for images, _ in sides.values())
    return ImageCorpus(examples=LazyExamples(examples, count=count), labels=labels, origin=origin)


def assign_splits(
    stated: Sequence[str | None],
    groups: Sequence[str | None],
    digests: Sequence[bytes],
    *,
    val: float,
    test: float,
    kind: str = "image",
    captions: Sequence[Collection[str]] | None = None,
) -> list[str | None]:
    """Return the split of each image; None for a copy of an image on another side, which is left out.

    Stated splits stay. Other images go by a hash of their group's name; images that share a group, a caption or
    their bytes are one group. A copy of a test image elsewhere is left out, then a copy of a validation
    image in training.

    Args:
        stated: the splits that the corpus states.
        groups: what must not be divided; None: the image is alone.
        digests: of the images' bytes.
        val: share of the groups without a stated split that goes to validation.
        test: to the test.
        kind: see `hash_split`.
        captions: of each image; None: captions do not count.
    """
    joined = Groups()
    keys = [group or digest.hex() for group, digest in zip(groups, digests, strict=True)]
    texts = [()] * len(keys) if captions is None else captions
    for key, digest, split, own in zip(keys, digests, stated, texts, strict=True):
        if split is None:
            joined.union(key, ("bytes", digest), *(("caption", text) for text in own))
    names = joined.names()
    splits: list[str | None] = [
        split or hash_split(names[key], val=val, test=test, kind=kind)
        for key, split in zip(keys, stated, strict=True)
    ]
    rank = {split: index for index, split in enumerate(SPLITS)}  # test counts most
    highest: dict[bytes, int] = {}
    for digest, split in zip(digests, splits, strict=True):
        assert split is not None
        highest[digest] = max(highest.get(digest, 0), rank[split])
    return [
        split if split is not None and rank[split] == highest[digest] else None
        for digest, split in zip(digests, splits, strict=True)
    ]
