"""Self-attention and cross-attention.

Shapes: B examples, T tokens, S keys; `heads * head_dim = d_model`.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from magneto.nn.attention_kernels import Packed, Windowed, packed_sums, weighted_sums, windowed_sums
from magneto.nn.config import BackboneConfig
from magneto.nn.init import Linear
from magneto.nn.kv_cache import LayerCache
from magneto.nn.norm import build_norm, linear_of_norm
from magneto.nn.positions import rotate


@dataclass
class Context:
    """What all layers of one forward pass share."""

    bias: Tensor | None = None
    """(B or 1, heads or 1, T or 1, S): added to the scores of self-attention, or if bool, True = attend."""
    causal: bool = False
    """Let SDPA mask the future itself, without a mask in memory; never together with `bias`."""
    sparse: Windowed | Packed | None = None
    """Self-attention within windows or documents, computed for these alone; then there is neither `bias` nor `causal`."""
    rotary: tuple[Tensor, Tensor] | None = None
    """Cosines and sines, (T, 1, head_dim / 2) each."""
    num_vision_tokens: int | None = None
    """In a multiway stack: the first tokens that are vision; the others are text."""
    memory: Tensor | None = None
    """(B, S, d_model): the encoder's output."""
    memory_mask: Tensor | None = None
    """(B, 1, 1, S) bool, True = real token."""


