"""Images with masks: corpora -> decoded pixels and classes on disk -> batches for semantic segmentation.

    corpora --decoded, checked, all cores (build.py)--> Arrow tables of pixels and masks, memory-mapped
    --sampler--> images scaled, cropped and mirrored with their masks, or whole in evaluation --> batch

A batch is a dict: `id` (B,) int64, the image's `row` in the tables; `image` (B, C, H, W) float32, normalised by `info.mean`
and `info.std`; `mask` (B, H, W) int64, the class of each pixel, IGNORE where it is neither learnt nor scored; `size` (B, 2)
int64, height and width. In training H = W = image_size. In evaluation images are whole, and smaller ones are filled up at
the right and at the bottom to the largest of the batch.
"""

from typing import Any, Self

import numpy as np

from magneto.data.collate import IGNORE
from magneto.data.config import plain
from magneto.data.labels import label_indices, require_known_labels
from magneto.data.module import Batching
from magneto.data.prepared import Preparation, PreparedDataModule
from magneto.data.segmentation.build import build
from magneto.data.segmentation.config import SegmentationConfig
from magneto.data.segmentation.dataset import SegmentationDataset, SegmentationInfo

SIZES = ("image_size", "short_side", "channels", "patch_size")  # a model's data has the model's


class SegmentationDataModule(PreparedDataModule[SegmentationInfo, SegmentationConfig]):
    """Images with masks: name -> `SegmentationReader`; the settings are those of `SegmentationConfig`."""

    Info, Config = SegmentationInfo, SegmentationConfig
    kind, noun = "segmentation", "image"
    FORMAT = 1
    reads = ()

    def settings(self) -> dict[str, Any]:
        """Return what decides which images there are, and how they are stored."""
        return {"fractions": list(self.config.fractions), **plain(self.config, "channels", "short_side")}

    def info_of_settings(self) -> dict[str, Any]:
        """Return the sizes."""
        return plain(self.config, *SIZES)

    @property
    def splits(self) -> tuple[str, ...]:
        """Test images may be missing: those of validation then serve for both."""
        return ("train", "val")

    def build(self, target: Preparation) -> dict[str, Any]:
        """Decode images and masks, and write the tables."""
        return build(target)

    def details(self) -> str:
        """Return the number of classes."""
        return f", {len(self.info.labels)} classes"

    def adapted(self, model: SegmentationInfo) -> Self:
        """Return a copy with images in the size of the model's."""
        return self.with_config(**{name: getattr(model, name) for name in SIZES})

    def check(self) -> None:
        """Raise `DataError` if this data has classes that the model does not know; they are found by their names."""
        if self.model is not None:
            require_known_labels(self.info.labels, self.model.labels)

    def open(self, split: str) -> SegmentationDataset:
        """Return the images of a split; without a test split those of validation serve as the test."""
        own, model, training = self.info, self.model or self.info, split == "train"
        stored = split if own.examples["test"] or split != "test" else "val"
        index = np.array([*label_indices(own.labels, model.labels), IGNORE])
        augment = self.config.augment if training else None
        return SegmentationDataset(self.table(stored), index, model, augment, self.seed)

    @property
    def batching(self) -> Batching:
        """By images."""
        return Batching(budget=self.config.batch_size, eval_budget=self.config.eval_batch_size)
