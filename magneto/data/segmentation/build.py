"""Decode the images and masks of the corpora, divide them into splits, and write the Arrow tables.

The columns, a row for each image: `id`; `row`, its number over all splits, by which its augmentation follows from the seed;
`height` and `width`; `pixels`, the (C, H, W) uint8 of the image, flat; `mask`, the (H, W) classes of its pixels, flat, uint8
or, of more than 255 classes, uint16. The largest value of that type (255, 65535) is a pixel that is ignored.
"""

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from magneto.data.cache import cpu_count, progress
from magneto.data.corpora.base import SPLITS
from magneto.data.corpora.image.base import assign_splits
from magneto.data.corpora.segmentation.base import SegmentationCorpus, SegmentationExample
from magneto.data.image.dataset import channels_first
from magneto.data.io.image import BadImage, read_bytes, read_class_ids, read_image
from magneto.data.prepared import Preparation
from magneto.data.segmentation.config import SegmentationConfig

CHUNK = 64  # images in memory at once
PART = 2**26  # bytes of images that are written to a table at a time


class ClassTable:
    """Map from the ids in the masks of a corpus to the indices of its classes among all.

    Args:
        corpus: says what its ids stand for.
        labels: of all corpora.
        dtype: of the indices; its largest value is an ignored pixel.
    """

    def __init__(self, corpus: SegmentationCorpus, labels: list[str], dtype: np.dtype[Any]) -> None:
        ids = {corpus.first + number: labels.index(label) for number, label in enumerate(corpus.labels)}
        ids |= dict.fromkeys(corpus.ignored, int(np.iinfo(dtype).max))
        self.known = np.zeros(max(ids) + 1, bool)
        self.known[list(ids)] = True
        self.index = np.zeros(max(ids) + 1, dtype)
        self.index[list(ids)] = list(ids.values())

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """(H, W) ids -> (H, W) indices. Raises `BadImage` for an id that is neither a class nor ignored."""
        if ids.min() < 0 or ids.max() >= len(self.known) or not self.known[ids].all():
            raise BadImage("mask: an id that is neither of a class nor ignored")
        return self.index[ids]


@dataclass(frozen=True)
class Row:
    """An image that can be used, with its mask."""

    id: str
    number: int  # over all splits
    pixels: np.ndarray  # (C, H, W) uint8
    mask: np.ndarray  # (H, W) classes
    moments: np.ndarray  # (2, C) mean of the values and of their squares, 0 to 1


def read_row(
    numbered: tuple[int, SegmentationExample], table: ClassTable, config: SegmentationConfig
) -> Row | str:
    """Decode an image and its mask, in the size in which they are prepared; return the reason if it cannot be used."""
    number, example = numbered
    try:
        image = read_image(example.image, config.channels)
    except BadImage as bad:
        return str(bad)
    try:
        ids = read_class_ids(example.mask)
        if ids.shape != (image.height, image.width):
            raise BadImage("mask: another size than its image")
        mask = table(ids)
    except BadImage as bad:
        reason = str(bad)
        return reason if reason.startswith("mask: ") else f"mask: {reason}"
    if (mask == np.iinfo(mask.dtype).max).all():
        return "mask: every pixel is ignored"
    image = shortened(image, config.short_side)
    if image.size != mask.shape[::-1]:
        mask = np.asarray(Image.fromarray(mask).resize(image.size, Image.Resampling.NEAREST))
    pixels = channels_first(image)
    values = pixels.reshape(len(pixels), -1).astype(np.float32) / 255
    moments = np.stack((values.mean(1, dtype=np.float64), np.square(values).mean(1, dtype=np.float64)))
    return Row(example.id, number, pixels, mask, moments)