class Attention(nn.Module):
    """Base of both attentions: the weighted sums over SDPA, head scale, inner norm and output projection.

    NormFormer defines its head scale as Concat(gamma_1 h_1, ..., gamma_n h_n) W^O: before the output projection, as here.
    The fairseq code scales slices of the projection's output instead, which belong to no head any more.

    Args:
        config: sizes and dropout.
        gain_out: Xavier gain of out.
        inner_norm: whether a norm over the concatenated heads stands before the output projection (Magneto, eq. 2), or
            "heads" for one over the channels of each head (Qiu et al., arXiv 2505.06708, table 1).
        head_scale: whether each head has a learned factor before the output projection.
        qkv_norm: whether queries, keys and values are normalised within each head.
    """

    def __init__(
        self,
        config: BackboneConfig,
        *,
        gain_out: float = 1.0,
        inner_norm: bool | Literal["heads"] = False,
        head_scale: bool = False,
        qkv_norm: bool = False,
    ) -> None:
        super().__init__()
        d = config.d_model
        self.num_heads, self.kv_heads, self.head_dim = config.num_heads, config.kv_heads, config.head_dim
        self.dropout = config.attention_dropout
        self.q_norm = build_norm(config, self.head_dim) if config.qk_norm or qkv_norm else None
        self.k_norm = build_norm(config, self.head_dim) if config.qk_norm or qkv_norm else None
        self.v_norm = build_norm(config, self.head_dim) if config.v_norm or qkv_norm else None
        self.head_scale = nn.Parameter(torch.ones(self.num_heads, 1)) if head_scale else None
        self.head_norm = build_norm(config, self.head_dim) if inner_norm == "heads" else None
        self.inner_norm = build_norm(config, d) if inner_norm is True else None
        self.gate = Linear(d, d, roles=("gate",), bias=config.bias) if config.attention_gate else None
        self.out = Linear(d, d, roles=("out",), gain=gain_out, bias=config.bias)

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        causal: bool = False,
        sparse: Windowed | Packed | None = None,
    ) -> Tensor:
        """Compute the weighted sums of the values, without a parameter.

        Args:
            q: (B, heads, T, head_dim).
            k: (B, kv heads, S, head_dim).
            v: (B, kv heads, S, head_dim).
            bias: see `Context.bias`.
            causal: see `Context.causal`.
            sparse: see `Context.sparse`.

        Returns:
            (B, T, heads, head_dim).
        """
        dropout = self.dropout if self.training else 0.0
        if q.size(1) != k.size(1):
            k, v = (t.repeat_interleave(q.size(1) // t.size(1), dim=1) for t in (k, v))
        if isinstance(sparse, Windowed):
            h = windowed_sums(q, k, v, sparse, dropout)
        elif sparse is not None:
            h = packed_sums(q, k, v, sparse, dropout)
        else:
            h = weighted_sums(q, k, v, bias, dropout, causal)
        return h.transpose(1, 2)  # the kernels store their output in this order already

    def output(self, h: Tensor, x: Tensor) -> Tensor:
        """Apply head scale, inner norm, gate and output projection.

        Args:
            h: (B, T, heads, head_dim).
            x: (B, T, d_model), the input of the sub-layer, which the gate reads: a factor sigmoid(W x) for each channel
                (Qiu et al., arXiv 2505.06708, section 2.2).

        Returns:
            (B, T, d_model).
        """
        if self.head_scale is not None:
            h = h * self.head_scale.to(h.dtype)  # (B, T, heads, head_dim)
        if self.head_norm is not None:
            h = self.head_norm(h)
        h = h.flatten(2)  # (B, T, d_model)
        if self.gate is None:
            return self.out(h) if self.inner_norm is None else linear_of_norm(self.inner_norm, self.out, h)
        if self.inner_norm is not None:
            h = self.inner_norm(h)
        return self.out(h * self.gate(x).sigmoid())

    def reset_parameters(self) -> None:
        """Set head scales to 1; the linear maps and norms below reset their own."""
        if self.head_scale is not None:
            nn.init.ones_(self.head_scale)


class SelfAttention(Attention):
    """Multi-head self-attention with q, k and v in one matrix product: (B, T, d_model) -> the same."""

    def __init__(self, config: BackboneConfig, *, gain_in: float = 1.0, **options: Any) -> None:
        super().__init__(config, **options)
        d, width = config.d_model, self.kv_heads * self.head_dim
        self.qkv: Linear | None = None
        self.q: Linear | None = None
        self.kv: Linear | None = None
        if width == d:
            self.qkv = Linear(d, 3 * d, roles=("q", "k", "v"), gain=gain_in, bias=config.bias)
        else:
            self.q = Linear(d, d, roles=("q",), bias=config.bias)
            self.kv = Linear(d, 2 * width, roles=("k", "v"), gain=gain_in, bias=config.bias)

    def forward(self, x: Tensor, context: Context, cache: LayerCache | None = None) -> Tensor:
        q, k, v = self.split_qkv(x)  # (B, T, heads, head_dim)
        q, k, v = self.apply_rotary(q, k, v, context)  # (B, heads, T, head_dim)
        if cache is not None:
            k, v = cache.append(k, v)  # (B, heads, S, head_dim)
        h = self.attention(q, k, v, context.bias, context.causal, context.sparse)  # (B, T, heads, head_dim)
        return self.output(h, x)  # (B, T, d_model)

    def split_qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project x (B, T, d_model) to queries (B, T, heads, head_dim), keys and values (B, T, kv heads, head_dim)."""
        if self.qkv is not None:
            q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(2)
        else:
            assert self.q is not None and self.kv is not None
            q = self.q(x).unflatten(-1, (self.num_heads, self.head_dim))
            k, v = self.kv(x).unflatten(-1, (2, self.kv_heads, self.head_dim)).unbind(2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.v_norm is not None:
            v = self.v_norm(v)
        return q, k, v

    @staticmethod
    def apply_rotary(q: Tensor, k: Tensor, v: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Turn q and k by rotary positions if there are any: (B, T, heads, head_dim) -> (B, heads, T, head_dim)."""
        if context.rotary is not None:
            q, k = rotate(q, context.rotary), rotate(k, context.rotary)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


class CrossAttention(Attention):
    """Multi-head attention from (B, T, d_model) to `context.memory` (B, S, d_model): (B, T, d_model).

    With a cache, keys and values of the memory are computed in the first step and kept.
    """

    def __init__(self, config: BackboneConfig, *, gain_in: float = 1.0, **options: Any) -> None:
        super().__init__(config, **options)
        d = config.d_model
        self.q = Linear(d, d, roles=("q",), bias=config.bias)
        self.kv = Linear(
            d, 2 * self.kv_heads * self.head_dim, roles=("k", "v"), gain=gain_in, bias=config.bias
        )

    def forward(self, x: Tensor, context: Context, cache: LayerCache | None = None) -> Tensor:
        q = self.q(x).unflatten(-1, (self.num_heads, self.head_dim))  # (B, T, heads, head_dim)
        if self.q_norm is not None:
            q = self.q_norm(q)
        kept = None if cache is None else cache.memory
        k, v = self.split_kv(context.memory) if kept is None else kept  # (B, heads, S, head_dim)
        if cache is not None:
            cache.memory = k, v
        h = self.attention(q.transpose(1, 2), k, v, context.memory_mask)  # (B, T, heads, head_dim)
        return self.output(h, x)  # (B, T, d_model)

    def split_kv(self, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        """Project the memory (B, S, d_model) to keys and values, (B, kv heads, S, head_dim) each."""
        assert memory is not None
        k, v = self.kv(memory).unflatten(-1, (2, self.kv_heads, self.head_dim)).unbind(2)
        if self.k_norm is not None:
            k = self.k_norm(k)
        if self.v_norm is not None:
            v = self.v_norm(v)
        return k.transpose(1, 2), v.transpose(1, 2)
