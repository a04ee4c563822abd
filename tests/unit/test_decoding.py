"""CTC decoders against the enumeration of all paths."""

import itertools
import math
from collections import defaultdict

import pytest
import torch
from torch import Tensor

from magneto.errors import MagnetoError
from magneto.inference.ctc import ctc_beam_search, ctc_blank_ratio, ctc_greedy


def collapse(path) -> tuple[int, ...]:
    return tuple(token for token, _ in itertools.groupby(path) if token != 0)


def enumerate_sequences(log_probs: Tensor) -> dict[tuple[int, ...], float]:
    """Log probability of every token sequence, from all V ** T paths of (T, V) scores."""
    probability: dict[tuple[int, ...], float] = defaultdict(float)
    frames, classes = log_probs.shape
    for path in itertools.product(range(classes), repeat=frames):
        probability[collapse(path)] += math.exp(sum(log_probs[t, k].item() for t, k in enumerate(path)))
    return {tokens: math.log(p) for tokens, p in probability.items()}


def scores(batch: int, frames: int, classes: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(batch, frames, classes, generator=generator, dtype=torch.float64)
    return logits.log_softmax(dim=-1)


def from_path(path: list[int], classes: int = 4) -> Tensor:
    return torch.nn.functional.one_hot(torch.tensor([path]), classes).float().mul(20).log_softmax(dim=-1)


@pytest.mark.parametrize(
    ("path", "tokens"),
    [
        ([1, 1, 0, 1, 2, 2], [1, 1, 2]),
        ([0, 0, 0], []),
        ([3, 3, 3], [3]),
        ([0, 2, 0, 2, 1], [2, 2, 1]),
    ],
)
def test_both_decoders_by_hand(path, tokens):
    log_probs, lengths = from_path(path), torch.tensor([len(path)])
    assert ctc_greedy(log_probs, lengths) == [tokens]
    assert ctc_beam_search(log_probs, lengths)[0][0].tokens == tokens


def test_greedy_equals_the_plain_loop():
    """Greedy ignores padding and equals the plain loop."""
    log_probs, lengths = scores(6, 20, 4), torch.tensor([20, 1, 0, 7, 13, 20])
    expected = [
        list(collapse(row[:length].argmax(-1).tolist()))
        for row, length in zip(log_probs, lengths, strict=True)
    ]
    assert ctc_greedy(log_probs, lengths) == expected


def test_blank_ratio_counts_real_frames_only():
    log_probs = torch.cat([from_path([0, 1, 0, 0]), from_path([2, 0, 1, 1])])
    assert ctc_blank_ratio(log_probs, torch.tensor([4, 2])).item() == pytest.approx(4 / 6)


@pytest.mark.parametrize(("frames", "classes"), [(1, 3), (4, 2), (4, 4), (6, 3), (7, 2)])
def test_wide_beam_is_exact(frames, classes):
    log_probs = scores(3, frames, classes, seed=frames)
    expected = [enumerate_sequences(row) for row in log_probs]
    width = len(expected[0]) + 40
    found = ctc_beam_search(
        log_probs,
        torch.full((3,), frames),
        beam_width=width,
        n_best=width,
        min_log_prob=-math.inf,
    )
    for hypotheses, truth in zip(found, expected, strict=True):
        # Every sequence once, best first, with the summed probability of its paths.
        assert [tuple(h.tokens) for h in hypotheses] == sorted(truth, key=lambda tokens: -truth[tokens])
        for hypothesis in hypotheses:
            assert hypothesis.score == pytest.approx(truth[tuple(hypothesis.tokens)], abs=1e-9)
        assert sum(math.exp(h.score) for h in hypotheses) == pytest.approx(1.0)


def test_beam_search_sums_paths():
    # Best path: blank, blank (0.36), but the sequence [1] has 0.16 + 0.24 + 0.24.
    """Beam search sums paths where greedy takes the best one."""
    log_probs = torch.tensor([[[0.6, 0.4], [0.6, 0.4]]]).log()
    lengths = torch.tensor([2])
    assert ctc_greedy(log_probs, lengths) == [[]]
    best = ctc_beam_search(log_probs, lengths)[0][0]
    assert best.tokens == [1]
    assert best.score == pytest.approx(math.log(0.64), abs=1e-6)


def test_padded_batch_equals_single_utterances():
    """Batch with padding equals each utterance alone."""
    log_probs, lengths = scores(5, 30, 6, scale=2.0), torch.tensor([30, 17, 1, 0, 8])
    together = ctc_beam_search(log_probs, lengths, beam_width=8, n_best=3)
    for row, length, hypotheses in zip(log_probs, lengths, together, strict=True):
        [alone] = ctc_beam_search(row[None, :length], length[None], beam_width=8, n_best=3)
        assert [h.tokens for h in hypotheses] == [h.tokens for h in alone]
        assert [h.score for h in hypotheses] == pytest.approx([h.score for h in alone])
    assert [(h.tokens, h.score) for h in together[3]] == [([], 0.0)]


def test_narrow_beam_gives_lower_bounds():
    """The CTC loss is the exact (negative) log probability of one sequence."""
    log_probs, lengths = scores(4, 40, 5, scale=4.0), torch.full((4,), 40)

    def mean_gap(width: int) -> float:
        found = [best for best, *_ in ctc_beam_search(log_probs, lengths, beam_width=width)]
        sizes = torch.tensor([len(best.tokens) for best in found])
        targets = torch.tensor([token for best in found for token in best.tokens])
        exact = -torch.nn.functional.ctc_loss(
            log_probs.transpose(0, 1), targets, lengths, sizes, reduction="none"
        )
        gaps = exact - torch.tensor([best.score for best in found], dtype=exact.dtype)
        assert (gaps >= -1e-9).all()
        return gaps.mean().item()

    gaps = [mean_gap(width) for width in (4, 16, 64, 256)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < gaps[0] / 4


def test_pruned_tokens_are_impossible():
    log_probs = torch.tensor([[[0.5, 0.3, 0.2]]]).log()
    found = ctc_beam_search(log_probs, torch.tensor([1]), n_best=3, min_log_prob=math.log(0.25))
    assert [h.tokens for h in found[0]] == [[], [1]]
    nothing_left = ctc_beam_search(log_probs, torch.tensor([1]), n_best=3, min_log_prob=0.0)
    assert [h.tokens for h in nothing_left[0]] == [[]]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"beam_width": 0}, "beam_width=0"), ({"beam_width": 4, "n_best": 5}, "n_best=5 .* beam_width=4")],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(MagnetoError, match=message):
        ctc_beam_search(scores(1, 3, 3), torch.tensor([3]), **options)
