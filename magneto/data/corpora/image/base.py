"""Images with classes or captions: the example, the corpus, the protocol of its corpora, and how splits are made."""

import hashlib
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from magneto.data.corpora.base import SPLITS, Groups, Skipped, hash_split
from magneto.data.io.digest import files_digest
from magneto.data.io.image import ImageData
from magneto.data.transforms.text import normalize_text
from magneto.errors import MagnetoError

Captions = Mapping[str, str | Sequence[str]]
"""Language -> text, or several texts."""


@dataclass(frozen=True, kw_only=True)
class ImageExample:
    """One image, not yet decoded."""

    id: str  # unique in its corpus
    image: ImageData
    label: str | None = None  # one of the corpus's labels; None: it has no class
    group: str | None = None  # what must not stand on both sides of a split
    split: str | None = None  # train, val or test; None: by a hash of the group
    captions: Captions = field(default_factory=dict)


class Images(Protocol):
    """Images that can be gone through any number of times."""

    def __len__(self) -> int:
        """How many there are at most."""
        ...

    def __iter__(self) -> Iterator[ImageExample]: ...


class Lazily:
    """Images that are made anew each time: `make` gives them, at most `count`."""

    def __init__(self, make: Callable[[], Iterator[ImageExample]], count: int) -> None:
        self._make, self._count = make, count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[ImageExample]:
        return self._make()


@dataclass(frozen=True, kw_only=True)
class ImageCorpus:
    """The images of a corpus, its classes, what it skipped itself (known once it was gone through), its origin.

    labels: in the order of their numbers; empty: the corpus has no classes. evaluation_only: it is a test set for
    models that were trained on another corpus.
    """

    examples: Images
    labels: tuple[str, ...] = ()
    skipped: list[Skipped] = field(default_factory=list)
    origin: dict[str, Any] = field(default_factory=dict)
    evaluation_only: bool = False


class ImageReader(Protocol):
    """A corpus of images. Its constructor takes plain values."""

    def fingerprint(self) -> dict[str, Any]:
        """All settings and versions that decide the examples, as plain values; without network."""
        ...

    def load(self, data_dir: Path) -> ImageCorpus:
        """Find or fetch the corpus and list its images. Raises `MagnetoError` when it cannot be had."""
        ...


def image_files_digest(source: ImageReader) -> str | None:
    """Return the `files_digest` of a corpus that is on disk; None where it cannot be listed, which `load` explains."""
    try:
        examples = source.load(Path()).examples
    except MagnetoError:
        return None
    return files_digest(example.image for example in examples if isinstance(example.image, Path))


def existing(path: Path) -> Path:
    """Return `path`, or where only that is a file, its name in the other Unicode form: macOS writes accents apart."""
    name = str(path)
    if name.isascii():
        return path
    forms = [path, *(Path(unicodedata.normalize(form, name)) for form in ("NFC", "NFD"))]
    return next((form for form in forms if form.exists()), path)


def each_caption(captions: Captions) -> Iterator[tuple[str, str]]:
    """(language, text) of all captions."""
    for language, texts in captions.items():
        yield from ((language, text) for text in ([texts] if isinstance(texts, str) else texts))


def caption_key(text: str) -> str:
    """Equal for captions that do not differ in a letter or digit; a text without any stands for itself."""
    return normalize_text(text) or text


def held_out(names: Sequence[str], count: int, kind: str = "image") -> set[int]:
    """The places of exactly `count` names (all, if there are fewer), fixed by a hash of each name alone."""
    order = sorted(
        range(len(names)), key=lambda place: hashlib.sha256(f"{kind}:{names[place]}".encode()).digest()
    )
    return set(order[:count])


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
    """The split of each image; None: it is left out, being a copy of an image on another side.

    Stated splits stay. Other images go by a hash of their group's name; images that share a group, a caption or
    their bytes are one group. A copy of a test image elsewhere is left out, then a copy of a validation
    image in training.

    Args:
        stated: the splits that the corpus states.
        groups: what must not be divided; None: the image stands alone.
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
    rank = {split: place for place, split in enumerate(SPLITS)}  # test counts most
    highest: dict[bytes, int] = {}
    for digest, split in zip(digests, splits, strict=True):
        assert split is not None
        highest[digest] = max(highest.get(digest, 0), rank[split])
    return [
        split if split is not None and rank[split] == highest[digest] else None
        for digest, split in zip(digests, splits, strict=True)
    ]
