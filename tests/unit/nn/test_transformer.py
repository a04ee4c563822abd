"""Encoder, decoder and encoder-decoder with every placement and position."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from magneto.errors import MagnetoError
from magneto.nn import PLACEMENTS, BackboneConfig, Encoder, KVCache, build_backbone
from magneto.nn.attention import matmul_attention
from magneto.nn.config import ACTIVATIONS, ARCHITECTURES, NORMS, SEQUENCE_POSITIONS
from magneto.nn.residual import Residual
from tests.unit.nn.models import HEADS, D
from tests.unit.nn.models import real as right_mask
from tests.unit.nn.models import stream as tokens


def build(
    placement: str = "magneto", position: str = "none", architecture: str = "encoder", **more: Any
) -> Any:
    """A small model whose parameters are all random: a zero bias or a unit norm would hide mistakes."""
    torch.manual_seed(0)
    values = {
        "num_layers": 2,
        "d_model": D,
        "num_heads": HEADS,
        "max_positions": 64,
        "conv_position_kernel": 5,
    }
    config = BackboneConfig(
        placement=placement, position=position, architecture=architecture, **{**values, **more}
    )
    model = build_backbone(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2 or "relative" in config.position:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


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


def attention_pairs(ours: Any, theirs: nn.MultiheadAttention) -> list[tuple[Any, Any]]:
    """Parameters of one of our attentions beside those of torch's; q, k, v blocks as slices of theirs."""
    inputs = (
        [(ours.qkv, slice(None))]
        if hasattr(ours, "qkv")
        else [(ours.q, slice(0, D)), (ours.kv, slice(D, None))]
    )
    pairs = [
        ((ours.out, "weight"), (theirs.out_proj, "weight")),
        ((ours.out, "bias"), (theirs.out_proj, "bias")),
    ]
    for linear, rows in inputs:
        pairs += [((linear, "weight"), (theirs, "in_proj_weight", rows))]
        pairs += [((linear, "bias"), (theirs, "in_proj_bias", rows))]
    return pairs


def tensors(entry: Any, gradient: bool = False) -> Tensor:
    module, name, *rows = entry
    parameter = getattr(module, name)
    tensor = parameter.grad if gradient else parameter.data
    return tensor[rows[0]] if rows else tensor


@pytest.mark.parametrize("norm_first", [True, False], ids=["pre_ln", "post_ln"])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_agrees_with_torch_transformer_layers(
    side: str, norm_first: bool, activation: str, padded: bool
) -> None:
    """Outputs and all gradients of nn.TransformerEncoder and nn.TransformerDecoder with our weights."""
    decoder = side == "decoder"
    model = build(
        "pre_ln" if norm_first else "post_ln",
        activation=activation,
        num_layers=3,
        architecture="encoder_decoder" if decoder else "encoder",
    )
    ours = model.decoder if decoder else model
    sizes: Any = (D, HEADS, 4 * D, 0.0, activation)
    norm = nn.LayerNorm(D) if norm_first else None
    theirs: Any
    if decoder:
        torch_layer = nn.TransformerDecoderLayer(*sizes, batch_first=True, norm_first=norm_first)
        theirs = nn.TransformerDecoder(torch_layer, 3, norm=norm)
    else:
        encoder_layer = nn.TransformerEncoderLayer(*sizes, batch_first=True, norm_first=norm_first)
        theirs = nn.TransformerEncoder(encoder_layer, 3, norm=norm, enable_nested_tensor=False)

    pairs: list[tuple[Any, Any]] = []
    for a, b in zip(ours.layers, theirs.layers, strict=True):
        residuals = [a.self_attention, a.cross_attention, a.feed_forward]
        norms = [b.norm1, b.norm2, b.norm3] if decoder else [b.norm1, None, b.norm2]
        for residual, torch_norm in zip(residuals, norms, strict=True):
            if residual is not None:
                own = residual.pre_norm if norm_first else residual.post_norm
                pairs += [((own, name), (torch_norm, name)) for name in ("weight", "bias")]
        pairs += attention_pairs(a.self_attention.branch, b.self_attn)
        if decoder:
            pairs += attention_pairs(a.cross_attention.branch, b.multihead_attn)
        for own, torch_linear in (
            (a.feed_forward.branch.fc1, b.linear1),
            (a.feed_forward.branch.fc2, b.linear2),
        ):
            pairs += [((own, name), (torch_linear, name)) for name in ("weight", "bias")]
    if norm_first:
        pairs += [((ours.final_norm, name), (theirs.norm, name)) for name in ("weight", "bias")]
    assert len(pairs) == len(list(ours.parameters()))
    for a, b in pairs:
        tensors(b).copy_(tensors(a))

    lengths = [9, 4, 7]
    real = right_mask(lengths, 9) if padded else torch.ones(3, 9, dtype=torch.bool)
    mask = real if padded else None
    x = tokens().requires_grad_()
    y = x.detach().clone().requires_grad_()
    if decoder:
        memory = torch.randn(3, 6, D)
        memory_real = right_mask([2, 6, 3], 6)
        a = ours(x, mask, memory, memory_real)
        b = theirs(
            y,
            memory,
            tgt_mask=~torch.ones(9, 9, dtype=torch.bool).tril(),
            tgt_key_padding_mask=~real if padded else None,
            memory_key_padding_mask=~memory_real,
        )
    else:
        a, b = ours(x, mask), theirs(y, src_key_padding_mask=~real if padded else None)
    torch.testing.assert_close(a[real], b[real], atol=1e-5, rtol=1e-5)
    for out in (a[real], b[real]):
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, atol=1e-5, rtol=1e-5)
    for a, b in pairs:
        torch.testing.assert_close(tensors(a, True), tensors(b, True), atol=1e-5, rtol=1e-5)


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


