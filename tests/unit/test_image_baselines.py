"""The baselines of image classification: which accuracies are printed."""

import numpy as np
import pytest

pytest.importorskip("sklearn")

from benchmarks.image_baselines import logistic_regression, majority


def split(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three classes of 12 pixels; the class is which third of them is bright, the last pixel never changes."""
    random = np.random.default_rng(seed)
    labels = random.choice(3, count, p=[0.2, 0.5, 0.3])
    x = random.normal(size=(count, 13)).astype(np.float32)
    for row, label in enumerate(labels):
        x[row, 4 * label : 4 * label + 4] += 1.5
    x[:, 12] = 0.7
    return x, labels


def test_the_majority_is_counted_in_training() -> None:
    train, test = split(400, 0), split(200, 1)
    assert majority(train, test) == pytest.approx(float((test[1] == 1).mean()))


def test_regression_and_its_penalty() -> None:
    """Regression finds what is linear and takes the penalty that validation likes."""
    train, val, test = split(400, 0), split(200, 1), split(200, 2)
    accuracy, strength = logistic_regression(train, val, test, strengths=(1e-6, 1e-1))
    assert accuracy > 0.85 and strength == 1e-1
    shuffled = (train[0], np.random.default_rng(3).permutation(train[1]))
    chance, _ = logistic_regression(shuffled, val, test, strengths=(1e-1,))
    assert chance < 0.65
