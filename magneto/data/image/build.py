"""Decode the images of the corpora, divide them into splits, measure mean and deviation, and write the Arrow tables.

The columns, a row for each image: `id`; `label`, the index of its class (-1: none); `row`, its number over all splits, by
which its augmentation and masks follow from the seed; `copy_of`, the row of the first image with the same bytes. Decoded
images are `pixels` (C, S, S). Others are `encoded`, the bytes, or stay where they are: `path`, with `start` and `size` of
the bytes within the file (size -1: the whole file). With captions also `captions`, `languages` (one for each caption) and
`caption_row`, the number of the first of them over all splits.
"""

import hashlib
import io
import itertools
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
from PIL import Image

from magneto.data.cache import cpu_count, progress
from magneto.data.corpora.base import SPLITS
from magneto.data.corpora.image.base import (
    ImageCorpus,
    ImageExample,
    assign_splits,
    caption_key,
    each_caption,
)
from magneto.data.image.config import ImageConfig
from magneto.data.image.dataset import WHOLE, channels_first
from magneto.data.io.image import SVG_SIDE, BadImage, read_bytes, read_image, square
from magneto.data.io.tar import Slice
from magneto.data.prepared import Preparation
from magneto.data.table import with_classes

SHARD_LIMIT = 4 * 10**9  # bytes of decoded pixels up to which `store: auto` keeps them
CHUNK = 256  # images in memory at once
PART = 2**26  # bytes of images that are written to a table at a time


@dataclass(frozen=True)
class Look:
    """What an image is found to be."""

    digest: bytes  # of its bytes
    pixels: np.ndarray | None = None  # (C, S, S) uint8 where they are stored
    moments: np.ndarray | None = None  # (2, C) mean of the values and of their squares, 0 to 1
    reason: str | None = None  # why it cannot be used


def look(example: ImageExample, *, size: int | None, channels: int, fit: str) -> Look:
    """Decode an image. size: of the stored square; None: it stays in its file, and is only checked and measured."""
    try:
        data = read_bytes(example.image)
        digest = hashlib.sha256(data).digest()
        image = read_image(
            example.image if isinstance(example.image, np.ndarray) else data,
            channels,
            svg_side=2 * size if size else SVG_SIDE,
        )
    except BadImage as bad:
        return Look(b"", reason=str(bad))
    pixels = channels_first(image if size is None or image.size == (size, size) else square(image, size, fit))
    values = pixels.reshape(channels, -1).astype(np.float32) / 255
    moments = np.stack((values.mean(1, dtype=np.float64), np.square(values).mean(1, dtype=np.float64)))
    return Look(digest, None if size is None else pixels, moments)


