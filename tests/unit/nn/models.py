"""Small models with random parameters, and their inputs."""

from typing import Any

import torch
from torch import Tensor

from magneto.nn import BackboneConfig, build_backbone

D, HEADS, FFN = 32, 4, 48


def build(
    placement: str = "magneto", architecture: str = "encoder", position: str = "none", **more: Any
) -> Any:
    """Build a small model whose parameters are all random: a zero bias or a unit norm would hide mistakes."""
    torch.manual_seed(0)
    values = {"num_layers": 3, "d_model": D, "num_heads": HEADS, "ffn_dim": FFN, "max_positions": 32}
    config = BackboneConfig(
        placement=placement, architecture=architecture, position=position, **{**values, **more}
    )
    model = build_backbone(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def stream(batch: int = 3, length: int = 9, seed: int = 1) -> Tensor:
    """(batch, length, D) of unit variance."""
    return torch.randn(batch, length, D, generator=torch.Generator().manual_seed(seed))


def real(lengths: list[int], size: int) -> Tensor:
    """(len(lengths), size) bool mask of right padding, True = real."""
    return torch.arange(size) < torch.tensor(lengths)[:, None]
