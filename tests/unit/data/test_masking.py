"""Masking: shares, runs, what is never touched, reproducibility."""

import numpy as np
import pytest

from magneto.data.transforms.mask_tokens import LONGEST_SPAN, Masking

MASK, ORDINARY = 4, np.arange(5, 1000)


def draw(masking: Masking, allowed: np.ndarray, seed: int = 0):
    random = np.random.default_rng(seed)
    tokens = np.random.default_rng(1).choice(ORDINARY, len(allowed))
    runs = masking.choose(allowed, random)
    return tokens, runs, masking.hide(tokens, runs, MASK, ORDINARY, random)


@pytest.mark.parametrize("span", [1.0, 3.0])
def test_the_share_of_masked_tokens(span):
    """It is exact; 80, 10 and 10 % are masked, replaced and kept."""
    allowed = np.ones(40_000, bool)
    allowed[::10] = False
    tokens, runs, shown = draw(Masking(span=span), allowed)
    chosen = runs > 0
    assert chosen.sum() == round(0.15 * allowed.sum()) and not (chosen & ~allowed).any()
    assert (shown[~chosen] == tokens[~chosen]).all()
    masked = (shown[chosen] == MASK).mean()
    kept = (shown[chosen] == tokens[chosen]).mean()
    assert masked == pytest.approx(0.8, abs=0.02) and kept == pytest.approx(0.1, abs=0.02)
    assert np.isin(shown[chosen & (shown != MASK)], ORDINARY).all()


def test_masked_runs():
    """They are consecutive, of the mean length, and treated alike."""
    _, runs, shown = draw(Masking(span=3.0), np.ones(100_000, bool))
    numbers, lengths = np.unique(runs[runs > 0], return_counts=True)
    assert lengths.max() <= LONGEST_SPAN and 2.3 < lengths.mean() < 3.2
    for number in numbers[:200]:
        places = np.flatnonzero(runs == number)
        assert (np.diff(places) == 1).all()
        assert len({bool(value) for value in shown[places] == MASK}) == 1


def test_single_tokens_are_independent():
    """Each is masked, replaced or kept."""
    _, runs, _ = draw(Masking(), np.ones(1000, bool))
    assert sorted(runs[runs > 0]) == list(range(1, 151))


def test_at_least_one_token_is_masked():
    """None where none may be."""
    for count in (1, 2, 3):
        assert (draw(Masking(), np.ones(count, bool))[1] > 0).sum() == 1
    tokens, runs, shown = draw(Masking(), np.zeros(5, bool))
    assert not runs.any() and (shown == tokens).all()


def test_the_stream_decides():
    first, again, other = (draw(Masking(span=2.0), np.ones(200, bool), seed)[1] for seed in (3, 3, 4))
    assert (first == again).all() and (first != other).any()
