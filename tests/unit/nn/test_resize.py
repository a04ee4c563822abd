"""Positions of images that are resized to more or fewer patches."""

import numpy as np
import pytest
import torch

from magneto.nn import BackboneConfig
from magneto.nn.positions import RelativeGridBias
from magneto.nn.vision.resize import resized_positions, resized_relative_grid, spread

timm_layers = pytest.importorskip("timm.layers")


def relative_table(grid: int, heads: int = 3) -> torch.Tensor:
    return torch.randn((2 * grid - 1) ** 2 + 3, heads, generator=torch.Generator().manual_seed(grid))


@pytest.mark.filterwarnings("ignore")  # of timm's indexing
@pytest.mark.parametrize(("before", "after"), [(5, 7), (7, 8), (14, 24)])
def test_more_patches_as_timm_resizes_them(before: int, after: int) -> None:
    table = relative_table(before)
    theirs = timm_layers.resize_rel_pos_bias_table(table, (after, after), ((2 * after - 1) ** 2 + 3, 3))
    torch.testing.assert_close(resized_relative_grid(table, after), theirs, atol=2e-3, rtol=0)


def test_fewer_patches_keep_each_displacement() -> None:
    def bias(table: torch.Tensor, grid: int) -> torch.Tensor:
        module = RelativeGridBias(BackboneConfig(num_heads=3, d_model=6, position="relative_2d", grid=grid))
        with torch.no_grad():
            module.table.copy_(table)
            return module(0, 1 + grid**2)[0]

    table = relative_table(5)
    large, small = bias(table, 5), bias(resized_relative_grid(table, 3), 3)
    inner = [0, *(1 + 5 * row + column for row in range(3) for column in range(3))]
    torch.testing.assert_close(small, large[:, inner][:, :, inner])


@pytest.mark.parametrize("grid", [1, 2, 5])
def test_equal_sizes_change_nothing(grid: int) -> None:
    table = relative_table(grid)
    torch.testing.assert_close(resized_relative_grid(table, grid), table)
    places = torch.randn(1 + grid**2, 4)
    torch.testing.assert_close(resized_positions(places, grid), places)


@pytest.mark.parametrize(("reach", "new"), [(3, 7), (13, 23), (2, 30), (1, 4), (6, 3)])
def test_spread_reaches_the_corner(reach: int, new: int) -> None:
    places = spread(reach, new)
    assert len(places) == 2 * reach + 1 and places[reach] == 0 and places[reach + 1] == 1
    assert np.allclose(places, -places[::-1]) and (np.diff(places) > 0).all()
    assert places[-1] == pytest.approx(new if new > reach > 1 else reach)


@pytest.mark.parametrize(("before", "after"), [(4, 7), (7, 4)])
def test_learned_positions_as_timm_resizes_them(before: int, after: int) -> None:
    table = torch.randn(1 + before**2, 5)
    theirs = timm_layers.resample_abs_pos_embed(table[None], [after, after], antialias=after < before)[0]
    torch.testing.assert_close(resized_positions(table, after), theirs)
