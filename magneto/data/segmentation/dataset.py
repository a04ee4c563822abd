"""Prepared images with masks of a split as batches (see module.py)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from magneto.data.collate import IGNORE
from magneto.data.dataset import BatchDataset
from magneto.data.image.dataset import PixelsInfo
from magneto.data.table import SplitTable
from magneto.data.transforms.segmentation import SegmentationAugment


@dataclass(frozen=True, kw_only=True)
class SegmentationInfo(PixelsInfo):
    """Info of prepared images with masks: all that a task needs to know, as plain values."""

    short_side: int | None  # pixels of the shorter side of an image that is evaluated; None: as it is
    examples: dict[str, int]  # per split
    corpus: dict[str, dict[str, Any]]  # by corpus, what was read: version, digest, where it came from


class SegmentationDataset(BatchDataset):
    """The images of a split with their masks.

    Args:
        table: of the split.
        index: (classes + 1,) the model's index of each class of the table, and IGNORE.
        info: of the model.
        augment: of training images, which are cropped; None: whole images.
        seed: of the augmentation.
    """

    def __init__(
        self,
        table: SplitTable,
        index: np.ndarray,
        info: SegmentationInfo,
        augment: SegmentationAugment | None,
        seed: int,
    ) -> None:
        self.table, self.index, self.info, self.augment, self.seed = table, index, info, augment, seed
        self.lengths = np.ones(len(table), np.int64)  # batches are counted in images

    def batch(self, epoch: int, positions: np.ndarray) -> dict[str, Any]:
        """Return the batch of these images: see module.py."""
        rows = self.table.numbers("row")[positions]
        pairs = [self.pair(position) for position in positions.tolist()]
        if self.augment is not None:
            mean = [255 * value for value in self.info.mean]
            pairs = [
                self.augment(*pair, self.info.image_size, mean, seed=self.seed, epoch=epoch, example=row)
                for pair, row in zip(pairs, rows.tolist(), strict=True)
            ]
        sizes = torch.tensor([mask.shape for _, mask in pairs])
        height, width = sizes.amax(0).tolist()
        images, masks = [], []
        for image, mask in pairs:
            beyond = (0, width - mask.shape[1], 0, height - mask.shape[0])
            images.append(F.pad(self.info.normalise(image[None])[0], beyond))
            masks.append(F.pad(mask, beyond, value=IGNORE))
        return {
            "id": torch.from_numpy(rows),
            "image": torch.stack(images),
            "mask": torch.stack(masks),
            "size": sizes,
        }

    def pair(self, position: int) -> tuple[Tensor, Tensor]:
        """Return an image (C, H, W) uint8 and the model's classes of its pixels (H, W) int64, as they are prepared."""
        height, width = (int(self.table.numbers(name)[position]) for name in ("height", "width"))
        pixels = self.table.list("pixels", position).reshape(-1, height, width)
        mask = self.table.list("mask", position).reshape(height, width)
        # The ignored value of the table is beyond the classes.
        classes = self.index[np.minimum(mask, len(self.index) - 1)]
        return torch.tensor(pixels), torch.from_numpy(classes)
