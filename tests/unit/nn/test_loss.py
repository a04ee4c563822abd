"""The chunked cross-entropy against torch's own, in values, gradients and memory."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from magneto.nn import BackboneConfig, TokenStem
from magneto.nn.loss import chunked_cross_entropy

N, D, V = 37, 12, 29


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, table and bias that need gradients, and targets."""
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, D, generator=g, dtype=dtype).requires_grad_()
    weight = torch.randn(V, D, generator=g, dtype=dtype).requires_grad_()
    bias = torch.randn(V, generator=g, dtype=dtype).requires_grad_()
    return hidden, weight, bias, torch.randint(V, (N,), generator=g)


@pytest.mark.parametrize("chunk", [1, 5, 37, 100, None])
@pytest.mark.parametrize(("smoothing", "z_loss"), [(0.0, 0.0), (0.1, 0.0), (0.0, 1e-2), (0.1, 1e-2)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_it_is_cross_entropy(chunk: int | None, smoothing: float, z_loss: float, with_bias: bool) -> None:
    hidden, weight, bias, targets = inputs()
    leaves = [hidden, weight, bias] if with_bias else [hidden, weight]
    logits = F.linear(hidden, weight, bias if with_bias else None)
    expected = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
    expected = expected + z_loss * logits.logsumexp(-1).square().sum()
    # A factor on the loss, as gradient accumulation has it.
    wanted = torch.autograd.grad(0.3 * expected, leaves)
    found = chunked_cross_entropy(
        hidden, weight, targets, bias if with_bias else None, smoothing, chunk, correct=True, z_loss=z_loss
    )
    torch.testing.assert_close(found.loss_sum, expected)
    torch.testing.assert_close(found.nll, F.cross_entropy(logits, targets, reduction="none").detach())
    assert found.correct is not None
    assert torch.equal(found.correct, logits.argmax(-1) == targets)
    for ours, theirs in zip(torch.autograd.grad(0.3 * found.loss_sum, leaves), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_only_required_gradients_are_computed() -> None:
    hidden, weight, bias, targets = inputs()
    found = chunked_cross_entropy(hidden.detach(), weight, targets, bias.detach())
    assert found.correct is None and not found.nll.requires_grad
    found.loss_sum.backward()
    assert weight.grad is not None and hidden.grad is None and bias.grad is None
    with torch.no_grad():
        assert not chunked_cross_entropy(hidden, weight, targets).loss_sum.requires_grad


def test_tied_table_gets_both_gradients() -> None:
    """A tied table gets the gradients of the input and of the output layer."""
    torch.manual_seed(0)
    stem = TokenStem(V, BackboneConfig(d_model=12, num_heads=2))
    tokens, targets = torch.randint(V, (2, N))

    def gradient(loss: Tensor) -> Tensor:
        stem.zero_grad()
        loss.backward()
        assert stem.embedding.weight.grad is not None
        return stem.embedding.weight.grad.clone()

    expected = gradient(F.cross_entropy(stem.logits(stem(tokens)), targets, reduction="sum"))
    found = gradient(chunked_cross_entropy(stem(tokens), stem.embedding.weight, targets, chunk=8).loss_sum)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_no_position_to_predict_is_a_loss_of_zero() -> None:
    hidden, weight, bias, targets = inputs()
    found = chunked_cross_entropy(hidden[:0], weight, targets[:0], bias)
    found.loss_sum.backward()
    assert found.loss_sum == 0 and len(found.nll) == 0
    assert weight.grad is not None and not weight.grad.any()


@pytest.mark.parametrize("chunk", [5, None])
def test_autocast_products_bf16_sums_fp32(chunk: int | None) -> None:
    hidden, weight, bias, targets = inputs()
    leaves = [hidden, weight, bias]
    with torch.autocast("cpu", torch.bfloat16):
        logits = F.linear(hidden, weight, bias)
        assert logits.dtype == torch.bfloat16
        expected = F.cross_entropy(logits.float(), targets, reduction="sum")
        found = chunked_cross_entropy(hidden, weight, targets, bias, chunk=chunk)
    assert found.loss_sum.dtype == found.nll.dtype == torch.float32
    torch.testing.assert_close(found.loss_sum, expected)
    wanted = torch.autograd.grad(expected, leaves)
    for ours, theirs in zip(torch.autograd.grad(found.loss_sum, leaves), wanted, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02)


def test_bf16_weights_work_as_they_are() -> None:
    hidden, weight, bias, targets = inputs(torch.bfloat16)
    found = chunked_cross_entropy(hidden, weight, targets, bias, chunk=8)
    found.loss_sum.backward()
    expected = F.cross_entropy(F.linear(hidden, weight, bias).float(), targets, reduction="sum")
    torch.testing.assert_close(found.loss_sum, expected)
    assert weight.grad is not None and weight.grad.dtype == torch.bfloat16


def test_second_backward_raises() -> None:
    hidden, weight, _, targets = inputs()
    loss = chunked_cross_entropy(hidden, weight, targets).loss_sum
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation inside of it made, in elements."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("autocast", [False, True])
def test_logits_of_all_positions_never_exist(autocast: bool) -> None:
    """Of 64 positions and 5,000 tokens, four positions at a time: no tensor is larger than the table."""
    hidden = torch.randn(64, 4, requires_grad=True)
    weight = torch.randn(5000, 4, requires_grad=True)
    targets = torch.randint(5000, (64,))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), Largest() as ours:
        chunked_cross_entropy(hidden, weight, targets, chunk=4).loss_sum.backward()
    assert ours.elements == weight.numel() == 4 * 5000
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), Largest() as plain:
        F.cross_entropy(F.linear(hidden, weight), targets).backward()
    assert plain.elements == 64 * 5000


@pytest.mark.parametrize(("vocabulary", "positions", "part"), [(1_024, 6_000, 2_000), (65_536, 1_100, 367)])
def test_a_chunk_is_chosen_by_its_bytes(vocabulary: int, positions: int, part: int) -> None:
    """8 MiB are 2,048 positions of 1k tokens, and 32 of 64k, where 512 are the least: three equal parts each."""
    hidden = torch.randn(positions, 2, requires_grad=True)
    weight = torch.randn(vocabulary, 2, requires_grad=True)
    with Largest() as largest:
        found = chunked_cross_entropy(hidden, weight, torch.randint(vocabulary, (positions,)))
        found.loss_sum.backward()
    assert largest.elements == part * vocabulary
    assert float(found.loss_sum.detach()) / positions > math.log(vocabulary) - 1
