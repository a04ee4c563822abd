"""Pooling of the tokens of an image to one vector."""

import torch.nn.functional as F
from torch import Tensor, nn

from magneto.errors import ConfigError, nearest

POOLINGS = ("mean", "class_token")


class PatchPooling(nn.Module):
    """Mean of the patches, of the whole image or of each of its parts, or the vector of [CLS].

    Args:
        kind: "mean" of the patches, or "class_token".
        grid: patches per side.
        pool_grid: the image is divided into pool_grid x pool_grid parts, whose means are concatenated. Where pool_grid
            does not divide grid, neighbouring parts share a row or a column of patches.

    Raises:
        ConfigError: an unknown kind, or pool_grid outside of 1 to grid.

    Shape:
        Input: (B, 1 + grid ** 2, d_model). Output: (B, pool_grid ** 2 * d_model).
    """

    def __init__(self, kind: str, grid: int, pool_grid: int = 1) -> None:
        super().__init__()
        if kind not in POOLINGS:
            raise ConfigError(
                f"pooling={kind}: must be one of {', '.join(POOLINGS)}.{nearest(kind, POOLINGS)}"
            )
        if pool_grid < 1 or (pool_grid > 1 and kind != "mean"):
            raise ConfigError(f"pool_grid={pool_grid}: must be 1 or more, and 1 unless pooling=mean.")
        if pool_grid > grid:
            raise ConfigError(
                f"pool_grid={pool_grid}: the image has {grid} patches per side. Choose from 1 to {grid}."
            )
        self.kind, self.grid, self.pool_grid = kind, grid, pool_grid
        self.parts = pool_grid**2

    def forward(self, hidden: Tensor) -> Tensor:
        if self.kind == "class_token":
            return hidden[:, 0]
        if self.pool_grid == 1:
            return hidden[:, 1:].mean(1)
        patches = hidden[:, 1:].transpose(1, 2)  # (B, d_model, N)
        patches = patches.reshape(len(hidden), -1, self.grid, self.grid)  # (B, d_model, grid, grid)
        return F.adaptive_avg_pool2d(patches, self.pool_grid).flatten(1)
