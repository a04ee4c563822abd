"""Fashion-MNIST: photographs of clothes, 28 x 28 grey pixels, ten classes (docs/data.md)."""

import gzip
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from magneto.data.corpora.download import locate
from magneto.data.corpora.image.base import ImageCorpus, ImageExample, Lazily, held_out
from magneto.data.corpora.package import Package
from magneto.data.io.digest import listing_digest
from magneto.errors import ConfigError, DataError

COMMIT = "b2617bb6d3ffa2e429640350f613e3291e10b141"
PACKAGE = Package(
    name="dataset-fashion-mnist",
    version="0.0~git20200523.55506a9-1",
    sha256="39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
    inside="usr/share/datasets/fashion-mnist",
    installed=("/usr/share/datasets/fashion-mnist",),
    patterns=("*-ubyte.gz",),
    content_sha256="1ca2a7bf3627b402bb8b4f0e8df3bebd6f84f5e1e6c3ee7682dcca80d270924e",
    archive=f"https://github.com/zalandoresearch/fashion-mnist/archive/{COMMIT}.tar.gz",
    archive_inside=f"fashion-mnist-{COMMIT}/data/fashion",
    megabytes=31,
    homepage="https://github.com/zalandoresearch/fashion-mnist",
)
LABELS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
FILES = {"train": "train", "test": "t10k"}


class FashionMnistReader:
    """60,000 training and 10,000 test images, as published.

    validation: so many of the training images are held out, by a hash. folder: where the four .gz files are; None:
    find or fetch them.
    """

    def __init__(self, validation: int = 5_000, folder: str | None = None) -> None:
        if validation < 1:
            raise ConfigError(f"data: validation={validation} must be at least 1.")
        self.validation, self.folder = validation, folder

    def fingerprint(self) -> dict[str, Any]:
        """Settings and version."""
        fingerprint: dict[str, Any] = {"corpus": PACKAGE.name, "version": PACKAGE.version, "recipe": 1}
        fingerprint["validation"] = self.validation
        if self.folder is not None:
            fingerprint["files"] = listing_digest(Path(self.folder).expanduser(), ("**/*-ubyte.gz",))
        return fingerprint

    def load(self, data_dir: Path) -> ImageCorpus:
        """All images, held in memory (55 MB)."""
        located = locate(PACKAGE, data_dir, self.folder)
        sides = {}
        for side, prefix in FILES.items():
            images = read_idx(located.root / f"{prefix}-images-idx3-ubyte.gz", 3)
            labels = read_idx(located.root / f"{prefix}-labels-idx1-ubyte.gz", 1)
            if len(images) != len(labels) or labels.max(initial=0) >= len(LABELS):
                raise DataError(f"{located.root}: the labels of {prefix} do not belong to its images.")
            sides[side] = images, labels
        names = [f"train/{number}" for number in range(len(sides["train"][0]))]
        validation = held_out(names, self.validation)

        def examples() -> Iterator[ImageExample]:
            for side, (images, labels) in sides.items():
                for number, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
                    held = side == "train" and number in validation
                    yield ImageExample(
                        id=f"{side}/{number}",
                        image=image,
                        label=LABELS[label],
                        split="val" if held else side,
                    )

        count = sum(len(images) for images, _ in sides.values())
        return ImageCorpus(examples=Lazily(examples, count), labels=LABELS, origin=located.origin())


def read_idx(file: Path, dimensions: int) -> np.ndarray:
    """An IDX file of bytes, compressed by gzip: uint8 of so many dimensions. Raises `DataError` when it is damaged."""
    try:
        raw = gzip.decompress(file.read_bytes())
        magic, *shape = struct.unpack_from(f">{1 + dimensions}I", raw)
        if magic != 0x800 + dimensions:  # 8: unsigned bytes
            raise ValueError(f"it begins with {magic:#x}, not {0x800 + dimensions:#x}")
        return np.frombuffer(raw, np.uint8, offset=4 * (1 + dimensions)).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise DataError(f"{file}: no whole IDX file ({error}). Fetch it again.") from error