def shortened(image: Image.Image, short_side: int | None) -> Image.Image:
    """Return an image whose shorter side has `short_side` pixels, or as it is where that is None."""
    if short_side is None or min(image.size) == short_side:
        return image
    factor = short_side / min(image.size)
    width, height = (max(1, round(side * factor)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def build(target: Preparation) -> dict[str, Any]:
    """Write the tables; return the fields of the info that describe the corpus."""
    loaded: dict[str, SegmentationCorpus] = {
        name: reader.load(target.data_dir) for name, reader in target.corpora.items()
    }
    labels = list(dict.fromkeys(label for corpus in loaded.values() for label in corpus.labels))
    dtype = np.dtype(np.uint8 if len(labels) <= 255 else np.uint16)
    splits = _splits(loaded, target)
    moments: list[np.ndarray] = []
    waiting: dict[str, list[Row]] = {split: [] for split in SPLITS}
    with target.tables(schema(dtype)) as tables:
        for split, row in _rows(loaded, labels, dtype, splits, target):
            waiting[split].append(row)
            if split == "train":
                moments.append(row.moments)
            if sum(one.pixels.nbytes for one in waiting[split]) >= PART:
                tables.write(split, _columns(waiting[split]))
                waiting[split] = []
        for split, rows in waiting.items():
            tables.write(split, _columns(rows))
    target.require(
        target.rows,
        "Check data.corpora, and data.val_fraction and data.test_fraction if the corpus states no splits.",
    )
    mean, square_mean = np.mean(moments, axis=0)
    std = np.sqrt(np.maximum(square_mean - mean**2, 0))
    return {
        "examples": dict(target.rows),
        "labels": labels,
        "mean": [round(value, 6) for value in mean.tolist()],
        # 1 where all is of one colour
        "std": [round(value, 6) if value > 1e-3 else 1.0 for value in std.tolist()],
        "corpus": target.origins,
    }


def _splits(loaded: Mapping[str, SegmentationCorpus], target: Preparation) -> dict[str, str | None]:
    """Return the split of each example by its id; None for a copy of an image on another side, which is left out."""
    names, stated, groups, digests = [], [], [], []
    for name, corpus in loaded.items():
        for example in corpus.examples:
            try:
                digest = hashlib.sha256(read_bytes(example.image)).digest()
            except BadImage:  # it is skipped when it is decoded
                digest = f"{name}/{example.id}".encode()
            names.append(f"{name}/{example.id}")
            stated.append(example.split)
            groups.append(example.group)
            digests.append(digest)
    val, test = target.config.fractions
    splits = dict(zip(names, assign_splits(stated, groups, digests, val=val, test=test), strict=True))
    for name, split in splits.items():
        if split is None:
            target.skip(name, "", "copy of an image on another side of the split")
    return splits


def _rows(
    loaded: Mapping[str, SegmentationCorpus],
    labels: list[str],
    dtype: np.dtype[Any],
    splits: Mapping[str, str | None],
    target: Preparation,
) -> Iterator[tuple[str, Row]]:
    """Yield the examples that can be used, decoded, with their splits, and count the others."""
    workers = target.config.prepare_workers or cpu_count()
    numbers = itertools.count()
    with progress("reading images with masks", len(splits)) as advance, ThreadPoolExecutor(workers) as pool:
        for name, corpus in loaded.items():
            read = partial(read_row, table=ClassTable(corpus, labels, dtype), config=target.config)
            for chunk in _chunks(iter(corpus.examples)):
                named = [replace(example, id=f"{name}/{example.id}") for example in chunk]
                used = [(next(numbers), example) for example in named if splits[example.id] is not None]
                for (_, example), row in zip(used, pool.map(read, used), strict=True):
                    split = splits[example.id]
                    if isinstance(row, str):
                        file = example.mask if row.startswith("mask: ") else example.image
                        target.skip(example.id, str(file) if isinstance(file, Path) else "", row)
                    elif split is not None:
                        yield split, row
                advance(len(chunk))
            target.note(name, corpus)


def _chunks(examples: Iterator[SegmentationExample]) -> Iterator[list[SegmentationExample]]:
    while chunk := list(itertools.islice(examples, CHUNK)):
        yield chunk


def _columns(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the columns of the table of these rows."""
    return {
        "id": [row.id for row in rows],
        "row": [row.number for row in rows],
        "height": [row.mask.shape[0] for row in rows],
        "width": [row.mask.shape[1] for row in rows],
        "pixels": [row.pixels.ravel() for row in rows],
        "mask": [row.mask.ravel() for row in rows],
    }


def schema(dtype: np.dtype[Any]) -> pa.Schema:
    """Return the columns. dtype: of the masks."""
    numbers = dict.fromkeys(("row", "height", "width"), pa.int64())
    pixels = {"pixels": pa.list_(pa.uint8()), "mask": pa.list_(pa.from_numpy_dtype(dtype))}
    return pa.schema({"id": pa.string(), **numbers, **pixels})
