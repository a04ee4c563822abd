"""Top-1 and top-5 accuracy of a classifier of images, of each class too, and its confusion matrix."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from magneto.errors import ConfigError
from magneto.metrics.error_rate import metric_names
from magneto.metrics.examples import ExampleScores

TOP = 5
NAMED = 20  # classes up to which each has a metric, and its name in the image
DRAWN = 1000  # classes up to which there is a confusion matrix


class ClassScores(ExampleScores):
    """Accuracies over all examples of an evaluation, as fractions. Examples without a class (label -1) are
    ignored.

    - `top1`, `top5`: the class is the top one, or among the five top ones (or all, where there are fewer).
    - `mean_class_accuracy`: the mean of the classes' own `top1`, so that each counts alike.
    - `top1/<class>`: of one class, where there are at most `NAMED`; a slash in its name becomes `_`.

    `confusion` is known once `compute` was called.

    Args:
        labels: names of the classes.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        super().__init__(3)  # class, top class, whether the class is among the `TOP` ones
        self.labels = tuple(labels)
        self.confusion: NDArray[np.int64] | None = None
        """(classes, classes) examples of each class (rows) by top class (columns); None above `DRAWN` classes."""

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Keep one batch: (B, classes) and (B,) int64."""
        known = labels >= 0
        logits, labels = logits[known], labels[known]
        top = logits.topk(min(TOP, logits.size(1)), dim=1).indices
        among = (top == labels[:, None]).any(1)
        self.keep(labels, top[:, 0], among)

    def compute(self) -> dict[str, float]:
        """See the class.

        Raises:
            ConfigError: no example had a class.
        """
        rows = dim_zero_cat(self.rows).long().cpu().numpy()
        if not len(rows):
            raise ConfigError(
                "None of the evaluated images has a class: there is nothing to measure. Label them with mode=predict."
            )
        label, top, among = rows.T
        right, count = label == top, len(self.labels)
        seen = np.bincount(label, minlength=count)
        of_class = np.bincount(label, weights=right, minlength=count) / np.maximum(seen, 1)
        if count <= DRAWN:
            pairs = np.bincount(label * count + top, minlength=count**2)
            self.confusion = pairs.reshape(count, count)
        scores = {
            "top1": float(right.mean()),
            "top5": float(among.mean()),
            "mean_class_accuracy": float(of_class[seen > 0].mean()),
        }
        if count <= NAMED:
            scores |= {
                f"top1/{name}": float(share)
                for name, share, examples in zip(metric_names(self.labels), of_class, seen, strict=True)
                if examples
            }
        return scores
