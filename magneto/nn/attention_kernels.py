"""Weighted sums of values over `F.scaled_dot_product_attention` (SDPA), or what is faster than it.

Shapes: B examples, T tokens, S keys.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from magneto.nn.dropout import dropout as drop


@dataclass
class Windowed:
    """Self-attention within a window, in sequences of which it is a small part."""

    window: int
    """Tokens that a token attends to: itself and those before it, or as many on either side."""
    causal: bool
    """Whether only those before it."""
    documents: Tensor
    """(1 or B, T) int64: number of a token's document, which alone it attends to, from 1; 0: padding."""


@dataclass
class Packed:
    """Self-attention within the documents of packed sequences, those of similar length together."""

    causal: bool
    """Whether to the tokens before alone."""
    groups: list[tuple[Tensor, Tensor, bool]]
    """(D, L) int64: slots of the tokens of D documents in the batch of B * T; (D, L) bool: True = real; whether all are."""
    places: Tensor
    """(B * T,) int64: where the token of a slot is among the real ones of all groups."""

    @classmethod
    def of(cls, documents: Tensor, causal: bool) -> "Packed":
        """Find the documents of packed sequences.

        Args:
            documents: (B, T) int64, constant over each document; a run of padding counts as one.
            causal: see `causal`.
        """
        count, length = documents.shape
        begins = torch.ones_like(documents, dtype=torch.bool)
        begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
        starts = begins.flatten().nonzero().flatten()  # (documents,)
        sizes = torch.diff(starts, append=starts.new_tensor([count * length]))
        powers = (sizes - 1).clamp(
            min=7
        ).float().log2().long() + 1  # at least 8: half of a group is not padding
        groups, order = [], []
        for power in sorted(set(powers.tolist())):
            chosen = powers == power
            longest = int(sizes[chosen].max())
            steps = torch.arange(longest, device=documents.device)
            slots, real = starts[chosen, None] + steps, steps < sizes[chosen, None]
            order.append(slots[real])
            groups.append((slots.clamp(max=count * length - 1), real, bool(real.all())))
        return cls(causal, groups, torch.cat(order).argsort())


_MATMUL_LIMIT = 512 * 512


def weighted_sums(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float, causal: bool
) -> Tensor:
    """Return softmax(q k^T / sqrt(head_dim) + bias) v by the faster kernel: (B, heads, T, head_dim).

    Args:
        q: (B, heads, T, head_dim).
        k: (B, heads, S, head_dim).
        v: (B, heads, S, head_dim).
        bias: see `Context.bias`.
        dropout: probability that a weight is left out.
        causal: see `Context.causal`.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.size(2) * k.size(2) <= _MATMUL_LIMIT:
        return matmul_attention(q, k, v, bias, dropout, causal)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, is_causal=causal)


def windowed_sums(q: Tensor, k: Tensor, v: Tensor, windowed: Windowed, dropout: float) -> Tensor:
    """Compute attention within a window, (B, heads, T, head_dim) -> the same, in blocks as long as the window.

    A block attends to itself and to the blocks beside it, which hold every window of its tokens. The cost is linear in T.
    """
    batch, heads, length, head_dim = q.shape
    window, causal = windowed.window, windowed.causal
    blocks = -(-length // window)
    rest = blocks * window - length
    offsets = (
        (0, 1) if causal else (0, 1, 2)
    )  # of the blocks beside, where one of padding stands before the first

    def beside(blocked: Tensor) -> Tensor:
        """Join each block with those beside it: (..., blocks, window, C) -> (..., blocks, offsets * window, C)."""
        padded = F.pad(blocked, (0, 0, 0, 0, 1, len(offsets) - 2))
        return torch.cat([padded.narrow(-3, offset, blocks) for offset in offsets], dim=-2)

    q, k, v = (
        F.pad(t, (0, 0, 0, rest)).reshape(batch, heads, blocks, window, head_dim).transpose(1, 2)
        for t in (q, k, v)
    )
    k, v = (
        beside(t.transpose(1, 2)).transpose(1, 2) for t in (k, v)
    )  # (B, blocks, heads, offsets * window, head_dim)
    own = F.pad(windowed.documents, (0, rest)).reshape(-1, blocks, window, 1)  # (1 or B, blocks, window, 1)
    queries, keys = torch.arange(window, device=q.device), torch.arange(k.size(3), device=q.device)
    distance = queries[:, None] - keys + window  # (window, offsets * window): query - key
    near = (distance < window) & (distance > (-1 if causal else -window))
    allowed = near & (own == beside(own).mT)  # (1 or B, blocks, window, offsets * window)
    allowed = allowed.expand(batch, -1, -1, -1).flatten(0, 1)[:, None]
    q, k, v = (t.flatten(0, 1) for t in (q, k, v))  # (B * blocks, heads, ...)
    h = weighted_sums(q, k, v, allowed, dropout, causal=False)
    h = h.view(batch, blocks, heads, window, head_dim).transpose(1, 2)
    return h.reshape(batch, heads, blocks * window, head_dim)[:, :, :length]


@torch.compiler.disable  # type: ignore[untyped-decorator]  # the shapes of the groups are those of the data
def packed_sums(q: Tensor, k: Tensor, v: Tensor, packed: Packed, dropout: float) -> Tensor:
    """Compute attention within documents, (B, heads, T, head_dim) -> the same: the cost is that of the documents."""
    parts = []
    for q_group, k_group, v_group, real, bias in documents_of(q, k, v, packed):
        h = weighted_sums(q_group, k_group, v_group, bias, dropout, packed.causal)
        parts.append(h.transpose(1, 2)[real])  # (tokens, heads, head_dim)
    h = torch.cat(parts)[packed.places]  # (B * T, heads, head_dim)
    return h.view(len(q), -1, *h.shape[1:]).transpose(1, 2)


def documents_of(
    q: Tensor, k: Tensor, v: Tensor, packed: Packed
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]]:
    """Yield queries, keys and values of each group (D, heads, L, head_dim), which are real (D, L), and a mask of keys."""
    flat = [t.transpose(1, 2).flatten(0, 1) for t in (q, k, v)]  # (B * T, heads, head_dim)
    for slots, real, whole in packed.groups:
        q_group, k_group, v_group = (t[slots].transpose(1, 2) for t in flat)
        # Nobody looks ahead to the padding on the right where attention is causal.
        yield q_group, k_group, v_group, real, None if whole or packed.causal else real[:, None, None]


def matmul_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float, causal: bool
) -> Tensor:
    """Compute the same as SDPA, with the same arguments and result, as two batched matrix products.

    This is for bf16 on a CPU and short sequences. There SDPA's fused kernel takes two to four times as long, forward
    and backward, as the products do (torch 2.11, AVX512-BF16); from a thousand tokens on it is faster again.
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
    weights = drop(scores.softmax(-1), dropout, training=True)
    return torch.bmm(weights.flatten(0, 1), v).view(batch, heads, new, head_dim)
