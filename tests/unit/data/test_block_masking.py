"""Block-wise masking: how much, in blocks, the same for an image whatever its batch; the numbers that it draws."""

import numpy as np
import pytest

from magneto.data.rng import uniforms
from magneto.data.transforms.mask_patches import BlockMasking

SEED = {"seed": 1, "purpose": "masks", "epoch": 0}


@pytest.mark.parametrize(("grid", "hidden"), [(7, 20), (8, 26), (14, 78), (2, 2), (1, 0)])
def test_the_share_of_hidden_patches(grid, hidden):
    """It is that of every image."""
    masks = BlockMasking().draw(grid, np.arange(300), **SEED)
    assert masks.shape == (300, grid**2) and masks.dtype == bool
    assert (masks.sum(1) == hidden).all()


def test_hidden_patches_form_blocks():
    """A hidden patch has far more hidden neighbours than by chance (0.4), and no place is preferred much."""
    masks = BlockMasking().draw(14, np.arange(500), **SEED).reshape(-1, 14, 14)
    right = masks[:, :, 1:][masks[:, :, :-1]].mean()
    below = masks[:, 1:][masks[:, :-1]].mean()
    assert min(right, below) > 0.75
    # Blocks lie within the grid, so that its corners are hidden less often, as in the paper's algorithm.
    share = masks.mean(0)
    assert share.min() > 0.02 and share.max() < 0.8


def test_a_largest_block_and_single_patches():
    whole = BlockMasking(ratio=0.4).draw(14, np.arange(200), **SEED).reshape(-1, 14, 14)
    small = (
        BlockMasking(ratio=0.4, min_patches=1, max_patches=2)
        .draw(14, np.arange(200), **SEED)
        .reshape(-1, 14, 14)
    )
    assert small[:, :, 1:][small[:, :, :-1]].mean() < whole[:, :, 1:][whole[:, :, :-1]].mean() - 0.2
    assert (small.sum((1, 2)) == 78).all()


def test_masks_depend_on_seed_and_example():
    """And on the epoch alone."""
    masking, examples = BlockMasking(), np.arange(64)
    masks = masking.draw(7, examples, **SEED)
    assert np.array_equal(masks[[5, 40, 7]], masking.draw(7, np.array([5, 40, 7]), **SEED))
    for change in ({"seed": 2}, {"epoch": 1}, {"purpose": "masks of val"}):
        assert (masks != masking.draw(7, examples, **{**SEED, **change})).any(1).mean() > 0.9
    assert (masks[:-1] != masks[1:]).any(1).mean() > 0.9


def test_uniforms_are_uniform_and_independent():
    numbers = uniforms(3, "x", 0, np.arange(4000), 8)
    assert numbers.shape == (4000, 8) and numbers.min() >= 0 and numbers.max() < 1
    assert np.abs(np.histogram(numbers, 20, (0, 1))[0] / numbers.size - 0.05).max() < 0.005
    between = np.corrcoef(numbers.T) - np.eye(8)
    assert np.abs(between).max() < 0.06
    assert abs(np.corrcoef(numbers[:-1, 0], numbers[1:, 0])[0, 1]) < 0.06
    assert np.array_equal(numbers[:, :3], uniforms(3, "x", 0, np.arange(4000), 3))
    assert uniforms(1, "masks", 0, np.array([7]), 1)[0, 0] == pytest.approx(GOLDEN_NUMBER)


GOLDEN_NUMBER = 0.45782579052455274  # of published runs: it must never change
