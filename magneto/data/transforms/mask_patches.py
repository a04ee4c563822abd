"""Choose the hidden patches of a masked image model, in blocks, for a whole batch at once."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Lt

from magneto.data.rng import uniforms
from magneto.errors import ConfigError

ATTEMPTS = 32  # blocks that are tried for an image
LEAST_SHARE = 16 / 196  # of the patches: BEiT's smallest block, 16 of 14 x 14


@dataclass(frozen=True, kw_only=True)
class BlockMasking:
    """Block-wise masking of BEiT (Bao et al., arXiv 2106.08254, algorithm 1).

    Blocks of random size and aspect are hidden until there is no room for another; then single patches, so that every
    image has the same number of hidden patches (as in the authors' code for BEiT v2).

    Args:
        ratio: share of the patches that are hidden.
        min_patches: of a block; None: the same share as BEiT's 16 of 196.
        max_patches: of a block; None: no limit.
        aspect: bounds of height / width, which is uniform in the logarithm.
    """

    ratio: Annotated[float, Gt(0), Lt(1)] = 0.4
    min_patches: Annotated[int, Ge(1)] | None = None
    max_patches: Annotated[int, Ge(1)] | None = None
    aspect: tuple[Annotated[float, Gt(0)], Annotated[float, Gt(0)]] = (0.3, 1 / 0.3)

    def __post_init__(self) -> None:
        if self.max_patches is not None and self.max_patches < (self.min_patches or 1):
            raise ConfigError(
                f"data.masking: min_patches={self.min_patches} must be at most max_patches={self.max_patches}."
            )
        if self.aspect[0] > self.aspect[1]:
            raise ConfigError(
                f"data.masking.aspect={list(self.aspect)}: the smaller number comes first, such as [0.3, 3.33]."
            )

    def hidden(self, grid: int) -> int:
        """Return the number of hidden patches of `grid` x `grid`: at least one, and not all."""
        return min(max(1, round(self.ratio * grid**2)), grid**2 - 1)

    def draw(self, grid: int, examples: np.ndarray, *, seed: int, purpose: str, epoch: int) -> np.ndarray:
        """Return the masks of a batch; that of an example does not depend on the others.

        Args:
            grid: patches a side.
            examples: (B,) their indices.
            seed: with purpose and epoch: see `uniforms`.
            purpose: of the random numbers.
            epoch: counted from 0.

        Returns:
            (B, grid * grid) bool, True = hidden, in rows.
        """
        total, target = grid**2, self.hidden(grid)
        least = round(LEAST_SHARE * total) if self.min_patches is None else self.min_patches
        least, most = max(1, least), target if self.max_patches is None else self.max_patches
        random = uniforms(seed, purpose, epoch, examples, 4 * ATTEMPTS + total)
        low, high = np.log(self.aspect)
        line = np.arange(grid)
        hidden = np.zeros((len(examples), grid, grid), bool)
        room = np.full(len(examples), target)
        for attempt in range(ATTEMPTS):
            open_ = np.flatnonzero(room)  # images that need more blocks
            if not len(open_):
                break
            area, aspect, top, left = random[open_, 4 * attempt : 4 * attempt + 4].T
            largest = np.minimum(room[open_], most)
            smallest = np.minimum(least, largest)
            patches = smallest + area * (largest - smallest)
            ratio = np.exp(low + aspect * (high - low))
            height = np.maximum(np.rint(np.sqrt(patches * ratio)), 1)
            width = np.maximum(np.rint(np.sqrt(patches / ratio)), 1)
            rows = _within(line, np.floor(top * (grid - height + 1)), height)
            columns = _within(line, np.floor(left * (grid - width + 1)), width)
            block = rows[:, :, None] & columns[:, None, :] & ~hidden[open_]
            new = np.count_nonzero(block, axis=(1, 2))
            taken = (new <= room[open_]) & (np.maximum(height, width) <= grid)
            hidden[open_[taken]] |= block[taken]
            room[open_] -= new * taken
        flat = hidden.reshape(len(examples), total)
        # The patches in a random order, hidden ones last: the first `room` of them make up the number.
        order = np.argsort(random[:, 4 * ATTEMPTS :] + flat, axis=1, kind="stable")
        rank = np.empty_like(order)
        np.put_along_axis(rank, order, np.arange(total)[None], axis=1)
        masks: np.ndarray = flat | (rank < room[:, None])
        return masks


def _within(line: np.ndarray, first: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Return (B, grid) bool: the positions that the range from `first` (B,) covers."""
    covered: np.ndarray = (line >= first[:, None]) & (line < (first + length)[:, None])
    return covered
