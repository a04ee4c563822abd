"""The reference implementation, torchscale 0.3.0: what it shares with us, and where it departs from the papers.

docs/numerics.md lists the departures and names these tests.
"""

from math import log, sqrt
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from magneto.nn import PLACEMENTS, BackboneConfig, Depth, Linear, build_backbone
from tests.unit.nn.models import FFN, HEADS, D, build, real, stream
from tests.unit.oracles.weights import Link, agree, close, copy_weights, fused, same

pytest.importorskip("torchscale")
pytest.importorskip("timm")  # which torchscale imports
from torchscale.architecture.config import DecoderConfig, EncoderConfig, EncoderDecoderConfig
from torchscale.architecture.decoder import Decoder
from torchscale.architecture.encoder import Encoder
from torchscale.architecture.encoder_decoder import EncoderDecoder

FLAGS: dict[str, dict[str, bool]] = {
    "magneto": {"subln": True},
    "deepnorm": {"deepnorm": True},
    "pre_ln": {"subln": False},
    "post_ln": {"subln": False, "encoder_normalize_before": False, "decoder_normalize_before": False},
}
SCALED = ("fc1", "fc2", "v_proj", "out_proj")


def sizes(side: str, layers: int = 3, width: int = D, ffn: int = FFN) -> dict[str, int]:
    return {
        f"{side}_layers": layers,
        f"{side}_embed_dim": width,
        f"{side}_ffn_embed_dim": ffn,
        f"{side}_attention_heads": HEADS,
    }


def encoder(seed: int = 0, width: int = D, ffn: int = FFN, layers: int = 3, **more: Any) -> Any:
    torch.manual_seed(seed)
    return Encoder(EncoderConfig(**sizes("encoder", layers, width, ffn), **more))


def decoder(seed: int = 0, layers: int = 3, **more: Any) -> Any:
    torch.manual_seed(seed)
    return Decoder(DecoderConfig(**sizes("decoder", layers), **more))


def encoder_decoder(seed: int = 0, layers: tuple[int, int] = (3, 2), **more: Any) -> Any:
    torch.manual_seed(seed)
    depths = {**sizes("encoder", layers[0]), **sizes("decoder", layers[1])}
    return EncoderDecoder(EncoderDecoderConfig(**depths, no_output_layer=True, **more))


def run_decoder(model: Any, y: Tensor, real: Tensor, memory: dict[str, Any] | None = None) -> Tensor:
    """torchscale's decoder on embedded tokens; of the token ids it only reads the shape."""
    tokens = torch.zeros(y.shape[:2], dtype=torch.long)
    out, _ = model(
        tokens, self_attn_padding_mask=~real, encoder_out=memory, features_only=True, token_embeddings=y
    )
    return out


def layer_links(ours: Any, theirs: Any) -> list[Link]:
    links = []
    norms = [
        (ours.self_attention, theirs.self_attn_layer_norm),
        (ours.cross_attention, getattr(theirs, "encoder_attn_layer_norm", None)),
        (ours.feed_forward, theirs.final_layer_norm),
    ]
    for residual, norm in norms:
        if residual is not None:
            links += same(residual.post_norm if residual.pre_norm is None else residual.pre_norm, norm)
    own, their = ours.self_attention.branch, theirs.self_attn
    links += fused(own.qkv, [their.q_proj, their.k_proj, their.v_proj]) + same(own.out, their.out_proj)
    if own.inner_norm is not None:
        links += same(own.inner_norm, their.inner_attn_ln)
    if ours.cross_attention is not None:
        own, their = ours.cross_attention.branch, theirs.encoder_attn
        links += same(own.q, their.q_proj) + fused(own.kv, [their.k_proj, their.v_proj])
        links += same(own.out, their.out_proj)
    own, their = ours.feed_forward.branch, theirs.ffn
    links += same(own.fc1, their.fc1) + same(own.fc2, their.fc2)
    if own.inner_norm is not None:
        links += same(own.inner_norm, their.ffn_layernorm)
    return links


def stack_links(ours: Any, theirs: Any) -> list[Link]:
    links = []
    for a, b in zip(ours.layers, theirs.layers, strict=True):
        links += layer_links(a, b)
    assert (ours.final_norm is None) == (theirs.layer_norm is None)
    if ours.final_norm is not None:
        links += same(ours.final_norm, theirs.layer_norm)
    return links


