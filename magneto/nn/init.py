"""Initialisation by role: each linear map is given its role when it is built; its name does not matter.

Magneto's section 2: weights `xavier_normal_(gain)` with the depth formula's gain for v, out, fc1 and fc2, and
gain 1 for q and k, whose scale acts through the softmax only. Other placements may give v and fc1 another gain than
out and fc2. Biases start at zero.
"""

from typing import Literal

from torch import nn

Role = Literal["q", "k", "v", "out", "fc1", "fc2", "gate", "head", "stem"]
SCALED_ROLES: frozenset[str] = frozenset({"v", "out", "fc1", "fc2"})


class Linear(nn.Linear):
    """`nn.Linear` with Xavier initialisation by role.

    A fused weight is initialised block by block: the fan-out of a query projection is d_model, not the
    3 d_model of the parameter that holds it. Biases start at zero.

    Args:
        in_features: width of the input.
        out_features: width of the output, all blocks together.
        roles: role of each of the equal blocks of rows, in order: ("q", "k", "v"), or ("out",).
        gain: Xavier gain of the blocks whose role is v, out, fc1 or fc2; the others have gain 1.
        bias: whether there is an additive bias.

    Shape:
        Input: (..., in_features). Output: (..., out_features).

    Example:
        >>> head = Linear(256, 1000, roles=("head",))
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
        for role, block in zip(self.roles, self.weight.chunk(len(self.roles)), strict=True):
            nn.init.xavier_normal_(block, gain=self.gain if role in SCALED_ROLES else 1.0)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, roles={'+'.join(self.roles)}, gain={self.gain:.4g}"


def initialize(module: nn.Module) -> None:
    """Initialise every parameter of `module` again, each by the `reset_parameters` of the module that holds it.

    Modules are initialised when they are built; this is for a second initialisation under another seed.

    Args:
        module: any module; torch's own layers are initialised as torch does it.
    """
    for child in module.modules():
        reset = getattr(child, "reset_parameters", None)
        if reset is not None:
            reset()
