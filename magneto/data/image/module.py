"""Images: corpora -> decoded pixels on disk, or files where they are -> batches for tasks on images.

    corpora --decoded, checked, all cores (build.py)--> Arrow tables of pixels, memory-mapped, or of the images' files
    --sampler--> augmentation of the whole batch --> block-wise masks, if any --> batch

A batch is a dict: `id` (B,) int64, the image's `row` in the tables; `image` (B, C, S, S) float32, normalised by
`info.mean` and `info.std`; `label` (B,) int64, -1 where an image has no class; with masking `masked` (B, N) bool, True =
this patch is hidden, N = (S / patch_size)^2 patches in rows; and where a test set has only some of a model's classes
`classes` (K,) int64, those among which the model is to choose.
"""

import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

import numpy as np

from magneto.config.validate import from_mapping
from magneto.data.batching import TokenBudgetSampler
from magneto.data.cache import cpu_count
from magneto.data.corpora.image.base import ImageReader
from magneto.data.image.build import ImageBuilder
from magneto.data.image.dataset import ImageDataset, ImageInfo, ImageReading, ImageTable
from magneto.data.module import Batching
from magneto.data.prepared import Preparation, PreparedDataModule
from magneto.data.transforms.image import Augment
from magneto.data.transforms.mask_patches import BlockMasking
from magneto.errors import ConfigError, DataError


