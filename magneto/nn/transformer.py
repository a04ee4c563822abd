"""Encoder, decoder and encoder-decoder: residual sub-layers, stacked.

A layer is self-attention, then cross-attention to the encoder's output (decoder of an encoder-decoder only), then the
feed-forward, each in a `Residual` of its own (`residual.py` has a drawing). Magneto's cross-attention has the first LN
only. In a multiway encoder each modality has feed-forwards, or all weights, of its own (`multiway.py`).

Shapes: B examples, T tokens, S tokens of the memory. Masks are bool, True = real token. Outputs at padded positions are
finite and have no meaning.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from magneto.errors import ConfigError
from magneto.nn.attention import Context
from magneto.nn.attention_reach import Reach, attention_bias
from magneto.nn.config import BackboneConfig
from magneto.nn.decode_step import decode_step
from magneto.nn.dropout import dropout
from magneto.nn.kv_cache import KVCache, LayerCache, StaticKVCache
from magneto.nn.multiway import Experts, SharedAttention, apply_experts
from magneto.nn.norm import Norm, build_norm
from magneto.nn.placement import Side
from magneto.nn.positions import (
    ConvolutionalPosition,
    LearnedPosition,
    RelativeBias,
    RelativeGridBias,
    Rotary,
    SinusoidalPosition,
)
from magneto.nn.recompute import recomputed
from magneto.nn.residual import Residual


class Layer(nn.Module):
    """Self-attention, cross-attention where there is a memory, feed-forward: (B, T, d_model) -> the same."""

    def __init__(
        self, config: BackboneConfig, side: Side, drop_path: float, number: int, *, fusion: bool = False
    ) -> None:
        super().__init__()
        cross = side == "decoder" and config.architecture == "encoder_decoder"

        def feed_forward() -> Residual:
            return Residual("feed_forward", config, side, drop_path, number)

        def attention() -> Residual:
            return Residual("self_attention", config, side, drop_path, number)

        self.self_attention: Residual | SharedAttention = (
            SharedAttention(attention) if config.multiway == "full" else attention()
        )
        self.cross_attention = Residual("cross_attention", config, side, drop_path, number) if cross else None
        self.feed_forward: Residual | Experts = (
            feed_forward() if config.multiway == "none" else Experts(feed_forward, fusion=fusion)
        )

    def forward(self, x: Tensor, context: Context, cache: LayerCache | None = None) -> Tensor:
        x = self.self_attention(x, context, cache)  # (B, T, d_model)
        if self.cross_attention is not None:
            x = self.cross_attention(x, context, cache)  # (B, T, d_model)
        return apply_experts(self.feed_forward, x, context.num_vision_tokens)  # (B, T, d_model)


class Stack(nn.Module):
    """Base of `Encoder` and `Decoder`: positions, layers and final norm.

    Args:
        config: description of the backbone.
        side: "encoder" or "decoder".
    """

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
                index + 1,
                fusion=index >= count - config.fusion_layers,
            )
            for index in range(count)
        )
        self.final_norm = self._norm() if config.resolved_placement().final else None

    def _norm(self) -> Norm | Experts:
        def build() -> Norm:
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
        between: Mapping[int, Callable[[Tensor], Tensor]] = {},
        num_vision_tokens: int | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Compute the forward pass of both sides; their `forward` describes the arguments."""
        # The stream has the parameters' dtype: in the bf16 of a stem under autocast, a deep sum of small updates is lost.
        x = x.to(next(self.layers.parameters()).dtype)  # (B, T, d_model)
        documents = None
        if mask is not None and mask.dtype != torch.bool:
            self._check_documents(cache)
            documents, mask = mask, mask > 0  # (B, T) each
        start, seen = (0, mask) if cache is None else cache.extend(x, mask, len(self.layers))
        rotary = None if self.rotary is None else self.rotary(start, x.size(1))
        reach = Reach(x.size(1), start, causal, self.config.attention_window, seen, documents)
        sparse = None if self.relative is not None else reach.sparse(x.device)
        relative = (
            None if self.relative is None else self.relative(start, x.size(1))
        )  # (1, heads, T, start + T)
        allowed = None if sparse else reach.mask(x.device, past=relative is not None)
        bias = attention_bias(allowed, relative)  # (B or 1, heads or 1, T or 1, start + T)
        context = Context(
            bias=bias,
            causal=causal and bias is None and sparse is None and x.size(1) > 1,
            sparse=sparse,
            rotary=rotary,
            num_vision_tokens=num_vision_tokens,
            memory=memory,
            memory_mask=None if memory_mask is None else memory_mask[:, None, None, :],
        )
        x = self._add_positions(x, mask, reach, cache)  # (B, T, d_model)
        if self.input_norm is not None:
            x = apply_experts(self.input_norm, x, num_vision_tokens)
        x = dropout(x, self.config.dropout, self.training)
        features = {}
        for index, layer in enumerate(self.layers):
            layer_cache = None if cache is None else cache.layers[index]
            how = self.config.activation_checkpointing
            if how and self.training and cache is None and torch.is_grad_enabled():
                x = recomputed(how, layer, x, context)
            else:
                x = layer(x, context, layer_cache)  # (B, T, d_model)
            if index in return_layers:
                features[index] = x
            if index in between:
                x = between[index](x)  # (B, T, d_model)
        if self.final_norm is not None:
            x = apply_experts(self.final_norm, x, num_vision_tokens)
        return x, [features[index] for index in return_layers]

    def _check_documents(self, cache: KVCache | None) -> None:
        if cache is not None or isinstance(self.position, ConvolutionalPosition):
            what = "a cache" if cache is not None else "position=convolutional"
            raise ConfigError(
                f"mask has the numbers of documents, which {what} does not separate. Set mask to bool, True = real token."
            )

    def _add_positions(self, x: Tensor, mask: Tensor | None, reach: Reach, cache: KVCache | None) -> Tensor:
        if isinstance(self.position, ConvolutionalPosition):
            x, tail = self.position(x, mask, None if cache is None else cache.tail)
            if cache is not None:
                cache.tail = tail
        elif self.position is not None:
            x = self.position(x, reach.start, reach.seen, reach.documents)
        return x


