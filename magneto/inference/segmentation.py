"""Images that a user gives to a model of segmentation: masks with the class of each pixel, and pictures of them."""

import colorsys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.utils import draw_segmentation_masks

from magneto.data.image.dataset import channels_first
from magneto.data.segmentation.build import shortened
from magneto.inference.images import decoded_images
from magneto.inference.inputs import PredictInput

OPACITY = 0.6  # of the classes' colours over an image
GOLDEN = 0.618034  # of the circle of hues, from one class to the next: neighbours differ


def colours(count: int) -> list[tuple[int, int, int]]:
    """Return a colour for each class, the same whatever their number."""
    parts = (
        colorsys.hsv_to_rgb(index * GOLDEN % 1, 1 - 0.4 * (index % 3 == 2), 1 - 0.4 * (index % 3 == 1))
        for index in range(count)
    )
    return [(round(255 * r), round(255 * g), round(255 * b)) for r, g, b in parts]


def overlay(pixels: Tensor, mask: Tensor, classes: int) -> Tensor:
    """Draw the classes of pixels over an image; a pixel of none is as it is.

    Args:
        pixels: (C, H, W) uint8.
        mask: (H, W) int64.
        classes: their number.

    Returns:
        (3, H, W) uint8.
    """
    present = [index for index in torch.unique(mask).tolist() if 0 <= index < classes]
    image = pixels.expand(3, -1, -1)
    if not present:
        return image
    palette = colours(classes)
    areas = torch.stack([mask == index for index in present])
    return draw_segmentation_masks(image, areas, alpha=OPACITY, colors=[palette[index] for index in present])


def shares(mask: Tensor, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Return the classes of a mask (H, W), the largest first: `id`, `label` and `share` of the pixels that have one."""
    counts = torch.bincount(mask[mask >= 0].flatten(), minlength=len(labels))
    order = counts.argsort(descending=True, stable=True)
    total = max(1, int(counts.sum()))
    return [
        {"id": index, "label": labels[index], "share": round(count / total, 4)}
        for index, count in zip(order.tolist(), counts[order].tolist(), strict=True)
        if count
    ]


def segment_images(model: Any, inputs: PredictInput) -> Iterator[dict[str, Any]]:
    """Give the class of each pixel of images, or of all images of a folder.

    Yields:
        `input`; `classes`, see `shares`; `mask`, ids of classes in the image's own size, (H, W) uint8, or uint16 where
        there are more than 256 classes; `image`, the classes' colours over the image, (H, W, 3) uint8.
    """
    for name, image in decoded_images(inputs, model.info):
        seen = torch.tensor(channels_first(shortened(image, model.info.short_side)))
        (logits,) = model.over_windows([model.info.normalise(seen[None])[0].to(model.device)])
        ids = logits[0].argmax(0)
        whole = F.interpolate(
            ids[None, None].double(), size=(image.height, image.width), mode="nearest-exact"
        )
        mask = whole[0, 0].long().cpu()
        pixels = torch.tensor(channels_first(image))
        classes = shares(mask, model.info.labels)
        listed = "\t".join(f"{one['label']}\t{one['share']}" for one in classes)
        yield {
            "text": f"{name}\t{listed}",
            "input": name,
            "classes": classes,
            "mask": mask.numpy().astype(np.uint8 if len(model.info.labels) <= 256 else np.uint16),
            "image": overlay(pixels, mask, len(model.info.labels)).permute(1, 2, 0).numpy(),
        }
