r"""Residual sub-layer: the module that applies a placement.

A `Residual` is one of the columns below, read upwards. f is the sub-layer; brackets show what the placement puts inside
of it.

      pre_ln          post_ln         deepnorm        normformer           magneto (Sub-LN)

         ^               ^               ^                 ^                    ^
         |              LN              LN                 |                    |
     .-->+           .-->+           .-->+             .-->+                .-->+
     |   |           |   |     alpha x   |             |   |                |   |
     |   |           |   |           |   |             |  LN (attention)    |  W_out, fc2   <- gain
     |   f           |   f           |   f   <- gain   |   f                |  LN
     |   |           |   |           |   |             |  [head scale]      | [heads, phi]
     |  LN           |   |           |   |             |  [LN before fc2]   |  W_qkv, fc1   <- gain (not q, k)
     |   |           |   |           |   |             |  LN                |  LN
     '---+           '---+           '---+             '---+                '---+
         |               |               |                 |                    |
         x               x               x                 x                    x

     final LN        none            none             final LN             final LN

    x + f(LN x)     LN(x + f(x))    LN(alpha x + f(x))   x + [LN] f(LN x)   x + W_out LN(heads(W_qkv LN x))
                                                                            x + fc2 LN(phi(fc1 LN x))
"""

from typing import Literal

import torch
from torch import Tensor, nn

from magneto.nn.attention import Context, CrossAttention, SelfAttention
from magneto.nn.config import BackboneConfig
from magneto.nn.dropout import dropout
from magneto.nn.feed_forward import FeedForward
from magneto.nn.kv_cache import LayerCache
from magneto.nn.norm import build_norm
from magneto.nn.placement import Side

SubLayer = Literal["self_attention", "cross_attention", "feed_forward"]


class Residual(nn.Module):
    """Sub-layer on the residual stream, with the norms and the scales of the placement.

        x <- post_norm(alpha * x + drop_path(dropout(branch_norm(branch(pre_norm(x))))))

    The placement decides which norms exist; those inside of a sub-layer belong to `branch`.

    Args:
        kind: "self_attention", "cross_attention" or "feed_forward".
        config: description of the backbone.
        side: side of the model, for the formulas of the depth.
        drop_path: probability that an example skips the sub-layer (stochastic depth, arXiv 1603.09382).
    """

    kept: Tensor | None

    def __init__(self, kind: SubLayer, config: BackboneConfig, side: Side, drop_path: float = 0.0) -> None:
        super().__init__()
        placement, depth = config.resolved_placement(), config.depth(side)
        gain = placement.gain(depth)
        self.branch: SelfAttention | CrossAttention | FeedForward
        branch_norm = False
        if kind == "self_attention":
            branch_norm = placement.post_attention
            self.branch = SelfAttention(
                config, gain=gain, inner_norm=placement.inner_attention, head_scale=placement.head_scale
            )
        elif kind == "cross_attention":
            self.branch = CrossAttention(config, gain=gain if placement.scale_cross_attention else 1.0)
        else:
            branch_norm = placement.post_ffn
            self.branch = FeedForward(config, gain=gain, inner_norm=placement.inner_ffn)
        d = config.d_model
        self.pre_norm = build_norm(config, d) if placement.pre else None
        self.branch_norm = build_norm(config, d) if branch_norm else None
        self.post_norm = build_norm(config, d) if placement.post else None
        self.alpha = placement.alpha(depth)
        self.dropout = config.dropout
        self.drop_path = drop_path
        # A tensor, since the compiler makes a graph of its own for each layer whose Python numbers differ.
        self.register_buffer("kept", torch.tensor(1 - drop_path) if drop_path else None, persistent=False)

    def forward(self, x: Tensor, context: Context | None = None, cache: LayerCache | None = None) -> Tensor:
        """Apply the sub-layer: (B, T, d_model) -> the same; `context` and `cache` are for attention."""
        h = self.pre(x)  # (B, T, d_model)
        h = self.branch(h) if context is None else self.branch(h, context, cache)  # (B, T, d_model)
        return self.post(h, x)  # (B, T, d_model)

    def pre(self, x: Tensor) -> Tensor:
        """Return the input of the branch, from the stream x."""
        return x if self.pre_norm is None else self.pre_norm(x)

    def post(self, h: Tensor, x: Tensor) -> Tensor:
        """Return the stream after the sub-layer, from the output h of the branch and the stream x before it."""
        if self.branch_norm is not None:
            h = self.branch_norm(h)
        h = dropout(h, self.dropout, self.training)
        if self.training and self.kept is not None:
            h = self._drop_path(h, self.kept)
        x = torch.add(h, x, alpha=self.alpha)
        return x if self.post_norm is None else self.post_norm(x)

    def _drop_path(self, h: Tensor, kept: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return h * (torch.rand(len(h), 1, 1, device=h.device) < kept).to(h.dtype) / kept.to(h.dtype)
        share = 1 - self.drop_path
        return h * h.new_empty(len(h), 1, 1).bernoulli_(share).div_(share)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha:.4g}, dropout={self.dropout}, drop_path={self.drop_path:.4g}"
