"""Encoder, decoder and encoder-decoder with every placement and position."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from magneto.errors import MagnetoError
from magneto.nn import PLACEMENTS, BackboneConfig, Encoder
from magneto.nn.attention import Context
from magneto.nn.attention_kernels import matmul_attention
from magneto.nn.config import ACTIVATIONS, ARCHITECTURES, NORMS, SEQUENCE_POSITIONS
from magneto.nn.residual import Residual
from tests.unit.nn import models
from tests.unit.nn.models import HEADS, D
from tests.unit.nn.models import real as right_mask
from tests.unit.nn.models import stream as tokens
from tests.unit.oracles.weights import Link, agree, copy_weights, same


def build(
    placement: str = "magneto", position: str = "none", architecture: str = "encoder", **more: Any
) -> Any:
    values = {"num_layers": 2, "ffn_dim": None, "max_positions": 64, "conv_position_kernel": 5}
    return models.build(placement, architecture, position, **{**values, **more})


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_parameter_gets_a_gradient(placement: str, architecture: str) -> None:
    for position in SEQUENCE_POSITIONS:
        model = build(placement, position, architecture, dropout=0.1, attention_dropout=0.1, drop_path=0.1)
        x, mask = tokens(8), right_mask([9, 5, 3, 9, 9, 2, 9, 1], 9)
        out = model(x, tokens(8, 5), mask) if architecture == "encoder_decoder" else model(x, mask)
        assert out.shape == (8, 5 if architecture == "encoder_decoder" else 9, D)
        out.square().sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), (position, name)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("norm", NORMS)
def test_activations_and_norms(activation: str, norm: str) -> None:
    for bias in (True, False):
        model = build(activation=activation, norm=norm, bias=bias, qk_norm=True, input_norm=True)
        assert any("bias" in name for name, _ in model.named_parameters()) == bias
        model(tokens()).sum().backward()
        assert all(p.grad is not None for p in model.parameters())


# --- oracles -----------------------------------------------------------------------------------------------


def attention_links(ours: Any, theirs: nn.MultiheadAttention) -> list[Link]:
    """Parameters of one of our attentions beside those of torch's; our q and kv are slices of its one matrix."""
    parts = [(ours.qkv, (0, 3 * D))] if hasattr(ours, "qkv") else [(ours.q, (0, D)), (ours.kv, (D, 3 * D))]
    links = same(ours.out, theirs.out_proj)
    for linear, rows in parts:
        links.append(Link(linear.weight, theirs.in_proj_weight, their_rows=rows))
        links.append(Link(linear.bias, theirs.in_proj_bias, their_rows=rows))
    return links


@pytest.mark.parametrize("norm_first", [True, False], ids=["pre_ln", "post_ln"])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_agrees_with_torch_transformer_layers(
    side: str, norm_first: bool, activation: str, padded: bool
) -> None:
    """Outputs and all gradients of nn.TransformerEncoder and nn.TransformerDecoder with our weights."""
    decoder = side == "decoder"
    architecture = "encoder_decoder" if decoder else "encoder"
    model = build("pre_ln" if norm_first else "post_ln", activation=activation, architecture=architecture)
    ours = model.decoder if decoder else model
    kind = nn.TransformerDecoderLayer if decoder else nn.TransformerEncoderLayer
    layer: Any = kind(D, HEADS, 4 * D, 0.0, activation, batch_first=True, norm_first=norm_first)
    norm = nn.LayerNorm(D) if norm_first else None
    theirs: Any = (
        nn.TransformerDecoder(layer, 2, norm) if decoder else nn.TransformerEncoder(layer, 2, norm, False)
    )
    links = same(ours.final_norm, theirs.norm) if norm_first else []
    for a, b in zip(ours.layers, theirs.layers, strict=True):
        attentions = [(a.self_attention, b.self_attn)]
        attentions += [(a.cross_attention, b.multihead_attn)] if decoder else []
        for residual, attention in attentions:
            links += attention_links(residual.branch, attention)
        residuals = [residual for residual, _ in attentions] + [a.feed_forward]
        for residual, torch_norm in zip(
            residuals, (b.norm1, b.norm2, getattr(b, "norm3", None)), strict=False
        ):
            links += same(residual.pre_norm if norm_first else residual.post_norm, torch_norm)
        feed_forward = a.feed_forward.branch
        links += same(feed_forward.fc1, b.linear1) + same(feed_forward.fc2, b.linear2)
    copy_weights(ours, theirs, links)

    real = right_mask([9, 4, 7], 9) if padded else torch.ones(3, 9, dtype=torch.bool)
    mask = real if padded else None
    bars = ~real if padded else None
    x = tokens().requires_grad_()
    y = x.detach().clone().requires_grad_()
    if decoder:
        memory, seen = torch.randn(3, 6, D), right_mask([2, 6, 3], 6)
        future = ~torch.ones(9, 9, dtype=torch.bool).tril()
        outputs = (
            ours(x, mask, memory, seen),
            theirs(y, memory, tgt_mask=future, tgt_key_padding_mask=bars, memory_key_padding_mask=~seen),
        )
    else:
        outputs = ours(x, mask), theirs(y, src_key_padding_mask=bars)
    agree(outputs, [(x, y)], links, real)


