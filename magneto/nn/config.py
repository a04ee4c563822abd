"""The one description of a backbone: plain values, checked together."""

from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from typing import Any, get_args, get_type_hints

from magneto.errors import ConfigError
from magneto.nn.placement import PLACEMENTS, Depth, Placement, Side, magneto_gain, one

ARCHITECTURES = ("encoder", "decoder", "encoder_decoder")
ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "swiglu")
NORMS = ("layernorm", "rmsnorm")
SEQUENCE_POSITIONS = ("none", "learned", "sinusoidal", "rotary", "relative", "convolutional")
POSITIONS = (*SEQUENCE_POSITIONS, "relative_2d")
GAINS = ("formula", "none")
MULTIWAY = ("none", "feed_forward", "full")


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """A Transformer stack in plain values; equal configs build equal modules.

    Raises `ConfigError` (a `ValueError`) that names the field, what is wrong with it and the remedy.
    """

    placement: str = "magneto"
    """Row of `placement.PLACEMENTS`: magneto, pre_ln, post_ln, deepnorm, normformer."""
    architecture: str = "encoder"
    """encoder, decoder (causal), or encoder_decoder (the decoder attends to the encoder's output)."""
    num_layers: int = 6
    """Layers of the encoder, or of the decoder of a decoder-only model."""
    decoder_layers: int | None = None
    """Layers of the decoder of an encoder_decoder; None: as many as the encoder has."""
    d_model: int = 256
    """Width of the residual stream."""
    num_heads: int = 4
    """Attention heads; must divide d_model."""
    ffn_dim: int | None = None
    """Width inside the feed-forward; None: 4 * d_model. With swiglu there are two such products."""
    activation: str = "gelu"
    """gelu (exact), gelu_tanh (GPT-2), relu or swiglu."""
    norm: str = "layernorm"
    """layernorm or rmsnorm, for every normalisation of the stack."""
    norm_eps: float = 1e-5
    bias: bool = True
    """Additive biases in linear maps and in LayerNorm."""
    position: str = "learned"
    """none, learned, sinusoidal, rotary, relative (T5 buckets), convolutional (wav2vec 2.0), or relative_2d (BEiT: the
    patches of one image behind a [CLS])."""
    max_positions: int = 2048
    """Longest sequence of learned, sinusoidal and rotary positions; the others know no limit."""
    relative_buckets: int = 32
    relative_max_distance: int = 128
    grid: int | None = None
    """Patches on a side of the image, for relative_2d."""
    conv_position_kernel: int = 31
    """Frames that a convolutional position sees; odd."""
    input_norm: bool = False
    """A norm on the input once positions are added, as BERT has it."""
    embedding_scale: bool = True
    """Token embeddings enter multiplied by sqrt(d_model) (see `stems.TokenStem`); BERT and GPT-2 have no such factor."""
    multiway: str = "none"
    """What each of the two modalities, vision and text, has for itself: none, feed_forward (the whole sub-layer; attention
    is shared, as BEiT-3's paper has it) or full (every linear map and norm, as its released weights have it)."""
    fusion_layers: int = 0
    """Top layers with a third feed-forward, which all tokens of a pair of image and text go through."""
    dropout: float = 0.0
    """On the input and on the output of each sub-layer."""
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    drop_path: float = 0.0
    """Stochastic depth: chance that an example skips a sub-layer of the last layer; linear in depth."""
    inner_attention_norm: bool | None = None
    """Ablation; None: what the placement says."""
    inner_ffn_norm: bool | None = None
    """Ablation; None: what the placement says."""
    gain: str | None = None
    """Ablation: formula (Magneto's, on any placement), none (1.0); None: what the placement says."""
    final_norm: bool | None = None
    """Ablation; None: what the placement says."""
    qk_norm: bool = False
    """Normalise queries and keys within each head."""
    activation_checkpointing: bool = False
    """Recompute each layer in the backward pass instead of storing its activations."""

    def __post_init__(self) -> None:
        _check_types(self)
        _check_choice("placement", self.placement, tuple(PLACEMENTS))
        _check_choice("architecture", self.architecture, ARCHITECTURES)
        _check_choice("activation", self.activation, ACTIVATIONS)
        _check_choice("norm", self.norm, NORMS)
        _check_choice("position", self.position, POSITIONS)
        _check_choice("multiway", self.multiway, MULTIWAY)
        if self.gain is not None:
            _check_choice("gain", self.gain, GAINS)
        for name in (
            "num_layers", "decoder_layers", "d_model", "num_heads", "ffn_dim", "max_positions", "grid",
        ):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value}: must be at least 1.")
        for name in ("dropout", "attention_dropout", "activation_dropout", "drop_path"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ConfigError(f"{name}={value}: a probability must be at least 0 and below 1.")
        if self.norm_eps <= 0:
            raise ConfigError(f"norm_eps={self.norm_eps}: must be above 0, for example 1e-5.")
        if self.decoder_layers is not None and self.architecture != "encoder_decoder":
            raise ConfigError(
                f"decoder_layers={self.decoder_layers} has no effect with architecture={self.architecture}: "
                "give the depth as num_layers."
            )
        if self.d_model % self.num_heads:
            near = sorted(
                (n for n in range(1, self.d_model + 1) if self.d_model % n == 0),
                key=lambda n: abs(n - self.num_heads),
            )
            raise ConfigError(
                f"d_model={self.d_model} does not divide by num_heads={self.num_heads}: "
                f"take num_heads={near[0]}, or d_model={-(-self.d_model // self.num_heads) * self.num_heads}."
            )
        if self.position == "rotary" and self.head_dim % 2:
            raise ConfigError(
                "position=rotary turns pairs of channels, but a head has d_model / num_heads = "
                f"{self.head_dim} of them: choose d_model and num_heads so that this is even."
            )
        if self.position == "sinusoidal" and self.d_model % 2:
            raise ConfigError(f"position=sinusoidal needs an even d_model, not {self.d_model}.")
        if self.position == "convolutional" and (
            self.conv_position_kernel < 1 or self.conv_position_kernel % 2 == 0
        ):
            raise ConfigError(
                f"conv_position_kernel={self.conv_position_kernel}: must be odd, for example 31."
            )
        if self.position == "relative_2d":
            if self.grid is None:
                raise ConfigError(
                    "position=relative_2d needs grid, the patches on a side: image_size / patch_size."
                )
            self._check_encoder("position=relative_2d is for the patches of an image, which have no past")
        if self.multiway != "none":
            self._check_encoder(f"multiway={self.multiway} is a property of an encoder")
        if not 0 <= self.fusion_layers <= self.num_layers:
            raise ConfigError(
                f"fusion_layers={self.fusion_layers}: must be between 0 and num_layers={self.num_layers}."
            )
        if self.fusion_layers and self.multiway == "none":
            raise ConfigError(
                f"fusion_layers={self.fusion_layers} has no effect with multiway=none: set multiway=feed_forward."
            )
        if self.position == "relative":
            if self.relative_buckets < 4 or self.relative_buckets % 4:
                raise ConfigError(
                    f"relative_buckets={self.relative_buckets}: must be a multiple of 4, for example 32 "
                    "(two directions, each half near and half far)."
                )
            if self.relative_max_distance <= self.relative_buckets // 2:
                raise ConfigError(
                    f"relative_max_distance={self.relative_max_distance}: must be above half of "
                    f"relative_buckets={self.relative_buckets}, for example {4 * self.relative_buckets}."
                )

    def _check_encoder(self, what: str) -> None:
        if self.architecture != "encoder":
            raise ConfigError(f"{what}: set architecture=encoder, not {self.architecture}.")

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.d_model // self.num_heads

    @property
    def ffn_width(self) -> int:
        """`ffn_dim` with its default filled in."""
        return 4 * self.d_model if self.ffn_dim is None else self.ffn_dim

    def depth(self, side: Side) -> Depth:
        """The model's depth as seen from one side; `side` must exist in the architecture."""
        if self.architecture == "encoder_decoder":
            return Depth(
                encoder_layers=self.num_layers,
                decoder_layers=self.decoder_layers or self.num_layers,
                side=side,
            )
        if side != self.architecture:
            raise ConfigError(
                f"architecture={self.architecture} has no {side}: "
                f"set architecture={side} or architecture=encoder_decoder."
            )
        encoder = side == "encoder"
        return Depth(
            encoder_layers=self.num_layers if encoder else 0,
            decoder_layers=0 if encoder else self.num_layers,
            side=side,
        )

    def resolved_placement(self) -> Placement:
        """The row of the table with this config's ablations applied."""
        changes: dict[str, Any] = {}
        if self.inner_attention_norm is not None:
            changes["inner_attention"] = self.inner_attention_norm
        if self.inner_ffn_norm is not None:
            changes["inner_ffn"] = self.inner_ffn_norm
        if self.final_norm is not None:
            changes["final"] = self.final_norm
        if self.gain is not None:
            changes["gain"] = magneto_gain if self.gain == "formula" else one
        return replace(PLACEMENTS[self.placement], **changes)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "BackboneConfig":
        """A config from plain values; an unknown key is refused and the nearest known one named."""
        known = tuple(field.name for field in fields(cls))
        for key in values:
            _check_choice("backbone key", key, known)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, such that `from_dict(to_dict())` is equal to this config."""
        return asdict(self)


def _check_choice(name: str, value: str, options: tuple[str, ...]) -> None:
    if value in options:
        return
    near = get_close_matches(value, options, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(f"{name}={value!r} is not known: {hint}Choose from {', '.join(options)}.")


def _check_types(config: BackboneConfig) -> None:
    """Refuse what YAML makes of a slip: `d_model: "256"`, `num_layers: 6.0`, `bias: 1`."""
    for name, hint in get_type_hints(BackboneConfig).items():
        value = getattr(config, name)
        allowed = get_args(hint) or (hint,)
        fits = type(value) in allowed or (float in allowed and type(value) is int)
        if not fits:
            wanted = " or ".join("null" if kind is type(None) else kind.__name__ for kind in allowed)
            raise ConfigError(f"{name}={value!r} is a {type(value).__name__}: give a value of type {wanted}.")
