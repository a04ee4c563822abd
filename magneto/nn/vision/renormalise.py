"""Weights that were trained on images normalised in one way, for images normalised in another: the same function."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Moments = tuple[Sequence[float], Sequence[float]]
"""Mean and deviation of each channel, in units of full brightness: an image x is given as (x - mean) / deviation."""


@dataclass(frozen=True)
class Renormalisation:
    """theirs = scale * ours + shift, for each channel: between two ways to give the same image.

    A linear map of whole patches takes the change up exactly, so that nothing else of a model need know of it.
    """

    scale: Tensor  # (C,)
    shift: Tensor  # (C,)

    @classmethod
    def between(cls, theirs: Moments, ours: Moments) -> "Renormalisation | None":
        """From the moments that a model was trained with to those of its new images; None where they are equal."""
        mean, std = (torch.tensor(list(values), dtype=torch.float64) for values in theirs)
        own_mean, own_std = (torch.tensor(list(values), dtype=torch.float64) for values in ours)
        if torch.equal(mean, own_mean) and torch.equal(std, own_std):
            return None
        return cls(own_std / std, (own_mean - mean) / std)

    def reads(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """A map that reads patches, weight (out, C, ...) or (out, C * pixels) and bias (out,), for ours."""
        by_channel = weight.double().reshape(len(weight), len(self.scale), -1)
        moved = bias.double() + (by_channel * self.shift[:, None]).sum((1, 2))
        scaled = (by_channel * self.scale[:, None]).reshape(weight.shape)
        return scaled.to(weight.dtype), moved.to(bias.dtype)

    def writes(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """A transposed convolution that makes images, weight (width, C, p, p) and bias (C,), so that it makes ours."""
        scaled = weight.double() / self.scale[:, None, None]
        return scaled.to(weight.dtype), ((bias.double() - self.shift) / self.scale).to(bias.dtype)
