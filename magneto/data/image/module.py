"""Images: corpora -> decoded pixels on disk, or files where they lie -> batches for tasks on images.

    corpora --decoded, checked, all cores--> (N, C, S, S) uint8, memory-mapped; or a list of files --sampler-->
    augmentation of the whole batch --> block-wise masks, if any --> batch

A batch is a dict: `id` (B,) int64, the row in the prepared folder's images.jsonl; `image` (B, C, S, S) float32,
normalised by `info.mean` and `info.std`; `label` (B,) int64, -1 where an image has no class; with masking `masked` (B,
N) bool, True = this patch is hidden, N = (S / patch_size)^2 patches in rows; and where a test set has only some of a
model's classes `classes` (K,) int64, those among which the model is to choose.
"""

import json
import logging
import unicodedata
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from magneto.config.validate import from_mapping
from magneto.data.batching import TokenBudgetSampler
from magneto.data.cache import cpu_count, prepare_once, short_hash
from magneto.data.corpora.base import SPLITS
from magneto.data.corpora.image.base import ImageReader
from magneto.data.image.build import ImageBuilder
from magneto.data.image.dataset import ImageDataset, ImageInfo, Prepared, Reading
from magneto.data.messages import counts, skipped
from magneto.data.module import Batching, BucketedDataModule
from magneto.data.transforms.image import Augment
from magneto.data.transforms.mask_patches import BlockMasking
from magneto.errors import ConfigError, DataError

log = logging.getLogger(__name__)

FORMAT = 2  # of the prepared folder: raise it when the code makes other files from the same settings


