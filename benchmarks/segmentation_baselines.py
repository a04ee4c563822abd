"""What a segmentation must beat: the most frequent class, and the colour of each pixel alone.

    python benchmarks/segmentation_baselines.py                       # scenes of stamps, test split
    python benchmarks/segmentation_baselines.py data=ade20k data.corpora.ade20k.folder=DIR

Prepares the corpus as `task=segmentation` does with these overrides, unless that is done, and measures whole test images
as evaluation does, with its metric:

the majority: the class that is most frequent in training;
the nearest mean colour: of each class, over training pixels;
the nearest neighbours: the majority of the K training pixels of the most similar colour (scikit-learn), the same number
    of pixels of each class, and in their natural shares.

Training pixels are a sample of --pixels, drawn with a fixed seed.
"""

import argparse
from collections.abc import Callable

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

from magneto.commands.build import prepared_data
from magneto.data.segmentation.dataset import SegmentationDataset
from magneto.data.segmentation.module import SegmentationDataModule
from magneto.metrics.segmentation import SegmentationScores

Pixels = tuple[np.ndarray, np.ndarray]
"""Colours (N, C) float32, 0 to 255, and classes (N,) int64."""


def scored_pixels(dataset: SegmentationDataset, position: int) -> Pixels:
    """Return the pixels of an image that have a class."""
    image, mask = dataset.pair(position)
    scored = mask >= 0
    return image.permute(1, 2, 0)[scored].numpy().astype(np.float32), mask[scored].numpy()


def training_pixels(data: SegmentationDataModule, count: int) -> Pixels:
    """Return about `count` pixels, as many of each training image."""
    random, dataset = np.random.default_rng(0), data.train_set
    share = max(1, count // len(dataset))
    colours, classes = [], []
    for position in range(len(dataset)):
        own = scored_pixels(dataset, position)
        chosen = random.choice(len(own[1]), min(share, len(own[1])), replace=False)
        colours.append(own[0][chosen])
        classes.append(own[1][chosen])
    return np.concatenate(colours), np.concatenate(classes)


def balanced(pixels: Pixels) -> Pixels:
    """Return as many pixels of each class as the rarest has."""
    random = np.random.default_rng(0)
    present, counts = np.unique(pixels[1], return_counts=True)
    kept = [random.choice(np.flatnonzero(pixels[1] == one), counts.min(), replace=False) for one in present]
    chosen = np.concatenate(kept)
    return pixels[0][chosen], pixels[1][chosen]


def measure(data: SegmentationDataModule, answer: Callable[[np.ndarray], np.ndarray]) -> dict[str, float]:
    """Return the scores on the test split. answer: colours (N, C) -> classes (N,)."""
    scores = SegmentationScores(data.info.labels)
    for position in range(len(data.test_set)):
        colours, classes = scored_pixels(data.test_set, position)
        scores.update(torch.from_numpy(answer(colours).astype(np.int64)), torch.from_numpy(classes))
    return scores.compute()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", help="of the configuration, such as data=ade20k")
    parser.add_argument("--pixels", type=int, default=200_000, help="of training, in all")
    parser.add_argument("--neighbours", type=int, default=15)
    arguments = parser.parse_args()
    data = prepared_data(["task=segmentation", *arguments.overrides])
    assert isinstance(data, SegmentationDataModule)
    train = training_pixels(data, arguments.pixels)
    even = balanced(train)
    frequent = np.bincount(train[1]).argmax()
    neighbours = f"{arguments.neighbours} nearest colours"
    rows: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "most frequent class": lambda colours: np.full(len(colours), frequent),
        "nearest mean colour": NearestCentroid().fit(*even).predict,
        f"{neighbours}, classes alike": KNeighborsClassifier(arguments.neighbours).fit(*even).predict,
        neighbours: KNeighborsClassifier(arguments.neighbours).fit(*train).predict,
    }
    columns = {"miou": "mIoU", "pixel_accuracy": "pixels right", "mean_class_accuracy": "mean of classes"}
    title = f"{data.folder.name}: {len(data.test_set)} images"
    table = Table("", *columns.values(), box=box.MARKDOWN, title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, answer in rows.items():
        scores = measure(data, answer)
        table.add_row(name, *(f"{100 * scores[key]:.1f} %" for key in columns))
    Console().print(table)


if __name__ == "__main__":
    main()
