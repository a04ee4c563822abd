"""GLUE's metrics: accuracy, F1, Matthews correlation, Pearson and Spearman correlation (Wang et al., arXiv 1804.07461)."""

from collections.abc import Callable, Sequence

from torch import Tensor
from torchmetrics.functional import pearson_corrcoef, spearman_corrcoef
from torchmetrics.functional.classification import binary_f1_score, multiclass_matthews_corrcoef

from magneto.errors import ConfigError, nearest
from magneto.metrics.examples import ExampleScores

CLASSIFICATION = ("accuracy", "f1", "matthews")
REGRESSION = ("pearson", "spearman")
METRICS = CLASSIFICATION + REGRESSION


class GlueScores(ExampleScores):
    """The chosen metrics over all examples of an evaluation, and for each further subset of it.

    - `accuracy`: share of equal labels.
    - `f1`: of label 1 of two, 0 where it is neither predicted nor there.
    - `matthews`: correlation of predicted and true classes, 0 where either is constant.
    - `pearson`, `spearman`: of predicted and true numbers, 0 where either is constant.
    - `score`: the mean of the chosen ones, as GLUE averages them, where there are several.

    Args:
        metrics: out of METRICS, all for classes or all for numbers.
        classes: number of labels; 0 for regression.
        subsets: the first is the main one, whose scores have plain names; those of the others end with `/<subset>`.

    Raises:
        ConfigError: a metric is unknown or does not fit the labels.
    """

    def __init__(self, metrics: Sequence[str], classes: int, subsets: Sequence[str]) -> None:
        super().__init__(4)
        fitting = CLASSIFICATION if classes else REGRESSION
        for name in metrics:
            if name not in METRICS:
                raise ConfigError(
                    f"metric {name!r} is not known.{nearest(name, METRICS)} Choose from {METRICS}."
                )
            if name not in fitting:
                what = f"{classes} classes" if classes else "numbers as labels"
                raise ConfigError(f"metric {name!r} does not fit {what}. Choose from {', '.join(fitting)}.")
        if "f1" in metrics and classes != 2:
            raise ConfigError(f"metric 'f1' is that of label 1 of two, but there are {classes} classes.")
        assert metrics and subsets
        self.metrics, self.classes, self.subsets = tuple(metrics), classes, tuple(subsets)

    def update(self, predictions: Tensor, labels: Tensor, ids: Tensor, subsets: Tensor) -> None:
        """Keep one batch: (B,) predicted classes or numbers, (B,) true ones, (B,) ids and indices of subsets."""
        self.keep(ids, subsets, predictions, labels)

    def compute(self) -> dict[str, float]:
        """The scores as fractions; empty when no example was seen."""
        rows = self.examples()
        scores: dict[str, float] = {}
        for index, subset in enumerate(self.subsets):
            members = rows[rows[:, 0] == index]
            if len(members):
                values = {name: self._score(name, members[:, 1], members[:, 2]) for name in self.metrics}
                if len(values) > 1:
                    values["score"] = sum(values.values()) / len(values)
                scores |= {
                    name if index == 0 else f"{name}/{subset}": value for name, value in values.items()
                }
        return scores

    def _score(self, metric: str, predictions: Tensor, labels: Tensor) -> float:
        constant = any(bool((values == values[0]).all()) for values in (predictions, labels))
        if metric in (*REGRESSION, "matthews") and constant:
            return 0.0
        if metric in REGRESSION:
            correlation: Callable[[Tensor, Tensor], Tensor]
            correlation = pearson_corrcoef if metric == "pearson" else spearman_corrcoef
            return float(correlation(predictions, labels))
        predictions, labels = predictions.long(), labels.long()
        if metric == "accuracy":
            return float((predictions == labels).double().mean())
        if metric == "f1":
            return float(binary_f1_score(predictions, labels))
        return float(multiclass_matthews_corrcoef(predictions, labels, num_classes=self.classes))
