"""GLUE's metrics against their definitions."""

import itertools
import math

import numpy as np
import pytest
import torch

from magneto.errors import MagnetoError
from magneto.metrics.glue import GlueScores


def by_hand(metric: str, predictions: np.ndarray, labels: np.ndarray) -> float:
    """Each metric from its definition, by another road than torchmetrics'."""
    if metric == "accuracy":
        return float((predictions == labels).mean())
    if metric == "f1":
        hits = float(((predictions == 1) & (labels == 1)).sum())
        return 2 * hits / float((predictions == 1).sum() + (labels == 1).sum())
    if metric == "matthews":  # the correlation of one-hot matrices (Gorodkin 2004)
        x, y = (
            np.eye(int(max(predictions.max(), labels.max())) + 1)[v.astype(int)]
            for v in (predictions, labels)
        )
        x, y = x - x.mean(0), y - y.mean(0)
        return float((x * y).sum() / math.sqrt((x * x).sum() * (y * y).sum()))
    if metric == "spearman":
        predictions, labels = (
            np.array([((v < u).sum() + ((v == u).sum() - 1) / 2) for u in v]) for v in (predictions, labels)
        )
    return float(np.corrcoef(predictions, labels)[0, 1])


@pytest.mark.parametrize(
    ("metrics", "classes"),
    [
        (("accuracy", "f1"), 2),
        (("matthews",), 2),
        (("accuracy", "matthews"), 3),
        (("pearson", "spearman"), 0),
    ],
)
def test_metrics_equal_their_definitions(metrics: tuple[str, ...], classes: int) -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, 101) if classes else np.round(random.uniform(0, 5, 101), 1)
    guesses = random.integers(0, classes, 101) if classes else np.round(labels + random.normal(0, 2, 101), 1)
    predictions = np.where(random.random(101) < 0.5, labels, guesses)
    main = random.random(101) < 0.6
    scores = GlueScores(metrics, classes, ("matched", "mismatched"))
    for part in np.array_split(np.arange(101), 7):  # batches, of which one comes twice
        for _ in range(2 if part[0] == 0 else 1):
            columns = (predictions[part], labels[part], part, np.where(main[part], 0, 1))
            scores.update(*map(torch.from_numpy, columns))
    found = scores.compute()
    for name in metrics:
        assert found[name] == pytest.approx(by_hand(name, predictions[main], labels[main]), abs=1e-6)
        assert found[f"{name}/mismatched"] == pytest.approx(
            by_hand(name, predictions[~main], labels[~main]), abs=1e-6
        )
    if len(metrics) > 1:
        assert found["score"] == pytest.approx(sum(found[name] for name in metrics) / len(metrics))
    else:
        assert "score" not in found, "the same number under two names"
    scores.reset()
    assert scores.compute() == {}


def correlation(table: np.ndarray) -> float:
    """Matthews's, of counts (true, predicted), by its definition in whole numbers; 0 where it is 0 / 0."""
    s, c = int(table.sum()), int(table.trace())
    t, p = table.sum(1).tolist(), table.sum(0).tolist()
    below = (s * s - sum(k * k for k in p)) * (s * s - sum(k * k for k in t))
    return (c * s - sum(a * b for a, b in zip(t, p, strict=True))) / math.sqrt(below) if below else 0.0


def small_tables(classes: int, examples: int) -> list[np.ndarray]:
    """Every confusion table up to a number of examples."""
    counts = itertools.product(range(examples + 1), repeat=classes**2)
    return [np.reshape(row, (classes, classes)) for row in counts if 1 <= sum(row) <= examples]


@pytest.mark.parametrize(("classes", "examples"), [(2, 6), (3, 3)])
def test_matthews_of_every_small_table(classes: int, examples: int) -> None:
    """Constant answers or labels correlate with nothing, right or wrong; F1 and accuracy by their definitions."""
    names = ("accuracy", "f1", "matthews") if classes == 2 else ("accuracy", "matthews")
    scores = GlueScores(names, classes, ("dev",))
    for table in small_tables(classes, examples):
        labels = np.repeat(np.arange(classes), table.sum(1))
        predictions = np.repeat(np.tile(np.arange(classes), classes), table.flatten())
        scores.reset()
        zeros = torch.zeros(len(labels))
        scores.update(torch.tensor(predictions), torch.tensor(labels), torch.arange(len(labels)), zeros)
        found = scores.compute()
        assert found["matthews"] == pytest.approx(correlation(table), abs=1e-6), table
        assert found["accuracy"] == pytest.approx(table.trace() / table.sum())
        if classes == 2:
            either = 2 * table[1, 1] + table[0, 1] + table[1, 0]
            assert found["f1"] == pytest.approx(2 * table[1, 1] / either if either else 0.0)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 4.999999, 1e9 + 0.1])
def test_constant_numbers_correlate_with_nothing(value: float) -> None:
    """Also those whose mean, and so whose deviation, is rounded."""
    constant, others = torch.full((10,), value, dtype=torch.float64), torch.arange(10.0) ** 2
    for columns in ((constant, others), (others, constant)):
        scores = GlueScores(("pearson", "spearman"), 0, ("dev",))
        scores.update(*columns, torch.arange(10), torch.zeros(10))
        assert scores.compute() == {"pearson": 0.0, "spearman": 0.0, "score": 0.0}


@pytest.mark.parametrize(
    ("metrics", "classes", "message"),
    [
        (("f1",), 3, "3 classes"),
        (("pearson",), 2, "fit"),
        (("acuracy",), 2, "accuracy"),
        (("f1",), 0, "numbers"),
    ],
)
def test_metrics_that_do_not_fit_are_refused(metrics: tuple[str, ...], classes: int, message: str) -> None:
    with pytest.raises(MagnetoError, match=message):
        GlueScores(metrics, classes, ("dev",))
