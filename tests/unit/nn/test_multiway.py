"""Multiway stacks: which tokens go through which expert."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from magneto.errors import MagnetoError
from magneto.nn import PLACEMENTS, BackboneConfig, Linear, build_backbone
from magneto.nn.config import MULTIWAY
from magneto.nn.residual import Residual
from tests.unit.nn import models
from tests.unit.nn.models import real
from tests.unit.nn.models import stream as tokens

T, SPLIT = 9, 5
WAYS = [way for way in MULTIWAY if way != "none"]
build = partial(models.build, multiway="feed_forward")
VISION, TEXT, FUSION = (f".{name}." for name in ("vision", "text", "fusion"))


def close(a: Any, b: Any) -> None:
    torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("position", ["none", "rotary", "relative"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_equal_experts_are_a_plain_stack(placement: str, way: str, position: str) -> None:
    """Outputs, and gradients summed over the experts; in fp64, where the order of a sum does not show."""
    more: dict[str, Any] = {"position": position, "qk_norm": True, "input_norm": True}
    plain = build(placement, multiway="none", **more).double()
    model = build(placement, multiway=way, fusion_layers=2, **more).double()
    own = plain.state_dict()

    def shared(name: str) -> str:
        for side in (VISION, TEXT, FUSION):
            name = name.replace(side, ".")
        return name

    model.load_state_dict({name: own[shared(name)] for name in model.state_dict()})
    x, y = tokens().double().requires_grad_(), tokens().double().requires_grad_()
    mask = real([9, 6, 7], T)
    for split, seen in ((0, mask), (T, None), (SPLIT, mask), (SPLIT, None), (1, None)):
        plain.zero_grad()
        model.zero_grad()
        x.grad = y.grad = None
        a, b = model(x, seen, num_vision_tokens=split), plain(y, seen)
        close(a, b)
        direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
        for out in (a, b):
            (out * direction).sum().backward()
        close(x.grad, y.grad)
        summed: dict[str, Tensor] = {}
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                summed[shared(name)] = summed.get(shared(name), 0) + parameter.grad
        for name, parameter in plain.named_parameters():
            close(summed[name], parameter.grad)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("split", "used"), [(0, {TEXT}), (T, {VISION}), (SPLIT, {VISION, TEXT, FUSION})])
def test_a_batch_touches_its_experts_alone(way: str, split: int, used: set[str]) -> None:
    model = build(multiway=way, fusion_layers=1)
    out = model(tokens(), num_vision_tokens=split)
    assert isinstance(out, Tensor)
    out.square().sum().backward()
    touched = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    for name, _ in model.named_parameters():
        sides = {side for side in (VISION, TEXT, FUSION) if side in f".{name}."}
        # In the top layer pairs go through the fusion expert in place of the two others.
        bypassed = split == SPLIT and ".2.feed_forward." in name and FUSION not in name
        assert (name in touched) == ((not sides or bool(sides & used)) and not bypassed), name


@pytest.mark.parametrize("way", WAYS)
def test_modalities_meet_in_attention(way: str) -> None:
    """A change of the text reaches the image of its pair and no other one."""
    model, x = build(multiway=way), tokens()
    changed = x.clone()
    changed[1, SPLIT:] = 0
    before, after = model(x, num_vision_tokens=SPLIT), model(changed, num_vision_tokens=SPLIT)
    assert isinstance(before, Tensor) and isinstance(after, Tensor)
    assert (before[1, :SPLIT] - after[1, :SPLIT]).abs().amax(-1).min() > 1e-3
    close(before[[0, 2]], after[[0, 2]])


def test_padding_of_a_text_changes_nothing() -> None:
    model, x, lengths = build(multiway="full", fusion_layers=1), tokens(), [9, 6, 7]
    batch = model(x.masked_fill(~real(lengths, T)[..., None], 1e3), real(lengths, T), num_vision_tokens=SPLIT)
    assert isinstance(batch, Tensor)
    for row, length in enumerate(lengths):
        alone = model(x[row : row + 1, :length], num_vision_tokens=SPLIT)
        assert isinstance(alone, Tensor)
        torch.testing.assert_close(batch[row, :length], alone[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_each_expert_has_the_gain_of_its_role(way: str) -> None:
    config = BackboneConfig(
        num_layers=3, d_model=128, num_heads=4, position="none", multiway=way, fusion_layers=3
    )
    torch.manual_seed(0)
    model = build_backbone(config)
    gain = config.resolved_placement().gain_out(config.depth("encoder"))
    layer = model.get_submodule("layers.1")
    for name, module in layer.named_modules():
        if not isinstance(module, Linear):
            continue
        for role, block in zip(module.roles, module.weight.chunk(len(module.roles)), strict=True):
            expected = (2 / sum(block.shape)) ** 0.5 * (1.0 if role in ("q", "k") else gain)
            assert block.std().item() == pytest.approx(expected, rel=0.03), (name, role)
    experts = [name for name, module in layer.named_modules() if isinstance(module, Residual)]
    assert len(experts) == (5 if way == "full" else 4)
    first, second = (
        layer.get_parameter(f"feed_forward.{side}.branch.fc1.weight") for side in ("vision", "text")
    )
    assert not torch.equal(first, second)


@pytest.mark.slow
def test_compiles_one_graph_per_kind_of_batch() -> None:
    model, x = build(multiway="full", num_layers=1), tokens()
    expected = [model(x, num_vision_tokens=split) for split in (0, T, SPLIT)]
    model.compile(fullgraph=True, backend="eager")
    for split, out in zip((0, T, SPLIT), expected, strict=True):
        torch.testing.assert_close(model(x, num_vision_tokens=split), out, atol=1e-5, rtol=1e-5)


def test_num_vision_tokens_needs_multiway() -> None:
    with pytest.raises(MagnetoError, match="multiway=feed_forward: .* Set num_vision_tokens"):
        build()(tokens())
    with pytest.raises(MagnetoError, match="num_vision_tokens=5 has no effect with multiway=none"):
        build(multiway="none")(tokens(), num_vision_tokens=5)
    for split in (-1, T + 1):
        with pytest.raises(MagnetoError, match=f"num_vision_tokens={split}: must be between 0 and .* 9"):
            build()(tokens(), num_vision_tokens=split)
