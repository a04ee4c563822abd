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

      peri_ln         res_post_norm   hybrid_norm      keel                 layer_scale

         ^               ^               ^                 ^                    ^
         |               |               |                LN                    |
     .-->+           .-->+           .-->+             .-->+                .-->+
     |   |           |   |           |   |     alpha x |   |                |   |
     |  LN           |  LN           |   f             |   f                |   x g (learned)
     |   f           |   f           |   |             |  LN                |   f
     |  LN           |   |           '---+             |   |                |  LN
     '---+           '---+              LN (ffn only)  '---+                '---+
         |               |               |                 |                    |
         x               x               x                 x                    x

     final LN        final LN        final LN          none                 final LN

    x + LN(f(LN x)) x + LN(f(x))    x + attention(x),    LN(alpha x +         x + g f(LN x)
                                    q, k, v normed;      f(LN x))
                                    u + f(u), u = LN x

pre_ln_scaled is pre_ln with smaller W_out and fc2, lns scales the LN by 1 / sqrt(layer), mix_ln is post_ln in the first
quarter of the layers and pre_ln above, rezero and complete_p multiply f by a factor, pre_ln_head_norm has a norm in each
head.
"""

import torch
from torch import Tensor, nn

from magneto.nn.attention import Context, CrossAttention, SelfAttention
from magneto.nn.config import BackboneConfig
from magneto.nn.dropout import dropout
from magneto.nn.feed_forward import FeedForward
from magneto.nn.kv_cache import LayerCache
from magneto.nn.norm import build_norm
from magneto.nn.placement import Formula, Side, SubLayer, Where


class Residual(nn.Module):
    """Sub-layer on the residual stream, with the norms and the scales of the placement.

        x <- stream_norm(x)
        x <- post_norm(alpha * x + drop_path(dropout(weight * scale * branch_norm(branch(pre_scale * pre_norm(x))))))

    The placement decides which norms and factors exist; those inside of a sub-layer belong to `branch`.

    Args:
        kind: "self_attention", "cross_attention" or "feed_forward".
        config: description of the backbone.
        side: side of the model, for the formulas of the depth.
        drop_path: probability that an example skips the sub-layer (stochastic depth, arXiv 1603.09382).
        layer: number of the layer on this side, from 1, for the formulas.
    """

    kept: Tensor | None
    pre_scale: Tensor | None
    weight: Tensor | None

    def __init__(
        self, kind: SubLayer, config: BackboneConfig, side: Side, drop_path: float = 0.0, layer: int = 1
    ) -> None:
        super().__init__()
        placement, depth = config.resolved_placement(), config.depth(side, layer, kind)
        gains = {"gain_in": placement.gain_in(depth), "gain_out": placement.gain_out(depth)}
        self.branch: SelfAttention | CrossAttention | FeedForward
        if kind == "self_attention":
            branch_norm = placement.post_attention
            self.branch = SelfAttention(
                config,
                inner_norm=placement.inner_attention,
                head_scale=placement.head_scale,
                qkv_norm=placement.qkv,
                **gains,
            )
        elif kind == "cross_attention":
            branch_norm = placement.post_cross_attention
            self.branch = CrossAttention(
                config, qkv_norm=placement.qkv, **(gains if placement.scale_cross_attention else {})
            )
        else:
            branch_norm = placement.post_ffn
            self.branch = FeedForward(config, inner_norm=placement.inner_ffn, **gains)

        def norm(where: Where, weight: float = 1.0) -> nn.Module | None:
            there = where if isinstance(where, bool) else where(depth)
            return build_norm(config, config.d_model, weight) if there else None

        self.stream_norm = norm(placement.stream)
        self.pre_norm = norm(placement.pre)
        self.branch_norm = norm(branch_norm, placement.post_init)
        self.post_norm = norm(placement.post)
        self.alpha = placement.alpha(depth)

        def factor(formula: Formula) -> Tensor | None:
            # A tensor, since the compiler makes a graph of its own for each layer whose Python numbers differ.
            value = formula(depth)
            return None if value == 1.0 else torch.tensor(value)

        self.register_buffer("pre_scale", factor(placement.pre_scale), persistent=False)
        self.register_buffer("weight", factor(placement.branch), persistent=False)
        self.first_scale = placement.learned_scale_init(depth)
        size = {None: None, "scalar": (), "channels": (config.d_model,)}[placement.learned_scale]
        self.scale = None if size is None else nn.Parameter(torch.full(size, self.first_scale))
        self.dropout = config.dropout
        self.drop_path = drop_path
        self.register_buffer("kept", torch.tensor(1 - drop_path) if drop_path else None, persistent=False)

    def reset_parameters(self) -> None:
        """Set the learned factor to its first value; norms and linear maps reset their own."""
        if self.scale is not None:
            nn.init.constant_(self.scale, self.first_scale)

    def forward(self, x: Tensor, context: Context | None = None, cache: LayerCache | None = None) -> Tensor:
        """Apply the sub-layer: (B, T, d_model) -> the same; `context` and `cache` are for attention."""
        h, x = self.pre(x)  # (B, T, d_model) each
        h = self.branch(h) if context is None else self.branch(h, context, cache)  # (B, T, d_model)
        return self.post(h, x)  # (B, T, d_model)

    def pre(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the input of the branch and the stream that its output is added to, from the stream x."""
        if self.stream_norm is not None:
            x = self.stream_norm(x)
        h = x if self.pre_norm is None else self.pre_norm(x)
        return h if self.pre_scale is None else h * self.pre_scale, x

    def post(self, h: Tensor, x: Tensor) -> Tensor:
        """Return the stream after the sub-layer, from the output h of the branch and the stream x of `pre`."""
        if self.branch_norm is not None:
            h = self.branch_norm(h)
        for factor in (self.scale, self.weight):
            if factor is not None:
                h = h * factor.to(h.dtype)
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
