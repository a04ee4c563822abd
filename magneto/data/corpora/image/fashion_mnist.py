"""Fashion-MNIST: photographs of clothes, 28 x 28 grey pixels, ten classes (docs/data.md)."""

import gzip
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge

from magneto.data.corpora.download import Package, locate
from magneto.data.corpora.image.base import ImageCorpus, images_of_arrays
from magneto.data.io.digest import listing_digest
from magneto.errors import DataError

COMMIT = "b2617bb6d3ffa2e429640350f613e3291e10b141"
PACKAGE = Package(
    name="dataset-fashion-mnist",
    version="0.0~git20200523.55506a9-1",
    sha256="39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
    inside="usr/share/datasets/fashion-mnist",
    patterns=("*-ubyte.gz",),
    content_sha256="1ca2a7bf3627b402bb8b4f0e8df3bebd6f84f5e1e6c3ee7682dcca80d270924e",
    archive=f"https://github.com/zalandoresearch/fashion-mnist/archive/{COMMIT}.tar.gz",
    archive_inside=f"fashion-mnist-{COMMIT}/data/fashion",
    megabytes=31,
    homepage="https://github.com/zalandoresearch/fashion-mnist",
)
LABELS = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
FILES = {"train": "train", "test": "t10k"}


@dataclass
class FashionMnistReader:
    """60,000 training and 10,000 test images, as published.

    Args:
        validation: the number of training images that are held out, by a hash.
        folder: the folder of the four .gz files; None: find or fetch them.
    """

    validation: Annotated[int, Ge(1)] = 5_000
    folder: str | None = None

    def fingerprint(self) -> dict[str, Any]:
        """See `Reader`."""
        fingerprint = PACKAGE.fingerprint(None, recipe=1, validation=self.validation)
        if self.folder is not None:
            fingerprint["files"] = listing_digest(Path(self.folder).expanduser(), ("**/*-ubyte.gz",))
        return fingerprint

    def load(self, data_dir: Path) -> ImageCorpus:
        """Return all images, held in memory (55 MB)."""
        located = locate(PACKAGE, data_dir, self.folder)
        sides = {
            side: (
                read_idx(located.root / f"{prefix}-images-idx3-ubyte.gz", 3),
                read_idx(located.root / f"{prefix}-labels-idx1-ubyte.gz", 1).tolist(),
            )
            for side, prefix in FILES.items()
        }
        return images_of_arrays(sides, LABELS, self.validation, located.root, located.origin())


def read_idx(file: Path, dimensions: int) -> np.ndarray:
    """Read a compressed IDX file of bytes: uint8 of `dimensions` dimensions. Raises `DataError` if it is damaged."""
    try:
        raw = gzip.decompress(file.read_bytes())
        magic, *shape = struct.unpack_from(f">{1 + dimensions}I", raw)
        if magic != 0x800 + dimensions:  # 8: unsigned bytes
            raise ValueError(f"it begins with {magic:#x}, not {0x800 + dimensions:#x}")
        return np.frombuffer(raw, np.uint8, offset=4 * (1 + dimensions)).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise DataError(f"{file}: not a complete IDX file ({error}). Fetch it again.") from error
