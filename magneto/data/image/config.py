"""Settings of images."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Gt, Le

from magneto.data.config import Count, HeldOutConfig
from magneto.data.transforms.corruption import Corruption
from magneto.data.transforms.image import Augment
from magneto.data.transforms.mask_patches import BlockMasking
from magneto.errors import ConfigError


def check_patches(image_size: int, patch_size: int | None) -> None:
    """Raise `ConfigError` if an image does not divide into whole patches."""
    if patch_size is not None and image_size % patch_size:
        better = -(-image_size // patch_size) * patch_size
        raise ConfigError(
            f"data.image_size={image_size} does not divide by data.patch_size={patch_size}. Set "
            f"data.image_size={better}, or another data.patch_size."
        )


@dataclass(frozen=True, kw_only=True)
class ImageConfig(HeldOutConfig):
    """Settings of `ImageDataModule`."""

    image_size: Count
    """Pixels a side."""
    channels: Literal[1, 3] = 3
    """1: grey."""
    fit: Literal["crop", "pad"] = "crop"
    """How an image becomes a square: see `io.image.square`."""
    eval_crop: Annotated[float, Gt(0), Le(1)] = 1.0
    """Share of the shorter side that evaluation sees of a cropped image."""
    augment: Augment | None = None
    """None: training images are as those of evaluation."""
    corruption: Corruption | None = None
    """Of the images of the test split alone."""
    masking: BlockMasking | None = None
    """Needs `patch_size`."""
    patch_size: Count | None = None
    """Pixels a side of a patch."""
    batch_size: Count = 256
    """Images of a training batch on one rank."""
    eval_batch_size: Count | None = None
    """None: the same."""
    store: Literal["auto", "shards", "files"] = "auto"
    """shards: decoded once, in the prepared folder. files: decoded each time, cut out of the original. auto: shards up to
    4 GB."""
    prepare_workers: Count | None = None
    """Threads that decode in `prepare`; None: all cores."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_patches(self.image_size, self.patch_size)
        if self.masking is not None and self.patch_size in (None, self.image_size):
            raise ConfigError(
                f"data.masking hides patches, and data.patch_size={self.patch_size} makes none of an image of "
                f"{self.image_size} pixels: set patch_size, or masking=null."
            )
