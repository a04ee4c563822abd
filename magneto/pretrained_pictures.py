"""Starting from a model of pictures (magneto/pretrained.py): its patches, and positions for pictures of another size."""

from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any

from torch import Tensor

from magneto.errors import UserError
from magneto.nn.config import BackboneConfig
from magneto.nn.resize import resized_positions, resized_relative_grid

_PLACES = ("backbone.position.table", "stem.vision_position")
"""A learned vector for [CLS] and for each patch of a picture."""
_KINDS = {1: "grey", 3: "in colour"}


def patch_size(
    source: str, spec: Mapping[str, Any], data: Mapping[str, Any], overrides: Sequence[str]
) -> int | None:
    """Pixels on a side of the patches that a pretrained stem reads; None where it, or the data, has no pictures.

    Args:
        source: of the pretrained model, for messages.
        spec: facts of the data that it was trained on.
        data: configuration of the data that it is to go on with.
        overrides: of the command line.

    Raises:
        UserError: the command says another patch size, or the pictures have another number of channels.
    """
    patch, channels = spec.get("patch_size"), spec.get("channels")
    if patch is None or channels is None or not {"patch_size", "channels"} <= data.keys():
        return None
    named = [override for override in overrides if override.lstrip("+").startswith("data.patch_size=")]
    if named and data["patch_size"] != patch:
        raise UserError(
            f"init_from={source} reads patches of {patch} pixels, and the command says {named[-1]}. Leave it out: the "
            "patches come with the weights."
        )
    if data["channels"] in _KINDS and data["channels"] != channels:
        raise UserError(
            f"init_from={source} reads pictures that are {_KINDS[channels]}, and data={data.get('name')} gives them "
            f"{_KINDS[data['channels']]}. Say data.channels={channels}: they are converted."
        )
    return int(patch)


def resized(
    backbone: BackboneConfig, weights: Mapping[str, Tensor], spec: Mapping[str, Any]
) -> dict[str, Tensor]:
    """What a pretrained model learned of the places in a picture, for pictures of another size; empty for equal sizes.

    Args:
        backbone: its shape.
        weights: its tensors by name.
        spec: facts of the data that it is to go on with.
    """
    if not spec.get("image_size") or not spec.get("patch_size"):
        return {}
    grid = spec["image_size"] // spec["patch_size"]
    found = {}
    for name, table in weights.items():
        if name == "backbone.relative.table" and backbone.position == "relative_2d":
            if len(table) != (2 * grid - 1) ** 2 + 3:
                found[name] = resized_relative_grid(table, grid)
        elif name in _PLACES and len(table) != 1 + grid**2 and isqrt(len(table) - 1) ** 2 == len(table) - 1:
            found[name] = resized_positions(table, grid)
    return found
