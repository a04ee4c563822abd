"""Dropout with 16 random bits an element: shares, scale, gradient, and masks that follow from the generator alone."""

import pytest
import torch

from magneto.nn.dropout import dropout


@pytest.mark.parametrize("p", [0.001, 0.1, 0.5, 0.9, 1 - 1e-9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_share_and_scale(p: float, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    out = dropout(torch.ones(1001, 999, dtype=dtype), p, training=True)
    assert out.dtype == dtype
    zeros = (out == 0).double().mean().item()
    assert zeros == pytest.approx(p, abs=5 * (p * (1 - p) / 1e6) ** 0.5 + 2e-5)
    assert len(out[out != 0].unique()) <= 1
    if p < 0.95:
        assert out.double().mean().item() == pytest.approx(1, rel=0.02)


def test_neighbours_are_independent() -> None:
    """The four elements of a draw as well as those of two."""
    torch.manual_seed(1)
    kept = (dropout(torch.ones(400_000), 0.3, training=True) != 0).double()
    for distance in (1, 2, 3, 4, 5):
        a, b = kept[:-distance], kept[distance:]
        assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 0.01


def test_gradient_has_the_mask() -> None:
    x = torch.randn(7, 3, 5, requires_grad=True)
    out = dropout(x, 0.4, training=True)
    out.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(out, x * x.grad)


def test_masks_follow_from_the_seed() -> None:
    x, threads = torch.ones(64, 1000), torch.get_num_threads()
    masks = []
    for count in (1, 2):
        torch.set_num_threads(count)
        torch.manual_seed(3)
        masks += [dropout(x, 0.2, training=True), dropout(x, 0.2, training=True)]
    torch.set_num_threads(threads)
    assert torch.equal(masks[0], masks[2]) and torch.equal(masks[1], masks[3])
    assert not torch.equal(masks[0], masks[1])


def test_off() -> None:
    x = torch.randn(3)
    assert dropout(x, 0.5, training=False) is x and dropout(x, 0.0, training=True) is x
