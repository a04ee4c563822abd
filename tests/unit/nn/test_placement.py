"""The table of placements: formulas, norms, parameters and initialisation as in the papers."""

import json
from collections import Counter
from dataclasses import replace
from math import sqrt
from pathlib import Path

import pytest
import torch
from torch import nn

from magneto.nn import (
    PLACEMENTS,
    BackboneConfig,
    Decoder,
    Depth,
    Encoder,
    Linear,
    build_backbone,
    initialize,
)
from magneto.nn.config import ARCHITECTURES, MULTIWAY
from magneto.nn.residual import Residual

GOLDEN = Path(__file__).parents[2] / "golden" / "state_dict_keys.json"


def encoder_side(n: int, m: int = 0) -> Depth:
    return Depth(encoder_layers=n, decoder_layers=m, side="encoder")


def decoder_side(n: int, m: int) -> Depth:
    return Depth(encoder_layers=n, decoder_layers=m, side="decoder")


@pytest.mark.parametrize(
    ("depth", "gain"),
    [
        (encoder_side(12), 1.783),
        (decoder_side(0, 12), 1.783),
        (encoder_side(18), 1.893),
        (decoder_side(0, 24), 1.968),
        (encoder_side(36), 2.068),
        (decoder_side(0, 48), 2.136),
        (decoder_side(0, 72), 2.229),
        (encoder_side(6, 6), 1.547),
        (decoder_side(6, 6), 1.700),
        (encoder_side(18, 18), 2.183),
        (decoder_side(18, 18), 1.997),
    ],
)
def test_magneto_gain(depth: Depth, gain: float) -> None:
    row = PLACEMENTS["magneto"]
    assert row.gain_out(depth) == pytest.approx(gain, abs=5e-4)
    assert row.alpha(depth) == 1.0


@pytest.mark.parametrize(
    ("depth", "alpha", "beta"),
    [
        (encoder_side(8), 2.0, 0.353553),  # (2 * 8) ** 1/4, (8 * 8) ** -1/4
        (decoder_side(0, 8), 2.0, 0.353553),
        (decoder_side(0, 50), 3.162278, 0.223607),  # 100 ** 1/4, 400 ** -1/4
        (decoder_side(6, 27), 3.0, 0.235702),  # 81 ** 1/4, 324 ** -1/4
        (encoder_side(16, 1), 1.62, 0.435),  # (16**4 * 1) ** 1/16 = 2: 0.81 * 2, 0.87 / 2
        (encoder_side(1, 65536), 1.62, 0.435),  # (1 * 2**16) ** 1/16 = 2: M counts a quarter as much as N
    ],
)
def test_deepnorm_alpha_and_beta(depth: Depth, alpha: float, beta: float) -> None:
    row = PLACEMENTS["deepnorm"]
    assert row.alpha(depth) == pytest.approx(alpha, rel=1e-5)
    assert row.gain_out(depth) == pytest.approx(beta, rel=1e-5)


def test_encoder_gain_needs_the_decoder_depth() -> None:
    config = BackboneConfig(architecture="encoder_decoder", num_layers=12, decoder_layers=3)
    residual = Encoder(config).layers[0].feed_forward
    assert residual.branch.fc2.gain == pytest.approx(1.5257, abs=1e-4)  # sqrt(log 9 * log 24 / 3)
    assert Decoder(config).layers[0].feed_forward.branch.fc2.gain == pytest.approx(1.4823, abs=1e-4)  # log 9


