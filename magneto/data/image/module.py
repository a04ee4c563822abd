"""Images: corpora -> decoded pixels on disk, or files where they are -> batches for tasks on images.

    corpora --decoded, checked, all cores (build.py)--> Arrow tables of pixels, memory-mapped, or of the images' files
    --sampler--> augmentation of the whole batch --> block-wise masks, if any --> batch

A batch is a dict: `id` (B,) int64, the image's `row` in the tables; `image` (B, C, S, S) float32, normalised by
`info.mean` and `info.std`; `label` (B,) int64, -1 where an image has no class; with masking `masked` (B, N) bool, True =
this patch is hidden, N = (S / patch_size)^2 patches in rows; and where a test set has only some of a model's classes
`classes` (K,) int64, those among which the model is to choose.
"""

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, ClassVar, Self

import numpy as np

from magneto.data.batching import TokenBudgetSampler
from magneto.data.config import plain
from magneto.data.image.build import build
from magneto.data.image.config import ImageConfig
from magneto.data.image.dataset import ImageDataset, ImageInfo, ImageReading, ImageTable
from magneto.data.labels import label_indices, require_known_labels
from magneto.data.module import Batching
from magneto.data.prepared import Preparation, PreparedDataModule
from magneto.errors import ConfigError

SIZES = ("image_size", "channels", "fit", "patch_size")  # a model's data has the model's


class ImageDataModule(PreparedDataModule[ImageInfo, ImageConfig]):
    """Images from one or more corpora: name -> `ImageReader`; the settings are those of `ImageConfig`."""

    Info, Config = ImageInfo, ImageConfig
    kind, noun = "image", "image"
    FORMAT = 3
    reads = ()
    captioned: ClassVar[bool] = False
    """Whether captions are kept, and equal ones are on one side of the split."""

    # ------------------------------------------------------------------ preparing

    def settings(self) -> dict[str, Any]:
        """Return what decides which images there are, and how they are stored."""
        square = () if self.config.store == "files" else ("image_size", "fit")
        return {
            "fractions": list(self.config.fractions),
            **plain(self.config, "channels", "store", *square),
            **({"captioned": True} if self.captioned else {}),
        }

    def info_of_settings(self) -> dict[str, Any]:
        """Return the sizes, which images in files get when they are read."""
        return plain(self.config, *SIZES, "eval_crop")

    @property
    def splits(self) -> tuple[str, ...]:
        """Test images may be missing: those of validation then serve for both."""
        return ("train", "val")

    def build(self, target: Preparation) -> dict[str, Any]:
        """Decode the images and write the tables."""
        return build(target, self.captioned)

    def details(self) -> str:
        """Return the number of classes."""
        return f", {len(self.info.labels)} classes" if self.info.labels else ""

    def warnings(self, report: Mapping[str, Any]) -> Iterator[str]:
        """Warn of a test split that is missing."""
        if not report["used"]["test"]:
            yield "there is no test split; the validation images serve as the test too"

    def adapted(self, model: ImageInfo) -> Self:
        """Return a copy with images in the size of the model's."""
        return self.with_config(**{name: getattr(model, name) for name in SIZES})

    def check(self) -> None:
        """Raise `DataError` if this data has classes that the model does not know; they are found by their names."""
        if self.model is not None:
            require_known_labels(self.info.labels, self.model.labels)

    def require_training(self) -> None:
        """Raise `ConfigError` for data that is for evaluation only."""
        if not self.info.examples["train"]:
            raise ConfigError(
                f"data: {', '.join(self.corpora)} is for evaluation only: use it with mode=test checkpoint=RUN."
            )

    # ------------------------------------------------------------------ reading

    def table(self, split: str) -> ImageTable:
        """Return the table of a split."""
        return ImageTable(self.folder, split)

    def open(self, split: str) -> ImageDataset:
        """Return the images of a split; without a test split those of validation serve as the test."""
        return self.images_of(split, split if self.info.examples["test"] or split != "test" else "val")

    def images_of(self, split: str, stored: str) -> ImageDataset:
        """Return the images that are stored in one split as those of another (or the same) are read."""
        own, model, training = self.info, self.model or self.info, split == "train"
        known = model.labels or own.labels
        of_own = np.array([*label_indices(own.labels, known), -1])  # the last: no class
        table = self.table(stored)
        reading = ImageReading(
            split=split,
            info=model,
            augment=self.config.augment if training else None,
            masking=self.config.masking,
            corruption=self.config.corruption if split == "test" else None,
            seed=self.seed if training else 0,  # the masks of an evaluation are the same for all runs
        )
        subset = own.labels and len(own.labels) < len(known)
        classes = sorted(of_own[:-1].tolist()) if subset else None
        return ImageDataset(table, of_own[table.numbers("label")], reading, classes)

    @property
    def batching(self) -> Batching:
        """By images."""
        return Batching(budget=self.config.batch_size, eval_budget=self.config.eval_batch_size)

    def _train_sampler(self, total: int, rank: int, world_size: int) -> TokenBudgetSampler:
        self.require_training()
        return super()._train_sampler(total, rank, world_size)


def image_settings(config: ImageConfig) -> dict[str, Any]:
    """Return the settings of the images of a kind of data that has more beside them."""
    return plain(config, *(field.name for field in fields(ImageConfig)))