# --- what agrees -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", ["none", "relative"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("placement", FLAGS)
def test_encoder(placement: str, padded: bool, position: str) -> None:
    relative = position == "relative"
    ours = build(placement, position=position, relative_max_distance=128)
    theirs = encoder(**FLAGS[placement], **({"rel_pos_buckets": 32, "max_rel_pos": 128} if relative else {}))
    links = stack_links(ours, theirs)
    if relative:
        links += [Link(ours.relative.table, theirs.relative_position.relative_attention_bias.weight)]
    copy_weights(ours, theirs, links)
    x, y = stream().requires_grad_(), stream().requires_grad_()
    seen = real([9, 4, 7], 9) if padded else torch.ones(3, 9, dtype=torch.bool)
    b = theirs(None, encoder_padding_mask=~seen, token_embeddings=y)["encoder_out"]
    agree((ours(x, seen if padded else None), b), [(x, y)], links, seen)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("placement", FLAGS)
def test_decoder(placement: str, padded: bool) -> None:
    ours, theirs = build(placement, "decoder"), decoder(**FLAGS[placement])
    links = stack_links(ours, theirs)
    copy_weights(ours, theirs, links)
    x, y = stream().requires_grad_(), stream().requires_grad_()
    seen = real([9, 4, 7], 9) if padded else torch.ones(3, 9, dtype=torch.bool)
    agree((ours(x, seen if padded else None), run_decoder(theirs, y, seen)), [(x, y)], links, seen)


@pytest.mark.parametrize("placement", FLAGS)
def test_encoder_decoder(placement: str) -> None:
    """Cross-attention has the norm of its query alone, keys and values come from behind the encoder's norm."""
    ours = build(placement, "encoder_decoder", num_layers=3, decoder_layers=2)
    theirs = encoder_decoder(**FLAGS[placement])
    links = stack_links(ours.encoder, theirs.encoder) + stack_links(ours.decoder, theirs.decoder)
    copy_weights(ours, theirs, links)
    source = [stream(length=7, seed=5).requires_grad_() for _ in range(2)]
    target = [stream().requires_grad_() for _ in range(2)]
    source_real, target_real = real([7, 2, 5], 7), real([9, 4, 7], 9)
    memory = theirs.encoder(None, encoder_padding_mask=~source_real, token_embeddings=source[1])
    b = run_decoder(theirs.decoder, target[1], target_real, memory)
    a = ours(source[0], target[0], source_real, target_real)
    agree((a, b), [(source[0], source[1]), (target[0], target[1])], links, target_real)


def gains(scaled: nn.Module, plain: nn.Module) -> dict[str, float]:
    """By what each linear weight and bias of one model differs from the other's, drawn with the same seed.

    Names are shortened to block and kind ("self_attn.v_proj.weight"); all layers must have the same factor.
    """
    found: dict[str, float] = {}
    others = dict(plain.named_parameters())
    for name, parameter in scaled.named_parameters():
        if "norm" in name or name.split(".")[-2].endswith("_ln"):
            continue
        short = ".".join(name.split(".")[2:])
        factor = float(parameter.detach().norm() / others[name].detach().norm())
        assert found.setdefault(short, factor) == pytest.approx(factor, rel=1e-4)
    return found


DEPTHS = [1, 3, 12]


@pytest.mark.parametrize("placement", ["magneto", "deepnorm"])
@pytest.mark.parametrize("layers", DEPTHS)
@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_gain_of_a_one_sided_model(side: str, layers: int, placement: str) -> None:
    """gamma = sqrt(log 2L), beta = (8L)^(-1/4), on v, out, fc1 and fc2 and not on q and k: ours and theirs."""
    make = encoder if side == "encoder" else decoder
    depth = Depth(
        encoder_layers=layers if side == "encoder" else 0,
        decoder_layers=layers if side == "decoder" else 0,
        side="encoder" if side == "encoder" else "decoder",
    )
    expected = PLACEMENTS[placement].gain_out(depth)
    for name, factor in gains(
        make(layers=layers, **FLAGS[placement]), make(layers=layers, subln=False)
    ).items():
        if name.endswith("weight"):
            assert factor == pytest.approx(expected if any(s in name for s in SCALED) else 1.0, rel=1e-4), (
                name
            )


@pytest.mark.parametrize("layers", [(6, 6), (18, 18), (3, 12)])
def test_sub_ln_gain_of_an_encoder_decoder(layers: tuple[int, int]) -> None:
    """Either side by its own formula; the cross-attention is left alone, as section 2 of the paper says."""
    scaled, plain = encoder_decoder(layers=layers, subln=True), encoder_decoder(layers=layers, subln=False)
    n, m = layers
    expected = {"encoder": sqrt(log(3 * m) * log(2 * n) / 3), "decoder": sqrt(log(3 * m))}
    for side, gain in expected.items():
        depth = Depth(encoder_layers=n, decoder_layers=m, side="encoder" if side == "encoder" else "decoder")
        assert PLACEMENTS["magneto"].gain_out(depth) == pytest.approx(gain)
        for name, factor in gains(getattr(scaled, side), getattr(plain, side)).items():
            if name.endswith("weight"):
                left_alone = "encoder_attn" in name or not any(s in name for s in SCALED)
                assert factor == pytest.approx(1.0 if left_alone else gain, rel=1e-4), name
    assert not PLACEMENTS["magneto"].scale_cross_attention


