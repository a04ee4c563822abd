"""Hide patches of images and let a model complete them."""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from magneto.data.image.dataset import ImageInfo
from magneto.data.transforms.mask_patches import BlockMasking
from magneto.inference.images import image_batches
from magneto.inference.inputs import PredictInput, PredictModel


class MaskedImageModel(PredictModel, Protocol):
    """A model that predicts codes or pixels of hidden patches."""

    info: ImageInfo
    target: Any
    """Model of the codes; None for pixels."""

    def __call__(self, images: Tensor, masked: Tensor) -> Tensor:
        """(B, C, S, S) and (B, N) bool with M hidden patches in all -> fp32 (M, codes or pixels)."""

    def targets(self, images: Tensor, masked: Tensor) -> Tensor:
        """Return the codes (M,) or pixels (M, C * patch * patch) of the hidden patches."""

    def panel(self, image: Tensor, masked: Tensor, outputs: Tensor) -> np.ndarray:
        """Return (H, W, 3) uint8: the image, the same without what is hidden, and completed."""


def complete_images(model: MaskedImageModel, inputs: PredictInput, grid: int) -> Iterator[dict[str, Any]]:
    """Hide patches of each image, `grid` on a side, and complete it.

    Yields:
        `input`, `image` (the panel) and `right` of `hidden` codes, or `squared_error` of pixels.
    """
    for index, ((name,), images) in enumerate(image_batches(inputs, model.info, 1)):
        images = images.to(model.device)
        masks = BlockMasking().draw(grid, np.array([index]), seed=0, purpose="masks of predict", epoch=0)
        masked = torch.from_numpy(masks).to(model.device)
        outputs, targets = model(images, masked), model.targets(images, masked)
        result = {"input": name, "image": model.panel(images, masked, outputs)}
        if model.target is None:
            error = float(F.mse_loss(outputs, targets))
            yield {"text": f"{name}\tsquared error {error:.3f}", **result, "squared_error": error}
        else:
            right, count = int((outputs.argmax(-1) == targets).sum()), len(targets)
            yield {"text": f"{name}\t{right} of {count} codes", **result, "right": right, "hidden": count}
