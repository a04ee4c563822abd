"""Mean intersection over union of the classes of pixels, and accuracies."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix

from magneto.data.collate import IGNORE
from magneto.errors import ConfigError
from magneto.metrics.error_rate import metric_names
from magneto.metrics.image_classification import NAMED


class SegmentationScores(MulticlassConfusionMatrix):
    """Scores over all pixels of an evaluation, as fractions. Ignored pixels do not count.

    - `miou`: of each class, pixels that are and are called so, of those that are or are called so; the mean of the
      classes that there are (Everingham et al., the PASCAL VOC challenge; ADE20k's metric).
    - `pixel_accuracy`: pixels with the right class.
    - `mean_class_accuracy`: the mean of the classes' own accuracies.
    - `iou/<class>`: of one class, where there are at most `NAMED`.

    `confusion` is known once `compute` was called.

    Args:
        labels: names of the classes.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        super().__init__(len(labels), ignore_index=IGNORE, validate_args=False)
        self.labels = tuple(labels)
        self.confusion: NDArray[np.int64] | None = None
        """(classes, classes) pixels of each class (rows) by class of the model (columns)."""

    def compute(self) -> dict[str, float]:  # type: ignore[override]
        """See the class.

        Raises:
            ConfigError: every pixel is ignored.
        """
        confusion: Tensor = super().compute()
        self.confusion = counts = confusion.cpu().numpy()
        if not counts.sum():
            raise ConfigError("Every pixel of the evaluated masks is ignored: there is nothing to measure.")
        right, real, called = counts.diagonal(), counts.sum(1), counts.sum(0)
        either = real + called - right
        iou = right / np.maximum(either, 1)
        scores = {
            "miou": float(iou[either > 0].mean()),
            "pixel_accuracy": float(right.sum() / counts.sum()),
            "mean_class_accuracy": float((right / np.maximum(real, 1))[real > 0].mean()),
        }
        if len(self.labels) <= NAMED:
            scores |= {
                f"iou/{name}": float(share)
                for name, share, pixels in zip(metric_names(self.labels), iou, either, strict=True)
                if pixels
            }
        return scores
