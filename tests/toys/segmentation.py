"""Small scenes whose masks follow from their colours, in the folders of ADE20k."""

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 16
CLASSES = ("ground", "square", "disc")
COLOURS = np.array([[200, 200, 190], [200, 40, 30], [30, 60, 200]])
SCENES = {"training": 60, "validation": 12}


def scene(
    random: np.random.Generator, width: int = SIZE, height: int = SIZE
) -> tuple[np.ndarray, np.ndarray]:
    """An image (H, W, 3) uint8 of a red square and a blue disc, and its mask (H, W) uint8 of ids from 1 on, its frame 0."""
    y, x = np.mgrid[:height, :width]
    mask = np.ones((height, width), np.uint8)
    left, top = random.integers(1, width - 8), random.integers(1, height - 8)
    mask[top : top + 6, left : left + 6] = 2
    centre = random.integers(4, width - 4), random.integers(4, height - 4)
    mask[(x - centre[0]) ** 2 + (y - centre[1]) ** 2 < 12] = 3
    image = COLOURS[mask - 1] + random.normal(0, 4, (height, width, 3))
    mask[0], mask[-1], mask[:, 0], mask[:, -1] = 0, 0, 0, 0
    return image.clip(0, 255).astype(np.uint8), mask


def write_scenes(folder: Path, sizes: tuple[tuple[int, int], ...] = ((SIZE, SIZE),)) -> Path:
    """Write scenes of these sizes (width, height) in turn, and the names of their classes."""
    random = np.random.default_rng(0)
    for side, count in SCENES.items():
        for kind in ("images", "annotations"):
            (folder / kind / side).mkdir(parents=True)
        for number in range(count):
            image, mask = scene(random, *sizes[number % len(sizes)])
            Image.fromarray(image).save(folder / "images" / side / f"{number:03d}.png")
            Image.fromarray(mask).save(folder / "annotations" / side / f"{number:03d}.png")
    rows = ["Idx\tName", *(f"{number}\t{name}, thing" for number, name in enumerate(CLASSES, 1))]
    (folder / "objectInfo150.txt").write_text("\n".join(rows) + "\n")
    return folder


def scene_settings(folder: Path) -> list[str]:
    """Overrides that name these scenes, without augmentation."""
    return [
        "data=ade20k",
        f"data.corpora.ade20k.folder={folder}",
        "data.corpora.ade20k.classes=3",
        "data.corpora.ade20k.validation=0.2",
        f"data.image_size={SIZE}",
        "data.short_side=null",
        "data.augment={scale: null, flip: false, color_jitter: 0}",
        "data.patch_size=4",
        "data.batch_size=16",
        "data.prepare_workers=1",
    ]
