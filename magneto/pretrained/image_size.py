"""Adapt a pretrained model of images to other images: patch size, positions and normalisation."""

import logging
from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any

from torch import Tensor

from magneto.errors import ConfigError
from magneto.nn.config import BackboneConfig
from magneto.nn.vision.renormalise import Renormalisation
from magneto.nn.vision.resize import resized_positions, resized_relative_grid

log = logging.getLogger("magneto")

_POSITIONS = ("backbone.position.table", "stem.vision_position")
"""A learned vector for [CLS] and for each patch of an image."""
_STEMS = ("stem", "stem.vision")
_FIRST = ("convolutions.0", "projection")
"""What reads pixels in a stem, the first of these that there is."""
_KINDS = {1: "grey", 3: "in colour"}


def patch_size(
    source: str, info: Mapping[str, Any], data: Mapping[str, Any], overrides: Sequence[str]
) -> int | None:
    """Return the pixels on a side of the patches that a pretrained stem reads; None where it, or the data, has no images.

    Args:
        source: of the pretrained model, for messages.
        info: info of the data that it was trained on.
        data: configuration of the data that it is fine-tuned on.
        overrides: of the command line.

    Raises:
        ConfigError: the command says another patch size, or the images have another number of channels.
    """
    patch, channels = info.get("patch_size"), info.get("channels")
    if patch is None or channels is None or not {"patch_size", "channels"} <= data.keys():
        return None
    named = [override for override in overrides if override.lstrip("+").startswith("data.patch_size=")]
    if named and data["patch_size"] != patch:
        raise ConfigError(
            f"init_from={source} reads patches of {patch} pixels, and the command has {named[-1]}. Leave it out: the "
            "patches come with the weights."
        )
    size, own = info["image_size"], data.get("image_size")
    given = any(
        override.lstrip("+").startswith(("data.image_size=", "experiment=")) for override in overrides
    )
    if isinstance(own, int) and own > 2 * size and not given:
        log.warning(
            "init_from=%s was trained on images of %d pixels, and these are read at %d: %d patches for %d. Set "
            "data.image_size to %d for the same.", source, size, own, (own // patch) ** 2, (size // patch) ** 2, size,
        )  # fmt: skip
    if data["channels"] in _KINDS and data["channels"] != channels:
        raise ConfigError(
            f"init_from={source} reads images that are {_KINDS[channels]}, and data={data.get('name')} gives them "
            f"{_KINDS[data['channels']]}. Set data.channels to {channels}: they are converted."
        )
    return int(patch)


def resized(
    backbone: BackboneConfig, weights: Mapping[str, Tensor], info: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Return the tables of positions of a pretrained model, resized to images of another size; empty for equal sizes.

    Args:
        backbone: its shape.
        weights: its tensors by name.
        info: info of the data that it is fine-tuned on.
    """
    if not info.get("image_size") or not info.get("patch_size"):
        return {}
    grid = info["image_size"] // info["patch_size"]
    found = {}
    for name, table in weights.items():
        if name == "backbone.relative.table" and backbone.position == "relative_2d":
            if len(table) != (2 * grid - 1) ** 2 + 3:
                found[name] = resized_relative_grid(table, grid)
        elif (
            name in _POSITIONS and len(table) != 1 + grid**2 and isqrt(len(table) - 1) ** 2 == len(table) - 1
        ):
            found[name] = resized_positions(table, grid)
    return found


def renormalised(
    info: Mapping[str, Any], weights: Mapping[str, Tensor], own: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Return the pretrained map of patches, for images of another mean and deviation; empty for the same ones.

    A model sees an image as it did in its pre-training, whatever the corpus that is now normalised by its own moments.

    Args:
        info: info of the data that it was trained on.
        weights: its tensors by name.
        own: info of the data that it is fine-tuned on.
    """
    if not all(one.get(key) for one in (info, own) for key in ("mean", "std")) or "image_size" not in own:
        return {}
    if len(info["mean"]) != len(own["mean"]):
        return {}  # grey and in colour: an error follows where the tensors do not fit
    change = Renormalisation.between((info["mean"], info["std"]), (own["mean"], own["std"]))
    found = {}
    for stem in _STEMS:
        for first in (f"{stem}.{name}" for name in _FIRST):
            weight, bias = (weights.get(f"{first}.{kind}") for kind in ("weight", "bias"))
            if change is not None and weight is not None and bias is not None:
                found[f"{first}.weight"], found[f"{first}.bias"] = change.reads(weight, bias)
                break
    return found
