"""Augmentation of images in training, for a whole batch at once.

The random numbers of an image follow from (seed, epoch, its index) alone: see `rng.uniforms`.
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le
from torch import Tensor

from magneto.data.rng import uniforms
from magneto.errors import ConfigError

ERASED_AREA, ERASED_RATIO = (0.02, 1 / 3), (0.3, 1 / 0.3)  # Zhong et al., "Random Erasing", arXiv 1708.04896
Positive = Annotated[float, Gt(0)]
Share = Annotated[float, Gt(0), Le(1)]
GREY = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow converts to grey


@dataclass(frozen=True)
class Draws:
    """Random numbers for the images of a batch: `draws("flip", 1)` returns (B, 1) float64 in [0, 1)."""

    seed: int
    epoch: int
    examples: np.ndarray  # (B,)

    def __call__(self, purpose: str, count: int) -> np.ndarray:
        return uniforms(self.seed, f"picture's {purpose}", self.epoch, self.examples, count)


@dataclass(frozen=True, kw_only=True)
class RandAugment:
    """RandAugment (Cubuk et al., arXiv 1909.13719): num_ops operations of a magnitude of 0 to 30 (torchvision's)."""

    num_ops: Annotated[int, Ge(1)] = 2
    magnitude: Annotated[int, Ge(0), Le(30)] = 9

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Transform (B, C, S, S) uint8, each image with operations of its own."""
        from torchvision.transforms import v2

        transform = v2.RandAugment(self.num_ops, self.magnitude)
        seeds = (draws("randaugment", 1)[:, 0] * 2**53).astype(np.int64)
        with torch.random.fork_rng(devices=[]):
            changed = []
            for image, seed in zip(images, seeds.tolist(), strict=True):
                torch.manual_seed(seed)
                changed.append(transform(image))
        return torch.stack(changed)


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Changes of training images.

    Args:
        crop_scale: bounds of the share of the area that is cropped and enlarged (random resized crop); None: no crop.
        crop_ratio: bounds of the crop's width / height.
        flip: mirror every second image.
        erase: share of the images in which a rectangle is hidden.
        color_jitter: bound of the change of brightness, contrast and saturation (0.4 for 0.6 to 1.4).
        randaugment: see `RandAugment`.
    """

    crop_scale: tuple[Share, Share] | None = None
    crop_ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    flip: bool = False
    erase: Annotated[float, Ge(0), Le(1)] = 0.0
    color_jitter: Annotated[float, Ge(0), Le(1)] = 0.0
    randaugment: RandAugment | None = None

    def __post_init__(self) -> None:
        for name in ("crop_scale", "crop_ratio"):
            bounds = getattr(self, name)
            if bounds is not None and bounds[0] > bounds[1]:
                raise ConfigError(f"data.augment.{name}={list(bounds)}: the smaller number comes first.")

    def boxes(self, width: np.ndarray, height: np.ndarray, draws: Draws) -> np.ndarray:
        """Return the crops of images of these sizes (B,): (B, 4) left, top, width, height in pixels."""
        if self.crop_scale is None:
            return middle(width, height, 1.0)
        scale, ratio, left, top = draws("crop", 4).T
        low, high = self.crop_scale
        area = (low + scale * (high - low)) * width * height
        ratio = _log_uniform(ratio, self.crop_ratio)
        box_width = np.minimum(np.sqrt(area * ratio), width)
        box_height = np.minimum(np.sqrt(area / ratio), height)
        return np.stack(
            (left * (width - box_width), top * (height - box_height), box_width, box_height), axis=1
        )

    def recolour(self, images: Tensor, draws: Draws) -> Tensor:
        """Change the colours of cropped images, (B, C, S, S) float32, 0 to 255."""
        if self.flip:
            images = torch.where(_flags(draws("flip", 1) < 0.5), images.flip(-1), images)
        if self.randaugment is not None:
            images = self.randaugment(images.round().to(torch.uint8), draws).float()
        if self.color_jitter:
            factors = torch.from_numpy(1 + self.color_jitter * (2 * draws("colours", 3) - 1)).float()
            brightness, contrast, saturation = factors.T[:, :, None, None, None]
            images = (images * brightness).clamp(0, 255)
            mean = grey(images).mean((1, 2, 3), keepdim=True)
            images = (mean + (images - mean) * contrast).clamp(0, 255)
            if images.shape[1] == 3:
                shades = grey(images)
                images = (shades + (images - shades) * saturation).clamp(0, 255)
        return images

    def hide(self, images: Tensor, draws: Draws) -> Tensor:
        """Random erasing of normalised images (B, C, S, S): the mean, 0, in a rectangle of some of them."""
        if not self.erase:
            return images
        size = images.shape[-1]
        chosen, area, ratio, left, top = draws("erase", 5).T
        area = (ERASED_AREA[0] + area * (ERASED_AREA[1] - ERASED_AREA[0])) * size**2
        ratio = _log_uniform(ratio, ERASED_RATIO)
        rectangle = []
        for place, length in ((top, np.sqrt(area / ratio)), (left, np.sqrt(area * ratio))):
            length = np.clip(np.rint(length), 1, size)
            first = np.floor(place * (size - length + 1))
            line = np.arange(size)
            rectangle.append((line >= first[:, None]) & (line < (first + length)[:, None]))
        rows, columns = rectangle
        erased = rows[:, :, None] & columns[:, None, :] & (chosen < self.erase)[:, None, None]
        return images.masked_fill(torch.from_numpy(erased)[:, None], 0.0)


def middle(width: np.ndarray, height: np.ndarray, share: float) -> np.ndarray:
    """The square in the middle of images, of `share` of their shorter side: see `Augment.boxes`."""
    side = share * np.minimum(width, height)
    return np.stack(((width - side) / 2, (height - side) / 2, side, side), axis=1)


def cut(images: Tensor, boxes: np.ndarray) -> Tensor:
    """Enlarge a box of each image to the image's size, bilinear: (B, C, S, S) float32 -> the same.

    boxes: (B, 4) left, top, width, height in pixels; none is larger than the image, so that nothing is to be
    smoothed.
    """
    size = images.shape[-1]
    left, top, width, height = torch.from_numpy(boxes).float().T / size
    zero = torch.zeros_like(left)
    rows = (
        torch.stack((width, zero, 2 * left + width - 1), 1),
        torch.stack((zero, height, 2 * top + height - 1), 1),
    )
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def grey(images: Tensor) -> Tensor:
    """Return the grey values of (B, C, S, S) as (B, 1, S, S)."""
    if images.shape[1] == 1:
        return images
    weights = torch.tensor(GREY).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


def _flags(chosen: np.ndarray) -> Tensor:
    """(B, 1) bool -> (B, 1, 1, 1)."""
    return torch.from_numpy(chosen)[:, :, None, None]


def _log_uniform(random: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    low, high = np.log(bounds)
    drawn: np.ndarray = np.exp(low + random * (high - low))
    return drawn
