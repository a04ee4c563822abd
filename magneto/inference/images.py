"""Images that a user gives to a model: read, and prepared as evaluation sees them."""

import io
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from magneto.data.image.dataset import ImageInfo, user_images
from magneto.data.io.image import BadImage, read_image
from magneto.errors import DataError
from magneto.inference.inputs import PredictInput


def read_images(inputs: PredictInput, info: ImageInfo) -> Iterator[tuple[str, Tensor]]:
    """Yield the name of each image and its pixels as evaluation sees them, (C, S, S) uint8.

    The name of an image in memory is its index, `[0]`.

    Raises:
        MagnetoError: texts are given; there is no such file, or it cannot be read.
    """
    for index, item in enumerate(inputs.files()):
        if isinstance(item, str | Path):
            for file, image in user_images(item, info.channels, info.svg_side, inputs.key):
                yield str(file), torch.tensor(info.evaluation_image(image))
            continue
        try:
            image = read_image(_image_data(item), info.channels)
        except (BadImage, OSError, ValueError, TypeError, IndexError) as error:
            raise DataError(
                f"image {index} ({type(item).__name__}): {error}. Give a path, a PIL image, or uint8 pixels (H, W) or "
                "(H, W, 3)."
            ) from error
        yield f"[{index}]", torch.tensor(info.evaluation_image(image))


def image_batches(inputs: PredictInput, info: ImageInfo, size: int) -> Iterator[tuple[list[str], Tensor]]:
    """Yield the names of at most `size` images and their pixels (B, C, S, S), normalised as the model expects them."""
    images = read_images(inputs, info)
    while batch := list(islice(images, size)):
        names, pixels = zip(*batch, strict=True)
        yield list(names), info.normalise(torch.stack(pixels))


def _image_data(item: object) -> np.ndarray | bytes:
    if isinstance(item, Image.Image):
        buffer = io.BytesIO()  # encoded, since `read_image` knows what to do with transparency and 16 bits
        ImageOps.exif_transpose(item).save(buffer, "TIFF")
        return buffer.getvalue()
    if isinstance(item, np.ndarray) and item.dtype == np.uint8:
        return item
    raise TypeError("not an image")
