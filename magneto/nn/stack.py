r"""Encoder, decoder and encoder-decoder: residual sub-layers, stacked.

One `Residual` is one column below, read upwards. f is the sub-layer; in brackets is what the placement puts
inside of it.

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

A layer is self-attention, then cross-attention to the encoder's output (decoder of an encoder-decoder only),
then the feed-forward, each in a `Residual` of its own. Magneto's cross-attention has the first LN only.

Shapes: B examples, T tokens, S tokens of the memory. Masks are bool, True = real token. What stands at padded
places of an output is finite and without meaning.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from magneto.nn.attention import Context, CrossAttention, KVCache, LayerCache, SelfAttention
from magneto.nn.config import BackboneConfig
from magneto.nn.feed_forward import FeedForward
from magneto.nn.norm import build_norm
from magneto.nn.placement import Side
from magneto.nn.position import (
    ConvolutionalPosition,
    LearnedPosition,
    RelativeBias,
    Rotary,
    SinusoidalPosition,
)

SubLayer = Literal["self_attention", "cross_attention", "feed_forward"]


class Residual(nn.Module):
    """A sub-layer on the residual stream: the one place where a placement is put into effect.

        x <- post(alpha * x + drop_path(dropout(branch_norm(branch(pre(x))))))

    Each norm is there or not as the placement says; norms that lie inside a sub-layer are handed down to it.

    Args:
        kind: which sub-layer.
        config: of the backbone.
        side: which side of the model, for the depth formulas.
        drop_path: chance that an example skips the sub-layer (stochastic depth, arXiv 1603.09382).
    """

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

    def forward(self, x: Tensor, context: Context | None = None, cache: LayerCache | None = None) -> Tensor:
        """One step of the stream, (B, T, d_model) -> the same; `context` and `cache` are for attention."""
        h: Tensor = x if self.pre_norm is None else self.pre_norm(x)
        h = self.branch(h) if context is None else self.branch(h, context, cache)
        if self.branch_norm is not None:
            h = self.branch_norm(h)
        if self.training and self.dropout:
            h = F.dropout(h, self.dropout)
        if self.training and self.drop_path:
            kept = 1 - self.drop_path
            h = h * h.new_empty(len(h), 1, 1).bernoulli_(kept).div_(kept)
        x = torch.add(h, x, alpha=self.alpha)
        return x if self.post_norm is None else self.post_norm(x)

    def extra_repr(self) -> str:
        """Show alpha where the module is printed."""
        return f"alpha={self.alpha:.4g}, dropout={self.dropout}, drop_path={self.drop_path:.4g}"


class Layer(nn.Module):
    """Self-attention, cross-attention where there is a memory, feed-forward: (B, T, d_model) -> the same."""

    def __init__(self, config: BackboneConfig, side: Side, drop_path: float) -> None:
        super().__init__()
        cross = side == "decoder" and config.architecture == "encoder_decoder"
        self.self_attention = Residual("self_attention", config, side, drop_path)
        self.cross_attention = Residual("cross_attention", config, side, drop_path) if cross else None
        self.feed_forward = Residual("feed_forward", config, side, drop_path)

    def forward(self, x: Tensor, context: Context, cache: LayerCache | None = None) -> Tensor:
        x = self.self_attention(x, context, cache)
        if self.cross_attention is not None:
            x = self.cross_attention(x, context, cache)
        x = self.feed_forward(x)
        return x


class Stack(nn.Module):
    """Positions, layers and final norm: what `Encoder` and `Decoder` share."""

    def __init__(self, config: BackboneConfig, side: Side) -> None:
        super().__init__()
        count = config.depth(side).own_layers
        causal = side == "decoder"
        self.config = config
        self.position: LearnedPosition | SinusoidalPosition | ConvolutionalPosition | None = None
        self.rotary: Rotary | None = None
        self.relative: RelativeBias | None = None
        if config.position == "learned":
            self.position = LearnedPosition(config)
        elif config.position == "sinusoidal":
            self.position = SinusoidalPosition(config)
        elif config.position == "convolutional":
            self.position = ConvolutionalPosition(config, causal=causal)
        elif config.position == "rotary":
            self.rotary = Rotary(config)
        elif config.position == "relative":
            self.relative = RelativeBias(config, causal=causal)
        self.input_norm = build_norm(config, config.d_model) if config.input_norm else None
        self.layers = nn.ModuleList(
            Layer(config, side, config.drop_path * index / max(1, count - 1)) for index in range(count)
        )
        placement = config.resolved_placement()
        self.final_norm = build_norm(config, config.d_model) if placement.final else None

    def run(
        self,
        x: Tensor,
        mask: Tensor | None,
        *,
        causal: bool,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        cache: KVCache | None = None,
        return_layers: Sequence[int] = (),
    ) -> tuple[Tensor, list[Tensor]]:
        """The forward pass of both sides; see their `forward` for the arguments."""
        # The stream has the parameters' dtype. A stem under autocast hands over bf16, in which a deep sum of
        # small updates would be lost.
        x = x.to(next(self.layers.parameters()).dtype)
        start, seen = 0, mask
        if cache is not None:
            start, seen = cache.length, cache.extend(x.size(1), mask, len(x), x.device)
            if not cache.layers:
                cache.layers.extend(LayerCache() for _ in self.layers)
        context = Context(
            memory=memory, memory_mask=None if memory_mask is None else memory_mask[:, None, None, :]
        )
        if self.rotary is not None:
            context.rotary = self.rotary(start, x.size(1))
        context.bias = self._bias(x, start, seen, causal)
        context.causal = causal and context.bias is None and x.size(1) > 1
        x = self._positioned(x, start, mask, seen, cache)

        features = {}
        for index, layer in enumerate(self.layers):
            layer_cache = None if cache is None else cache.layers[index]
            if self.config.activation_checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(layer, x, context, layer_cache, use_reentrant=False)
            else:
                x = layer(x, context, layer_cache)
            if index in return_layers:
                features[index] = x
        if self.final_norm is not None:
            x = self.final_norm(x)
        return x, [features[index] for index in return_layers]

    def _positioned(
        self, x: Tensor, start: int, mask: Tensor | None, seen: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        """The input with absolute positions, its norm and its dropout."""
        if isinstance(self.position, ConvolutionalPosition):
            x, tail = self.position(x, mask, None if cache is None else cache.tail)
            if cache is not None:
                cache.tail = tail
        elif self.position is not None:
            x = self.position(x, start, seen)
        if self.input_norm is not None:
            x = self.input_norm(x)
        return F.dropout(x, self.config.dropout, self.training) if self.config.dropout else x

    def _bias(self, x: Tensor, start: int, seen: Tensor | None, causal: bool) -> Tensor | None:
        """Mask and relative positions as SDPA takes them, or None where it needs nothing from us.

        Bool (True = attend) without relative positions, else float with a huge negative number where barred:
        not -inf, which would make 0/0 of an example without any real token. The tokens of x are the queries
        start to start + T - 1, the keys are all start + T slots; `seen` (B, start + T) marks the real ones.
        """
        new, total = x.size(1), start + x.size(1)
        allowed = None if seen is None else seen[:, None, None, :]
        if causal and new > 1 and (start or seen is not None or self.relative is not None):
            past = torch.ones(new, total, dtype=torch.bool, device=x.device).tril(start)
            # Padding sees itself: a query without any key would make a row of the softmax 0/0.
            itself = past & past.triu(start)
            allowed = past if allowed is None else (allowed & past) | itself
        if self.relative is None:
            return allowed
        bias: Tensor = self.relative(start, new)
        if torch.is_autocast_enabled(x.device.type):  # once here instead of once in each layer
            bias = bias.to(torch.get_autocast_dtype(x.device.type))
        return bias if allowed is None else bias.masked_fill(~allowed, torch.finfo(bias.dtype).min / 2)


class Encoder(Stack):
    """A stack that sees its whole input, or with `causal=True` the past only."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config, "encoder")

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
        return_layers: Sequence[int] = (),
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Encode a batch.

        Args:
            x: (B, T, d_model), what a stem makes.
            mask: (B, T) bool, True = real; None if all are real, which is faster than a mask of True.
            causal: bar attention to later tokens.
            return_layers: indices (from 0) of layers whose outputs are wanted too, before any final norm.

        Returns:
            (B, T, d_model); with `return_layers` the pair of it and the list of (B, T, d_model) asked for.
        """
        out, features = self.run(x, mask, causal=causal, return_layers=return_layers)
        return (out, features) if return_layers else out


class Decoder(Stack):
    """A causal stack; in an encoder-decoder its layers attend to a memory as well."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config, "decoder")

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Decode a batch, whole or step by step.

        Args:
            x: (B, T, d_model): all tokens, or with a cache the new ones.
            mask: (B, T) bool for these tokens, True = real; None if all are real. Padding on the right needs
                no mask, since no real token looks ahead: pass None and keep the fast kernel. Prompts of
                unequal length are padded on the left and do need one.
            memory: (B, S, d_model), the encoder's output; read in the first cached step only.
            memory_mask: (B, S) bool, True = real; None if all are real.
            cache: state of the generation, written in place; None to decode the whole sequence at once.

        Returns:
            (B, T, d_model).
        """
        cross = self.config.architecture == "encoder_decoder"
        assert cross == (memory is not None), (
            "memory goes with architecture=encoder_decoder, and only with it"
        )
        out, _ = self.run(x, mask, causal=True, memory=memory, memory_mask=memory_mask, cache=cache)
        return out


class EncoderDecoder(nn.Module):
    """An encoder and a decoder that attends to its output."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """From x (B, S, d_model) and mask (B, S) to the memory (B, S, d_model)."""
        memory: Tensor = self.encoder(x, mask)
        return memory

    def decode(
        self,
        y: Tensor,
        mask: Tensor | None,
        memory: Tensor,
        memory_mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """`Decoder.forward` with y (B, T, d_model) and its mask: (B, T, d_model)."""
        out: Tensor = self.decoder(y, mask, memory, memory_mask, cache)
        return out

    def forward(
        self, x: Tensor, y: Tensor, mask: Tensor | None = None, y_mask: Tensor | None = None
    ) -> Tensor:
        """Source x (B, S, d_model) and target y (B, T, d_model) with their masks -> (B, T, d_model)."""
        return self.decode(y, y_mask, self.encode(x, mask), mask)


def build_backbone(config: BackboneConfig) -> Encoder | Decoder | EncoderDecoder:
    """The stack that `config.architecture` names."""
    if config.architecture == "encoder":
        return Encoder(config)
    return Decoder(config) if config.architecture == "decoder" else EncoderDecoder(config)
