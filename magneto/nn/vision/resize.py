"""Learned positions for images of another size: more or fewer patches of equal size."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def resized_positions(table: Tensor, grid: int) -> Tensor:
    """Resize learned positions of [CLS] and G x G patches to grid x grid patches.

    The interpolation is bicubic, as in the fine-tuning of ViTs (Dosovitskiy et al., arXiv 2010.11929, 3.2), and
    antialiased for fewer patches. Larger tables equal those of BEiT-3's code (unilm, beit3/utils.py), smaller ones timm's.

    Args:
        table: (1 + G ** 2, width), patches in rows.
        grid: new number of patches per side.

    Returns:
        (1 + grid ** 2, width).
    """
    side = round((len(table) - 1) ** 0.5)
    assert len(table) == 1 + side**2, table.shape
    patches = table[1:].float().view(1, side, side, -1).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, size=(grid, grid), mode="bicubic", antialias=grid < side)
    return torch.cat((table[:1], patches.flatten(2)[0].T.to(table.dtype)))


def resized_relative_grid(table: Tensor, grid: int) -> Tensor:
    """Resize the table of `RelativeGridBias` of G x G patches to grid x grid patches.

    For fewer patches each displacement keeps its entry. For more, the old displacements are spread in a geometric
    progression, so that near ones stay about where they are and far ones reach the new corners, and the entries between
    are interpolated: the method of BEiT (unilm, run_class_finetuning.py), but linear and not cubic, as in timm. The three
    entries of [CLS] stay.

    Args:
        table: ((2 G - 1) ** 2 + 3, heads).
        grid: new number of patches per side.

    Returns:
        ((2 grid - 1) ** 2 + 3, heads).
    """
    side = (round((len(table) - 3) ** 0.5) + 1) // 2
    assert len(table) == (2 * side - 1) ** 2 + 3, table.shape
    new = np.arange(1 - grid, grid)
    old = spread(side - 1, grid - 1)
    entries = table[:-3].float().cpu().numpy().reshape(2 * side - 1, 2 * side - 1, -1)
    for axis in (0, 1):
        entries = np.apply_along_axis(lambda row: np.interp(new, old, row), axis, entries)
    resized = torch.from_numpy(entries.reshape(-1, table.size(1))).to(table)
    return torch.cat((resized, table[-3:]))


def spread(reach: int, new_reach: int) -> np.ndarray:
    """Return (2 * reach + 1,): new positions of the displacements -reach to reach, of which the last is `new_reach`.

    They are 1, 1 + q, 1 + q + q ** 2, ..., with q = 1 if the reach does not grow or is a single step.
    """
    powers = np.arange(reach)
    low = high = 1.0
    if new_reach > reach > 1:
        high = float(new_reach)  # too much: 1 + q is more already
    for _ in range(60):
        q = (low + high) / 2
        low, high = (low, q) if (q**powers).sum() > new_reach else (q, high)
    steps = np.cumsum(low**powers)
    return np.concatenate((-steps[::-1], [0.0], steps))
