"""Muon for the hidden matrices of a model and AdamW for everything else, as one optimizer."""

from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from magneto.nn.init import Linear

HIDDEN_ROLES = frozenset({"q", "k", "v", "out", "fc1", "fc2"})
"""Roles of the matrices that Muon updates: those inside the layers, neither stem nor head."""


def hidden_matrices(module: nn.Module) -> dict[nn.Parameter, int]:
    """Return the trainable weights of all `magneto.nn` linear maps inside layers, with their numbers of fused blocks.

    A fused q, k, v counts as three matrices of its own, a SwiGLU's fc1 as two. A weight that something else shares,
    such as an embedding, is left out.
    """
    owners: dict[nn.Parameter, list[nn.Module]] = {}
    for owner in module.modules():
        for parameter in owner.parameters(recurse=False):
            owners.setdefault(parameter, []).append(owner)
    found: dict[nn.Parameter, int] = {}
    for parameter, owned_by in owners.items():
        linears = [
            owner for owner in owned_by if isinstance(owner, Linear) and HIDDEN_ROLES.issuperset(owner.roles)
        ]
        if len(linears) == len(owned_by) and parameter.requires_grad and parameter.ndim == 2:
            found[parameter] = len(linears[0].roles)
    return found


def newton_schulz_flops(rows: int, columns: int, steps: int = 5) -> int:
    """Return the FLOPs of the orthogonalization of one matrix (Jordan et al. 2024, "Muon"), 2 for a multiply-add.

    Each step is three products of the shorter side m and the longer side n: m x n by n x m, m x m by m x m, and
    m x m by m x n.
    """
    m, n = sorted((rows, columns))
    return steps * (4 * m * m * n + 2 * m**3)


class MuonAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` and `torch.optim.AdamW` over one list of parameter groups, with one state and one schedule.

    Muon replaces the momentum of each matrix by the nearest semi-orthogonal one (five Newton-Schulz steps in bf16) and
    scales it to the root mean square that AdamW's updates have, 0.2 * sqrt(max(rows, columns)) (Liu et al.,
    arXiv 2502.16982, section 2.2), so that both kinds of groups share learning rate and weight decay. Each block of a
    fused weight is orthogonalized for itself.

    Args:
        groups: as `magneto.training.optim.parameter_groups` returns them. Those with the key `blocks`, the number of fused
            blocks of each parameter, are Muon's.
        lr: learning rate of groups without their own.
        weight_decay: that of groups without their own.
        momentum: of Muon.
        adamw: further arguments of AdamW: betas, eps, fused.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
        **adamw: Any,
    ) -> None:
        shared: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
        muon, others = _by_optimizer(groups)
        self.inner = (
            _BlockMuon(muon, momentum=momentum, adjust_lr_fn="match_rms_adamw", **shared),
            torch.optim.AdamW(others, **shared, **adamw),
        )
        super().__init__(groups, shared)  # the same dictionaries, which the inner ones have completed

    @property
    def flops(self) -> int:
        """FLOPs of the orthogonalizations of a step, which every process makes for itself."""
        muon, _ = _by_optimizer(self.param_groups)
        return sum(
            count * newton_schulz_flops(parameter.size(0) // count, parameter.size(1))
            for group in muon
            for parameter, count in zip(group["params"], group["blocks"], strict=True)
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters; return what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # A loaded state brings new dictionaries, so the inner optimizers own none.
        for inner, groups in zip(self.inner, _by_optimizer(self.param_groups), strict=True):
            inner.param_groups, inner.state = groups, self.state
            inner.step()
        return loss


def _by_optimizer(groups: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the groups of Muon and those of AdamW."""
    return [g for g in groups if "blocks" in g], [g for g in groups if "blocks" not in g]


class _BlockMuon(torch.optim.Muon):
    """torch's Muon, which sees the blocks of a fused weight, of its gradient and of its momentum as matrices."""

    def _init_group(
        self,
        group: MutableMapping[str, Any],
        params_with_grad: list[Tensor],
        grads: list[Tensor],
        muon_momentum_bufs: list[Tensor],
    ) -> bool:
        has_complex = super()._init_group(group, params_with_grad, grads, muon_momentum_bufs)
        blocks = dict(zip(group["params"], group["blocks"], strict=True))
        counts = [blocks[parameter] for parameter in params_with_grad]
        for tensors in (params_with_grad, grads, muon_momentum_bufs):
            tensors[:] = [
                block for tensor, n in zip(tensors, counts, strict=True) for block in tensor.chunk(n)
            ]
        return has_complex
