"""Augmentation of images: bounds, shares, and that it leaves the global generator alone."""

import numpy as np
import torch

from magneto.data.transforms.image import Augment, Draws, RandAugment, cut


def ramp(count: int = 500, size: int = 32) -> torch.Tensor:
    """Images whose two first channels tell the place of each pixel, 0 to 1."""
    line = (torch.arange(size) + 0.5) / size
    x, y = line.expand(size, size), line[:, None].expand(size, size)
    return torch.stack((x, y, x)).expand(count, -1, -1, -1)


def test_crops():
    """Areas and ratios are within their bounds, anywhere in the image."""
    augment = Augment(crop_scale=(0.25, 0.5), crop_ratio=(0.5, 2.0))
    size = np.full(500, 32)
    boxes = augment.boxes(size, size, Draws(1, 0, np.arange(500)))
    left, top, width, height = boxes.T
    area, ratio = width * height / 32**2, width / height
    assert 0.25 <= area.min() < 0.27 and 0.48 < area.max() <= 0.5
    assert 0.5 <= ratio.min() < 0.55 and 1.8 < ratio.max() <= 2.0
    assert left.min() >= 0 and (left + width).max() <= 32 and (top + height).max() <= 32
    assert np.corrcoef(left, top)[0, 1] < 0.2
    images = cut(ramp(), boxes)
    # A crop of a ramp is a ramp: its mean is the middle of the box.
    assert np.allclose(images[:, 0].mean((1, 2)).numpy(), (left + width / 2) / 32, atol=0.01)
    assert np.allclose(images[:, 1].mean((1, 2)).numpy(), (top + height / 2) / 32, atol=0.01)
    whole = cut(ramp(3), np.array([[0.0, 0, 32, 32]] * 3))
    assert torch.allclose(whole, ramp(3), atol=1e-5)


def test_flips():
    """About every other image is mirrored."""
    draws = Draws(1, 0, np.arange(500))
    flipped = Augment(flip=True).recolour(ramp(), draws)
    turned = (flipped[:, 0, 0, 0] > 0.5).float().mean()
    assert 0.4 < turned < 0.6
    assert torch.equal(flipped[:, 1], ramp()[:, 1])


def test_erasing():
    """One rectangle of about the given share of the images is hidden."""
    images = torch.ones(500, 3, 32, 32)
    hidden = Augment(erase=0.3).hide(images, Draws(1, 0, np.arange(500))) == 0
    chosen = hidden.any(1).flatten(1).any(1)
    assert 0.22 < chosen.float().mean() < 0.38
    for mask in hidden[chosen][:, 0]:
        rows, columns = mask.any(1), mask.any(0)
        assert torch.equal(mask, rows[:, None] & columns) and 0.01 < mask.float().mean() < 0.4


def test_color_jitter():
    """Brightness, contrast and saturation change within their bounds."""
    grey, coloured = torch.full((200, 3, 4, 4), 100.0), torch.full((200, 3, 4, 4), 100.0)
    coloured[:, 0] = 150
    draws = Draws(1, 0, np.arange(200))
    augment = Augment(color_jitter=0.4)
    brightness = augment.recolour(grey, draws)[:, 0, 0, 0] / 100
    assert 0.6 <= brightness.min() < 0.65 and 1.35 < brightness.max() <= 1.4
    changed = augment.recolour(coloured, draws)
    assert torch.allclose(changed[:, 1], changed[:, 2])
    assert ((changed[:, 0] - changed[:, 1]) > 0).all()
    assert augment.recolour(torch.full((2, 1, 4, 4), 100.0), Draws(1, 0, np.arange(2))).shape == (2, 1, 4, 4)


def test_randaugment():
    """Operations are chosen for each image; torch's global generator is left alone."""
    draws = Draws(1, 0, np.arange(40))
    augment = Augment(randaugment=RandAugment(num_ops=2, magnitude=9))
    images = (ramp(40) * 255).round()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    changed = augment.recolour(images, draws)
    assert torch.equal(torch.rand(1), expected)
    assert (changed != images).flatten(1).any(1).float().mean() > 0.5
    part = augment.recolour(images[:5], Draws(1, 0, np.arange(40)[[7, 3, 9, 1, 0]]))
    assert torch.equal(part, changed[[7, 3, 9, 1, 0]])
