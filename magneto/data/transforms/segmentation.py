"""Augmentation of training images together with their masks: both are scaled, cropped and mirrored alike.

What is drawn for an image follows from (seed, epoch, its index) alone: see `rng.random_stream`.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from magneto.data.collate import IGNORE
from magneto.data.rng import random_stream
from magneto.errors import ConfigError

Factor = Annotated[float, Gt(0)]


@dataclass(frozen=True, kw_only=True)
class SegmentationAugment:
    """Changes of training images and their masks, before a square of the model's size is cut out at random.

    Args:
        scale: bounds of the factor by which both sides are enlarged; None: images keep their size.
        flip: mirror every second image.
        color_jitter: bound of the change of brightness, contrast and saturation (0.4 for 0.6 to 1.4), of the image alone.
    """

    scale: tuple[Factor, Factor] | None = None
    flip: bool = False
    color_jitter: Annotated[float, Ge(0), Le(1)] = 0.0

    def __post_init__(self) -> None:
        if self.scale is not None and self.scale[0] > self.scale[1]:
            raise ConfigError(f"data.augment.scale={list(self.scale)}: the smaller number comes first.")

    def __call__(
        self,
        image: Tensor,
        mask: Tensor,
        size: int,
        fill: list[float],
        *,
        seed: int,
        epoch: int,
        example: int,
    ) -> tuple[Tensor, Tensor]:
        """Change an image and its mask. Where the square reaches beyond a small image, the mask is IGNORE.

        Args:
            image: (C, H, W) uint8.
            mask: (H, W) int64.
            size: of the square, in pixels.
            fill: the colour beyond a small image.
            seed: of the run.
            epoch: counted from 0.
            example: the image's row.

        Returns:
            (C, size, size) uint8, (size, size) int64.
        """
        random = random_stream(seed, "scale and crop of an image with its mask", epoch, example)
        pair = tv_tensors.Image(image), tv_tensors.Mask(mask)
        if self.scale is not None:
            factor = random.uniform(*self.scale)
            sides = [max(1, round(side * factor)) for side in mask.shape]
            pair = v2.functional.resize(pair[0], sides), v2.functional.resize(pair[1], sides)
        steps: list[v2.Transform] = [
            v2.RandomCrop(
                size, pad_if_needed=True, fill={tv_tensors.Image: fill, tv_tensors.Mask: IGNORE, "others": 0}
            )
        ]
        if self.flip:
            steps.append(v2.RandomHorizontalFlip())
        if self.color_jitter:
            steps.append(v2.ColorJitter(*(self.color_jitter,) * 3))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(random.integers(2**63)))
            image, mask = v2.Compose(steps)(*pair)
        return image.as_subclass(Tensor), mask.as_subclass(Tensor)
