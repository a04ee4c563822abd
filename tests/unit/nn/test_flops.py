"""The FLOP estimate against torch's own counter of what was executed."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from magneto.nn import BackboneConfig, build_backbone, training_flops_per_token


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
@pytest.mark.parametrize("architecture", ["encoder", "decoder", "encoder_decoder"])
def test_estimate_is_what_torch_counts(architecture: str, activation: str) -> None:
    config = BackboneConfig(
        architecture=architecture,
        activation=activation,
        num_layers=2,
        d_model=32,
        num_heads=4,
        position="none",
    )
    model = build_backbone(config)
    x = torch.randn(2, 12, 32, requires_grad=True)
    y = torch.randn(2, 6, 32, requires_grad=True)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        (model(x, y) if architecture == "encoder_decoder" else model(x)).sum().backward()
    if architecture == "encoder_decoder":
        expected = 2 * 12 * training_flops_per_token(config, 12, side="encoder")
        expected += 2 * 6 * training_flops_per_token(config, 6, side="decoder", memory_length=12)
    else:
        expected = 2 * 12 * training_flops_per_token(config, 12)
    assert counter.get_total_flops() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("split", [0, 5, 12])
@pytest.mark.parametrize("multiway", ["feed_forward", "full"])
def test_other_experts_cost_no_flops(multiway: str, split: int) -> None:
    config = BackboneConfig(
        multiway=multiway, fusion_layers=1, num_layers=2, d_model=32, num_heads=4, position="none"
    )
    model, x = build_backbone(config), torch.randn(2, 12, 32, requires_grad=True)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x, num_vision_tokens=split).sum().backward()
    expected = 2 * 12 * training_flops_per_token(config, 12)
    assert counter.get_total_flops() == pytest.approx(expected, rel=1e-6)
