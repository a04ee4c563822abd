"""Muon for the hidden matrices of a model and AdamW for everything else, as one optimizer."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from magneto.nn.init import Linear
from magneto.training.sharding import local_part, own_part

HIDDEN_ROLES = frozenset({"q", "k", "v", "out", "fc1", "fc2", "gate"})
"""Roles of the matrices that Muon updates: those inside the layers, neither stem nor head."""
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5
"""Of the Newton-Schulz iteration (Jordan et al. 2024), as in `torch.optim.Muon`."""
BATCH_ELEMENTS = 2**23
"""Elements that are orthogonalized together at most: more take memory, and are no faster."""


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


def newton_schulz_flops(rows: int, columns: int, steps: int = STEPS) -> int:
    """Return the FLOPs of the orthogonalization of one matrix (Jordan et al. 2024, "Muon"), 2 for a multiply-add.

    Each step is three products of the shorter side m and the longer side n: m x n by n x m, m x m by m x m, and
    m x m by m x n.
    """
    m, n = sorted((rows, columns))
    return steps * (4 * m * m * n + 2 * m**3)


def orthogonalize(matrices: Tensor) -> Tensor:
    """Return for each matrix one with nearly equal singular values and the same singular vectors: U V^T, roughly.

    The quintic Newton-Schulz iteration of Jordan et al. (2024), "Muon": X <- a X + (b X X^T + c (X X^T)^2) X, in the
    dtype of the input. Matrices with more rows than columns cost less transposed.

    Args:
        matrices: (N, rows, columns), as a batch, whose products fill a GPU or several cores better than single ones.
    """
    a, b, c = COEFFICIENTS
    x = matrices / torch.linalg.vector_norm(matrices, dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class MuonAdamW(torch.optim.Optimizer):
    """Muon and `torch.optim.AdamW` over one list of parameter groups, with one state and one schedule.

    Muon replaces the momentum of each matrix by the nearest semi-orthogonal one and scales it to the root mean square
    that AdamW's updates have, 0.2 * sqrt(max(rows, columns)) (Liu et al., arXiv 2502.16982, section 2.2), so that both
    kinds of groups share learning rate and weight decay. Each block of a fused weight is orthogonalized for itself.
    The update is that of `torch.optim.Muon`, with two differences in how it is computed: matrices of one shape go
    through the products together, and on a CPU these are in bf16 only if `bf16` says so. Most CPUs emulate bf16, in
    which torch's takes 20 to 50 times as long; those with AVX512-BF16 take a quarter of the time of fp32.

    Args:
        groups: as `magneto.training.optim.parameter_groups` returns them. Those with the key `blocks`, the number of fused
            blocks of each parameter, are Muon's.
        lr: learning rate of groups without their own.
        weight_decay: that of groups without their own.
        momentum: of Muon.
        bf16: whether a CPU orthogonalizes in bf16, as GPUs always do.
        adamw: further arguments of AdamW: betas, eps, fused.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        *,
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
        bf16: bool = False,
        **adamw: Any,
    ) -> None:
        muon, others = _by_optimizer(groups)
        for group in muon:
            group.setdefault("momentum", momentum)
        self.bf16 = bf16
        self.adamw = torch.optim.AdamW(others, lr=lr, weight_decay=weight_decay, **adamw)
        # The same dictionaries, which AdamW has completed.
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})

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
        muon, others = _by_optimizer(self.param_groups)
        for group in muon:
            self._update_matrices(group)
        # A loaded state brings new dictionaries, so AdamW owns none.
        self.adamw.param_groups, self.adamw.state = others, self.state
        self.adamw.step()
        return loss

    def _update_matrices(self, group: dict[str, Any]) -> None:
        """One step of Muon, with Nesterov's momentum and decoupled weight decay."""
        trained = [
            (parameter, count)
            for parameter, count in zip(group["params"], group["blocks"], strict=True)
            if parameter.grad is not None
        ]
        if not trained:
            return
        for parameter, _ in trained:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        parameters = [local_part(parameter) for parameter, _ in trained]
        gradients = [local_part(parameter.grad) for parameter, _ in trained]
        momenta = [local_part(self.state[parameter]["momentum_buffer"]) for parameter, _ in trained]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        updates = torch._foreach_lerp(gradients, momenta, group["momentum"])
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        if isinstance(trained[0][0], DTensor):
            self._add_sharded(trained, updates, group["lr"])
            return
        by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
        for (parameter, count), update in zip(trained, updates, strict=True):
            for pair in zip(parameter.chunk(count), update.chunk(count), strict=True):
                by_shape.setdefault(pair[0].shape, []).append(pair)
        for (rows, columns), pairs in by_shape.items():
            scale = -group["lr"] * _scale(rows, columns)
            size = max(1, BATCH_ELEMENTS // (rows * columns))
            for start in range(0, len(pairs), size):
                weights, batch = zip(*pairs[start : start + size], strict=True)
                torch._foreach_add_(weights, self._orthogonal(torch.stack(batch)).unbind(), alpha=scale)

    def _add_sharded(
        self, trained: list[tuple[nn.Parameter, int]], updates: Sequence[Tensor], lr: float
    ) -> None:
        """Gather the update of one matrix after the other: every process orthogonalizes it whole, and adds its part."""
        for (parameter, count), update in zip(trained, updates, strict=True):
            assert isinstance(parameter, DTensor)
            sharded = DTensor.from_local(
                update,
                parameter.device_mesh,
                parameter.placements,
                shape=parameter.shape,
                stride=parameter.stride(),
            )
            whole = sharded.full_tensor()
            blocks = whole.view(count, -1, whole.size(1))  # (count, rows, columns)
            orthogonal = self._orthogonal(blocks).flatten(0, 1).to(update.dtype)
            part = local_part(own_part(orthogonal, parameter))
            local_part(parameter).add_(part, alpha=-lr * _scale(*blocks.shape[1:]))

    def _orthogonal(self, matrices: Tensor) -> Tensor:
        """(N, rows, columns) -> the same, in the dtype of the products."""
        fp32 = matrices.device.type == "cpu" and not self.bf16
        matrices = matrices.to(torch.float32 if fp32 else torch.bfloat16)
        return (
            orthogonalize(matrices.mT).mT if matrices.size(1) > matrices.size(2) else orthogonalize(matrices)
        )


def _scale(rows: int, columns: int) -> float:
    """Return what gives an orthogonal matrix the root mean square of AdamW's updates, 0.2."""
    return 0.2 * max(rows, columns) ** 0.5


def _by_optimizer(groups: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the groups of Muon and those of AdamW."""
    return [g for g in groups if "blocks" in g], [g for g in groups if "blocks" not in g]
