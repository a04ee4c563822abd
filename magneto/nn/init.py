"""Initialisation by role: a linear map is told at construction what it is, its name never matters.

Magneto's section 2: weights `xavier_normal_(gain)` with the depth formula's gain for v, out, fc1 and fc2, and
gain 1 for q and k, whose scale acts through the softmax alone. Biases start at zero.
"""

from typing import Literal

from torch import nn

Role = Literal["q", "k", "v", "out", "fc1", "fc2", "head", "stem"]
SCALED_ROLES: frozenset[str] = frozenset({"v", "out", "fc1", "fc2"})


class Linear(nn.Linear):
    """`nn.Linear` that knows its role, or the roles of the equal row blocks that are fused in it.

    A fused weight is initialised block by block: the fan-out of a query projection is d_model, not the
    3 d_model of the parameter that holds it.

    Args:
        in_features: width of the input.
        out_features: width of the output, all blocks together.
        roles: the role of each block of rows, in order: ("q", "k", "v"), or ("out",).
        gain: Xavier gain of the blocks whose role is in `SCALED_ROLES`; the others have gain 1.
        bias: whether there is an additive bias.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        roles: tuple[Role, ...],
        gain: float = 1.0,
        bias: bool = True,
    ) -> None:
        assert out_features % len(roles) == 0, (out_features, roles)
        self.roles = roles  # set before nn.Linear's constructor, which calls reset_parameters
        self.gain = gain
        super().__init__(in_features, out_features, bias=bias)

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        for role, block in zip(self.roles, self.weight.chunk(len(self.roles)), strict=True):
            nn.init.xavier_normal_(block, gain=self.gain if role in SCALED_ROLES else 1.0)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        """Show role and gain where the module is printed."""
        return f"{super().extra_repr()}, roles={'+'.join(self.roles)}, gain={self.gain:.4g}"


def initialize(module: nn.Module) -> None:
    """Draw every parameter below `module` anew, each module by its own `reset_parameters`.

    Construction has done so once already; this is for a second draw under another seed.
    """
    for child in module.modules():
        reset = getattr(child, "reset_parameters", None)
        if reset is not None:
            reset()