@pytest.mark.parametrize("architecture", ["encoder", "decoder"])
def test_causal_right_padding_needs_no_mask(architecture: str) -> None:
    model, x, mask = build(position="learned", architecture=architecture), tokens(), right_mask([9, 4, 7], 9)
    masked = model(x, mask, causal=True) if architecture == "encoder" else model(x, mask)
    plain = model(x, causal=True) if architecture == "encoder" else model(x)
    torch.testing.assert_close(masked[mask], plain[mask], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("position", ["none", "relative"])
def test_example_without_tokens_is_finite(position: str) -> None:
    model = build(position=position, architecture="encoder_decoder")
    out = model(tokens(2), tokens(2, 4), right_mask([9, 0], 9), right_mask([4, 0], 4))
    out.sum().backward()
    assert out.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


# --- cached decoding ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", SEQUENCE_POSITIONS)
@pytest.mark.parametrize("placement", PLACEMENTS)
@torch.no_grad()
def test_cached_equals_uncached(placement: str, position: str) -> None:
    """A prompt of 4, single tokens, then a chunk of 3; longer than the convolution's kernel."""
    x = tokens(3, 12)
    steps = [x[:, :4], *x[:, 4:9].split(1, dim=1), x[:, 9:]]

    model = build(placement, position, "decoder")
    cache = KVCache()
    stepped = torch.cat([model(step, cache=cache) for step in steps], dim=1)
    torch.testing.assert_close(stepped, model(x), atol=1e-5, rtol=1e-5)
    assert cache.length == 12 and cache.mask is None

    model = build(placement, position, "encoder_decoder")
    mask = right_mask([9, 4, 7], 9)
    memory = model.encode(tokens(), mask)
    cache = KVCache()
    stepped = torch.cat([model.decode(step, None, memory, mask, cache) for step in steps], dim=1)
    torch.testing.assert_close(stepped, model.decode(x, None, memory, mask), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("position", SEQUENCE_POSITIONS)
@torch.no_grad()
def test_prompts_of_unequal_length(position: str) -> None:
    """Left padding: each row decodes as it does alone, prompt and continuation."""
    model, x, lengths = build(position=position, architecture="decoder"), tokens(3, 12), [8, 3, 5]
    prompt = torch.full((3, 8, D), 1e3)
    for row, length in enumerate(lengths):
        prompt[row, 8 - length :] = x[row, :length]
    mask = right_mask(lengths, 8).flip(1)
    cache = KVCache()
    outputs = [model(prompt, mask, cache=cache)]
    for step in range(4):
        new = torch.stack([x[row, length + step] for row, length in enumerate(lengths)])
        outputs.append(model(new[:, None], cache=cache))
    batch = torch.cat(outputs, dim=1)
    for row, length in enumerate(lengths):
        alone = model(x[row : row + 1, : length + 4])
        torch.testing.assert_close(batch[row, 8 - length :], alone[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("position", SEQUENCE_POSITIONS)
@torch.no_grad()
def test_reorder_follows_the_beams(position: str) -> None:
    """One prompt a source becomes two beams each, beams change places, one source leaves."""
    model = build(position=position, architecture="encoder_decoder")
    mask = right_mask([9, 4], 9)
    memory = model.encode(tokens(2), mask)
    cache = KVCache()
    history = tokens(2, 3)
    model.decode(history, None, memory, mask, cache)

    def step(index: list[int], copy_memory: bool, seed: int) -> Tensor:
        nonlocal history, memory, mask
        rows = torch.tensor(index)
        cache.reorder(rows, memory=copy_memory)
        if copy_memory:
            memory, mask = memory[rows], mask[rows]
        new = torch.randn(len(index), 1, D, generator=torch.Generator().manual_seed(seed))
        history = torch.cat((history[rows], new), dim=1)
        out = model.decode(new, None, memory, mask, cache)
        torch.testing.assert_close(
            out, model.decode(history, None, memory, mask)[:, -1:], atol=1e-5, rtol=1e-5
        )
        return out

    step([0, 0, 1, 1], True, 1)
    step([1, 1, 3, 2], False, 2)
    step([3, 2], True, 3)


@torch.no_grad()
def test_reorder_keeps_the_padding() -> None:
    model, x = build(position="learned", architecture="decoder"), tokens(2, 6)
    mask = right_mask([6, 2], 6).flip(1)
    cache = KVCache()
    model(x, mask, cache=cache)
    cache.reorder(torch.tensor([1, 0, 1]))
    new = tokens(3, 1)
    out = model(new, cache=cache)
    for row, (source, length) in enumerate(((1, 2), (0, 6), (1, 2))):
        alone = torch.cat((x[source, 6 - length :], new[row]))[None]
        torch.testing.assert_close(out[row], model(alone)[0, -1:], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_memory_is_projected_once() -> None:
    """Keys and values of the memory are computed in the first step only."""
    model = build(architecture="encoder_decoder")
    memory, cache, calls = model.encode(tokens()), KVCache(), []
    for layer in model.decoder.layers:
        layer.cross_attention.branch.kv.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(4):
        model.decode(tokens(3, 1), None, memory, None, cache)
    assert len(calls) == 2  # layers, not layers times steps


@torch.no_grad()
def test_cache_grows_past_its_first_capacity() -> None:
    model, x = build(position="rotary", architecture="decoder", max_positions=200), tokens(2, 150)
    cache = KVCache()
    stepped = torch.cat([model(step, cache=cache) for step in x.split(1, dim=1)], dim=1)
    torch.testing.assert_close(stepped, model(x), atol=1e-5, rtol=1e-5)


# --- training ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("position", ["rotary", "relative"])
def test_checkpointing_changes_no_gradient(position: str, architecture: str) -> None:
    """Dropout included: the recomputation must draw the same masks."""
    gradients = []
    for checkpointing in (False, True):
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
        assert (len(calls) > forward_calls) == checkpointing
        gradients.append([x.grad, *(p.grad for p in model.parameters())])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_drop_path_skips_whole_examples(placement: str, compiled: bool) -> None:
    """What is left of a skipped example is the residual stream alone, after the post-norm where there is one."""
    model = build(placement, drop_path=0.75, num_layers=4)
    residual = model.layers[-1].feed_forward
    assert [layer.feed_forward.drop_path for layer in model.layers] == [0.0, 0.25, 0.5, 0.75]
    x = tokens(400, 2)
    skipped = residual.alpha * x
    kept = residual.branch(x if residual.pre_norm is None else residual.pre_norm(x)) / 0.25 + skipped
    if residual.post_norm is not None:
        skipped, kept = residual.post_norm(skipped), residual.post_norm(kept)
    if compiled:
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


def check_compiled(backend: str, position: str, architecture: str) -> None:
    model = build(position=position, architecture=architecture, num_layers=1)
    compiled = copy.deepcopy(model)
    compiled.compile(fullgraph=True, backend=backend)
    x, y, mask = tokens(), tokens(3, 5), right_mask([9, 4, 7], 9)
    inputs = (x, y, mask) if architecture == "encoder_decoder" else (x, mask)
    expected, actual = model(*inputs), compiled(*inputs)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    for out in (expected, actual):
        out.square().sum().backward()
    assert list(compiled.state_dict()) == list(model.state_dict())
    for (name, a), b in zip(compiled.named_parameters(), model.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b[1].grad, atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("position", SEQUENCE_POSITIONS)
def test_compiles_in_place_to_one_graph(position: str) -> None:
    """Traced forward and backward without a break, same results, same state-dict keys."""
    check_compiled("aot_eager", position, "encoder_decoder")


def test_drop_path_layers_share_one_graph() -> None:
    """All but the first, which skips nothing."""
    torch._dynamo.reset()
    model, counter = build(drop_path=0.6, num_layers=5), CompileCounter()
    for layer in model.layers:
        layer.compile(backend=counter, fullgraph=True)
    model(tokens()).sum().backward()
    assert counter.frame_count == 2


@pytest.mark.slow
def test_compiles_in_place_with_inductor() -> None:
    check_compiled("inductor", "relative", "encoder")


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


def test_memory_goes_with_cross_attention_only() -> None:
    with pytest.raises(AssertionError, match="architecture=encoder_decoder"):
        build(architecture="decoder")(tokens(), memory=tokens())


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