class Encoder(Stack):
    """Stack of Transformer layers that attend to the whole input, or with `causal=True` to the past only.

    Args:
        config: description of the backbone, with architecture encoder or encoder_decoder.

    Raises:
        ConfigError: the architecture has no encoder.

    Shape:
        Input and output: (B, T, d_model). Mask: (B, T).

    Example:
        >>> encoder = Encoder(BackboneConfig(placement="magneto", num_layers=12, d_model=256))
        >>> encoder(torch.randn(2, 100, 256)).shape
        torch.Size([2, 100, 256])
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config, "encoder")

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
        return_layers: Sequence[int] = (),
        between: Mapping[int, Callable[[Tensor], Tensor]] = {},
        num_vision_tokens: int | None = None,
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Encode a batch.

        Args:
            x: (B, T, d_model), the output of a stem.
            mask: (B, T) bool, True = real token; None if all are real, which is faster than a mask of True. Or int64, the
                number of each token's document in a packed sequence, from 1, 0 = padding: tokens attend to their own
                document, in which learned and sinusoidal positions begin anew.
            causal: attend to earlier tokens only; not with convolutional positions, which look ahead in an encoder.
            return_layers: indices (from 0) of layers whose outputs are returned too, before any final norm.
            between: index of a layer -> function of its output, (B, T, d_model) -> the same, whose result the next layer
                (after the last one, the final norm) reads.
            num_vision_tokens: for a multiway stack, which needs it: the first tokens of the T that are vision; the
                others are text. 0: all are text, T: all are vision, in between: pairs.

        Returns:
            (B, T, d_model); with `return_layers` a pair of it and the list of the (B, T, d_model) of these layers.

        Raises:
            ConfigError: `num_vision_tokens` is missing, out of range, or given to a stack that is not multiway; the
                sequence is longer than `max_positions`; `causal` with convolutional positions.
        """
        self._check_vision_tokens(num_vision_tokens, x.size(1))
        if causal and self.config.position == "convolutional":
            raise ConfigError(
                "position=convolutional looks ahead in an encoder. Set architecture=decoder, or another position."
            )
        out, features = self.run(
            x,
            mask,
            causal=causal,
            return_layers=return_layers,
            between=between,
            num_vision_tokens=num_vision_tokens,
        )
        return (out, features) if return_layers else out

    def _check_vision_tokens(self, count: int | None, length: int) -> None:
        multiway = self.config.multiway
        if count is None and multiway != "none":
            raise ConfigError(
                f"multiway={multiway}: the encoder must know which tokens are vision. "
                "Set num_vision_tokens to the number of leading ones, 0 for texts."
            )
        if count is not None and multiway == "none":
            raise ConfigError(
                f"num_vision_tokens={count} has no effect with multiway=none. Set multiway=feed_forward."
            )
        if count is not None and not 0 <= count <= length:
            raise ConfigError(
                f"num_vision_tokens={count}: must be between 0 and the number of tokens, {length}."
            )


