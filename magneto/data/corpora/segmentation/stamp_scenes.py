"""Synthetic scenes of real drawings: Tux Paint stamps, pasted at random onto coloured grounds, with exact masks.

The class of a pixel is the topmost folder of the stamp that is seen there (animals, food...). What no stamp covers is the
class `background`: a model has to find where a stamp ends, which an ignored ground would not ask for.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from magneto.data.corpora.base import SPLITS, LazyExamples, Skipped
from magneto.data.corpora.image.base import ImageExample, assign_splits
from magneto.data.corpora.image.stamp_images import PACKAGE, StampImagesReader
from magneto.data.corpora.segmentation.base import SegmentationCorpus, SegmentationExample
from magneto.data.io.image import BadImage, ImageData, read_bytes, read_rgba
from magneto.data.rng import random_stream
from magneto.errors import ConfigError, DataError

BACKGROUND = "background"
OPAQUE = 128  # of 255: from this alpha on, a pixel shows the stamp
VAL, TEST = 0.1, 0.2  # shares of the stamps, as conf/data/stamp_images.yaml holds them out
NOISE = 6.0  # deviation of the ground's pixels, of 255


@dataclass
class StampScenesReader:
    """Scenes of the stamps of each split: no stamp, no other one with the same caption or bytes, is in two splits.

    The splits are those of `data=stamp_images`, so that a model pretrained there has seen no stamp of another split. A
    stamp without transparency is skipped: its outline is not known.

    Args:
        size: pixels on a side of a scene.
        scenes: split -> how many.
        stamps: bounds of the stamps in a scene.
        scale: bounds of a stamp's longer side, as a share of the scene's.
        min_stamps: folders with fewer stamps are not used.
        folder: the folder of `animals`, `clothes`...; None: find or fetch it.
    """

    size: int = 64
    scenes: Mapping[str, int] = field(default_factory=lambda: {"train": 3000, "val": 200, "test": 400})
    stamps: tuple[int, int] = (1, 4)
    scale: tuple[float, float] = (0.4, 0.8)
    min_stamps: int = 30
    folder: str | None = None

    def __post_init__(self) -> None:
        self.scenes = {split: int(self.scenes.get(split, 0)) for split in SPLITS}
        self.stamps, self.scale = tuple(self.stamps), tuple(self.scale)  # type: ignore[assignment]
        if self.size < 8 or not (
            1 <= self.stamps[0] <= self.stamps[1] and 0 < self.scale[0] <= self.scale[1] <= 1
        ):
            raise ConfigError(
                f"data: size={self.size}, stamps={list(self.stamps)}, scale={list(self.scale)}: scenes need 8 pixels or "
                "more, from 1 stamp on, and scales up to 1, the smaller number first."
            )

    def fingerprint(self) -> dict[str, Any]:
        """See `Reader`."""
        settings = {
            "size": self.size, "scenes": dict(self.scenes), "stamps": list(self.stamps), "scale": list(self.scale),
            "min_stamps": self.min_stamps,
        }  # fmt: skip
        return PACKAGE.fingerprint(self.folder, recipe=1, **settings) | {"corpus": "stamp_scenes"}

    def load(self, data_dir: Path) -> SegmentationCorpus:
        """Return the scenes, which are drawn each time they are iterated over."""
        splits, labels, skipped, origin = self.split_stamps(data_dir)

        def scenes() -> Iterator[SegmentationExample | Skipped]:
            yield from skipped
            for split, stamps in splits.items():
                by_class: dict[int, list[Image.Image]] = {}
                for stamp, seen in stamps:
                    by_class.setdefault(labels.index(str(stamp.label)), []).append(seen)
                for number in range(self.scenes[split]):
                    random = random_stream(0, f"stamp scene of {split}", 0, number)
                    image, mask = self.compose(by_class, random)
                    yield SegmentationExample(id=f"{split}/{number}", image=image, mask=mask, split=split)

        listed: list[Skipped] = []
        examples = LazyExamples(scenes, listed, sum(self.scenes.values()))
        return SegmentationCorpus(examples=examples, labels=labels, skipped=listed, origin=origin)

    def split_stamps(
        self, data_dir: Path
    ) -> tuple[
        dict[str, list[tuple[ImageExample, Image.Image]]], tuple[str, ...], list[Skipped], dict[str, Any]
    ]:
        """Return split -> its stamps, each cut out of its ground; the labels; what is skipped; the origin.

        Raises:
            DataError: a split that has scenes has no stamps.
        """
        corpus = StampImagesReader(folder=self.folder).load(data_dir)
        counts = Counter(str(stamp.label) for stamp in corpus.examples)
        kept = sorted(label for label, count in counts.items() if count >= self.min_stamps)
        digests = [_digest(stamp.image) for stamp in corpus.examples]
        groups = [stamp.group for stamp in corpus.examples]
        # Of all stamps, also those that are not used: as data=stamp_images divides them.
        sides = assign_splits([None] * len(groups), groups, digests, val=VAL, test=TEST)
        splits: dict[str, list[tuple[ImageExample, Image.Image]]] = {split: [] for split in SPLITS}
        skipped = [Skipped(item.id, item.file, item.reason) for item in corpus.skipped]
        for stamp, side in zip(corpus.examples, sides, strict=True):
            if stamp.label not in kept:
                continue
            try:
                assert side is not None, "no split is stated"
                splits[side].append((stamp, cut_out(read_rgba(stamp.image, 2 * self.size), self.size)))
            except BadImage as bad:
                skipped.append(Skipped(stamp.id, str(stamp.image), str(bad)))
        if empty := [split for split in SPLITS if self.scenes[split] and not splits[split]]:
            raise DataError(
                f"stamp_scenes: there is no usable stamp for the {empty[0]} split, of those in folders with "
                f"min_stamps={self.min_stamps} or more. Set folder to all stamps, or min_stamps to less."
            )
        origin = {**corpus.origin, "stamps": {split: len(stamps) for split, stamps in splits.items()}}
        return splits, (BACKGROUND, *kept), skipped, origin

    def compose(
        self, by_class: Mapping[int, Sequence[Image.Image]], random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw a scene: (size, size, 3) uint8, and the classes of its pixels (size, size) uint8.

        Each stamp is of a class, and then of its stamps, at random, wholly inside; later ones cover earlier ones.

        Args:
            by_class: class -> its stamps.
            random: where all that is drawn comes from.
        """
        scene = Image.fromarray(ground(self.size, random))
        mask = np.zeros((self.size, self.size), np.uint8)
        classes = sorted(by_class)
        for _ in range(random.integers(self.stamps[0], self.stamps[1] + 1)):
            drawn = classes[int(random.integers(len(classes)))]
            stamp = by_class[drawn][int(random.integers(len(by_class[drawn])))]
            longer = self.size * random.uniform(*self.scale)
            width, height = (max(1, round(side * longer / max(stamp.size))) for side in stamp.size)
            left, top = (int(random.integers(self.size - side + 1)) for side in (width, height))
            stamp = stamp.resize((width, height), Image.Resampling.BICUBIC)
            scene.paste(stamp, (left, top), stamp)
            covered = np.asarray(stamp)[..., 3] >= OPAQUE
            mask[top : top + height, left : left + width][covered] = drawn
        return np.asarray(scene), mask


