"""The description of a backbone in plain values, checked together."""

from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal, get_args

from annotated_types import Ge, Gt, Lt, MultipleOf

from magneto.config.validate import check_types, from_mapping
from magneto.errors import ConfigError
from magneto.nn.placement import Depth, Placement, Side, SubLayer, find_placement, magneto_gain, one

Architecture = Literal["encoder", "decoder", "encoder_decoder"]
Activation = Literal["gelu", "gelu_tanh", "relu", "swiglu"]
Norm = Literal["layernorm", "rmsnorm", "dyt"]
SequencePosition = Literal["none", "learned", "sinusoidal", "rotary", "relative", "convolutional"]
Position = Literal[SequencePosition, "relative_2d"]
RotaryScaling = Literal["none", "linear", "yarn"]
Gain = Literal["formula", "none"]
Multiway = Literal["none", "feed_forward", "full"]
ImageStem = Literal["linear", "convolutional"]
Count = Annotated[int, Ge(1)]
Probability = Annotated[float, Ge(0), Lt(1)]

ARCHITECTURES: tuple[Architecture, ...] = get_args(Architecture)
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
NORMS: tuple[Norm, ...] = get_args(Norm)
SEQUENCE_POSITIONS: tuple[SequencePosition, ...] = get_args(SequencePosition)
MULTIWAY: tuple[Multiway, ...] = get_args(Multiway)


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Description of a Transformer stack in plain values. Equal configs build equal modules.

    All arguments are keywords and have a default. They are checked together when the object is created.

    Raises:
        ConfigError: a value that is not allowed, or that contradicts another one. The message names the field and the
            remedy. It is a `ValueError`.

    Example:
        >>> config = BackboneConfig(placement="magneto", num_layers=12, d_model=512, num_heads=8)
        >>> BackboneConfig.from_dict(config.to_dict()) == config
        True
    """

    placement: str = "magneto"
    """Row of `PLACEMENTS` (magneto, pre_ln, post_ln...: docs/placements.md), or the import path of a `Placement` of your
    own (docs/add_a_placement.md)."""
    architecture: Architecture = "encoder"
    """encoder, decoder (causal), or encoder_decoder (the decoder attends to the encoder's output)."""
    num_layers: Count = 6
    """Layers of the encoder, or of the decoder of a decoder-only model."""
    decoder_layers: Count | None = None
    """Layers of the decoder of an encoder_decoder; None: as many as the encoder has."""
    d_model: Count = 256
    """Width of the residual stream."""
    num_heads: Count = 4
    """Attention heads; must divide d_model."""
    num_kv_heads: Count | None = None
    """Heads of keys and values, which groups of attention heads share (grouped-query attention, Ainslie et al., arXiv
    2305.13245); must divide num_heads; None: as many."""
    attention_window: Count | None = None
    """Tokens that a token attends to: itself and those before it, in an encoder as many after it too (sliding window,
    Beltagy et al., arXiv 2004.05150); None: all."""
    ffn_dim: Count | None = None
    """Width inside the feed-forward; None: 4 * d_model. swiglu has two products of this width."""
    activation: Activation = "gelu"
    """gelu (exact), gelu_tanh (GPT-2), relu or swiglu."""
    norm: Norm = "layernorm"
    """layernorm, rmsnorm, or dyt (Dynamic Tanh, which computes no statistics), for all norms of the stack."""
    norm_eps: Annotated[float, Gt(0)] = 1e-5
    """Epsilon of all norms."""
    bias: bool = True
    """Additive biases in linear maps and in LayerNorm."""
    position: Position = "learned"
    """none, learned, sinusoidal, rotary, relative (T5 buckets), convolutional (wav2vec 2.0), or relative_2d (BEiT: the
    patches of one image after a [CLS] token)."""
    max_positions: Count = 2048
    """Longest sequence of learned, sinusoidal and rotary positions; the others have no limit."""
    rotary_base: Annotated[float, Gt(1)] = 10_000.0
    """Base of the wavelengths of rotary positions, which reach 2 pi times it; larger for longer sequences."""
    rotary_scaling: RotaryScaling = "none"
    """How rotary positions of a model that was trained with shorter sequences are extended: linear (positions are divided by
    the factor; Chen et al., arXiv 2306.15595) or yarn (long wavelengths only; Peng et al., arXiv 2309.00071)."""
    rotary_factor: Annotated[float, Ge(1)] = 1.0
    """By how much: max_positions / rotary_factor is the length that it was trained with."""
    relative_buckets: Annotated[int, Ge(4), MultipleOf(4)] = 32
    """Buckets of relative positions; a multiple of 4."""
    relative_max_distance: int = 128
    """Distance from which on all tokens share the last bucket of relative positions."""
    grid: Count | None = None
    """Patches per side of the image, for relative_2d."""
    conv_position_kernel: Count = 31
    """Kernel of convolutional positions, in frames; odd."""
    input_norm: bool = False
    """Norm on the input after positions are added, as in BERT."""
    embedding_scale: bool = True
    """Multiply token embeddings by sqrt(d_model) (see `TokenStem`); BERT and GPT-2 have no such factor."""
    image_stem: ImageStem = "linear"
    """How patches become tokens: linear (ViT) or convolutional (see `PatchStem`)."""
    vgg_stem: bool = False
    """Embed speech by 3 x 3 convolutions over time and mel bands (see `VGGStem`), as the paper's recogniser does."""
    multiway: Multiway = "none"
    """What vision and text have each of their own: none, feed_forward (the whole sub-layer; attention is shared, as in
    the paper of BEiT-3) or full (every linear map and norm, as in its released weights)."""
    fusion_layers: Annotated[int, Ge(0)] = 0
    """Top layers with a third feed-forward, for all tokens of a pair of image and text."""
    dropout: Probability = 0.0
    """On the input and on the output of each sub-layer."""
    attention_dropout: Probability = 0.0
    """On the attention weights."""
    activation_dropout: Probability = 0.0
    """After the activation of the feed-forward."""
    drop_path: Probability = 0.0
    """Stochastic depth: probability that an example skips a sub-layer of the last layer; linear in depth."""
    inner_attention_norm: bool | Literal["heads"] | None = None
    """Ablation: the norm before the output projection, heads: over each head; None: as the placement has it."""
    inner_ffn_norm: bool | None = None
    """Ablation: the norm before fc2; None: as the placement has it."""
    gain: Gain | None = None
    """Ablation: formula (Magneto's, on any placement) or none (1.0); None: as the placement has it."""
    final_norm: bool | None = None
    """Ablation: the norm after the last layer; None: as the placement has it."""
    qk_norm: bool = False
    """Normalise queries and keys within each head."""
    v_norm: bool = False
    """Normalise values within each head."""
    attention_gate: bool = False
    """Multiply the output of the heads by sigmoid(W x) before the output projection, x being the input of the sub-layer."""
    activation_checkpointing: bool | Literal["selective"] = False
    """Recompute each layer in the backward pass instead of storing its activations; selective: keep the results of matrix
    products and of attention, and recompute what is cheap (in layers that are not compiled)."""

    def __post_init__(self) -> None:
        check_types(BackboneConfig, vars(self))
        self.resolved_placement()
        if self.decoder_layers is not None and self.architecture != "encoder_decoder":
            raise ConfigError(
                f"decoder_layers={self.decoder_layers} has no effect with architecture={self.architecture}. "
                "Set the depth as num_layers."
            )
        if self.d_model % self.num_heads:
            divisors = [n for n in range(1, self.d_model + 1) if self.d_model % n == 0]
            raise ConfigError(
                f"d_model={self.d_model} does not divide by num_heads={self.num_heads}. Set num_heads="
                f"{min(divisors, key=lambda n: abs(n - self.num_heads))}, or d_model="
                f"{-(-self.d_model // self.num_heads) * self.num_heads}."
            )
        if self.num_heads % self.kv_heads:
            divisors = [n for n in range(1, self.num_heads + 1) if self.num_heads % n == 0]
            raise ConfigError(
                f"num_kv_heads={self.num_kv_heads} does not divide num_heads={self.num_heads}. "
                f"Choose from {', '.join(map(str, divisors))}."
            )
        if self.attention_window is not None and self.position == "relative_2d":
            raise ConfigError(
                f"attention_window={self.attention_window}: patches of position=relative_2d are no sequence. Set it to null."
            )
        if self.multiway != "none":
            self._check_encoder(f"multiway={self.multiway} is a property of an encoder")
        if self.fusion_layers > self.num_layers:
            raise ConfigError(
                f"fusion_layers={self.fusion_layers}: must be between 0 and num_layers={self.num_layers}."
            )
        if self.fusion_layers and self.multiway == "none":
            raise ConfigError(
                f"fusion_layers={self.fusion_layers} has no effect with multiway=none. Set multiway=feed_forward."
            )
        self._check_position()

    def _check_position(self) -> None:
        if self.position == "rotary" and self.head_dim % 2:
            raise ConfigError(
                "position=rotary turns pairs of channels, but a head has d_model / num_heads = "
                f"{self.head_dim} of them. Set d_model and num_heads so that this is even."
            )
        if (self.rotary_scaling == "none") != (self.rotary_factor == 1.0):
            raise ConfigError(
                f"rotary_factor={self.rotary_factor:g} does not go with rotary_scaling={self.rotary_scaling}. Set "
                "rotary_scaling to linear or yarn and rotary_factor above 1, or neither."
            )
        if self.position == "sinusoidal" and self.d_model % 2:
            raise ConfigError(f"position=sinusoidal needs an even d_model, not {self.d_model}.")
        if self.position == "convolutional" and self.conv_position_kernel % 2 == 0:
            raise ConfigError(
                f"conv_position_kernel={self.conv_position_kernel}: must be odd, for example 31."
            )
        if self.position == "relative_2d":
            if self.grid is None:
                raise ConfigError(
                    "position=relative_2d needs the patches per side. Set grid to image_size / patch_size."
                )
            self._check_encoder("position=relative_2d is for the patches of an image, which have no past")
        if self.position == "relative" and self.relative_max_distance <= self.relative_buckets // 2:
            raise ConfigError(
                f"relative_max_distance={self.relative_max_distance}: must be above half of "
                f"relative_buckets={self.relative_buckets}, for example {4 * self.relative_buckets}."
            )

    def _check_encoder(self, reason: str) -> None:
        if self.architecture != "encoder":
            raise ConfigError(f"{reason}. Set architecture=encoder, not {self.architecture}.")

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.d_model // self.num_heads

    @property
    def kv_heads(self) -> int:
        """`num_kv_heads`, or its default."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def ffn_width(self) -> int:
        """`ffn_dim`, or its default."""
        return 4 * self.d_model if self.ffn_dim is None else self.ffn_dim

    def depth(self, side: Side, layer: int = 1, sub_layer: SubLayer = "self_attention") -> Depth:
        """Return the depth of the model for the formulas of one side, and of one of its sub-layers.

        Raises:
            ConfigError: the architecture has no such side.
        """
        if side not in self.architecture:
            raise ConfigError(
                f"architecture={self.architecture} has no {side}. "
                f"Set architecture={side} or architecture=encoder_decoder."
            )
        return Depth(
            encoder_layers=0 if self.architecture == "decoder" else self.num_layers,
            decoder_layers=0 if self.architecture == "encoder" else self.decoder_layers or self.num_layers,
            side=side,
            layer=layer,
            sub_layer=sub_layer,
        )

    @property
    def normed_output(self) -> bool:
        """Whether the last thing in the stack is a norm."""
        placement = self.resolved_placement()
        if placement.final or isinstance(placement.post, bool):
            return placement.final or bool(placement.post)
        side: Side = "encoder" if self.architecture == "encoder" else "decoder"
        return placement.post(self.depth(side, self.depth(side).own_layers, "feed_forward"))

    def resolved_placement(self) -> Placement:
        """Return the placement with the ablations of this config applied."""
        gain = {"formula": magneto_gain, "none": one, None: None}[self.gain]
        changes: dict[str, Any] = {
            "inner_attention": self.inner_attention_norm,
            "inner_ffn": self.inner_ffn_norm,
            "final": self.final_norm,
            "gain_in": gain,
            "gain_out": gain,
        }
        row = find_placement(self.placement)
        return replace(row, **{name: value for name, value in changes.items() if value is not None})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "BackboneConfig":
        """Build a config from plain values by name.

        Raises:
            ConfigError: as the constructor, and for an unknown key, with the nearest known one.
        """
        return from_mapping(cls, values, "backbone")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, from which `from_dict` builds an equal config."""
        return asdict(self)