def naive_self_attention(branch: Any, x: Tensor, allowed: Tensor) -> Tensor:
    """Magneto's eqs. 1 and 2 for one head after the other, with an explicit softmax."""
    q, k, v = (
        F.linear(x, w, b) for w, b in zip(branch.qkv.weight.chunk(3), branch.qkv.bias.chunk(3), strict=True)
    )
    heads = []
    for h in range(HEADS):
        part = slice(h * D // HEADS, (h + 1) * D // HEADS)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / (D // HEADS) ** 0.5
        heads.append(scores.masked_fill(~allowed, float("-inf")).softmax(-1) @ v[..., part])
    return F.linear(branch.inner_norm(torch.cat(heads, -1)), branch.out.weight, branch.out.bias)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_sub_ln_agrees_with_the_equations(causal: bool, padded: bool) -> None:
    model, x = build(num_layers=1), tokens()
    real = right_mask([9, 4, 7], 9) if padded else torch.ones(3, 9, dtype=torch.bool)
    allowed = real[:, None, :].expand(3, 9, 9)
    if causal:
        allowed = allowed & torch.ones(9, 9, dtype=torch.bool).tril()
    attention, feed_forward = model.layers[0].self_attention, model.layers[0].feed_forward
    h = x + naive_self_attention(attention.branch, attention.pre_norm(x), allowed)
    ffn = feed_forward.branch
    inner = ffn.inner_norm(F.gelu(ffn.fc1(feed_forward.pre_norm(h))))
    expected = model.final_norm(h + ffn.fc2(inner))
    actual = model(x, real if padded else None, causal=causal)
    torch.testing.assert_close(actual[real], expected[real], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["none", "bool", "float", "causal"])
def test_matmul_attention_is_sdpa(kind: str) -> None:
    q, k, v = (torch.randn(2, 3, 7, 8, requires_grad=True) for _ in range(3))
    bias = {"bool": torch.rand(2, 1, 1, 7) > 0.3, "float": torch.randn(1, 3, 7, 7)}.get(kind)
    if bias is not None and kind == "bool":
        bias[..., 0] = True
    ours = matmul_attention(q, k, v, bias, 0.0, kind == "causal")
    theirs = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=kind == "causal")
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    direction = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad(ours, (q, k, v), direction),
        torch.autograd.grad(theirs, (q, k, v), direction),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