def test_deepnorm_of_a_decoder_is_post_ln() -> None:
    """torchscale's repository once had a slip here, by which its decoders stayed Pre-LN; the release has not."""
    assert not DecoderConfig(deepnorm=True).decoder_normalize_before
    config = EncoderDecoderConfig(deepnorm=True)
    assert not config.encoder_normalize_before and not config.decoder_normalize_before
    scaled = encoder_decoder(layers=(6, 6), deepnorm=True)
    plain = encoder_decoder(layers=(6, 6), subln=False)
    depth = Depth(encoder_layers=6, decoder_layers=6, side="decoder")
    for name, factor in gains(scaled.decoder, plain.decoder).items():  # here the cross-attention is scaled
        if name.endswith("weight"):
            beta = PLACEMENTS["deepnorm"].gain_out(depth) if any(s in name for s in SCALED) else 1.0
            assert factor == pytest.approx(beta, rel=1e-4), name
    assert scaled.decoder.layers[0].alpha == pytest.approx(PLACEMENTS["deepnorm"].alpha(depth))
    depth = Depth(encoder_layers=6, decoder_layers=6, side="encoder")
    assert scaled.encoder.layers[0].alpha == pytest.approx(PLACEMENTS["deepnorm"].alpha(depth))


# --- departures: each test shows what torchscale does and that ours does what the paper says -----------------


def weights_of_role(model: Any) -> dict[str, list[Tensor]]:
    """Our weights by role, fused blocks apart."""
    found: dict[str, list[Tensor]] = {}
    for module in model.modules():
        if isinstance(module, Linear):
            for role, block in zip(module.roles, module.weight.chunk(len(module.roles)), strict=True):
                found.setdefault(role, []).append(block.detach())
    return found


def test_departure_base_init_is_not_xavier() -> None:
    """The gain multiplies nn.Linear's own draw, of standard deviation 1 / sqrt(3 fan_in), not Xavier's.

    With ffn_dim = 4 d that is 0.58 of the paper's for the square maps, 0.91 for fc1 and 0.46 for fc2.
    """
    width, layers = 128, 3
    gamma = sqrt(log(2 * layers))
    theirs = encoder(width=width, ffn=4 * width, layers=layers, subln=True)
    ours = weights_of_role(
        build_backbone(BackboneConfig(num_layers=layers, d_model=width, num_heads=HEADS, position="none"))
    )
    roles = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "out", "fc1": "fc1", "fc2": "fc2"}
    for name, role in roles.items():
        weights = [p for n, p in theirs.named_parameters() if n.endswith(f"{name}.weight")]
        fan_out, fan_in = weights[0].shape
        gain = gamma if name in SCALED else 1.0
        paper = gain * sqrt(2 / (fan_in + fan_out))
        assert float(torch.stack(ours[role]).std()) == pytest.approx(paper, rel=0.02)
        measured = float(torch.stack(weights).detach().std())
        assert measured == pytest.approx(gain / sqrt(3 * fan_in), rel=0.02)
        share = {"fc1": 0.913, "fc2": 0.456}.get(name, 0.577)
        assert measured / paper == pytest.approx(share, rel=0.03)


@pytest.mark.parametrize("placement", ["magneto", "deepnorm"])
def test_departure_biases_are_drawn_and_scaled(placement: str) -> None:
    """The gain is applied by parameter name, and so to biases, which nn.Linear does not draw as zeros."""
    factors = gains(encoder(**FLAGS[placement]), encoder(subln=False))
    biases = {name: factor for name, factor in factors.items() if name.endswith("bias")}
    depth = Depth(encoder_layers=3, decoder_layers=0, side="encoder")
    assert len(biases) == 6
    for name, factor in biases.items():
        expected = PLACEMENTS[placement].gain_out(depth) if any(s in name for s in SCALED) else 1.0
        assert factor == pytest.approx(expected, rel=1e-4), name
    assert all(
        p.abs().max() > 0.01
        for n, p in encoder(**FLAGS[placement]).named_parameters()
        if n.endswith("fc1.bias")
    )

    for module in build_backbone(BackboneConfig(placement=placement)).modules():
        if isinstance(module, Linear):
            assert not module.bias.any()


