"""Images side by side."""

import numpy as np
import torch

from magneto.visualize.image_grid import HIDDEN, hide, side_by_side, tile


def test_small_images_are_enlarged() -> None:
    """Small images are enlarged and grey ones get three channels."""
    pixels = torch.arange(4, dtype=torch.uint8).view(1, 2, 2)
    shown = tile(pixels)
    assert shown.shape == (112, 112, 3)
    assert (shown[:56, 56:] == 1).all() and (shown[56:, :56] == 2).all()
    large = np.zeros((3, 224, 224), np.uint8)
    assert tile(large).shape == (224, 224, 3)


def test_images_stand_apart() -> None:
    black = np.zeros((5, 5, 3), np.uint8)
    row = side_by_side([black, black])
    assert row.shape == (5, 14, 3) and (row[:, 5:9] == 255).all() and not row[:, 9:].any()


def test_hidden_patches_are_grey() -> None:
    pixels = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    shown = hide(pixels, torch.tensor([[False, True, False, False]]), 2)
    assert (shown[0, 0, :2, 2:] == HIDDEN).all() and shown.sum() == 4 * HIDDEN