def _digest(image: ImageData) -> bytes:
    """Return what copies of an image share; of a file that cannot be read its name alone, since it is skipped."""
    try:
        return hashlib.sha256(read_bytes(image)).digest()
    except BadImage:
        return str(image).encode()


def ground(size: int, random: np.random.Generator) -> np.ndarray:
    """Return a ground (size, size, 3) uint8: a gradient of two colours in a random direction, with noise."""
    first, second = random.uniform(0, 255, (2, 1, 1, 3))
    angle = random.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:size, :size] / (size - 1) - 0.5
    share = (0.5 + (x * np.cos(angle) + y * np.sin(angle)) / np.sqrt(2))[..., None]
    pixels = first + share * (second - first) + random.normal(0, NOISE, (size, size, 3))
    return np.asarray(pixels.round().clip(0, 255).astype(np.uint8))


def cut_out(stamp: Image.Image, size: int) -> Image.Image:
    """Return the part of a stamp (RGBA) that is seen, at most `size` pixels on a side.

    Raises `BadImage` for one without an outline.
    """
    alpha = stamp.getchannel("A").point(lambda value: 255 * (value >= OPAQUE))
    box = alpha.getbbox()
    if box is None:
        raise BadImage("a stamp that is transparent everywhere")
    if alpha.getextrema()[0] == 255:
        raise BadImage("a stamp without transparency, whose outline is not known")
    seen = stamp.crop(box)
    seen.thumbnail((size, size), Image.Resampling.BICUBIC)
    return seen
