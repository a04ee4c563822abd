"""Positions one by one, against their definitions."""

from math import cos, log, sin

import pytest
import torch

from magneto.errors import MagnetoError
from magneto.nn import BackboneConfig, Encoder
from magneto.nn.positions import (
    ConvolutionalPosition,
    LearnedPosition,
    RelativeBias,
    RelativeGridBias,
    Rotary,
    SinusoidalPosition,
    rotate,
)


def config(**values: object) -> BackboneConfig:
    return BackboneConfig(**{"d_model": 8, "num_heads": 2, "max_positions": 300, **values})  # type: ignore[arg-type]


def test_sinusoidal_against_the_formula() -> None:
    table = SinusoidalPosition(config()).table
    for position in (0, 1, 7, 299):
        for i in range(4):
            angle = position / 10000 ** (2 * i / 8)
            assert table[position, i].item() == pytest.approx(sin(angle), abs=1e-4)
            assert table[position, 4 + i].item() == pytest.approx(cos(angle), abs=1e-4)


def test_learned_is_added_and_counts_real_tokens() -> None:
    position = LearnedPosition(config())
    x = torch.zeros(2, 4, 8)
    mask = torch.tensor([[False, False, True, True], [True, True, True, False]])
    torch.testing.assert_close(position(x, 0, None)[0], position.table[:4])
    placed = position(x, 0, mask)
    torch.testing.assert_close(placed[0, 2:], position.table[:2])
    torch.testing.assert_close(placed[1, :3], position.table[:3])
    assert position.table.std().item() == pytest.approx(8**-0.5, rel=0.1)


def test_rotary_scores_depend_on_differences() -> None:
    rotary = Rotary(config())
    q, k = torch.randn(1, 1, 1, 4), torch.randn(1, 1, 1, 4)

    def score(query: int, key: int) -> float:
        return (rotate(q, rotary(query, 1)) * rotate(k, rotary(key, 1))).sum().item()

    assert score(5, 3) == pytest.approx(score(205, 203), abs=1e-4)
    assert score(5, 3) != pytest.approx(score(5, 4), abs=1e-3)
    assert score(0, 0) == pytest.approx((q * k).sum().item(), abs=1e-5)
    torch.testing.assert_close(rotate(q, rotary(77, 1)).norm(), q.norm())


def reference_bucket(distance: int, count: int, max_distance: int, causal: bool) -> int:
    """T5's rule (arXiv 1910.10683, section 2.1), for one distance (key minus query)."""
    offset = 0
    if causal:
        distance = max(0, -distance)
    else:
        count //= 2
        offset = count if distance > 0 else 0
        distance = abs(distance)
    near = count // 2
    if distance < near:
        return offset + distance
    far = near + int(log(distance / near) / log(max_distance / near) * (count - near) + 1e-6)
    return offset + min(far, count - 1)


@pytest.mark.parametrize("causal", [False, True])
def test_relative_buckets(causal: bool) -> None:
    bias = RelativeBias(config(relative_buckets=32, relative_max_distance=128), causal=causal)
    distances = torch.arange(-300, 301)
    expected = [reference_bucket(int(d), 32, 128, causal) for d in distances]
    actual = bias.buckets(distances).tolist()
    # A distance that lies on the border of two buckets may fall to either, by rounding.
    assert sum(a != b for a, b in zip(actual, expected, strict=True)) <= 2
    assert max(actual) == 31 and min(actual) == 0
    if not causal:
        assert not set(actual[:301]) & set(actual[301:]), "past and future share a bucket"


@pytest.mark.parametrize("start", [0, 5])
def test_relative_bias_of_each_pair(start: int) -> None:
    bias = RelativeBias(config(), causal=start > 0)
    torch.nn.init.normal_(bias.table)
    values = bias(start, 7)
    assert values.shape == (1, 2, 7, start + 7)
    for query in range(7):
        for key in range(start + 7):
            bucket = bias.buckets(torch.tensor([key - (start + query)]))
            torch.testing.assert_close(values[0, :, query, key], bias.table[bucket[0]])


def grid_config(grid: int = 3, **values: object) -> BackboneConfig:
    return config(position="relative_2d", grid=grid, **values)


@pytest.mark.parametrize("grid", [1, 2, 4])
def test_patch_bias_follows_the_displacement(grid: int) -> None:
    bias = RelativeGridBias(grid_config(grid))
    torch.nn.init.normal_(bias.table)
    values = bias(0, 1 + grid**2)
    assert values.shape == (1, 2, 1 + grid**2, 1 + grid**2)
    of_displacement: dict[object, torch.Tensor] = {}
    for query in range(1 + grid**2):
        for key in range(1 + grid**2):
            if query and key:
                rows, columns = (
                    ((query - 1) // grid - (key - 1) // grid),
                    (query - 1) % grid - (key - 1) % grid,
                )
                name: object = (rows, columns)
            else:
                name = f"[CLS] is query: {query == 0}, key: {key == 0}"
            found = of_displacement.setdefault(name, values[0, :, query, key])
            assert torch.equal(found, values[0, :, query, key])
    distinct = {tuple(value.tolist()) for value in of_displacement.values()}
    assert len(distinct) == len(of_displacement) == len(bias.table) == (2 * grid - 1) ** 2 + 3


def test_bias_of_patches_in_a_stack() -> None:
    """The bias starts at zero, gets a gradient, and another length raises; in fp64, which hides the order of sums."""
    torch.manual_seed(0)
    encoder = Encoder(grid_config(num_layers=2)).double()
    plain = Encoder(config(position="none", num_layers=2)).double()
    plain.load_state_dict({k: v for k, v in encoder.state_dict().items() if k != "relative.table"})
    x = torch.randn(2, 10, 8).double()
    out, mask = encoder(x), torch.arange(10) < torch.tensor([10, 8])[:, None]
    assert isinstance(out, torch.Tensor)
    torch.testing.assert_close(out, plain(x), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(encoder(x, mask), plain(x, mask), atol=1e-6, rtol=1e-6)
    out.square().sum().backward()
    assert encoder.relative is not None and encoder.relative.table.grad is not None
    assert encoder.relative.table.grad.any(dim=1).all()
    encoder.float()
    with torch.autocast("cpu", torch.bfloat16):
        assert encoder(x, mask).isfinite().all()  # type: ignore[union-attr]
    with pytest.raises(MagnetoError, match="grid=3 is for 10 tokens, .CLS. and 3 x 3 patches, not for 9"):
        encoder(x[:, :9])


def test_convolution_reaches_half_a_kernel() -> None:
    x = torch.randn(1, 12, 8)
    moved = x.clone()
    moved[:, 6] += 1.0
    for causal, reached in ((False, range(4, 9)), (True, range(6, 11))):
        position = ConvolutionalPosition(config(conv_position_kernel=5), causal=causal)
        change = (position(x, None)[0] - position(moved, None)[0]).abs().amax(dim=(0, 2))
        assert change.nonzero().flatten().tolist() == list(reached)
