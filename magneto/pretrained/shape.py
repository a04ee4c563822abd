"""Compare the shapes of two backbones: what decides the meaning of their weights."""

from dataclasses import fields
from typing import Any

from magneto.nn.config import BackboneConfig

_TRAINING_ONLY = (
    "dropout", "attention_dropout", "activation_dropout", "drop_path", "gain", "activation_checkpointing"
)  # fmt: skip
SHAPE = tuple(field.name for field in fields(BackboneConfig) if field.name not in _TRAINING_ONLY)
"""Fields that decide what a backbone's weights mean; the others only say how it is trained."""


def _meaning(config: BackboneConfig) -> dict[str, Any]:
    """Return the shape with its defaults: equal for two configurations of the same backbone."""
    placement = config.resolved_placement()
    values = {key: getattr(config, key) for key in SHAPE}
    values |= {
        "ffn_dim": config.ffn_width,
        "inner_attention_norm": placement.inner_attention,
        "inner_ffn_norm": placement.inner_ffn,
        "final_norm": placement.final,
    }
    if config.architecture == "encoder_decoder":
        values["decoder_layers"] = config.decoder_layers or config.num_layers
    unused = {
        "relative": ("relative_buckets", "relative_max_distance"),
        "convolutional": ("conv_position_kernel",),
    }
    for position, keys in unused.items():
        if config.position != position:
            values |= dict.fromkeys(keys)
    # Rows of the tables of positions: these are compared as tensors, those of images once they are resized.
    for key in ("max_positions", "grid"):
        values.pop(key)
    return values


def differences(theirs: BackboneConfig, ours: BackboneConfig) -> dict[str, tuple[Any, Any]]:
    """Return the fields of the shape that differ, each with (theirs, ours)."""
    left, right = _meaning(theirs), _meaning(ours)
    return {key: (left[key], right[key]) for key in left if left[key] != right[key]}
