"""Settings of images with masks."""

from dataclasses import dataclass, field
from typing import Literal

from magneto.data.config import Count, HeldOutConfig
from magneto.data.image.config import check_patches
from magneto.data.transforms.segmentation import SegmentationAugment


@dataclass(frozen=True, kw_only=True)
class SegmentationConfig(HeldOutConfig):
    """Settings of `SegmentationDataModule`."""

    image_size: Count
    """Pixels a side of the square that the model reads: a training crop, a window in evaluation."""
    short_side: Count | None = None
    """Pixels of the shorter side that images are prepared with, and measured at; None: as they are."""
    channels: Literal[1, 3] = 3
    """1: grey."""
    augment: SegmentationAugment = field(default_factory=SegmentationAugment)
    patch_size: Count | None = None
    """Pixels a side of a patch."""
    batch_size: Count = 16
    """Images of a training batch on one rank."""
    eval_batch_size: Count | None = None
    """None: the same."""
    prepare_workers: Count | None = None
    """Threads that decode in `prepare`; None: all cores."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_patches(self.image_size, self.patch_size)
