"""Self-attention and cross-attention over SDPA, and the key-value cache of decoding."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magneto.nn.config import BackboneConfig
from magneto.nn.init import Linear
from magneto.nn.norm import build_norm
from magneto.nn.positions import rotate


@dataclass
class LayerCache:
    """What one decoder layer keeps: keys and values of its own tokens and, computed once, of the memory.

    `keys` and `values` are (B, heads, capacity, head_dim) with the first `length` slots filled; capacity
    doubles when it is full, so that a step does not copy the past.
    """

    length: int = 0
    keys: Tensor | None = None
    values: Tensor | None = None
    memory: tuple[Tensor, Tensor] | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Add (B, heads, T, head_dim) and return everything seen so far, (B, heads, length, head_dim)."""
        batch, heads, new, head_dim = keys.shape
        end = self.length + new
        if self.keys is None or self.values is None or end > self.keys.size(2):
            shape = (batch, heads, max(64, 2 * self.length, end), head_dim)
            grown = keys.new_empty(shape), values.new_empty(shape)
            if self.keys is not None and self.values is not None:
                grown[0][:, :, : self.length] = self.keys[:, :, : self.length]
                grown[1][:, :, : self.length] = self.values[:, :, : self.length]
            self.keys, self.values = grown
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def reorder(self, index: Tensor, memory: bool) -> None:
        """Row i becomes what row index[i] was."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = (self._rows(t, index) for t in (self.keys, self.values))
        if memory and self.memory is not None:
            self.memory = self.memory[0][index], self.memory[1][index]

    def _rows(self, cached: Tensor, index: Tensor) -> Tensor:
        filled = cached[:, :, : self.length].index_select(0, index)
        if len(index) != len(cached):
            cached = cached.new_empty(len(index), *cached.shape[1:])
        cached[:, :, : self.length] = filled
        return cached


@dataclass
class KVCache:
    """The state of a decoder between the steps of a generation. Make an empty one, pass it to every step.

    For inference only (`torch.inference_mode` or `torch.no_grad`): steps write into it in place.
    """

    length: int = 0
    """Tokens seen so far, padding included."""
    mask: Tensor | None = None
    """(B, length) bool, True = real token; None while every token was real."""
    tail: Tensor | None = None
    """(B, at most kernel - 1, d_model): the last inputs of a convolutional position."""
    layers: list[LayerCache] = field(default_factory=list)

    def extend(self, new: int, mask: Tensor | None, batch: int, device: torch.device) -> Tensor | None:
        """Count `new` tokens with their (B, new) mask; return the (B, length) mask, None if all are real."""
        if mask is not None or self.mask is not None:
            past = self.mask
            if past is None:
                past = torch.ones(batch, self.length, dtype=torch.bool, device=device)
            if mask is None:
                mask = torch.ones(batch, new, dtype=torch.bool, device=device)
            self.mask = torch.cat((past, mask), dim=1)
        self.length += new
        return self.mask

    def reorder(self, index: Tensor, *, memory: bool = True) -> None:
        """Row i of the batch becomes what row `index[i]` was; `index` is (B',) int64, B' may differ from B.

        One prompt becomes B' beams, a beam follows its best parent, finished rows leave.

        Args:
            index: source row of each new row.
            memory: False where every row stays with its own source sentence (beams that change places), which
                saves the copy of the cross-attention's keys and values.
        """
        if self.mask is not None:
            self.mask = self.mask[index]
        if self.tail is not None:
            self.tail = self.tail[index]
        for layer in self.layers:
            layer.reorder(index, memory)


@dataclass
class Context:
    """What all layers of one forward pass share."""

    bias: Tensor | None = None
    """(B or 1, heads or 1, T or 1, S): added to the scores of self-attention, or if bool, True = attend."""
    causal: bool = False
    """Let SDPA mask the future itself, without a mask in memory; never together with `bias`."""
    rotary: tuple[Tensor, Tensor] | None = None
    split: int | None = None
    """Leading tokens that are vision, in a multiway stack; the rest is text."""
    memory: Tensor | None = None
    """(B, S, d_model): the encoder's output."""
    memory_mask: Tensor | None = None
    """(B, 1, 1, S) bool, True = real."""


_MATMUL_LIMIT = 512 * 512


def matmul_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float, causal: bool
) -> Tensor:
    """What SDPA computes, as two batched matrix products: the same arguments and result.

    For bf16 on a CPU and short sequences. There SDPA's fused kernel takes two to four times as long, forward
    and backward, as the products do (torch 2.11, AVX512-BF16); from a thousand tokens on it is ahead again.
    """
    batch, heads, new, head_dim = q.shape
    q, k, v = (t.reshape(batch * heads, -1, head_dim) for t in (q, k, v))
    scores = torch.baddbmm(q.new_empty(()), q, k.mT, beta=0, alpha=head_dim**-0.5)
    scores = scores.view(batch, heads, new, -1)
    if causal:
        bias = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if bias is not None and bias.dtype == torch.bool:
        scores = scores.masked_fill(~bias, torch.finfo(q.dtype).min)
    elif bias is not None:
        scores = scores + bias
    weights = F.dropout(scores.softmax(-1), dropout) if dropout else scores.softmax(-1)
    return torch.bmm(weights.flatten(0, 1), v).view(batch, heads, new, head_dim)


