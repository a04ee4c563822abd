"""Change of weights for images of another normalisation, so that the function of the image stays the same."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Moments = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation of each channel, in units of full brightness: an image x is (x - mean) / deviation."""


@dataclass(frozen=True)
class Renormalisation:
    """Linear map of each channel between two normalisations of an image: theirs = scale * ours + shift.

    The linear map of the patches absorbs it exactly, so that the rest of a model does not change.
    """

    scale: Tensor  # (C,)
    shift: Tensor  # (C,)

    @classmethod
    def between(cls, theirs: Moments, ours: Moments) -> "Renormalisation | None":
        """Return the map from the moments `ours` of new images to `theirs` of the training; None if they are equal."""
        mean, std = (torch.tensor(list(values), dtype=torch.float64) for values in theirs)
        own_mean, own_std = (torch.tensor(list(values), dtype=torch.float64) for values in ours)
        if torch.equal(mean, own_mean) and torch.equal(std, own_std):
            return None
        return cls(own_std / std, (own_mean - mean) / std)

    def reads(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Change a map that reads patches, weight (out, C, ...) or (out, C * pixels) and bias (out,), to read ours."""
        by_channel = weight.double().reshape(len(weight), len(self.scale), -1)
        moved = bias.double() + (by_channel * self.shift[:, None]).sum((1, 2))
        scaled = (by_channel * self.scale[:, None]).reshape(weight.shape)
        return scaled.to(weight.dtype), moved.to(bias.dtype)

    def writes(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Change a transposed convolution that writes images, weight (width, C, p, p) and bias (C,), to write ours."""
        scaled = weight.double() / self.scale[:, None, None]
        return scaled.to(weight.dtype), ((bias.double() - self.shift) / self.scale).to(bias.dtype)