def test_departure_deepnorm_beta_of_the_encoder() -> None:
    """1.15 (N^4 M)^(-1/16) where DeepNet's figure 2 has 0.87 of it: 1.15 is 1 / 0.87."""
    scaled, plain = encoder_decoder(layers=(6, 6), deepnorm=True), encoder_decoder(layers=(6, 6), subln=False)
    depth_power = (6**4 * 6) ** (-1 / 16)
    paper = PLACEMENTS["deepnorm"].gain_out(Depth(encoder_layers=6, decoder_layers=6, side="encoder"))
    assert paper == pytest.approx(0.87 * depth_power)
    for name, factor in gains(scaled.encoder, plain.encoder).items():
        if name.endswith("weight") and any(s in name for s in SCALED):
            assert factor == pytest.approx(1.15 * depth_power, rel=1e-4), name
            assert factor / paper == pytest.approx(1.32, rel=0.01)


def test_departure_post_ln_is_silently_sub_ln() -> None:
    """`encoder_normalize_before=False` alone is turned back, because `subln` is on by default."""
    assert EncoderConfig(encoder_normalize_before=False).encoder_normalize_before
    assert DecoderConfig(decoder_normalize_before=False).decoder_normalize_before
    model = encoder(encoder_normalize_before=False)
    assert model.layer_norm is not None and model.layers[0].ffn.ffn_layernorm is not None
    ours = build("post_ln")
    assert ours.final_norm is None and ours.layers[0].feed_forward.branch.inner_norm is None


def test_departure_override_mixes_placements() -> None:
    """`override`, by which the fairseq examples set their flags, does not settle what excludes what.

    DeepNorm asked for in this way is a Pre-LN stack with both inner norms, DeepNorm's alpha and the product of
    both gains.
    """
    config = EncoderConfig(**sizes("encoder"))
    config.override(SimpleNamespace(deepnorm=True))
    assert config.subln and config.encoder_normalize_before
    torch.manual_seed(0)
    factors = gains(Encoder(config), encoder(subln=False))
    assert factors["self_attn.v_proj.weight"] == pytest.approx(sqrt(log(6)) * 24 ** (-1 / 4), rel=1e-4)


def test_departure_unknown_options_are_ignored() -> None:
    assert EncoderConfig(encoder_layrs=99).encoder_layers == 12
    with pytest.raises(ValueError, match="num_layers"):
        BackboneConfig.from_dict({"num_layrs": 99})


def test_departure_bool_mask_bars_nothing() -> None:
    """A bool mask (True = barred) adds 1 to the barred scores instead of -1e8; as floats it works."""
    theirs = encoder(subln=True)
    x, changed = stream(), stream()
    changed[:, 5:] = stream(seed=7)[:, 5:]
    future = torch.ones(9, 9, dtype=torch.bool).triu(1)

    def early(x: Tensor, mask: Tensor) -> Tensor:
        return theirs(None, token_embeddings=x, attn_mask=mask)["encoder_out"][:, :5]

    assert torch.allclose(early(x, future.float()), early(changed, future.float()), atol=1e-6)
    assert not torch.allclose(early(x, future), early(changed, future), atol=1e-2)

    ours = build("magneto")
    close(ours(x, causal=True)[:, :5], ours(changed, causal=True)[:, :5])


def test_departure_relative_decoder_positions() -> None:
    """Half of its buckets stand for the future, which a causal stack never sees; T5 gives a decoder all of them."""
    theirs = decoder(subln=True, rel_pos_buckets=32, max_rel_pos=128)
    long = stream(length=200)
    run_decoder(theirs, long, torch.ones(3, 200, dtype=torch.bool)).square().sum().backward()
    table = theirs.self_attn_relative_position.relative_attention_bias.weight
    assert table.grad[:16].any(dim=1).all() and not table.grad[16:].any()

    ours = build("magneto", "decoder", position="relative")
    ours(long).square().sum().backward()
    assert ours.relative.table.grad.any(dim=1).all()


def test_departure_bert_init_meets_the_gain() -> None:
    """`bert_init` draws N(0, 0.02) and the gain is applied on top of it: neither BERT's nor Magneto's init."""
    model = encoder(width=128, ffn=512, subln=True, bert_init=True)
    fc1 = torch.stack([layer.ffn.fc1.weight for layer in model.layers])
    assert float(fc1.detach().std()) == pytest.approx(0.02 * sqrt(log(6)), rel=0.02)
