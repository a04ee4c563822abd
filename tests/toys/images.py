"""Small grey images whose hidden parts follow from the rest, and runs on them."""

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 16
CLASSES = ("across", "down", "checks")
IMAGES = {"train": 40, "val": 10, "test": 10}  # of each class


def write_patterns(folder: Path) -> Path:
    """`folder`/SPLIT/CLASS/N.png: stripes across, stripes down, checks; of any phase and brightness, with little noise."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:SIZE, :SIZE] // 2
    for split, count in IMAGES.items():
        for name in CLASSES:
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                phase, low, high = random.integers(2), random.integers(0, 60), random.integers(150, 255)
                lines = {"across": y, "down": x, "checks": x + y}[name]
                pixels = np.where((lines + phase) % 2, low, high) + random.normal(0, 3, (SIZE, SIZE))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(
                    folder / split / name / f"{number}.png"
                )
    return folder


def image_settings(folder: Path) -> list[str]:
    """Overrides that name these images, without augmentation."""
    return [
        "data=image_folder",
        f"data.corpora.image_folder.folder={folder}",
        f"data.image_size={SIZE}",
        "data.channels=1",
        "data.augment=null",
        "data.patch_size=4",
        "data.batch_size=16",
        "data.prepare_workers=1",
    ]
