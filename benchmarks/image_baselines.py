"""What a classifier of images must beat: the most frequent class, and logistic regression on raw pixels.

    python benchmarks/image_baselines.py                     # Fashion-MNIST, test split
    python benchmarks/image_baselines.py data=cifar10

Prepares the corpus as `task=image_classification` does with these overrides, unless that is done, takes its splits and
images as evaluation sees them, and prints the accuracy of

the majority: the class that is most frequent in training;
logistic regression: of all pixels, each normalised over the training images, fitted to convergence (scikit-learn,
    L-BFGS), with the L2 penalty that is best on the validation images.
"""

import argparse
import time
from collections.abc import Sequence

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression

from magneto.commands.build import prepared_data
from magneto.data.image.module import ImageDataModule

STRENGTHS = (1e-4, 1e-3, 1e-2)
"""Of the data beside the penalty (scikit-learn's C)."""
BATCH = 1024

Split = tuple[np.ndarray, np.ndarray]
"""Pixels (N, C * S * S) float32 and classes (N,) int64."""


def pixels(data: ImageDataModule, split: str) -> Split:
    """All images of a split that have a class."""
    dataset = {"train": data.train_set, "val": data.val_set, "test": data.test_set}[split]
    images, labels = [], []
    for start in range(0, len(dataset), BATCH):
        places = [(0, place) for place in range(start, min(start + BATCH, len(dataset)))]
        batch = dataset.__getitems__(places)
        images.append(batch["image"].flatten(1).numpy())
        labels.append(batch["label"].numpy())
    x, y = np.concatenate(images), np.concatenate(labels)
    return x[y >= 0], y[y >= 0]


def majority(train: Split, test: Split) -> float:
    """Accuracy of the most frequent class."""
    return float((test[1] == np.bincount(train[1]).argmax()).mean())


def logistic_regression(
    train: Split, val: Split, test: Split, strengths: Sequence[float] = STRENGTHS, iterations: int = 500
) -> tuple[float, float]:
    """Accuracy on `test`, and the strength that was best on `val`."""
    mean, deviation = train[0].mean(0), train[0].std(0)
    deviation[deviation == 0] = 1  # a pixel that never changes
    (a, b, c) = ((x - mean) / deviation for x, _ in (train, val, test))
    best = (-1.0, 0.0, 0.0)
    for strength in strengths:
        model = LogisticRegression(C=strength, max_iter=iterations).fit(a, train[1])
        best = max(best, (model.score(b, val[1]), model.score(c, test[1]), strength))
    return best[1], best[2]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", help="of the configuration, such as data=cifar10")
    parser.add_argument("--iterations", type=int, default=500, help="of L-BFGS at most, for each penalty")
    arguments = parser.parse_args()
    data = prepared_data(["task=image_classification", *arguments.overrides, "data.augment=null"])
    train, val, test = (pixels(data, split) for split in ("train", "val", "test"))
    started = time.perf_counter()
    accuracy, strength = logistic_regression(train, val, test, iterations=arguments.iterations)
    minutes = (time.perf_counter() - started) / 60
    table = Table(
        "", "top-1", "minutes", box=box.MARKDOWN, title=f"{data.folder.name}: {len(test[1])} images"
    )
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("most frequent class", f"{100 * majority(train, test):.1f} %", "")
    name = f"logistic regression on pixels, C = {strength:g}"
    table.add_row(name, f"{100 * accuracy:.1f} %", f"{minutes:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