class Attention(nn.Module):
    """The common part of both attentions: SDPA, head scale, inner norm and output projection.

    Args:
        config: sizes and dropout.
        gain: Xavier gain of v and out.
        inner_norm: a norm over the concatenated heads, before the output projection (Magneto, eq. 2).
        head_scale: a learned factor for each head, before the output projection.

    NormFormer defines its head scale as Concat(gamma_1 h_1, ..., gamma_n h_n) W^O, and so it stands here. The
    fairseq code multiplies slices of the output projection's result instead, where a channel belongs to no
    head any more and the norm that follows has a factor for each of them. Both start as the identity.
    """

    def __init__(self, config: BackboneConfig, *, gain: float, inner_norm: bool, head_scale: bool) -> None:
        super().__init__()
        d = config.d_model
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        self.dropout = config.attention_dropout
        self.q_norm = build_norm(config, self.head_dim) if config.qk_norm else None
        self.k_norm = build_norm(config, self.head_dim) if config.qk_norm else None
        self.head_scale = nn.Parameter(torch.ones(self.num_heads, 1)) if head_scale else None
        self.inner_norm = build_norm(config, d) if inner_norm else None
        self.out = Linear(d, d, roles=("out",), gain=gain, bias=config.bias)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool = False) -> Tensor:
        """From q (B, heads, T, head_dim), k and v (B, heads, S, head_dim) to (B, T, d_model)."""
        return self.merge(self.mix(q, k, v, bias, causal))

    def mix(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, causal: bool = False) -> Tensor:
        """The weighted sums, without a parameter: arguments as `attend`, result (B, T, heads, head_dim)."""
        dropout = self.dropout if self.training else 0.0
        if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.size(2) * k.size(2) <= _MATMUL_LIMIT:
            h = matmul_attention(q, k, v, bias, dropout, causal)
        else:
            h = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, is_causal=causal)
        return h.transpose(1, 2)  # the kernels lay their output out like this already

    def merge(self, h: Tensor) -> Tensor:
        """Head scale, inner norm and output projection: (B, T, heads, head_dim) -> (B, T, d_model)."""
        if self.head_scale is not None:
            h = h * self.head_scale.to(h.dtype)
        h = h.flatten(2)
        if self.inner_norm is not None:
            h = self.inner_norm(h)
        out: Tensor = self.out(h)
        return out

    def reset_parameters(self) -> None:
        """Head scales start at 1; the linear maps and norms below draw their own."""
        if self.head_scale is not None:
            nn.init.ones_(self.head_scale)


class SelfAttention(Attention):
    """Multi-head self-attention with q, k and v in one matrix product: (B, T, d_model) -> the same."""

    def __init__(self, config: BackboneConfig, *, gain: float, inner_norm: bool, head_scale: bool) -> None:
        super().__init__(config, gain=gain, inner_norm=inner_norm, head_scale=head_scale)
        self.qkv = Linear(
            config.d_model, 3 * config.d_model, roles=("q", "k", "v"), gain=gain, bias=config.bias
        )

    def forward(self, x: Tensor, context: Context, cache: LayerCache | None = None) -> Tensor:
        q, k, v = self.place(*self.project(x), context)
        if cache is not None:
            k, v = cache.append(k, v)
        return self.attend(q, k, v, context.bias, context.causal)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of x (B, T, d_model), each (B, T, heads, head_dim)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).unbind(2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v

    @staticmethod
    def place(q: Tensor, k: Tensor, v: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """What `project` gives, with rotary positions if there are any, as (B, heads, T, head_dim)."""
        if context.rotary is not None:
            q, k = rotate(q, context.rotary), rotate(k, context.rotary)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


class CrossAttention(Attention):
    """Multi-head attention from (B, T, d_model) to `context.memory` (B, S, d_model): (B, T, d_model).

    With a cache, keys and values of the memory are computed in the first step and kept.
    """

    def __init__(self, config: BackboneConfig, *, gain: float) -> None:
        super().__init__(config, gain=gain, inner_norm=False, head_scale=False)
        d = config.d_model
        self.q = Linear(d, d, roles=("q",), bias=config.bias)
        self.kv = Linear(d, 2 * d, roles=("k", "v"), gain=gain, bias=config.bias)

    def forward(self, x: Tensor, context: Context, cache: LayerCache | None = None) -> Tensor:
        q = self.q(x).unflatten(-1, (self.num_heads, self.head_dim))
        if self.q_norm is not None:
            q = self.q_norm(q)
        if cache is not None and cache.memory is not None:
            k, v = cache.memory
        else:
            k, v = self._keys_values(context.memory)
            if cache is not None:
                cache.memory = k, v
        return self.attend(q.transpose(1, 2), k, v, context.memory_mask)

    def _keys_values(self, memory: Tensor | None) -> tuple[Tensor, Tensor]:
        assert memory is not None
        k, v = self.kv(memory).unflatten(-1, (2, self.num_heads, self.head_dim)).unbind(2)
        if self.k_norm is not None:
            k = self.k_norm(k)
        return k.transpose(1, 2), v.transpose(1, 2)
