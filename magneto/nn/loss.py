"""Cross-entropy from hidden states, without the logits of all positions in memory at once.

With a vocabulary of 64 thousand tokens, the fp32 logits of 8 thousand positions take 2 GiB, and their gradient as much
again: more than the model. Here the output layer is part of the loss. It takes a few positions at a time and computes
the gradients of hidden states, table and bias in the same pass, so that nothing of size (N, V) outlives its chunk and no
product is computed twice (as with activation checkpointing).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_BYTES = {"cpu": 8 * 2**20}
"""fp32 logits of one chunk by default. On a CPU they fit its caches, which is also faster than one pass. Elsewhere it is
OTHER_CHUNK_BYTES, since each chunk adds to the gradient of the whole table."""
OTHER_CHUNK_BYTES = 256 * 2**20
LEAST_POSITIONS = 512
"""Positions of one chunk at least: with fewer, adding to that gradient costs more than computing what is added."""


class CrossEntropy(NamedTuple):
    """Result of `chunked_cross_entropy`."""

    loss_sum: Tensor
    """Scalar fp32: the loss summed over the N positions, with gradients."""
    nll: Tensor
    """(N,) fp32 without gradients: -log p(target) in nats, without label smoothing."""
    correct: Tensor | None
    """(N,) bool: whether the target is the most probable token; None without `correct=True`."""


def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    label_smoothing: float = 0.0,
    chunk: int | None = None,
    correct: bool = False,
    z_loss: float = 0.0,
) -> CrossEntropy:
    """Compute `F.cross_entropy(hidden @ weight.T + bias, targets, reduction="sum")` in little memory.

    Under autocast the products have its dtype, as those of `F.linear`; softmax and loss are always fp32. Gradients are
    computed in the forward pass, so `backward` can be called once (a second call raises).

    Args:
        hidden: (N, D), the positions that have a target.
        weight: (V, D), an output layer or a tied embedding table.
        targets: (N,) int64 in [0, V).
        bias: (V,) or None.
        label_smoothing: share of the target's probability that all V tokens share (Szegedy et al., arXiv 1512.00567).
        chunk: maximum number of positions of one pass; None: those of `CHUNK_BYTES` of fp32 logits, and at least
            LEAST_POSITIONS. All passes have about the same number.
        correct: also compare the most probable token with the target, which reads each logit once more.
        z_loss: weight of the square of log Z, Z being the sum of the exponentials of a position's logits, which it keeps
            near 1 (PaLM, arXiv 2204.02311, section 5).

    Returns:
        `CrossEntropy`: the summed loss with gradients, and the loss of each position.
    """
    assert hidden.ndim == 2 and targets.shape == hidden.shape[:1], (hidden.shape, targets.shape)
    if chunk is None:
        chunk = max(
            LEAST_POSITIONS, CHUNK_BYTES.get(hidden.device.type, OTHER_CHUNK_BYTES) // (4 * len(weight))
        )
    passes = max(1, -(-len(hidden) // chunk))
    chunk = max(1, -(-len(hidden) // passes))
    # Grad mode is always off inside of a Function, hence read here; with no_grad nothing needs a gradient.
    differentiate = torch.is_grad_enabled()
    loss_sum, nll, hits = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, weight, targets, bias, label_smoothing, z_loss, chunk, correct, differentiate
    )
    return CrossEntropy(loss_sum, nll, hits)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Gradients of the logits, computed in place from the log-softmax of each chunk.

    With label smoothing s and z-loss w they are (1 + 2 w log Z) softmax - (1 - s) onehot - s / V.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        bias: Tensor | None,
        smoothing: float,
        z_loss: float,
        chunk: int,
        correct: bool,
        differentiate: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        needs = [differentiate and needed for needed in ctx.needs_input_grad]
        vocabulary = len(weight)
        with torch.autocast(device, enabled=False):
            table = weight.to(dtype)
            offset = None if bias is None else bias.to(dtype)
            loss_sum = torch.zeros((), dtype=torch.float32, device=hidden.device)
            nll = torch.empty(targets.shape, dtype=torch.float32, device=hidden.device)
            hits = torch.empty(targets.shape, dtype=torch.bool, device=hidden.device) if correct else None
            grad_hidden = torch.empty_like(hidden) if needs[0] else None
            grad_weight = torch.zeros_like(weight) if needs[1] and len(hidden) == 0 else None
            grad_bias = torch.zeros_like(bias) if bias is not None and needs[3] else None
            for start in range(0, len(hidden), chunk):
                part = slice(start, start + chunk)
                x, target = hidden[part].to(dtype), targets[part, None]
                logits = torch.nn.functional.linear(x, table, offset)
                if hits is not None:
                    hits[part] = logits.argmax(-1) == targets[part]
                log_probs = logits.log_softmax(-1, dtype=torch.float32)
                nll[part] = -log_probs.gather(1, target).squeeze(1)
                loss_sum += (1 - smoothing) * nll[part].sum()
                if z_loss:
                    log_z = logits.gather(1, target).float() + nll[part, None]
                    loss_sum += z_loss * log_z.square().sum()
                del logits
                if smoothing:
                    loss_sum -= smoothing * log_probs.mean(-1).sum()
                if not any(needs):
                    continue
                slope = log_probs.exp_()
                if z_loss:
                    slope *= 1 + 2 * z_loss * log_z
                if smoothing:
                    slope -= smoothing / vocabulary
                rows = torch.arange(len(slope), device=slope.device)
                slope[rows, targets[part]] -= 1 - smoothing
                if grad_bias is not None:
                    grad_bias += slope.sum(0)
                slope = slope.to(dtype)
                if grad_hidden is not None:
                    grad_hidden[part] = slope @ table
                if grad_weight is not None and grad_weight.dtype == dtype:
                    grad_weight.addmm_(slope.T, x)
                elif grad_weight is not None:
                    grad_weight += slope.T @ x
                elif needs[1]:
                    grad_weight = (slope.T @ x).to(weight.dtype)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.mark_non_differentiable(nll)
        if hits is not None:
            ctx.mark_non_differentiable(hits)
        return loss_sum, nll, hits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *unused: Any) -> tuple[Tensor | None, ...]:
        # In place: a copy of the table's gradient would be the largest tensor of this pass. Autograd detects a
        # second backward by the version counters of what it saved.
        grad_hidden, grad_weight, grad_bias = (
            None if saved is None else saved.mul_(grad) for saved in ctx.saved_tensors
        )
        return grad_hidden, grad_weight, None, grad_bias, None, None, None, None, None