class Decoder(Stack):
    """Causal stack of Transformer layers; in an encoder-decoder they attend to a memory as well.

    Args:
        config: description of the backbone, with architecture decoder or encoder_decoder.

    Raises:
        ConfigError: the architecture has no decoder.

    Shape:
        Input and output: (B, T, d_model). Mask: (B, T). Memory: (B, S, d_model).

    Example:
        >>> decoder = Decoder(BackboneConfig(architecture="decoder", position="rotary"))
        >>> decoder(torch.randn(2, 100, 256)).shape
        torch.Size([2, 100, 256])
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config, "decoder")

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        cache: KVCache | StaticKVCache | None = None,
    ) -> Tensor:
        """Decode a batch, whole or step by step.

        Args:
            x: (B, T, d_model): all tokens, or with a cache the new ones.
            mask: (B, T) bool for these tokens, True = real; None if all are real. Padding on the right needs
                no mask, since no real token looks ahead: pass None and keep the fast kernel. Prompts of
                unequal length are padded on the left and do need one. Or int64, the numbers of documents, as in
                `Encoder.forward`; not with a cache.
            memory: (B, S, d_model), the encoder's output; with a cache it is read in the first step only.
            memory_mask: (B, S) bool, True = real; None if all are real.
            cache: state of the generation, written in place; None to decode the whole sequence at once. A static one is
                for a single new token without mask or memory.

        Returns:
            (B, T, d_model).

        Raises:
            ConfigError: the sequence is longer than `max_positions`.
        """
        if isinstance(cache, StaticKVCache):
            return decode_step(self, x, cache)
        cross = self.config.architecture == "encoder_decoder"
        assert cross == (memory is not None), (
            "memory goes with architecture=encoder_decoder, and only with it"
        )
        out, _ = self.run(x, mask, causal=True, memory=memory, memory_mask=memory_mask, cache=cache)
        return out


class EncoderDecoder(nn.Module):
    """Encoder and a decoder that attends to its output.

    Args:
        config: description of the backbone, with architecture encoder_decoder.

    Raises:
        ConfigError: the architecture is another one.

    Shape:
        Source: (B, S, d_model). Target and output: (B, T, d_model).
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def encode(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode the source x (B, S, d_model) with mask (B, S) to the memory (B, S, d_model)."""
        return self.encoder(x, mask)

    def decode(
        self,
        y: Tensor,
        mask: Tensor | None,
        memory: Tensor,
        memory_mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Decode y (B, T, d_model) with its mask (B, T), as `Decoder.forward`: (B, T, d_model)."""
        return self.decoder(y, mask, memory, memory_mask, cache)

    def forward(
        self, x: Tensor, y: Tensor, mask: Tensor | None = None, y_mask: Tensor | None = None
    ) -> Tensor:
        """Encode the source and decode the target.

        Args:
            x: (B, S, d_model), the source.
            y: (B, T, d_model), the target.
            mask: (B, S) bool, True = real token of the source; None if all are real.
            y_mask: (B, T) bool, the same for the target.

        Returns:
            (B, T, d_model).
        """
        memory = self.encode(x, mask)  # (B, S, d_model)
        return self.decode(y, y_mask, memory, mask)  # (B, T, d_model)


def build_backbone(config: BackboneConfig) -> Encoder | Decoder | EncoderDecoder:
    """Build the stack that `config.architecture` names.

    Args:
        config: description of the backbone.

    Returns:
        An `Encoder`, `Decoder` or `EncoderDecoder`, initialised.
    """
    if config.architecture == "encoder":
        return Encoder(config)
    return Decoder(config) if config.architecture == "decoder" else EncoderDecoder(config)
