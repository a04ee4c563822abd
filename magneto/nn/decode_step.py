"""One step of decoding with a static cache: the pass of `Stack.run` for one token, without a number that the host knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from magneto.nn.attention import Context
from magneto.nn.attention_reach import attention_bias
from magneto.nn.kv_cache import StaticKVCache
from magneto.nn.positions import ConvolutionalPosition, RelativeBias

if TYPE_CHECKING:
    from magneto.nn.transformer import Stack


def decode_step(stack: Stack, x: Tensor, cache: StaticKVCache) -> Tensor:
    """Decode the next token of each row, as `Decoder.forward` does with a growing cache.

    The token attends to a mask of all slots of the cache instead of to those that are filled, so that every step has the
    same shapes.

    Args:
        stack: decoder of a decoder-only model, in evaluation mode.
        x: (B, 1, d_model).
        cache: written in place. It must have an empty slot, which is not checked.

    Returns:
        (B, 1, d_model).
    """
    x = x.to(next(stack.layers.parameters()).dtype)
    distance = torch.arange(cache.real.size(1), device=x.device) - cache.position  # (capacity,): key - query
    seen = cache.real & (distance <= 0)  # (B, capacity)
    window = stack.config.attention_window
    near = seen if window is None else seen & (distance > -window)
    relative = (
        stack.relative.at(distance)[None, :, None] if isinstance(stack.relative, RelativeBias) else None
    )
    context = Context(
        bias=attention_bias(near[:, None, None, :], relative),  # (B, heads or 1, 1, capacity)
        rotary=None if stack.rotary is None else stack.rotary.at(cache.position),
    )
    if isinstance(stack.position, ConvolutionalPosition):
        assert cache.tail is not None
        x, tail = stack.position(x, None, cache.tail)
        cache.tail.copy_(tail)
    elif stack.position is not None:
        x = x + F.embedding(seen.sum(1, keepdim=True) - 1, stack.position.table)
    if stack.input_norm is not None:
        x = stack.input_norm(x)
    for layer, layer_cache in zip(stack.layers, cache.layers, strict=True):
        x = layer(x, context, layer_cache)  # (B, 1, d_model)
    cache.position.add_(1)
    return x if stack.final_norm is None else stack.final_norm(x)