# Expected standard deviations, written out and not computed by the code under test: d x d matrices have Xavier
# standard deviation gain * d ** -0.5, those of the feed-forward (d x 4d) gain * (2 / 5d) ** 0.5.
D, N, M = 128, 6, 3
GAINS = {
    ("magneto", "encoder"): {"encoder": (1.5764, None)},  # sqrt(log 12)
    ("magneto", "decoder"): {"decoder": (1.5764, None)},
    ("magneto", "encoder_decoder"): {"encoder": (1.3491, None), "decoder": (1.4823, 1.0)},
    ("deepnorm", "encoder"): {"encoder": (0.3799, None)},  # 48 ** -1/4
    ("deepnorm", "decoder"): {"decoder": (0.3799, None)},
    ("deepnorm", "encoder_decoder"): {"encoder": (0.5190, None), "decoder": (0.4082, 0.4082)},
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("placement", ["magneto", "pre_ln", "post_ln", "deepnorm", "normformer"])
def test_standard_deviation_of_each_role(placement: str, architecture: str) -> None:
    torch.manual_seed(0)
    config = BackboneConfig(
        placement=placement,
        architecture=architecture,
        num_layers=N,
        decoder_layers=M if architecture == "encoder_decoder" else None,
        d_model=D,
    )
    model = build_backbone(config)
    sides = {"encoder": ("encoder",), "decoder": ("decoder",)}.get(architecture, ("encoder", "decoder"))
    seen: Counter[str] = Counter()
    for side in sides:
        stack = model.get_submodule(side) if architecture == "encoder_decoder" else model
        gain, cross_gain = GAINS.get((placement, architecture), {}).get(side, (1.0, 1.0))
        square, wide = D**-0.5, sqrt(2 / (5 * D))
        for layer in stack.layers:
            checks = [(layer.self_attention, gain)]
            if layer.cross_attention is not None:
                checks.append((layer.cross_attention, cross_gain))
            for residual, scaled in checks:
                attention = residual.branch
                if residual is layer.cross_attention:
                    blocks = dict(
                        zip("qkv", (attention.q.weight, *attention.kv.weight.chunk(2)), strict=True)
                    )
                else:
                    blocks = dict(zip("qkv", attention.qkv.weight.chunk(3), strict=True))
                assert blocks["q"].std().item() == pytest.approx(square, rel=0.03)
                assert blocks["k"].std().item() == pytest.approx(square, rel=0.03)
                assert blocks["v"].std().item() == pytest.approx(scaled * square, rel=0.03)
                assert attention.out.weight.std().item() == pytest.approx(scaled * square, rel=0.03)
                seen["attention"] += 1
            feed_forward = layer.feed_forward.branch
            assert feed_forward.fc1.weight.std().item() == pytest.approx(gain * wide, rel=0.03)
            assert feed_forward.fc2.weight.std().item() == pytest.approx(gain * wide, rel=0.03)
            seen["feed_forward"] += 1
    assert seen["feed_forward"] == {"encoder": N, "decoder": N, "encoder_decoder": N + M}[architecture]
    assert seen["attention"] == seen["feed_forward"] + (M if architecture == "encoder_decoder" else 0)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), f"{name} does not start at zero"


def test_swiglu_blocks_are_initialised_one_by_one() -> None:
    torch.manual_seed(0)
    config = BackboneConfig(placement="pre_ln", activation="swiglu", d_model=128, ffn_dim=384, num_layers=1)
    gate, value = Encoder(config).layers[0].feed_forward.branch.fc1.weight.chunk(2)
    assert gate.std().item() == pytest.approx(sqrt(2 / 512), rel=0.03)
    assert value.std().item() == pytest.approx(sqrt(2 / 512), rel=0.03)


def test_initialize_draws_everything_again() -> None:
    config = BackboneConfig(placement="normformer", num_layers=1, d_model=16, num_heads=2, qk_norm=True)
    model = Encoder(config)
    torch.manual_seed(1)
    fresh = Encoder(config).state_dict()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(9.0)
    initialize(model)
    for name, value in model.state_dict().items():
        assert not (value == 9.0).any(), name
        assert value.std().item() == pytest.approx(fresh[name].std().item(), rel=0.5, abs=1e-6), name


def norms_of(module: nn.Module) -> set[str]:
    return {name for name, child in module.named_modules() if isinstance(child, nn.LayerNorm)}


