"""Give images as the codes of their patches."""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from magneto.data.image.dataset import ImageInfo
from magneto.inference.images import image_batches
from magneto.inference.inputs import PredictInput, PredictModel
from magneto.nn.vision.visual_tokenizer import VisualTokenizer


class CodebookModel(PredictModel, Protocol):
    """A visual tokenizer that draws its codes."""

    info: ImageInfo
    tokenizer: VisualTokenizer

    def panels(self, images: Tensor, decoded: Tensor, codes: Tensor) -> Iterator[np.ndarray]:
        """Yield (H, W, 3) uint8 of each image: itself, the reconstruction where there is one, the codes as colours."""


def tokenize_images(model: CodebookModel, inputs: PredictInput) -> Iterator[dict[str, Any]]:
    """Give the codes of each image, row by row.

    Yields:
        `input`, `codes` and `image`, a panel with what the codes stand for.
    """
    for (name,), images in image_batches(inputs, model.info, 1):
        images = images.to(model.device)
        codes = model.tokenizer.codes(images)
        (panel,) = model.panels(images, model.tokenizer.decode(codes), codes)
        listed = codes[0].tolist()
        yield {
            "text": f"{name}\t{' '.join(map(str, listed))}",
            "input": name,
            "codes": listed,
            "image": panel,
        }
