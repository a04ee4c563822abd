"""Position-wise feed-forward, with the inner norm of Sub-LN as an option."""

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from magneto.nn.config import BackboneConfig
from magneto.nn.dropout import dropout
from magneto.nn.init import Linear, Role
from magneto.nn.norm import build_norm, linear_of_norm


def _swiglu(x: Tensor) -> Tensor:
    gate, value = x.chunk(2, dim=-1)
    return F.silu(gate) * value


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "swiglu": _swiglu,  # Shazeer, arXiv 2002.05202
}


class FeedForward(nn.Module):
    """fc2(LN(phi(fc1(x)))), with the LN if `inner_norm` (Magneto, eqs. 3-5): (..., d_model) -> the same.

    Args:
        config: sizes, activation and dropout.
        gain_in: Xavier gain of fc1.
        gain_out: Xavier gain of fc2.
        inner_norm: whether there is a norm before fc2.
    """

    def __init__(self, config: BackboneConfig, *, gain_in: float, gain_out: float, inner_norm: bool) -> None:
        super().__init__()
        width = config.ffn_width
        roles: tuple[Role, ...] = ("fc1", "fc1") if config.activation == "swiglu" else ("fc1",)
        self.fc1 = Linear(config.d_model, len(roles) * width, roles=roles, gain=gain_in, bias=config.bias)
        self.fc2 = Linear(width, config.d_model, roles=("fc2",), gain=gain_out, bias=config.bias)
        self.inner_norm = build_norm(config, width) if inner_norm else None
        self.activation = _ACTIVATIONS[config.activation]
        self.dropout = config.activation_dropout

    def forward(self, x: Tensor) -> Tensor:
        h = self.activation(self.fc1(x))  # (..., ffn_dim)
        h = dropout(h, self.dropout, self.training)
        if self.inner_norm is None:
            return self.fc2(h)  # (..., d_model)
        return linear_of_norm(self.inner_norm, self.fc2, h)
