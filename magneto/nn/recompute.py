"""Compute layers again in the backward pass instead of keeping their activations (Chen et al., arXiv 1604.06174)."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

KEPT_OPERATIONS = [
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.baddbmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
]
"""What `selective` does not compute twice: matrix products and attention."""


def recomputed(how: Literal[True, "selective"], layer: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """Return `layer(*inputs)`; its backward pass computes all of it again, or what is not in KEPT_OPERATIONS."""
    further: dict[str, Any] = {}
    if how == "selective":
        further["context_fn"] = partial(create_selective_checkpoint_contexts, KEPT_OPERATIONS)
    result: Tensor = checkpoint(layer, *inputs, use_reentrant=False, **further)
    return result