class Spool:
    """The usable images in the order in which they come, until all are known and their splits with them.

    Pixels, or bytes of images that are in memory alone, wait in a temporary file.

    Attributes:
        examples: without their images.
        digests: of each image's bytes.
        moments: of each image: see `Look`.
        stored: whether decoded pixels are kept.
    """

    def __init__(self, folder: Path, stored: bool) -> None:
        self.path, self.stored = folder / "images.tmp", stored
        self.examples: list[ImageExample] = []
        self.digests: list[bytes] = []
        self.moments: list[np.ndarray] = []
        self._where: list[tuple[bytes | None, int, int]] = []  # file (None: the temporary one), start, size

    def __enter__(self) -> Self:
        self._file = self.path.open("w+b")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()
        self.path.unlink()

    def add(self, example: ImageExample, seen: Look) -> None:
        """Keep a usable image."""
        assert seen.moments is not None
        image = example.image
        if seen.pixels is not None:
            self._where.append(self._append(seen.pixels.tobytes()))
        elif isinstance(image, Path):
            self._where.append((os.fsencode(image.absolute()), 0, WHOLE))
        elif isinstance(image, Slice):
            self._where.append((os.fsencode(image.path.absolute()), image.start, image.size))
        else:
            self._where.append(self._append(_png(image) if isinstance(image, np.ndarray) else image))
        self.examples.append(replace(example, image=b""))
        self.digests.append(seen.digest)
        self.moments.append(seen.moments)

    def _append(self, content: bytes) -> tuple[None, int, int]:
        start = self._file.tell()
        self._file.write(content)
        return None, start, len(content)

    def parts(self, rows: Sequence[int]) -> Iterator[list[int]]:
        """Yield the rows in parts whose images in the temporary file have at most about PART bytes."""
        part: list[int] = []
        size = 0
        for row in rows:
            part.append(row)
            size += 0 if self._where[row][0] is not None else self._where[row][2]
            if size >= PART:
                yield part
                part, size = [], 0
        yield part

    def columns(self, rows: Sequence[int], shape: tuple[int, int, int]) -> dict[str, Any]:
        """Return the columns that hold the images. shape: of decoded pixels."""
        if self.stored:
            self._file.flush()
            pixels = np.memmap(self._file, np.uint8, "r", shape=(len(self.examples), *shape))
            return {"pixels": pixels[list(rows)]}
        where = [self._where[row] for row in rows]
        in_files = [path is not None for path, _, _ in where]
        return {
            "path": [path for path, _, _ in where],
            "start": [start if own else None for (_, start, _), own in zip(where, in_files, strict=True)],
            "size": [size if own else None for (_, _, size), own in zip(where, in_files, strict=True)],
            "encoded": [
                None if own else self._read(start, size)
                for (_, start, size), own in zip(where, in_files, strict=True)
            ],
        }

    def _read(self, start: int, size: int) -> bytes:
        self._file.seek(start)
        return self._file.read(size)


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def build(target: Preparation, captioned: bool) -> dict[str, Any]:
    """Write the tables; return the fields of the info that describe the corpus.

    captioned: keep captions, and images with equal ones on one side of the split.
    """
    config: ImageConfig = target.config
    loaded = {name: reader.load(target.data_dir) for name, reader in target.corpora.items()}
    total = sum(len(corpus.examples) for corpus in loaded.values())
    size = total * config.channels * config.image_size**2
    stored = config.store == "shards" or (config.store == "auto" and size <= SHARD_LIMIT)
    with Spool(target.path, stored) as spool:
        lost = _collect(loaded, spool, target)
        splits = _splits(spool, target, captioned)
        evaluation_only = all(corpus.evaluation_only for corpus in loaded.values())
        if evaluation_only:
            target.splits = ("test",)
        target.require(
            {split: splits.count(split) for split in SPLITS},
            "Check data.corpora, and data.val_fraction and data.test_fraction if the corpus states no splits.",
        )
        lost -= {str(example.label) for example in spool.examples}
        for label in sorted(lost):
            target.skip(label, "", "class without a usable image")
        stated = dict.fromkeys(label for corpus in loaded.values() for label in corpus.labels)
        labels = [label for label in stated if label not in lost]
        _write(spool, splits, labels, target, captioned)
    counts = Counter((split, example.label) for example, split in zip(spool.examples, splits, strict=True))
    measured = "test" if evaluation_only else "train"
    moments = [m for m, split in zip(spool.moments, splits, strict=True) if split == measured]
    mean, square_mean = np.mean(moments, axis=0)
    std = np.sqrt(np.maximum(square_mean - mean**2, 0))
    return {
        "examples": dict(target.rows),
        "labels": labels,
        "label_counts": {split: {label: counts[split, label] for label in labels} for split in SPLITS}
        if labels
        else {},
        "mean": [round(value, 6) for value in mean.tolist()],
        # 1 where all is of one colour
        "std": [round(value, 6) if value > 1e-3 else 1.0 for value in std.tolist()],
        "corpus": target.origins,
    }


