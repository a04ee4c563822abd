"""The baselines of the language models against a literal computation."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from benchmarks.text_baselines import UNKNOWN, Trigram

SIZE = 7
ROW = np.random.default_rng(0).choice(
    6, 300, p=[0.4, 0.25, 0.15, 0.1, 0.06, 0.04]
)  # the token 6 never occurs


@pytest.fixture(scope="module")
def model() -> Trigram:
    return Trigram(ROW, SIZE)


def literal(model: Trigram, u: int, v: int, w: int) -> float:
    """The formula, by counting."""
    row = ROW.tolist()
    pairs = Counter(itertools.pairwise(row))
    triples = Counter(zip(row, row[1:], row[2:], strict=False))
    terms = [(model.weights[2], (row.count(w) + 1) / (len(row) + SIZE))]
    if v != UNKNOWN:
        follow = sum(count for (a, _), count in pairs.items() if a == v)
        if follow:
            terms.append((model.weights[1], pairs[v, w] / follow))
        both = sum(count for (a, b, _), count in triples.items() if (a, b) == (u, v))
        if both:
            terms.append((model.weights[0], triples[u, v, w] / both))
    return sum(weight * share for weight, share in terms) / sum(weight for weight, _ in terms)


def test_the_weights_are_shares(model):
    assert model.weights.sum() == pytest.approx(1) and (model.weights >= 0).all()


@pytest.mark.parametrize("u", [UNKNOWN, 0, 3, 5, 6])
@pytest.mark.parametrize("v", [UNKNOWN, 0, 3, 5, 6])
def test_probabilities_by_the_formula(model, u, v):
    """Probabilities are the formula and sum to one."""
    expected = [literal(model, u, v, w) for w in range(SIZE)]
    assert model.words(u, v) == pytest.approx(expected)
    assert sum(expected) == pytest.approx(1)
    arrays = (np.full(SIZE, u), np.full(SIZE, v), np.arange(SIZE))
    assert model.probability(*arrays) == pytest.approx(expected)


@pytest.mark.parametrize("left", [(0, 1), (UNKNOWN, 2), (UNKNOWN, UNKNOWN), (6, 0), (1, 6)])
@pytest.mark.parametrize("right", [(1, 0), (6, 1), (0, 6), (3, UNKNOWN), (UNKNOWN, UNKNOWN)])
def test_position_scored_by_all_its_trigrams(model, left, right):
    """A place is scored by all trigrams that hold it."""
    expected = []
    for w in range(SIZE):
        total = math.log(literal(model, *left, w))
        if right[0] != UNKNOWN:
            total += math.log(literal(model, left[1], w, right[0]))
            if right[1] != UNKNOWN:
                total += math.log(literal(model, w, *right))
        expected.append(total)
    assert model.score(left, right) == pytest.approx(expected)
