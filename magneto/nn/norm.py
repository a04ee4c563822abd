"""LayerNorm and RMSNorm that keep their statistics in fp32 and their traffic in the input's dtype, and Dynamic Tanh."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from magneto.nn.config import BackboneConfig

KEPT_BYTES = 2**23
"""Outputs of a norm below this size are kept: on 2 CPU cores, computing 4 MB again cost 7 % of a step, 16 MB hardly any."""


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` that autocast does not widen: (..., width) -> the same, in the dtype of the input.

    CUDA's autocast would convert a bf16 input to fp32 in memory, and the next matrix product would convert
    the result back. That is several times the traffic of the norm itself, and the inner norm of Sub-LN is as
    wide as the feed-forward. The kernels accumulate mean and variance of a bf16 input in fp32 anyway.
    """

    first_weight = 1.0

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.first_weight != 1.0:
            nn.init.constant_(self.weight, self.first_weight)

    def forward(self, input: Tensor) -> Tensor:
        if input.dtype == self.weight.dtype:
            return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)
        weight, bias = self.weight.to(input.dtype), None if self.bias is None else self.bias.to(input.dtype)
        with torch.autocast(input.device.type, enabled=False):
            return F.layer_norm(input, self.normalized_shape, weight, bias, self.eps)


class RMSNorm(nn.RMSNorm):
    """`nn.RMSNorm` (Zhang and Sennrich, arXiv 1910.07467) in the dtype of the input, as `LayerNorm`."""

    first_weight = 1.0

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, self.first_weight)

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == self.weight.dtype:
            return F.rms_norm(x, self.normalized_shape, self.weight, self.eps)
        with torch.autocast(x.device.type, enabled=False):
            return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class DynamicTanh(nn.Module):
    """weight * tanh(alpha * x) + bias, in the place of a norm (DyT, Zhu et al., arXiv 2503.10622, eq. 1).

    It computes no statistics: alpha, one for all channels, begins at 0.5 and is learned.

    Args:
        width: number of channels.
        bias: whether there is a bias.

    Shape:
        Input and output: (..., width), in the dtype of the input.
    """

    first_weight = 1.0
    first_alpha = 0.5

    def __init__(self, width: int, *, bias: bool) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(()))
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set alpha to 0.5, weights to 1 or what was asked for, and biases to 0."""
        nn.init.constant_(self.alpha, self.first_alpha)
        nn.init.constant_(self.weight, self.first_weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.weight.to(x.dtype) * torch.tanh(self.alpha.to(x.dtype) * x)
        return x if self.bias is None else x + self.bias.to(x.dtype)


Norm = LayerNorm | RMSNorm | DynamicTanh


def linear_of_norm(norm: nn.Module, linear: nn.Module, x: Tensor) -> Tensor:
    """Return linear(norm(x)): (..., width) -> (..., out); norm(x) is not kept for the backward pass, but computed again.

    A norm needs its input for its gradient and a linear map the norm's output for that of its weight: as wide as the
    feed-forward, in each layer of Sub-LN. Computing it again is a pass over memory; torch stops as soon as the linear
    map has its input, so that no product is repeated. Outputs below `KEPT_BYTES` are kept.
    """
    if not torch.is_grad_enabled() or x.numel() * x.element_size() < KEPT_BYTES:
        return cast(Tensor, linear(norm(x)))
    return cast(
        Tensor, checkpoint(lambda x: linear(norm(x)), x, use_reentrant=False, preserve_rng_state=False)
    )


def build_norm(config: BackboneConfig, width: int, weight: float = 1.0) -> Norm:
    """Build the norm that `config.norm` names.

    Args:
        config: kind of the norm, epsilon and bias.
        width: number of channels, in the last dimension of the input.
        weight: first value of its weights.

    Shape:
        Input and output of the module: (..., width).
    """
    norm: Norm
    if config.norm == "rmsnorm":
        norm = RMSNorm(width, eps=config.norm_eps)
    elif config.norm == "dyt":
        norm = DynamicTanh(width, bias=config.bias)
    else:
        norm = LayerNorm(width, eps=config.norm_eps, bias=config.bias)
    if weight != 1.0:
        norm.first_weight = weight
        norm.reset_parameters()
    return norm