class ImageDataModule(PreparedDataModule[ImageInfo]):
    """Images from one or more corpora.

    Args:
        corpora: name -> corpus.
        image_size: pixels a side.
        channels: 1 (grey) or 3.
        fit: "crop" or "pad", how an image becomes a square.
        eval_crop: share of the shorter side that evaluation sees of a cropped image.
        augment: `Augment` as a dict; None: training images are as those of evaluation.
        masking: `BlockMasking` as a dict, with `patch_size`.
        patch_size: pixels a side of a patch.
        batch_size: images of a training batch on one rank.
        eval_batch_size: None: the same.
        store: "shards" (decoded once, in the prepared folder), "files" (decoded each time, cut out of the original), or
            "auto" (shards up to 4 GB).
        val_fraction: share of the images that is held out, by a hash, where a corpus states no split.
        test_fraction: likewise.
        prepare_workers: threads that decode in `prepare`; None: all cores.
        data_dir, num_workers, seed: see `PreparedDataModule`.
    """

    Info = ImageInfo
    kind, noun = "image", "image"
    FORMAT = 3
    reads = ()
    captioned: ClassVar[bool] = False
    """Whether captions are kept, and equal ones are on one side of the split."""

    def __init__(
        self,
        corpora: Mapping[str, ImageReader],
        *,
        image_size: int,
        channels: int = 3,
        data_dir: str = "data",
        fit: str = "crop",
        eval_crop: float = 1.0,
        augment: Mapping[str, Any] | None = None,
        masking: Mapping[str, Any] | None = None,
        patch_size: int | None = None,
        batch_size: int = 256,
        eval_batch_size: int | None = None,
        store: str = "auto",
        val_fraction: float = 0.05,
        test_fraction: float = 0.05,
        prepare_workers: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(corpora, data_dir=data_dir, num_workers=num_workers, seed=seed)
        for key, value, allowed in (
            ("channels", channels, (1, 3)),
            ("fit", fit, ("crop", "pad")),
            ("store", store, ("auto", "shards", "files")),
        ):
            if value not in allowed:
                raise ConfigError(f"data.{key}={value} must be one of {', '.join(map(str, allowed))}.")
        sizes = {"image_size": image_size, "patch_size": patch_size, "batch_size": batch_size}
        sizes |= {"eval_batch_size": eval_batch_size, "prepare_workers": prepare_workers}
        for key, size in sizes.items():
            if size is not None and size < 1:
                raise ConfigError(f"data.{key}={size} must be at least 1.")
        if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
            raise ConfigError(
                f"data.val_fraction={val_fraction} and data.test_fraction={test_fraction} must be 0 or more, and "
                "leave something to train on."
            )
        if not 0 < eval_crop <= 1:
            raise ConfigError(f"data.eval_crop={eval_crop} must be above 0 and at most 1: 0.875.")
        self.image_size, self.channels, self.fit, self.store = image_size, channels, fit, store
        self.eval_crop = float(eval_crop)
        self.augment = None if augment is None else from_mapping(Augment, augment, "data.augment")
        self.masking = None if masking is None else from_mapping(BlockMasking, masking, "data.masking")
        self.patch_size = patch_size
        self._check_patches()
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.fractions = (float(val_fraction), float(test_fraction))
        self.prepare_workers = prepare_workers or cpu_count()

    def _check_patches(self) -> None:
        if self.patch_size is not None and self.image_size % self.patch_size:
            better = -(-self.image_size // self.patch_size) * self.patch_size
            raise ConfigError(
                f"data.image_size={self.image_size} does not divide by data.patch_size={self.patch_size}. Set "
                f"data.image_size={better}, or another data.patch_size."
            )
        if self.masking is not None and (self.patch_size is None or self.patch_size == self.image_size):
            raise ConfigError(
                f"data.masking hides patches, and data.patch_size={self.patch_size} makes none of an image of "
                f"{self.image_size} pixels: set patch_size, or masking=null."
            )

    # ------------------------------------------------------------------ preparing

    def settings(self) -> dict[str, Any]:
        """Return what decides which images there are, and how they are stored."""
        square = {"image_size": self.image_size, "fit": self.fit}
        return {
            "channels": self.channels,
            "store": self.store,
            "fractions": list(self.fractions),
            **({} if self.store == "files" else square),
            **({"captioned": True} if self.captioned else {}),
        }

    def info_of_settings(self) -> dict[str, Any]:
        """Return the sizes, which images in files get when they are read."""
        names = ("image_size", "channels", "patch_size", "fit", "eval_crop")
        return {name: getattr(self, name) for name in names}

    @property
    def splits(self) -> tuple[str, ...]:
        """Test images may be missing: those of validation then serve for both."""
        return ("train", "val")

    def build(self, target: Preparation) -> dict[str, Any]:
        """Decode the images and write the tables."""
        return ImageBuilder(
            corpora=self.corpora,
            data_dir=self.data_dir,
            image_size=self.image_size,
            channels=self.channels,
            fit=self.fit,
            store=self.store,
            fractions=self.fractions,
            workers=self.prepare_workers,
            captioned=self.captioned,
        )(target)

    def details(self) -> str:
        """Return the number of classes."""
        return f", {len(self.info.labels)} classes" if self.info.labels else ""

    def warnings(self, report: Mapping[str, Any]) -> Iterator[str]:
        """Warn of a test split that is missing."""
        if not report["used"]["test"]:
            yield "there is no test split; the validation images serve as the test too"

    def adapted(self, model: ImageInfo) -> Self:
        """Return a copy with images in the size of the model's."""
        data = self.copy()
        for name in ("image_size", "channels", "fit", "patch_size"):
            setattr(data, name, getattr(model, name))
        data._check_patches()
        return data

    def check(self) -> None:
        """Raise `DataError` if this data has classes that the model does not know; they are found by their names."""
        known = [] if self.model is None else self.model.labels
        composed = set(map(_composed, known))
        unknown = [label for label in self.info.labels if _composed(label) not in composed]
        if known and unknown:
            raise DataError(
                f"This data has classes that the checkpoint's model does not know: {', '.join(unknown[:5])}"
                f"{', ...' if len(unknown) > 5 else ''}; the model has {', '.join(known[:5])}"
                f"{', ...' if len(known) > 5 else ''}. Choose data with its classes, or give its names to the "
                "folders (data.corpora...names)."
            )

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
        index = {_composed(label): number for number, label in enumerate(known)}
        of_own = np.array([*(index[_composed(label)] for label in own.labels), -1])  # the last: no class
        table = self.table(stored)
        reading = ImageReading(
            split=split,
            info=model,
            augment=self.augment if training else None,
            masking=self.masking,
            seed=self.seed if training else 0,  # the masks of an evaluation are the same for all runs
        )
        subset = own.labels and len(own.labels) < len(known)
        classes = sorted(of_own[:-1].tolist()) if subset else None
        return ImageDataset(table, of_own[table.numbers("label")], reading, classes)

    @property
    def batching(self) -> Batching:
        """By images."""
        return Batching(budget=self.batch_size, eval_budget=self.eval_batch_size, pad_to_multiple=1)

    def _train_sampler(self, total: int, rank: int, world_size: int) -> TokenBudgetSampler:
        self.require_training()
        return super()._train_sampler(total, rank, world_size)


def _composed(label: str) -> str:
    """Return a label as it is compared: accents may be written apart, as macOS does."""
    return unicodedata.normalize("NFC", label)