# --- masks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", SEQUENCE_POSITIONS)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_padding_changes_nothing(placement: str, position: str) -> None:
    model = build(placement, position)
    x, lengths = tokens(), [9, 4, 7]
    noise = x.masked_fill(~right_mask(lengths, 9)[..., None], 1e3)
    batch = model(noise, right_mask(lengths, 9))
    assert batch.isfinite().all()
    for row, length in enumerate(lengths):
        alone = model(x[row : row + 1, :length])
        torch.testing.assert_close(batch[row, :length], alone[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("position", SEQUENCE_POSITIONS)
def test_memory_padding_changes_nothing(position: str) -> None:
    model = build(position=position, architecture="encoder_decoder")
    x, y, lengths = tokens(), tokens(3, 5), [9, 4, 7]
    batch = model(x, y, right_mask(lengths, 9), right_mask([5, 2, 3], 5))
    for row, (source, target) in enumerate(zip(lengths, [5, 2, 3], strict=True)):
        alone = model(x[row : row + 1, :source], y[row : row + 1, :target])
        torch.testing.assert_close(batch[row, :target], alone[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("position", SEQUENCE_POSITIONS)
@pytest.mark.parametrize("architecture", ["encoder", "decoder"])
def test_the_future_is_not_seen(architecture: str, position: str) -> None:
    model, x = build(position=position, architecture=architecture), tokens()
    run = (lambda x: model(x, causal=True)) if architecture == "encoder" else model
    if architecture == "encoder" and position == "convolutional":
        with pytest.raises(MagnetoError, match="position=convolutional looks ahead"):
            run(x)
        return
    changed = x.clone()
    changed[:, 5:] = torch.randn_like(changed[:, 5:])
    before, after = run(x), run(changed)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.isclose(before[:, 5:], after[:, 5:], atol=1e-3).all(dim=-1).any()


@pytest.mark.parametrize("position", ["none", "relative"])
def test_example_without_tokens_is_finite(position: str) -> None:
    model = build(position=position, architecture="encoder_decoder")
    out = model(tokens(2), tokens(2, 4), right_mask([9, 0], 9), right_mask([4, 0], 4))
    out.sum().backward()
    assert out.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


# --- training ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("position", ["rotary", "relative"])
def test_checkpointing_changes_no_gradient(position: str, architecture: str) -> None:
    """Dropout included: the recomputation must draw the same masks."""
    gradients = []
    for checkpointing in (False, True, "selective"):
        model = build(
            position=position, architecture=architecture, dropout=0.2, drop_path=0.2,
            activation_checkpointing=checkpointing,
        )  # fmt: skip
        calls: list[int] = []
        for module in model.modules():
            if isinstance(module, Residual):
                module.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(3)
        x = tokens().requires_grad_()
        out = model(x, tokens(3, 5)) if architecture == "encoder_decoder" else model(x)
        forward_calls = len(calls)
        out.square().sum().backward()
        assert (len(calls) > forward_calls) == bool(checkpointing)
        gradients.append([x.grad, *(p.grad for p in model.parameters())])
    for a, b, c in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(a, c)


def test_selective_checkpointing_repeats_no_product() -> None:
    """It keeps less than all, and computes matrix products and attention once; without selection a third more."""
    flops = []
    for checkpointing in (False, "selective", True):
        model = build(position="rotary", activation_checkpointing=checkpointing)
        x = tokens(8).requires_grad_()
        with FlopCounterMode(display=False) as counter:
            model(x).sum().backward()
        flops.append(counter.get_total_flops())
    assert flops[0] == flops[1] and 1.2 * flops[0] < flops[2] < 1.4 * flops[0]


def kept_bytes(model: Any) -> int:
    """Bytes that the forward pass keeps for the backward pass, parameters apart."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(tokens(8)).sum()
    for parameter in model.parameters():
        storages.pop(parameter.untyped_storage().data_ptr(), None)
    return sum(storages.values())


def test_outputs_of_inner_norms_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are computed again, with the same gradients bit for bit: Magneto keeps what Pre-LN does, and statistics."""
    gradients, kept = [], []
    for limit in (0, 2**23):
        monkeypatch.setattr("magneto.nn.norm.KEPT_BYTES", limit)
        model = build()
        kept.append(kept_bytes(model))
        model(tokens(8)).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert kept[0] < 1.05 * kept_bytes(build("pre_ln")) < 0.9 * kept[1]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_drop_path_skips_whole_examples(placement: str, compiled: bool) -> None:
    """What is left of a skipped example is the residual stream alone, after the post-norm where there is one."""
    model = build(placement, drop_path=0.75, num_layers=4)
    residual = model.layers[-1].feed_forward
    assert [layer.feed_forward.drop_path for layer in model.layers] == [0.0, 0.25, 0.5, 0.75]
    for name, parameter in residual.named_parameters(recurse=False):  # ReZero's begins at zero
        assert name == "scale"
        parameter.data.fill_(0.5)
    if residual.branch_norm is not None:
        nn.init.ones_(residual.branch_norm.weight)
    x = tokens(400, 2)
    h, stream = residual.pre(x)
    h = residual.branch(h)
    skipped = residual.alpha * stream
    h = h if residual.branch_norm is None else residual.branch_norm(h)
    for factor in (residual.scale, residual.weight):
        h = h if factor is None else factor * h
    kept = h / 0.25 + skipped
    if residual.post_norm is not None:
        skipped, kept = residual.post_norm(skipped), residual.post_norm(kept)
    if compiled:
        torch._dynamo.reset()
        residual.compile(backend="eager", fullgraph=True)
    out = residual(x)
    is_skipped = torch.isclose(out, skipped, atol=1e-5).flatten(1).all(1)
    is_kept = torch.isclose(out, kept, atol=1e-4, rtol=1e-4).flatten(1).all(1)
    assert (is_skipped ^ is_kept).all()
    assert 0.65 < is_skipped.float().mean() < 0.85
    model.eval()
    assert torch.equal(model(x), model(x))


def test_dropouts_act_in_training_only() -> None:
    for name in ("dropout", "attention_dropout", "activation_dropout"):
        model, x = build(**{name: 0.5}), tokens()
        assert not torch.allclose(model(x), model(x)), name
        model.eval()
        plain = build()
        torch.testing.assert_close(model(x), plain.eval()(x))


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("position", ["none", "rotary", "relative"])
def test_bf16_autocast(position: str, placement: str) -> None:
    """The stream stays fp32, and the result near that of fp32, with padding and without."""
    for mask in (None, right_mask([9, 4, 7], 9)):
        model, x = build(placement, position), tokens()
        real = torch.ones(3, 9, dtype=torch.bool) if mask is None else mask
        exact = model(x, mask)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(x.bfloat16(), mask)
        assert rough.dtype == torch.float32
        rough.sum().backward()
        assert (rough - exact)[real].abs().mean() < 0.02
        assert all(p.grad.isfinite().all() for p in model.parameters())


def test_features_of_intermediate_layers() -> None:
    model, x = build(num_layers=4), tokens()
    seen: list[Tensor] = []
    for layer in model.layers:
        layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    out, features = model(x, return_layers=(2, 0))
    torch.testing.assert_close(features, [seen[2], seen[0]])
    torch.testing.assert_close(out, model(x))


def test_layers_read_what_is_made_between() -> None:
    model = build()
    x = tokens()
    _, (first,) = model(x, return_layers=[0])
    out, (kept,) = model(x, return_layers=[0], between={0: lambda h: 2 * h})
    assert torch.equal(kept, first)
    context = Context()
    torch.testing.assert_close(out, model.final_norm(model.layers[1](2 * first, context, None)))


def test_too_long_sequence_raises() -> None:
    for position in ("learned", "sinusoidal", "rotary"):
        with pytest.raises(ValueError, match=f"70 tokens .* max_positions=64.*position={position}"):
            build(position=position)(tokens(1, 70))
    for position in ("none", "relative", "convolutional"):
        assert build(position=position)(tokens(1, 70)).shape == (1, 70, D)


def test_masks_that_sdpa_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, bool]] = []
    original = F.scaled_dot_product_attention

    def spy(*args: Any, **kwargs: Any) -> Tensor:
        seen.append((kwargs["attn_mask"], kwargs["is_causal"]))
        return original(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    Encoder(BackboneConfig(num_layers=1, d_model=D))(tokens())
    build(architecture="decoder", num_layers=1)(tokens())
    assert seen == [(None, False), (None, True)]

    # A mask leaves every query of a left-padded prompt a key: kernels differ in what they make of none.
    build(architecture="decoder", num_layers=1)(tokens(), right_mask([9, 4, 7], 9).flip(1))
    mask, causal = seen[-1]
    assert mask.any(dim=-1).all() and not causal
