"""The transducer's loss, against sums over all paths, torchaudio's kernel and its own parts."""

import itertools
from functools import cache

import pytest
import torch
from torch import Tensor
from torchaudio.functional import rnnt_loss

from magneto.nn.transducer import BLANK, Joint, Predictor, path_sum_loss

LENGTHS, TARGET_LENGTHS = torch.tensor([5, 3, 1, 4]), torch.tensor([3, 4, 2, 0])
V, WIDTH = 6, 8


def paths(frames: int, tokens: int) -> list[tuple[bool, ...]]:
    """All orders of the blanks and tokens, True being a token; the last is a blank, which ends the last frame."""
    steps = frames - 1 + tokens
    return [
        (*(n in chosen for n in range(steps)), False)
        for chosen in itertools.combinations(range(steps), tokens)
    ]


def summed_by_hand(blank: Tensor, token: Tensor) -> Tensor:
    """Minus the log of the sum over all paths of one text, each walked for itself."""
    scores = []
    for path in paths(len(blank), token.size(1)):
        t = u = 0
        score = blank.new_zeros(())
        for emits in path:
            score = score + (token[t, u] if emits else blank[t, u])
            t, u = (t, u + 1) if emits else (t + 1, u)
        scores.append(score)
    return -torch.stack(scores).logsumexp(0)


def forward_by_recursion(blank: Tensor, token: Tensor) -> float:
    """The textbook's recursion, node by node."""

    @cache
    def alpha(t: int, u: int) -> float:
        ways = [torch.tensor(0.0 if t == u == 0 else -torch.inf, dtype=torch.float64)]
        if t:
            ways.append(alpha(t - 1, u) + blank[t - 1, u])
        if u:
            ways.append(alpha(t, u - 1) + token[t, u - 1])
        return torch.stack([torch.as_tensor(way) for way in ways]).logsumexp(0)

    return -(alpha(len(blank) - 1, token.size(1)) + blank[-1, -1])


@pytest.fixture
def parts() -> tuple[Joint, Tensor, Tensor, Tensor]:
    """A joint network, frames, prefixes and targets."""
    torch.manual_seed(0)
    joint, predictor = Joint(WIDTH, 7, 5, V), Predictor(V, 7, 2)
    targets = torch.randint(1, V, (4, int(TARGET_LENGTHS.max())))
    return joint, torch.randn(4, int(LENGTHS.max()), WIDTH), predictor.prefixes(targets).detach(), targets


def test_loss_sums_all_paths() -> None:
    """And does not read what is padded, in the loss nor in the gradient; texts may be longer than the sound."""
    torch.manual_seed(0)
    blank = torch.randn(4, 5, 5, dtype=torch.float64, requires_grad=True)
    token = torch.randn(4, 5, 4, dtype=torch.float64, requires_grad=True)
    losses = path_sum_loss(blank, token, LENGTHS, TARGET_LENGTHS)
    grads = torch.autograd.grad((losses * torch.arange(1, 5)).sum(), (blank, token))
    by_hand = []
    for row, (frames, tokens) in enumerate(zip(LENGTHS.tolist(), TARGET_LENGTHS.tolist(), strict=True)):
        real = blank[row, :frames, : tokens + 1], token[row, :frames, :tokens]
        by_hand.append(summed_by_hand(*real))
        assert float(forward_by_recursion(*real)) == pytest.approx(float(by_hand[-1]), abs=1e-12)
    expected = torch.autograd.grad((torch.stack(by_hand) * torch.arange(1, 5)).sum(), (blank, token))
    torch.testing.assert_close(losses, torch.stack(by_hand))
    torch.testing.assert_close(grads, expected)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_loss_equals_torchaudio(parts: tuple[Joint, Tensor, Tensor, Tensor], scale: float) -> None:
    """With its gradients of the frames, also where scores are far apart; and so does the loss that is made in parts."""
    joint, frames, prefixes, targets = parts
    frames = (frames * scale).requires_grad_()
    logits = joint(joint.frame(frames)[:, :, None], joint.prefix(prefixes)[:, None])
    expected = rnnt_loss(
        logits, targets.int(), LENGTHS.int(), TARGET_LENGTHS.int(), blank=BLANK, reduction="none"
    )
    gradients = torch.autograd.grad(expected.sum(), (frames, *joint.parameters()))
    for max_scores in (2**24, 1, 300):
        losses = joint.loss(frames, prefixes, targets, LENGTHS, TARGET_LENGTHS, max_scores)
        torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-4)
        ours = torch.autograd.grad(losses.sum(), (frames, *joint.parameters()))
        torch.testing.assert_close(ours, gradients, rtol=1e-3, atol=1e-4)


def test_long_texts_keep_their_precision() -> None:
    """Sums of hundreds of scores cancel in the recurrence: in fp64 that is harmless."""
    torch.manual_seed(0)
    logits = 3 * torch.randn(1, 400, 121, 20)
    targets = torch.randint(1, 20, (1, 120))
    lengths, target_lengths = torch.tensor([400]), torch.tensor([120])
    expected = rnnt_loss(logits, targets.int(), lengths.int(), target_lengths.int(), blank=BLANK)
    scores = logits.log_softmax(-1)
    token = scores[:, :, :-1].gather(-1, targets[:, None, :, None].expand(-1, 400, -1, 1)).squeeze(-1)
    torch.testing.assert_close(
        path_sum_loss(scores[..., BLANK], token, lengths, target_lengths)[0], expected, rtol=1e-5, atol=0
    )


def test_predictor_reads_token_by_token() -> None:
    """As in decoding: the same states as those of a whole text."""
    predictor = Predictor(V, 7, 2).eval()
    targets = torch.randint(1, V, (3, 4))
    whole, state = predictor.prefixes(targets), None
    tokens = torch.cat((torch.full((3, 1), BLANK), targets), dim=1)
    for place in range(5):
        states, state = predictor(tokens[:, place : place + 1], state)
        torch.testing.assert_close(states[:, 0], whole[:, place])
