"""Corruptions of test images, by which robustness is measured (Hendrycks and Dietterich, arXiv 1903.12261)."""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Le
from torch import Tensor

from magneto.data.transforms.image import Draws

STRENGTHS = {
    "noise": (0.04, 0.06, 0.08, 0.09, 0.10),  # standard deviation, of full brightness
    "blur": (0.4, 0.6, 0.7, 0.8, 1.0),  # standard deviation in pixels of images of 32
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),  # factor of the distance to the image's mean
    "rotation": (10.0, 20.0, 30.0, 40.0, 50.0),  # degrees, to either side
}
"""By severity: those of CIFAR-10-C (its authors' make_cifar_c.py) but rotation, which is not among theirs."""


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """What spoils the images of the test split, and nothing else.

    Args:
        kind: noise (Gaussian), blur (Gaussian), contrast (lower), rotation (to a side drawn for each image).
        severity: 1 to 5; blur grows with the size of images, so that 224 pixels are blurred as 32 are.
    """

    kind: Literal["noise", "blur", "contrast", "rotation"]
    severity: Annotated[int, Ge(1), Le(5)] = 3

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Return images (B, C, S, S) of 0 to 255 as they are after it, float32 in the same range."""
        from torchvision.transforms.v2 import functional as F

        strength, images = STRENGTHS[self.kind][self.severity - 1], images.float()
        if self.kind == "noise":
            seeds = (draws("noise", 1)[:, 0] * 2**53).astype(np.int64)
            noise = [
                torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(seed))
                for seed in seeds.tolist()
            ]
            images = images + 255 * strength * torch.stack(noise)
        elif self.kind == "blur":
            sigma = strength * images.size(-1) / 32
            images = F.gaussian_blur(images, [2 * round(4 * sigma) + 1] * 2, [sigma, sigma])
        elif self.kind == "contrast":
            mean = images.mean(dim=(2, 3), keepdim=True)
            images = mean + strength * (images - mean)
        else:
            sides = np.where(draws("side", 1)[:, 0] < 0.5, -1.0, 1.0)
            turned = [
                F.rotate(image, side * strength, F.InterpolationMode.BILINEAR)
                for image, side in zip(images, sides.tolist(), strict=True)
            ]
            images = torch.stack(turned)
        return images.clamp(0, 255)
