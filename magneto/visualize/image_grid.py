"""Images side by side, for a person to look at."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

GAP = 4  # pixels of white between two images
LEAST = 112  # pixels: smaller images are enlarged by a whole factor
HIDDEN = 127  # grey of a patch that is not shown


def tile(pixels: Tensor | np.ndarray) -> np.ndarray:
    """(C, H, W) uint8 of 1 or 3 channels -> (H', W', 3), enlarged by repetition where it is small."""
    image = np.asarray(pixels).transpose(1, 2, 0)
    image = image.repeat(3, axis=2) if image.shape[2] == 1 else image
    factor = max(1, -(-LEAST // max(image.shape[:2])))
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def side_by_side(tiles: Sequence[np.ndarray]) -> np.ndarray:
    """(H, W_i, 3) uint8 each -> (H, sum of W_i and gaps, 3) uint8."""
    gap = np.full((tiles[0].shape[0], GAP, 3), 255, np.uint8)
    parts = [part for image in tiles for part in (gap, image)]
    return np.concatenate(parts[1:], axis=1)


def hide(pixels: Tensor, masked: Tensor, patch_size: int) -> Tensor:
    """Images (B, C, H, W) uint8 with their patches under `masked` (B, N) bool in grey."""
    grid = pixels.shape[2] // patch_size
    cover = masked.view(-1, 1, grid, grid)
    cover = cover.repeat_interleave(patch_size, 2).repeat_interleave(patch_size, 3)
    return pixels.masked_fill(cover, HIDDEN)
