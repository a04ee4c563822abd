"""Pooling of the tokens of an image."""

import pytest
import torch

from magneto.errors import MagnetoError
from magneto.nn.vision.pooling import PatchPooling

WIDTH = 3


def tokens(grid: int) -> torch.Tensor:
    """[CLS] and the patches of two images, all different."""
    return torch.randn(2, 1 + grid**2, WIDTH, generator=torch.Generator().manual_seed(0))


def spans(grid: int, pool_grid: int) -> list[slice]:
    """Rows of the parts: from the floor of i * grid / pool_grid to the ceiling of (i + 1) * grid / pool_grid."""
    return [slice(i * grid // pool_grid, -(-(i + 1) * grid // pool_grid)) for i in range(pool_grid)]


@pytest.mark.parametrize(("grid", "pool_grid"), [(7, 1), (7, 2), (7, 4), (7, 7), (6, 3), (4, 3)])
def test_each_part_is_the_mean_of_its_patches(grid: int, pool_grid: int) -> None:
    pool, hidden = PatchPooling("mean", grid, pool_grid), tokens(grid)
    rows = spans(grid, pool_grid)
    assert {i for span in rows for i in range(grid)[span]} == set(range(grid))  # every patch is read
    image = hidden[:, 1:].view(2, grid, grid, WIDTH)
    parts = torch.stack([image[:, a, b].mean((1, 2)) for a in rows for b in rows], -1)  # (B, width, parts)
    assert pool.parts == pool_grid**2
    torch.testing.assert_close(pool(hidden), parts.flatten(1))


def test_the_class_token_is_the_first() -> None:
    hidden = tokens(4)
    assert torch.equal(PatchPooling("class_token", 4)(hidden), hidden[:, 0])


@pytest.mark.parametrize(
    ("kind", "pool_grid", "message"),
    [
        ("mean", 5, "4 patches per side. Choose from 1 to 4"),
        ("mean", 0, "must be 1 or more"),
        ("class_token", 2, "1 unless pooling=mean"),
        ("means", 1, "pooling=means: must be one of mean, class_token"),
    ],
)
def test_impossible_parts_are_refused(kind: str, pool_grid: int, message: str) -> None:
    with pytest.raises(MagnetoError, match=message):
        PatchPooling(kind, 4, pool_grid)