def _collect(loaded: Mapping[str, ImageCorpus], spool: Spool, target: Preparation) -> set[str]:
    """Look at all images; ids carry the corpus's name. Returns the classes of those that cannot be used."""
    config: ImageConfig = target.config
    lost: set[str] = set()
    size = config.image_size if spool.stored else None
    examine = partial(look, size=size, channels=config.channels, fit=config.fit)
    workers = config.prepare_workers or cpu_count()
    total = sum(len(corpus.examples) for corpus in loaded.values())
    with progress("reading images", total) as advance, ThreadPoolExecutor(workers) as pool:
        for name, corpus in loaded.items():
            for chunk in _chunks(iter(corpus.examples)):
                # Decoders let other threads run; what is decoded already would only be handed about.
                plain = workers == 1 or isinstance(chunk[0].image, np.ndarray)
                found = (map if plain else pool.map)(examine, chunk)
                for example, seen in zip(chunk, found, strict=True):
                    named = replace(example, id=f"{name}/{example.id}")
                    if seen.reason is None:
                        spool.add(named, seen)
                    else:
                        target.skip(named.id, _file(example), seen.reason)
                        if example.label is not None:
                            lost.add(example.label)
                advance(len(chunk))
            target.note(name, corpus)
    return lost


def _splits(spool: Spool, target: Preparation, captioned: bool) -> list[str | None]:
    """Return the split of each image; None: it is not used."""
    val, test = target.config.fractions
    splits = assign_splits(
        [example.split for example in spool.examples],
        [example.group for example in spool.examples],
        spool.digests,
        val=val,
        test=test,
        captions=[_captions(example) for example in spool.examples] if captioned else None,
    )
    for example, split in zip(spool.examples, splits, strict=True):
        if split is None:
            target.skip(example.id, "", "copy of an image on another side of the split")
    return splits


def _write(
    spool: Spool, splits: Sequence[str | None], labels: Sequence[str], target: Preparation, captioned: bool
) -> None:
    """Write the rows of each split in the order in which the images came."""
    shape = (target.config.channels, target.config.image_size, target.config.image_size)
    index: dict[str | None, int] = {label: number for number, label in enumerate(labels)} | {None: -1}
    first: dict[bytes, int] = {}
    copy_of = [first.setdefault(digest, row) for row, digest in enumerate(spool.digests)]
    captions = [[*each_caption(example.captions)] for example in spool.examples] if captioned else []
    caption_row = np.cumsum([0, *map(len, captions)])
    with target.tables(schema(shape if spool.stored else None, labels, captioned)) as tables:
        for split in SPLITS:
            for rows in spool.parts([row for row, of in enumerate(splits) if of == split]):
                columns = {
                    "id": [spool.examples[row].id for row in rows],
                    "label": [index[spool.examples[row].label] for row in rows],
                    "row": rows,
                    "copy_of": [copy_of[row] for row in rows],
                    **spool.columns(rows, shape),
                }
                if captioned:
                    for name, place in (("captions", 1), ("languages", 0)):
                        columns[name] = [[caption[place] for caption in captions[row]] for row in rows]
                    columns["caption_row"] = caption_row[rows]
                tables.write(split, columns)


def schema(shape: tuple[int, int, int] | None, labels: Sequence[str], captioned: bool) -> pa.Schema:
    """Return the columns. shape: of decoded pixels; None: images stay encoded."""
    columns = {"id": pa.string(), "label": pa.int64(), "row": pa.int64(), "copy_of": pa.int64()}
    if shape is None:
        columns |= {"path": pa.binary(), "start": pa.int64(), "size": pa.int64(), "encoded": pa.binary()}
    else:
        pixels = pa.uint8()
        for size in reversed(shape):
            pixels = pa.list_(pixels, size)
        columns["pixels"] = pixels
    if captioned:
        texts = pa.list_(pa.string())
        columns |= {"captions": texts, "languages": texts, "caption_row": pa.int64()}
    return with_classes(pa.schema(columns), label=labels)


def _chunks(examples: Iterator[ImageExample]) -> Iterator[list[ImageExample]]:
    while chunk := list(itertools.islice(examples, CHUNK)):
        yield chunk


def _captions(example: ImageExample) -> set[str]:
    """In all languages, as far as letters and digits tell them apart."""
    return {caption_key(text) for _, text in each_caption(example.captions)}


def _file(example: ImageExample) -> str:
    if isinstance(example.image, Slice):
        return str(example.image.path)
    return str(example.image) if isinstance(example.image, Path) else ""
