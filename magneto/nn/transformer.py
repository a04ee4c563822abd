"""Encoder, decoder and encoder-decoder: residual sub-layers, stacked.

A layer is self-attention, then cross-attention to the encoder's output (decoder of an encoder-decoder only),
then the feed-forward, each in a `Residual` of its own. Magneto's cross-attention has the first LN only.
`residual.py` has an image of it. In a multiway encoder each modality has feed-forwards, or all weights, of its own
(`multiway.py`).

Shapes: B examples, T tokens, S tokens of the memory. Masks are bool, True = real token. What stands at padded
places of an output is finite and without meaning.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from magneto.errors import ConfigError
from magneto.nn.attention import Context, KVCache, LayerCache
from magneto.nn.config import BackboneConfig
from magneto.nn.multiway import Experts, SharedAttention
from magneto.nn.norm import LayerNorm, RMSNorm, build_norm
from magneto.nn.placement import Side
from magneto.nn.positions import (
    ConvolutionalPosition,
    LearnedPosition,
    RelativeBias,
    RelativeGridBias,
    Rotary,
    SinusoidalPosition,
)
from magneto.nn.residual import Residual


class Layer(nn.Module):
    """Self-attention, cross-attention where there is a memory, feed-forward: (B, T, d_model) -> the same."""

    def __init__(self, config: BackboneConfig, side: Side, drop_path: float, *, fusion: bool = False) -> None:
        super().__init__()
        cross = side == "decoder" and config.architecture == "encoder_decoder"

        def feed_forward() -> Residual:
            return Residual("feed_forward", config, side, drop_path)

        def attention() -> Residual:
            return Residual("self_attention", config, side, drop_path)

        self.self_attention: Residual | SharedAttention = (
            SharedAttention(attention) if config.multiway == "full" else attention()
        )
        self.cross_attention = Residual("cross_attention", config, side, drop_path) if cross else None
        self.feed_forward: Residual | Experts = (
            feed_forward() if config.multiway == "none" else Experts(feed_forward, fusion=fusion)
        )

    def forward(self, x: Tensor, context: Context, cache: LayerCache | None = None) -> Tensor:
        x = self.self_attention(x, context, cache)
        if self.cross_attention is not None:
            x = self.cross_attention(x, context, cache)
        ffn = self.feed_forward
        x = ffn(x, context.split) if isinstance(ffn, Experts) else ffn(x)
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
        self.relative: RelativeBias | RelativeGridBias | None = None
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
        elif config.position == "relative_2d":
            self.relative = RelativeGridBias(config)
        self.input_norm = self._norm() if config.input_norm else None
        self.layers = nn.ModuleList(
            Layer(
                config,
                side,
                config.drop_path * index / max(1, count - 1),
                fusion=index >= count - config.fusion_layers,
            )
            for index in range(count)
        )
        self.final_norm = self._norm() if config.resolved_placement().final else None

    def _norm(self) -> LayerNorm | RMSNorm | Experts:
        def build() -> LayerNorm | RMSNorm:
            return build_norm(self.config, self.config.d_model)

        return Experts(build) if self.config.multiway == "full" else build()

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
        split: int | None = None,
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
            memory=memory,
            memory_mask=None if memory_mask is None else memory_mask[:, None, None, :],
            split=split,
        )
        if self.rotary is not None:
            context.rotary = self.rotary(start, x.size(1))
        context.bias = self._bias(x, start, seen, causal)
        context.causal = causal and context.bias is None and x.size(1) > 1
        x = self._positioned(x, start, mask, seen, cache, split)

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
            x = self._normed(self.final_norm, x, split)
        return x, [features[index] for index in return_layers]

    def _positioned(
        self,
        x: Tensor,
        start: int,
        mask: Tensor | None,
        seen: Tensor | None,
        cache: KVCache | None,
        split: int | None,
    ) -> Tensor:
        """The input with absolute positions, its norm and its dropout."""
        if isinstance(self.position, ConvolutionalPosition):
            x, tail = self.position(x, mask, None if cache is None else cache.tail)
            if cache is not None:
                cache.tail = tail
        elif self.position is not None:
            x = self.position(x, start, seen)
        if self.input_norm is not None:
            x = self._normed(self.input_norm, x, split)
        return F.dropout(x, self.config.dropout, self.training) if self.config.dropout else x

    @staticmethod
    def _normed(norm: LayerNorm | RMSNorm | Experts, x: Tensor, split: int | None) -> Tensor:
        out: Tensor = norm(x, split) if isinstance(norm, Experts) else norm(x)
        return out

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
        split: int | None = None,
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Encode a batch.

        Args:
            x: (B, T, d_model), what a stem makes.
            mask: (B, T) bool, True = real; None if all are real, which is faster than a mask of True.
            causal: bar attention to later tokens; not with convolutional positions, which look ahead in an encoder.
            return_layers: indices (from 0) of layers whose outputs are wanted too, before any final norm.
            split: for a multiway stack, which needs it: the first `split` of the T tokens are vision, the others text.
                0: all are text, T: all are vision; in between: pairs.

        Returns:
            (B, T, d_model); with `return_layers` the pair of it and the list of (B, T, d_model) asked for.
        """
        self._check_split(split, x.size(1))
        if causal and self.config.position == "convolutional":
            raise ConfigError(
                "position=convolutional looks ahead in an encoder: take architecture=decoder, or another position."
            )
        out, features = self.run(x, mask, causal=causal, return_layers=return_layers, split=split)
        return (out, features) if return_layers else out

    def _check_split(self, split: int | None, length: int) -> None:
        if (split is None) != (self.config.multiway == "none"):
            raise ConfigError(
                f"multiway={self.config.multiway}: the encoder "
                + (
                    "needs split, the number of leading tokens that are vision (0 for texts)."
                    if split is None
                    else f"knows no modalities, and so no split={split}: set multiway=feed_forward."
                )
            )
        if split is not None and not 0 <= split <= length:
            raise ConfigError(f"split={split}: must be between 0 and the number of tokens, {length}.")


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
