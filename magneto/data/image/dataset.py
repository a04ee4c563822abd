"""A prepared folder of images and its splits as data sets that give whole batches (see data/image.py)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from magneto.data.collate import IGNORE as IGNORE  # part of the batches
from magneto.data.info import DatasetInfo
from magneto.data.io.image import WHITE, BadImage, Slice, read_image, square
from magneto.data.transforms.image import Augment, Draws, cut, middle
from magneto.data.transforms.mask_patches import BlockMasking
from magneto.errors import DataError

WHOLE = -1  # size of a slice that is a whole file


@dataclass(frozen=True, kw_only=True)
class ImageInfo(DatasetInfo):
    """The facts of prepared images: all that a task, and a checkpoint alone, needs to know. Plain values only."""

    image_size: int  # pixels a side
    channels: int  # 1 or 3
    mean: list[float]  # of each channel over the training images, in units of full brightness
    std: list[float]
    labels: list[str]  # in the order of their numbers; empty: no classes
    patch_size: int | None
    fit: str  # how an image becomes a square: see `images.square`
    eval_crop: float  # share of the shorter side that evaluation sees
    examples: dict[str, int]  # per split
    label_counts: dict[str, dict[str, int]]  # split -> label -> images
    corpus: dict[str, dict[str, Any]]  # by source, what was read: version, digest, how it was got

    def normalise(self, images: Tensor) -> Tensor:
        """(B, channels, S, S), 0 to 255 -> float32 of mean 0 and deviation 1 over the training images."""
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return (images.float() / 255 - mean) / std

    def pixels(self, images: Tensor) -> Tensor:
        """The inverse of `normalise`: (B, channels, S, S) float -> uint8, for showing."""
        mean, std = (
            torch.tensor(values, device=images.device).view(1, -1, 1, 1) for values in (self.mean, self.std)
        )
        return ((images.float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)

    @property
    def svg_side(self) -> int:
        """Pixels of the longer side that SVG images are drawn with: twice what is kept, for smooth lines."""
        return 2 * self.image_size

    def evaluation_image(self, image: Image.Image) -> np.ndarray:
        """A decoded image as evaluation sees it: (channels, S, S) uint8."""
        if self.fit == "pad" or self.eval_crop == 1:
            return channels_first(square(image, self.image_size, self.fit))
        return _cut_out(image, middle(*_size(image), self.eval_crop)[0], self.image_size)


@dataclass
class Prepared:
    """A prepared folder, read lazily so that it is cheap to send to a worker."""

    folder: Path
    _pixels: np.ndarray | None = field(default=None, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "_pixels": None}

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Counts, labels, mean and deviation, and the shape of the stored pixels (None: files are read)."""
        return dict(json.loads((self.folder / "facts.json").read_text(encoding="utf-8")))

    @cached_property
    def index(self) -> dict[str, np.ndarray]:
        """Per image: its split, -1 where it is left out; its label, -1 where it has none; the first with its bytes."""
        with np.load(self.folder / "index.npz") as arrays:
            return dict(arrays)

    @property
    def stored(self) -> bool:
        """Whether the decoded pixels are in the folder."""
        return self.facts["shape"] is not None

    @property
    def pixels(self) -> np.ndarray:
        """(N, C, S, S) uint8, memory-mapped."""
        if self._pixels is None:
            shape = tuple(self.facts["shape"])
            self._pixels = np.memmap(self.folder / "images.u8", np.uint8, "r", shape=shape)
        return self._pixels

    @cached_property
    def _names(self) -> np.ndarray:
        names: np.ndarray = np.load(self.folder / "names.npy", mmap_mode="r")
        return names

    @cached_property
    def _slices(self) -> np.ndarray:
        slices: np.ndarray = np.load(self.folder / "slices.npy", mmap_mode="r")
        return slices

    def image(self, row: int) -> Path | Slice:
        """Where the encoded image is."""
        name, start, size = self._slices[row].tolist()
        path = self.folder / os.fsdecode(bytes(self._names[name]))  # an absolute one replaces the folder
        return path if size == WHOLE else Slice(path, start, size)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How images of a split become batches."""

    split: str
    info: ImageInfo
    augment: Augment | None
    masking: BlockMasking | None
    seed: int


class ImageDataset(Dataset[dict[str, Any]]):
    """Images of a prepared folder. Batches are asked for as lists of (epoch, position), all of one epoch.

    rows: (n,) of the folder; labels: (n,) their numbers in the model's list; classes: those that are to be told apart
    where they are fewer than the model's.
    """

    def __init__(
        self,
        prepared: Prepared,
        rows: np.ndarray,
        labels: np.ndarray,
        reading: Reading,
        classes: Sequence[int] | None = None,
    ) -> None:
        self.prepared, self.rows, self.labels, self.reading = prepared, rows, labels, reading
        self.classes = None if classes is None else torch.tensor(classes)
        self.lengths = np.ones(len(rows), np.int64)
        """(n,): batches are counted in images."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Any]:
        """A batch of one."""
        return self.__getitems__([place])

    def __getitems__(self, places: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """The batch: see data/image.py."""
        epoch = places[0][0]
        positions = np.array([position for _, position in places])
        rows = self.rows[positions]
        draws = Draws(self.reading.seed, epoch, rows)
        batch = {
            "id": torch.from_numpy(rows.astype(np.int64)),
            "image": self._images(rows, draws),
            "label": torch.from_numpy(self.labels[positions].astype(np.int64)),
        }
        masking, info = self.reading.masking, self.reading.info
        if masking is not None:
            assert info.patch_size is not None
            purpose = f"masks of {self.reading.split}"
            grid = info.image_size // info.patch_size
            masks = masking.draw(grid, rows, seed=self.reading.seed, purpose=purpose, epoch=epoch)
            batch["masked"] = torch.from_numpy(masks)
        if self.classes is not None:
            batch["classes"] = self.classes
        return batch

    def _images(self, rows: np.ndarray, draws: Draws) -> Tensor:
        augment, info = self.reading.augment, self.reading.info
        images = self._stored(rows, draws) if self.prepared.stored else self._decoded(rows, draws)
        if augment is None:
            return info.normalise(images)
        return augment.hide(info.normalise(augment.recolour(images.float(), draws)), draws)

    def _stored(self, rows: np.ndarray, draws: Draws) -> Tensor:
        augment, info = self.reading.augment, self.reading.info
        images = torch.from_numpy(self.prepared.pixels[rows])
        size = np.full(len(rows), info.image_size)
        if augment is not None and augment.crop_scale is not None:
            return cut(images.float(), augment.boxes(size, size, draws))
        if augment is None and info.fit == "crop" and info.eval_crop < 1:
            return cut(images.float(), middle(size, size, info.eval_crop))
        return images

    def _decoded(self, rows: np.ndarray, draws: Draws) -> Tensor:
        augment, info = self.reading.augment, self.reading.info
        decoded = []
        for row in rows.tolist():
            image = self.prepared.image(row)
            try:
                decoded.append(read_image(image, info.channels, svg_side=info.svg_side))
            except BadImage as bad:
                path = image.path if isinstance(image, Slice) else image
                raise DataError(
                    f"{path}: {bad}. It could be read when the data was prepared: restore it, or remove "
                    f"{self.prepared.folder} to prepare the data anew."
                ) from bad
        if augment is None:
            return torch.from_numpy(np.stack([info.evaluation_image(one) for one in decoded]))
        if info.fit == "pad":
            decoded = [_padded(one) for one in decoded]
        width, height = np.concatenate([_size(one) for one in decoded], axis=1)
        boxes = augment.boxes(width, height, draws)
        return torch.from_numpy(
            np.stack([_cut_out(*pair, info.image_size) for pair in zip(decoded, boxes, strict=True)])
        )


def _size(image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Width and height, each (1,)."""
    return np.array([image.width]), np.array([image.height])


def _padded(image: Image.Image) -> Image.Image:
    """On a white square."""
    white = WHITE if image.mode == "L" else (WHITE,) * 3
    side = max(image.size)
    return ImageOps.pad(image, (side, side), color=white)


def _cut_out(image: Image.Image, box: np.ndarray, size: int) -> np.ndarray:
    """A box (left, top, width, height) of an image in another size, smoothed: (C, size, size) uint8."""
    left, top, width, height = box.tolist()
    right, bottom = min(left + width, image.width), min(top + height, image.height)
    resized = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, right, bottom))
    return channels_first(resized)


def channels_first(image: Image.Image) -> np.ndarray:
    """(C, H, W) uint8."""
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def image_lines(folder: Path) -> Iterator[dict[str, Any]]:
    """The lines of a prepared folder's images.jsonl."""
    with (folder / "images.jsonl").open(encoding="utf-8") as file:
        yield from map(json.loads, file)
