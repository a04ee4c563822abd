"""Prepared images of a split as batches (see module.py), and a user's own images as evaluation sees those."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from magneto.data.dataset import BatchDataset
from magneto.data.info import DatasetInfo
from magneto.data.io.folders import user_files
from magneto.data.io.image import (
    SUFFIXES,
    SVG_SIDE,
    WHITE,
    BadImage,
    read_image,
    square,
)
from magneto.data.io.tar import Slice
from magneto.data.table import SplitTable
from magneto.data.transforms.corruption import Corruption
from magneto.data.transforms.image import Augment, Draws, cut, middle
from magneto.data.transforms.mask_patches import BlockMasking
from magneto.errors import DataError

WHOLE = -1  # size of an image that is a whole file


@dataclass(frozen=True, kw_only=True)
class PixelsInfo(DatasetInfo):
    """Info of any data with images: their size, and how they are normalised."""

    image_size: int  # pixels a side
    channels: int  # 1 or 3
    mean: list[float]  # of each channel over the training images, in units of full brightness
    std: list[float]
    labels: list[str]  # in the order of their indices; empty: no classes
    patch_size: int | None

    def normalise(self, images: Tensor) -> Tensor:
        """Return (B, channels, S, S), 0 to 255, as float32 of mean 0 and deviation 1 over the training images."""
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return (images.float() / 255 - mean) / std

    def pixels(self, images: Tensor) -> Tensor:
        """Invert `normalise`: (B, channels, S, S) float -> uint8, to be shown."""
        mean, std = (
            torch.tensor(values, device=images.device).view(1, -1, 1, 1) for values in (self.mean, self.std)
        )
        return ((images.float() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)

    @property
    def svg_side(self) -> int:
        """Pixels of the longer side that SVG images are drawn with: twice what is kept, for smooth lines."""
        return 2 * self.image_size


@dataclass(frozen=True, kw_only=True)
class ImageInfo(PixelsInfo):
    """Info of prepared images: all that a task needs to know, as plain values."""

    fit: str  # how an image becomes a square: see `io.image.square`
    eval_crop: float  # share of the shorter side that evaluation sees
    examples: dict[str, int]  # per split
    label_counts: dict[str, dict[str, int]]  # split -> label -> images
    corpus: dict[str, dict[str, Any]]  # by corpus, what was read: version, digest, where it came from

    def evaluation_image(self, image: Image.Image) -> np.ndarray:
        """Return a decoded image as evaluation sees it: (channels, S, S) uint8."""
        if self.fit == "pad" or self.eval_crop == 1:
            return channels_first(square(image, self.image_size, self.fit))
        return _cut_out(image, middle(*_size(image), self.eval_crop)[0], self.image_size)


class ImageTable(SplitTable):
    """The prepared images of a split: see build.py for the columns."""

    @property
    def stored(self) -> bool:
        """Whether decoded pixels are kept."""
        return "pixels" in self.arrow.column_names

    def pixels(self, positions: np.ndarray) -> np.ndarray:
        """Return the stored pixels of some images, (B, C, S, S) uint8."""
        return self.values("pixels").take(positions)

    def image(self, position: int) -> bytes | Path | Slice:
        """Return an encoded image, or where it is."""
        row = self.row(position, "path", "start", "size", "encoded")
        if row["path"] is None:
            return bytes(row["encoded"])
        path = Path(os.fsdecode(row["path"]))
        return path if row["size"] == WHOLE else Slice(path, row["start"], row["size"])


@dataclass(frozen=True, kw_only=True)
class ImageReading:
    """How images of a split become batches."""

    split: str
    info: ImageInfo
    augment: Augment | None
    masking: BlockMasking | None
    seed: int
    corruption: Corruption | None = None

    def cut(self, decoded: Sequence[Image.Image], draws: Draws) -> Tensor:
        """Return what is seen of some images, (B, channels, S, S) uint8."""
        augment, info = self.augment, self.info
        if augment is None:
            return torch.from_numpy(np.stack([info.evaluation_image(one) for one in decoded]))
        if info.fit == "pad":
            decoded = [_padded(one) for one in decoded]
        width, height = np.concatenate([_size(one) for one in decoded], axis=1)
        boxes = augment.boxes(width, height, draws)
        return torch.from_numpy(
            np.stack([_cut_out(*pair, info.image_size) for pair in zip(decoded, boxes, strict=True)])
        )

    def finish(self, images: Tensor, draws: Draws) -> Tensor:
        """Return cut images as a model sees them: with other colours, normalised, (B, channels, S, S) float32."""
        if self.corruption is not None:
            images = self.corruption(images, draws)
        if self.augment is None:
            return self.info.normalise(images)
        return self.augment.hide(self.info.normalise(self.augment.recolour(images.float(), draws)), draws)

    def masks(self, rows: np.ndarray, epoch: int) -> dict[str, Tensor]:
        """Return `masked` of the images of these numbers, if patches are hidden."""
        if self.masking is None:
            return {}
        assert self.info.patch_size is not None
        grid = self.info.image_size // self.info.patch_size
        purpose = f"masks of {self.split}"
        masks = self.masking.draw(grid, rows, seed=self.seed, purpose=purpose, epoch=epoch)
        return {"masked": torch.from_numpy(masks)}


class ImageDataset(BatchDataset):
    """The images of a split.

    Args:
        table: of the split.
        labels: (n,) their numbers in the model's list; -1: none.
        reading: how they become batches.
        classes: those to choose from, where they are fewer than the model's.
    """

    def __init__(
        self,
        table: ImageTable,
        labels: np.ndarray,
        reading: ImageReading,
        classes: Sequence[int] | None = None,
    ) -> None:
        self.table, self.labels, self.reading = table, labels, reading
        self.classes = None if classes is None else torch.tensor(classes)
        self.lengths = np.ones(len(table), np.int64)  # batches are counted in images

    @property
    def rows(self) -> np.ndarray:
        """(n,) int64: the number of each image over all splits."""
        return self.table.numbers("row")

    def batch(self, epoch: int, positions: np.ndarray) -> dict[str, Any]:
        """Return the batch of these images: see module.py."""
        rows = self.rows[positions]
        draws = Draws(self.reading.seed, epoch, rows)
        batch = {
            "id": torch.from_numpy(rows),
            "image": self._images(positions, draws),
            "label": torch.from_numpy(self.labels[positions]),
        }
        batch |= self.reading.masks(rows, epoch)
        if self.classes is not None:
            batch["classes"] = self.classes
        return batch

    def _images(self, positions: np.ndarray, draws: Draws) -> Tensor:
        if self.table.stored:
            return self.reading.finish(self._stored(positions, draws), draws)
        decoded = [self._decode(position) for position in positions.tolist()]
        return self.reading.finish(self.reading.cut(decoded, draws), draws)

    def _stored(self, positions: np.ndarray, draws: Draws) -> Tensor:
        augment, info = self.reading.augment, self.reading.info
        images = torch.from_numpy(self.table.pixels(positions))
        size = np.full(len(positions), info.image_size)
        if augment is not None and augment.crop_scale is not None:
            return cut(images.float(), augment.boxes(size, size, draws))
        if augment is None and info.fit == "crop" and info.eval_crop < 1:
            return cut(images.float(), middle(size, size, info.eval_crop))
        return images

    def _decode(self, position: int) -> Image.Image:
        image, info = self.table.image(position), self.reading.info
        try:
            return read_image(image, info.channels, svg_side=info.svg_side)
        except BadImage as bad:
            path = image.path if isinstance(image, Slice) else image
            name = path if isinstance(path, Path) else self.table.row(position, "id")["id"]
            raise DataError(
                f"{name}: {bad}. It could be read when the data was prepared: restore it, or remove "
                f"{self.table.folder.parent} to prepare the data again."
            ) from bad


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


def user_images(
    path: str | Path, channels: int = 3, svg_side: int = SVG_SIDE, key: str = "input"
) -> Iterator[tuple[Path, Image.Image]]:
    """Yield the image of a file, or all images below a folder: see `user_files`.

    Args:
        path: the file or folder.
        channels: see `read_image`.
        svg_side: see `read_image`; that of the model's info makes of a drawing what it was trained on.
        key: the setting that names the path, for messages.
    """
    return user_files(
        path, partial(read_image, channels=channels, svg_side=svg_side), SUFFIXES, BadImage, "image", key
    )
