"""Attention within windows and documents: in parts it is what a mask gives, and nothing beyond them is read."""

from typing import Any

import pytest
import torch
from torch import Tensor

from magneto.errors import ConfigError
from magneto.nn import BackboneConfig, Encoder, KVCache, build_backbone, training_flops_per_token
from magneto.nn.attention_kernels import Packed, Windowed, packed_sums, weighted_sums, windowed_sums
from tests.unit.nn.models import build, real, stream

DOCUMENTS = torch.tensor([[1] * 5 + [2] * 11 + [3] * 7 + [4], [7] + [9] * 20 + [0] * 3])
"""Of two packed sequences of 24 tokens, the second with padding."""


def masked_sums(q: Tensor, k: Tensor, v: Tensor, window: int, causal: bool, documents: Tensor) -> Tensor:
    """The definition: a mask over all pairs."""
    distance = torch.arange(q.size(2))[:, None] - torch.arange(q.size(2))
    near = (distance < window) & (distance > (-1 if causal else -window))
    near = near & (documents[:, :, None] == documents[:, None])
    return weighted_sums(q, k, v, near[:, None].expand(len(q), -1, -1, -1), 0.0, causal=False)


@pytest.mark.parametrize(
    "documents", [torch.ones(1, 24, dtype=torch.int64), DOCUMENTS], ids=["one", "packed"]
)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [1, 3, 5, 8, 24])
def test_parts_are_the_mask(window: int, causal: bool, documents: Tensor) -> None:
    """Outputs and gradients of windows, and where they are as long as the sequences also of documents."""
    q, k, v = torch.randn(3, 2, 4, 24, 8, dtype=torch.float64, requires_grad=True).unbind()
    found = [windowed_sums(q, k, v, Windowed(window, causal, documents), 0.0)]
    if window == 24:
        found.append(packed_sums(q, k, v, Packed.of(documents.expand(2, -1), causal), 0.0))
    expected = masked_sums(q, k, v, window, causal, documents)
    real = (documents > 0)[:, None, :, None]
    weights = torch.randn_like(expected) * real

    def gradients(h: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad((h * weights).sum(), (q, k, v), retain_graph=True)

    for ours in found:
        torch.testing.assert_close(ours * real, expected * real)
        torch.testing.assert_close(gradients(ours), gradients(expected))


@pytest.mark.parametrize("window", [None, 4, 20])
@pytest.mark.parametrize("position", ["rotary", "learned", "sinusoidal", "relative", "none"])
@pytest.mark.parametrize("architecture", ["encoder", "decoder"])
def test_a_document_is_alone(architecture: str, position: str, window: int | None) -> None:
    """A document in a packed sequence has the states that it has by itself."""
    model = build(architecture=architecture, position=position, attention_window=window).eval()
    x = stream(2, 24)
    with torch.inference_mode():
        packed = model(x, DOCUMENTS)
        for row, number, start, end in (
            (0, 1, 0, 5),
            (0, 2, 5, 16),
            (0, 3, 16, 23),
            (0, 4, 23, 24),
            (1, 9, 1, 21),
        ):
            assert (DOCUMENTS[row, start:end] == number).all()
            alone = model(x[row : row + 1, start:end])
            torch.testing.assert_close(packed[row, start:end], alone[0], atol=1e-5, rtol=1e-4)
    assert packed.isfinite().all()


def test_documents_refused() -> None:
    decoder = build(architecture="decoder", position="convolutional")
    with pytest.raises(ConfigError, match="numbers of documents, which position=convolutional"):
        decoder(stream(2, 24), DOCUMENTS)
    with pytest.raises(ConfigError, match="numbers of documents, which a cache"):
        build(architecture="decoder")(stream(2, 24), DOCUMENTS, cache=KVCache())


@pytest.mark.parametrize("position", ["rotary", "learned", "relative", "none"])
@pytest.mark.parametrize("architecture", ["encoder", "decoder"])
def test_a_token_sees_its_window(architecture: str, position: str) -> None:
    """Through two layers a change reaches two windows less two tokens, and no further."""
    model = build(architecture=architecture, position=position, num_layers=2, attention_window=4).eval()
    x = stream(1, 24)
    changed = x.clone()
    changed[:, 10] = stream(1, 1, seed=2)[:, 0]
    with torch.inference_mode():
        moved = (model(x) - model(changed)).abs().amax(-1)[0] > 1e-6
    first = 10 if architecture == "decoder" else 4
    assert moved.nonzero().flatten().tolist() == list(range(first, 17))


def test_training_with_padding_and_dropout() -> None:
    """An example that is all padding, and lengths that do not fill the last block, give finite gradients."""
    model = build(attention_window=3, attention_dropout=0.1, num_kv_heads=1, position="rotary")
    model(stream(3, 17), real([17, 2, 0], 17)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_bf16_and_compiled_blocks() -> None:
    model = build(attention_window=4, num_kv_heads=2, position="rotary").eval()
    x = stream(2, 30)
    with torch.inference_mode():
        whole = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(model(x), whole, atol=0.15, rtol=0.05)
    compiled = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(compiled(x), model(x))


def test_multiway_and_shared_heads() -> None:
    """A pair of one expert's tokens alone is what the plain stack gives, also with shared heads and a window."""
    for multiway in ("feed_forward", "full"):
        options = {"attention_window": 4, "num_kv_heads": 2, "position": "none", "multiway": multiway}
        model = build(**options).eval()
        x = stream(2, 20)
        pair = model(x, num_vision_tokens=8)
        assert pair.shape == x.shape and pair.isfinite().all()
        moved = x.clone()
        moved[:, 19] = stream(2, 1, seed=2)[:, 0]
        same = (model(moved, num_vision_tokens=8) == pair).all(-1)[0]
        assert same[:10].all() and not same[10:].any()  # three layers reach nine back


def test_flops_follow_window_and_heads() -> None:
    options: dict[str, Any] = {
        "architecture": "decoder",
        "num_layers": 1,
        "d_model": 64,
        "num_heads": 4,
        "ffn_dim": 1,
    }
    plain, shared, window = (
        training_flops_per_token(BackboneConfig(**options, **more), 1024)
        for more in ({}, {"num_kv_heads": 1}, {"attention_window": 128})
    )
    assert plain - shared == 6 * 2 * 64 * 48  # of keys and values three quarters are gone
    assert plain - window == 12 * 64 * (1024 - 128)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_kv_heads": 3}, "num_kv_heads=3 does not divide num_heads=4. Choose from 1, 2, 4"),
        ({"attention_window": 8, "position": "relative_2d", "grid": 4}, "attention_window=8: patches"),
        ({"rotary_factor": 2.0}, "rotary_factor=2 does not go with rotary_scaling=none"),
        ({"rotary_scaling": "yarn"}, "rotary_factor=1 does not go with rotary_scaling=yarn"),
        ({"attention_window": 0}, "attention_window"),
    ],
)
def test_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BackboneConfig(**values)


def test_all_keys_are_used_by_a_stack() -> None:
    """An encoder of shared heads has fewer parameters, by those of the missing keys and values."""
    sizes = [
        sum(
            p.numel()
            for p in build_backbone(BackboneConfig(num_layers=1, d_model=32, num_kv_heads=n)).parameters()
        )
        for n in (None, 1)
    ]
    assert sizes[0] - sizes[1] == 2 * 24 * (32 + 1)
    assert isinstance(build_backbone(BackboneConfig(num_kv_heads=2)), Encoder)
