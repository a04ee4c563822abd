"""Windows of the size that a model reads, over larger images."""

from collections.abc import Callable, Sequence
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor


def window_starts(length: int, size: int, step: int) -> list[int]:
    """Return where windows of `size` pixels begin that cover `length` pixels; the last one ends where the image does."""
    count = max(0, ceil((length - size) / step)) + 1
    return [min(number * step, max(0, length - size)) for number in range(count)]


def sliding_logits(
    model: Callable[[Tensor], Tensor], images: Sequence[Tensor], size: int, step: int, batch: int
) -> list[Tensor]:
    """Apply a model to windows of images, and return the mean of its logits at each pixel.

    Args:
        model: (N, C, size, size) -> (N, ..., size, size).
        images: (C, H, W) each, of any size; smaller ones are filled up with 0 at the right and at the bottom.
        size: pixels on a side of a window.
        step: pixels from one window to the next.
        batch: windows that are computed at once.

    Returns:
        (..., H, W) of each image.
    """
    places = [
        (index, top, left)
        for index, image in enumerate(images)
        for top in window_starts(image.size(1), size, step)
        for left in window_starts(image.size(2), size, step)
    ]
    windows = []
    for index, top, left in places:
        window = images[index][:, top : top + size, left : left + size]
        windows.append(F.pad(window, (0, size - window.size(2), 0, size - window.size(1))))
    logits = torch.cat(
        [model(torch.stack(windows[start : start + batch])) for start in range(0, len(windows), batch)]
    )
    totals = [logits.new_zeros(*logits.shape[1:-2], *image.shape[1:]) for image in images]
    counts = [logits.new_zeros(image.shape[1:]) for image in images]
    for (index, top, left), window in zip(places, logits, strict=True):
        height, width = (min(size, side) for side in images[index].shape[1:])
        area = slice(top, top + height), slice(left, left + width)
        totals[index][(..., *area)] += window[..., :height, :width]
        counts[index][area] += 1
    return [total / count for total, count in zip(totals, counts, strict=True)]
