"""Positions that were learned on images of one size, for images of another: more or fewer patches of equal size."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def resized_positions(table: Tensor, grid: int) -> Tensor:
    """Learned vectors of [CLS] and of G x G patches in rows, (1 + G * G, width), for grid x grid patches.

    Bicubic, as ViTs are fine-tuned on other sizes (Dosovitskiy et al., arXiv 2010.11929, 3.2), and smoothed where there
    become fewer. Growing tables are those of BEiT-3's own code (unilm, beit3/utils.py), shrunk ones those of timm.
    """
    side = round((len(table) - 1) ** 0.5)
    assert len(table) == 1 + side**2, table.shape
    patches = table[1:].float().view(1, side, side, -1).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, size=(grid, grid), mode="bicubic", antialias=grid < side)
    return torch.cat((table[:1], patches.flatten(2)[0].T.to(table.dtype)))


def resized_relative_grid(table: Tensor, grid: int) -> Tensor:
    """The table of `RelativeGridBias` for G x G patches, ((2 G - 1) ** 2 + 3, heads), for grid x grid patches.

    A displacement of so many patches keeps its entry where there become fewer patches. Where there become more, the old
    displacements are spread in a geometric progression, so that near ones stay about where they are and far ones reach
    the new corners, and the entries between are interpolated: BEiT's way (unilm, run_class_finetuning.py), linear in place
    of cubic, as in timm. The three entries of [CLS] stay.
    """
    side = (round((len(table) - 3) ** 0.5) + 1) // 2
    assert len(table) == (2 * side - 1) ** 2 + 3, table.shape
    wanted = np.arange(1 - grid, grid)
    given = spread(side - 1, grid - 1)
    entries = table[:-3].float().cpu().numpy().reshape(2 * side - 1, 2 * side - 1, -1)
    for axis in (0, 1):
        entries = np.apply_along_axis(lambda line: np.interp(wanted, given, line), axis, entries)
    resized = torch.from_numpy(entries.reshape(-1, table.size(1))).to(table)
    return torch.cat((resized, table[-3:]))


def spread(reach: int, new_reach: int) -> np.ndarray:
    """(2 * reach + 1,): where the displacements -reach to reach come to lie so that the last one is at `new_reach`.

    1, 1 + q, 1 + q + q ** 2, ...; q is 1 where the reach does not grow, or cannot, having one step only.
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