class ImageDataModule(BucketedDataModule):
    """Images from one or more corpora.

    corpora: name -> corpus. image_size: pixels a side. channels: 1 (grey) or 3. fit: "crop" or "pad", how an image
    becomes a square. eval_crop: share of the shorter side that evaluation sees of a cropped image. augment: Augment
    as a dict; None: training images are as those of evaluation. masking: BlockMasking as a dict, with patch_size:
    pixels a side of a patch. batch_size: images of a training batch on one rank; eval_batch_size: None: the same.
    store: "shards" (decoded once, in the prepared folder), "files" (decoded each time, cut out of the original), or
    "auto" (shards up to 4 GB). val_fraction, test_fraction: share of the images that are held out, by a hash, where
    a corpus states no split. prepare_workers: threads that decode in prepare; None: all cores.
    """

    captioned: ClassVar[bool] = False
    """Whether captions are kept, and equal ones stand on one side of the split."""

    Info = ImageInfo

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
        super().__init__(data_dir=data_dir, num_workers=num_workers, seed=seed)
        if not corpora:
            raise ConfigError("data.corpora is empty: name at least one corpus.")
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
        self.corpora = dict(corpora)
        self.image_size, self.channels, self.fit, self.store = image_size, channels, fit, store
        self.eval_crop = float(eval_crop)
        self.augment = None if augment is None else from_mapping(Augment, augment, "data.augment")
        self.masking = None if masking is None else from_mapping(BlockMasking, masking, "data.masking")
        self.patch_size = patch_size
        self._check_patches()
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size or batch_size
        self.fractions = (float(val_fraction), float(test_fraction))
        self.prepare_workers = prepare_workers or cpu_count()
        self._model: ImageInfo | None = None  # of a checkpoint

    def _check_patches(self) -> None:
        if self.patch_size is not None and self.image_size % self.patch_size:
            better = -(-self.image_size // self.patch_size) * self.patch_size
            raise ConfigError(
                f"data.image_size={self.image_size} does not divide by data.patch_size={self.patch_size}: take "
                f"image_size={better} or another patch_size."
            )
        if self.masking is not None and (self.patch_size is None or self.patch_size == self.image_size):
            raise ConfigError(
                f"data.masking hides patches, and data.patch_size={self.patch_size} makes none of an image of "
                f"{self.image_size} pixels: set patch_size, or masking=null."
            )

    # ------------------------------------------------------------------ preparing

    @cached_property
    def _fingerprint(self) -> dict[str, Any]:
        """All that the prepared folder depends on."""
        square = {"image_size": self.image_size, "fit": self.fit}
        return {
            "format": FORMAT,
            "corpora": {name: source.fingerprint() for name, source in self.corpora.items()},
            "channels": self.channels,
            "store": self.store,
            "fractions": list(self.fractions),
            **({} if self.store == "files" else square),
            **({"captioned": True} if self.captioned else {}),
        }

    @cached_property
    def folder(self) -> Path:
        """The prepared folder; its name carries a hash of all that its contents depend on."""
        return self.data_dir / "prepared" / f"image-{'-'.join(self.corpora)}-{short_hash(self._fingerprint)}"

    def prepare(self) -> None:
        """Fetch and read the images, unless that is done. Says what was skipped."""
        builder = ImageBuilder(
            corpora=self.corpora,
            data_dir=self.data_dir,
            image_size=self.image_size,
            channels=self.channels,
            fit=self.fit,
            store=self.store,
            fractions=self.fractions,
            workers=self.prepare_workers,
            fingerprint=self._fingerprint,
            captioned=self.captioned,
        )
        if prepare_once(self.folder, builder):
            log.info("prepared %s", self.folder)
        report = json.loads((self.folder / "prepare_report.json").read_text(encoding="utf-8"))
        classes = f", {len(report['labels'])} classes" if report["labels"] else ""
        log.info("images: %s%s", counts(report["examples"], "images"), classes)
        if not report["examples"]["test"]:
            log.warning("images: there is no test split; the validation images serve as the test too")
        if report["skipped_by_reason"]:
            where = self.folder / "prepare_report.json"
            log.warning("images: %s", skipped(report["skipped_by_reason"], where))

    # ------------------------------------------------------------------ reading

    @cached_property
    def prepared(self) -> Prepared:
        """The prepared folder. Raises `DataError` when `prepare` has not been run."""
        if not (self.folder / "facts.json").is_file():
            raise DataError(
                f"The images are not prepared ({self.folder} is not there): run with mode=prepare first."
            )
        return Prepared(self.folder)

    @cached_property
    def info(self) -> ImageInfo:
        """The facts of the prepared data."""
        facts = self.prepared.facts
        return ImageInfo(
            image_size=self.image_size,
            channels=self.channels,
            patch_size=self.patch_size,
            fit=self.fit,
            eval_crop=self.eval_crop,
            **{
                key: facts[key]
                for key in ("mean", "std", "labels", "examples", "label_counts", "corpus", "key")
            },
        )

    def for_model(self, info: Mapping[str, Any]) -> Self:
        """Images in the size and with the class numbers of a checkpoint's model. Labels are found by their names.

        Raises `DataError` when this data has classes that the model does not know.
        """
        model = ImageInfo.from_dict(info)
        for name in ("image_size", "channels", "fit", "patch_size"):
            setattr(self, name, getattr(model, name))
        self._check_patches()
        for name in ("_fingerprint", "folder", "prepared", "info", "train_set"):
            self.__dict__.pop(name, None)  # what was read with other settings
        self.prepare()
        known = set(map(_composed, model.labels))
        unknown = [label for label in self.info.labels if _composed(label) not in known]
        if unknown and model.labels:
            raise DataError(
                f"This data has classes that the checkpoint's model does not know: {', '.join(unknown[:5])}"
                f"{', ...' if len(unknown) > 5 else ''}; the model has {', '.join(model.labels[:5])}"
                f"{', ...' if len(model.labels) > 5 else ''}. Choose data with its classes, or give its names to the "
                "folders (data.corpora...names)."
            )
        self._model = model
        return self

    def setup(self, stage: str | None = None) -> None:
        """Open the splits."""
        self.train_set, self.val_set, self.test_set = (self._dataset(split) for split in SPLITS)

    def _dataset(self, split: str) -> ImageDataset:
        own, model = self.info, self._model or self.info
        index, training = self.prepared.index, split == "train"
        rows = np.flatnonzero(index["split"] == SPLITS.index(split))
        if split == "test" and not len(rows):
            rows = np.flatnonzero(index["split"] == SPLITS.index("val"))
        known = model.labels or own.labels
        place = {_composed(label): number for number, label in enumerate(known)}
        numbers = np.array(
            [place[_composed(label)] for label in own.labels] + [-1]
        )  # the last for images without a class
        subset = own.labels and len(own.labels) < len(known)
        reading = Reading(
            split=split,
            info=model,
            augment=self.augment if training else None,
            masking=self.masking,
            seed=self.seed if training else 0,  # the masks of an evaluation are the same for all runs
        )
        classes = sorted(numbers[:-1].tolist()) if subset else None
        return ImageDataset(self.prepared, rows, numbers[index["label"][rows]], reading, classes)

    @property
    def batching(self) -> Batching:
        """By images."""
        return Batching(budget=self.batch_size, eval_budget=self.eval_batch_size, pad_to_multiple=1)

    def _train_sampler(self, total: int, rank: int, world_size: int) -> TokenBudgetSampler:
        self.require_training()
        return super()._train_sampler(total, rank, world_size)

    def require_training(self) -> None:
        """Raise `ConfigError` for data that is for evaluation only."""
        if self.prepared.facts["evaluation_only"]:
            raise ConfigError(
                f"data: {', '.join(self.corpora)} is for evaluation only: use it with mode=test checkpoint=RUN."
            )

    def collate(self, dataset: ImageDataset) -> Callable[[Any], dict[str, Any]]:
        """Nothing is left to do: the data set gives whole batches."""
        return _as_it_is


def _composed(label: str) -> str:
    """A label as it is compared: accents may be written apart, as macOS does."""
    return unicodedata.normalize("NFC", label)


def _as_it_is(batch: dict[str, Any]) -> dict[str, Any]:
    return batch