def test_ablations() -> None:
    small = {"num_layers": 2, "d_model": 16}
    sub_ln_only = Encoder(BackboneConfig(gain="none", **small)).layers[0]
    assert sub_ln_only.feed_forward.branch.fc1.gain == 1.0
    assert "branch.inner_norm" in norms_of(sub_ln_only.feed_forward)

    gain_only = Encoder(BackboneConfig(placement="pre_ln", gain="formula", **small)).layers[0]
    bare = Encoder(BackboneConfig(inner_attention_norm=False, inner_ffn_norm=False, **small)).layers[0]
    for layer in (gain_only, bare):
        assert layer.self_attention.branch.out.gain == pytest.approx(1.1774, abs=1e-4)  # sqrt(log 4)
        assert norms_of(layer.self_attention) == norms_of(layer.feed_forward) == {"pre_norm"}

    one_inner = Encoder(BackboneConfig(inner_attention_norm=False, **small)).layers[0]
    assert norms_of(one_inner.self_attention) == {"pre_norm"}
    assert norms_of(one_inner.feed_forward) == {"pre_norm", "branch.inner_norm"}

    assert Encoder(BackboneConfig(final_norm=False, **small)).final_norm is None
    assert Encoder(BackboneConfig(placement="post_ln", final_norm=True, **small)).final_norm is not None

    rms = Encoder(BackboneConfig(norm="rmsnorm", qk_norm=True, **small))
    assert not norms_of(rms)
    assert sum(isinstance(m, nn.RMSNorm) for m in rms.modules()) == 2 * 6 + 1


def test_residual_weight_and_order() -> None:
    """DeepNorm's LN(alpha x + f(x)) against the formula written out, with alpha = (2 * 8) ** 1/4 = 2."""
    config = BackboneConfig(placement="deepnorm", num_layers=8, d_model=16)
    residual = Residual("feed_forward", config, "encoder")
    x = torch.randn(2, 3, 16)
    expected = nn.functional.layer_norm(2 * x + residual.branch(x), (16,))
    torch.testing.assert_close(residual(x), expected)


def test_normformer_head_scale() -> None:
    """NormFormer scales the heads before the output projection."""
    config = BackboneConfig(placement="normformer", num_layers=1, d_model=16, num_heads=4, position="none")
    encoder = Encoder(config)
    attention = encoder.layers[0].self_attention.branch
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        attention.head_scale.copy_(torch.tensor([[1.0], [0.0], [2.0], [0.5]]))
        scaled = encoder(x)
        attention.head_scale.fill_(1.0)
        attention.out.weight.mul_(torch.tensor([1.0, 0.0, 2.0, 0.5]).repeat_interleave(4))
        torch.testing.assert_close(scaled, encoder(x))


def small_config(placement: str, architecture: str) -> BackboneConfig:
    return BackboneConfig(
        placement=placement, architecture=architecture, num_layers=1, d_model=8, num_heads=2, max_positions=16
    )


def state_dict_shapes() -> dict[str, dict[str, list[int]]]:
    """Return keys and shapes of the weights of each placement and architecture, as checkpoints hold them."""
    configs = {
        f"{placement}/{architecture}": small_config(placement, architecture)
        for placement in PLACEMENTS
        for architecture in ARCHITECTURES
    }
    plain = small_config("magneto", "encoder")
    configs |= {f"multiway={way}": replace(plain, multiway=way, fusion_layers=1) for way in MULTIWAY[1:]}
    configs["relative_2d"] = replace(plain, position="relative_2d", grid=3)
    return {
        key: {name: list(value.shape) for name, value in build_backbone(config).state_dict().items()}
        for key, config in configs.items()
    }


def test_state_dict_keys_are_golden() -> None:
    """Write the file again after an intended change with `python tests/unit/nn/test_placement.py`."""
    shapes = state_dict_shapes()
    golden = json.loads(GOLDEN.read_text())
    assert {key: shapes[key] for key in golden} == golden


def test_each_linear_map_has_a_role() -> None:
    config = BackboneConfig(architecture="encoder_decoder", num_layers=1, d_model=8, num_heads=2)
    linears = [m for m in build_backbone(config).modules() if isinstance(m, nn.Linear)]
    assert all(isinstance(m, Linear) for m in linears)
    roles = Counter(role for m in linears if isinstance(m, Linear) for role in m.roles)
    assert roles == {"q": 3, "k": 3, "v": 3, "out": 3, "fc1": 2, "fc2": 2}


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(state_dict_shapes(), indent=1) + "\n")
