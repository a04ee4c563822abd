"""Images that a user gives to a model, prepared as evaluation sees them: labelled, completed, or as codes."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge
from PIL import Image, ImageOps
from torch import Tensor

from magneto.data.image.dataset import ImageInfo, PixelsInfo, user_images
from magneto.data.io.image import BadImage, read_image
from magneto.data.transforms.mask_patches import BlockMasking
from magneto.errors import DataError
from magneto.inference.inputs import PredictInput

BATCH = 32


def decoded_images(inputs: PredictInput, info: PixelsInfo) -> Iterator[tuple[str, Image.Image]]:
    """Yield the name of each image, and the image in its own size. The name of an image in memory is its index, `[0]`.

    Raises:
        MagnetoError: texts are given; there is no such file, or it cannot be read.
    """
    for index, item in enumerate(inputs.files()):
        if isinstance(item, str | Path):
            for file, image in user_images(item, info.channels, info.svg_side, inputs.key):
                yield str(file), image
            continue
        try:
            image = read_image(_image_data(item), info.channels)
        except (BadImage, OSError, ValueError, TypeError, IndexError) as error:
            raise DataError(
                f"image {index} ({type(item).__name__}): {error}. Give a path, a PIL image, or uint8 pixels (H, W) or "
                "(H, W, 3)."
            ) from error
        yield f"[{index}]", image


def read_images(inputs: PredictInput, info: ImageInfo) -> Iterator[tuple[str, Tensor]]:
    """Yield the name of each image, and its pixels as evaluation sees them, (C, S, S) uint8. See `decoded_images`."""
    for name, image in decoded_images(inputs, info):
        yield name, torch.tensor(info.evaluation_image(image))


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


@dataclass(frozen=True, kw_only=True)
class ImageClassificationPredictOptions:
    """Options of `mode=predict`, `conf/predict/image_classification.yaml`."""

    top_k: Annotated[int, Ge(1)] = 5
    """Classes that are listed for each image, the most probable first."""


def classify_images(
    model: Any, inputs: PredictInput, options: ImageClassificationPredictOptions
) -> Iterator[dict[str, Any]]:
    """Label images, or all images of a folder.

    Yields:
        `input`, `label`, `probability`, and `top`: labels and probabilities of the `top_k` classes.
    """
    for names, images in image_batches(inputs, model.info, BATCH):
        probabilities = model(images.to(model.device)).softmax(-1)
        answers = top_answers(probabilities, model.labels, options.top_k, "label")
        for name, top in zip(names, answers, strict=True):
            listed = "\t".join(f"{answer['label']}\t{answer['probability']}" for answer in top)
            yield {"text": f"{name}\t{listed}", "input": name, **top[0], "top": top}


def top_answers(probabilities: Tensor, labels: list[str], top_k: int, key: str) -> list[list[dict[str, Any]]]:
    """(B, classes) -> for each row its `top_k` classes, the most probable first, as `key` and `probability`."""
    top = probabilities.topk(min(top_k, len(labels)), dim=1)
    return [
        [
            {key: labels[index], "probability": round(probability, 4)}
            for index, probability in zip(*row, strict=True)
        ]
        for row in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]


def complete_images(model: Any, inputs: PredictInput, grid: int) -> Iterator[dict[str, Any]]:
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


def tokenize_images(model: Any, inputs: PredictInput) -> Iterator[dict[str, Any]]:
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
