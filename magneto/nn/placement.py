"""The table of placements: where the norms of a Transformer stand, and how its depth scales residuals and weights.

The whole difference between Magneto and its baselines is one row of `PLACEMENTS`. Nothing else in the package knows a
placement by name. docs/add_a_placement.md adds one, in this table or outside of the package.

Sources, cited by equation number below:

- Magneto: "Foundation Transformers", arXiv 2210.06423 (eqs. 1-5 Sub-LN, 17 and 63 its gain);
- DeepNet: arXiv 2203.00555 (figure 2, section 4.3);
- NormFormer: arXiv 2110.09456.

docs/placements.md is a catalogue of all rows, with the sources of the others.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from math import log, sqrt
from typing import Literal

from magneto.errors import ConfigError, nearest

Side = Literal["encoder", "decoder"]
SubLayer = Literal["self_attention", "cross_attention", "feed_forward"]


@dataclass(frozen=True, kw_only=True)
class Depth:
    """Depth of a whole model, and the sub-layer that a formula is evaluated for.

    The formula of one side may need the depth of both, hence an object and not an integer.

    Args:
        encoder_layers: N of the papers; 0 in a decoder-only model.
        decoder_layers: M of the papers; 0 in an encoder-only model.
        side: "encoder" or "decoder".
        layer: 1 to the number of layers of this side.
        sub_layer: "self_attention", "cross_attention" or "feed_forward".
    """

    encoder_layers: int
    decoder_layers: int
    side: Side
    layer: int = 1
    sub_layer: SubLayer = "self_attention"

    def __post_init__(self) -> None:
        assert 1 <= self.layer <= self.own_layers, self

    @property
    def own_layers(self) -> int:
        """Number of layers of this side."""
        return self.encoder_layers if self.side == "encoder" else self.decoder_layers

    @property
    def one_sided(self) -> bool:
        """Whether the model is encoder-only or decoder-only."""
        return self.encoder_layers == 0 or self.decoder_layers == 0

    @property
    def own_sub_layers(self) -> int:
        """Number of sub-layers of this side: 2L, or 3M in the decoder of an encoder-decoder."""
        return (3 if self.side == "decoder" and not self.one_sided else 2) * self.own_layers


Formula = Callable[[Depth], float]
Where = bool | Callable[[Depth], bool]
"""Whether a norm is there: everywhere, nowhere, or as a function says of each sub-layer."""


def one(depth: Depth) -> float:
    """Return 1: plain residuals, standard Xavier."""
    return 1.0


def magneto_gain(depth: Depth) -> float:
    """Return the Xavier gain gamma of Sub-LN (Magneto, figure 2).

    | model             | encoder                         | decoder            |
    |-------------------|---------------------------------|--------------------|
    | one-sided, L deep | sqrt(log 2L)            eq. 17  | sqrt(log 2L)       |
    | encoder-decoder   | sqrt(log 3M * log 2N / 3) eq. 63| sqrt(log 3M)       |

    2L and 3M count sub-layers: a cross-attention makes three of them in a decoder layer.
    """
    n, m = depth.encoder_layers, depth.decoder_layers
    if depth.one_sided:
        return sqrt(log(2 * depth.own_layers))
    if depth.side == "decoder":
        return sqrt(log(3 * m))
    return sqrt(log(3 * m) * log(2 * n) / 3)


def deepnorm_alpha(depth: Depth) -> float:
    """Return the residual weight alpha of DeepNorm (DeepNet, figure 2): x <- LN(alpha x + f(x))."""
    n, m = depth.encoder_layers, depth.decoder_layers
    if depth.one_sided:
        return float((2 * depth.own_layers) ** (1 / 4))
    if depth.side == "decoder":
        return float((3 * m) ** (1 / 4))
    return float(0.81 * (n**4 * m) ** (1 / 16))


def deepnorm_beta(depth: Depth) -> float:
    """Return the Xavier gain beta of DeepNorm (DeepNet, figure 2)."""
    n, m = depth.encoder_layers, depth.decoder_layers
    if depth.one_sided:
        return float((8 * depth.own_layers) ** (-1 / 4))
    if depth.side == "decoder":
        return float((12 * m) ** (-1 / 4))
    return float(0.87 * (n**4 * m) ** (-1 / 16))


def inverse_sqrt_depth(depth: Depth) -> float:
    """Return 1 / sqrt(2L), one over the root of the number of sub-layers (GPT-2, section 2.3; Megatron-LM)."""
    return float(depth.own_sub_layers**-0.5)


def inverse_sqrt_layer(depth: Depth) -> float:
    """Return 1 / sqrt(l) for both sub-layers of layer l (LayerNorm Scaling, arXiv 2502.05795, eq. 3)."""
    return float(depth.layer**-0.5)


def first_quarter(depth: Depth) -> bool:
    """Return whether the layer is one of the first floor(L / 4) (Mix-LN, arXiv 2412.13795, with its ratio of 0.25)."""
    return depth.layer <= depth.own_layers // 4


def after_first_quarter(depth: Depth) -> bool:
    """Return whether the layer is none of the first floor(L / 4)."""
    return not first_quarter(depth)


def is_feed_forward(depth: Depth) -> bool:
    """Return whether the sub-layer is a feed-forward."""
    return depth.sub_layer == "feed_forward"


def after_first_attention(depth: Depth) -> bool:
    """Return whether the sub-layer is any but the first self-attention."""
    return depth.layer > 1 or depth.sub_layer != "self_attention"


def keel_alpha(depth: Depth) -> float:
    """Return the residual weight of Keel (arXiv 2601.19895): the number of sub-layers, but 1 in the first attention."""
    return float(depth.own_sub_layers) if after_first_attention(depth) else 1.0


def layer_scale_init(depth: Depth) -> float:
    """Return the first value of LayerScale's factors (CaiT, arXiv 2103.17239, section 2): 0.1 up to 18 layers, 1e-5 up to
    24, 1e-6 in deeper models.
    """
    return 0.1 if depth.own_layers <= 18 else 1e-5 if depth.own_layers <= 24 else 1e-6


def zero(depth: Depth) -> float:
    """Return 0: a learned factor that begins without its branch."""
    return 0.0


COMPLETE_P_LAYERS = 6
"""Depth at which CompleteP's branches have weight 1: that of our default size, at which rates are tuned."""


def complete_p_weight(depth: Depth) -> float:
    """Return the weight of a branch in CompleteP (arXiv 2505.01618, with alpha = 1): L0 / L."""
    return COMPLETE_P_LAYERS / depth.own_layers


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A row of the table: the norms around and inside a residual sub-layer, and formulas of the depth.

    The drawing at the head of `residual.py` shows where each norm stands.

    Raises:
        ConfigError: the row scales its branches twice, by `pre_scale` and by `gain_out`.
    """

    pre: Where = False
    """Norm before the sub-layer, off the residual stream."""
    post: Where = False
    """Norm after the residual sum, on the stream itself."""
    stream: Where = False
    """Norm before the sub-layer, on the stream itself: the residual sum has it too."""
    final: bool = False
    """Norm after the last layer."""
    inner_attention: bool | Literal["heads"] = False
    """Norm over the concatenated heads, before the output projection; "heads": over the channels of each."""
    inner_ffn: bool = False
    """Norm over ffn_dim, after the activation, before fc2."""
    qkv: bool = False
    """Norm over the channels of each head of queries, keys and values, in both attentions."""
    post_attention: bool = False
    """Norm over the output of self-attention, before the residual sum."""
    post_cross_attention: bool = False
    """Norm over the output of cross-attention, before the residual sum."""
    post_ffn: bool = False
    """Norm over the output of the feed-forward, before the residual sum."""
    post_init: float = 1.0
    """First value of the weights of these three."""
    head_scale: bool = False
    """Learned factor for each head of self-attention."""
    scale_cross_attention: bool = False
    """Whether the gains hold for cross-attention too."""
    alpha: Formula = one
    """Weight of the residual stream in the sum."""
    branch: Formula = one
    """Weight of the branch in the sum."""
    learned_scale: Literal["scalar", "channels"] | None = None
    """Learned factor of the branch, or one for each channel."""
    learned_scale_init: Formula = one
    """Its first value."""
    pre_scale: Formula = one
    """Factor of the norm before the sub-layer."""
    gain_in: Formula = one
    """Xavier gain of v and fc1."""
    gain_out: Formula = one
    """Xavier gain of out and fc2."""

    def __post_init__(self) -> None:
        if self.pre_scale is not one and self.gain_out is not one:
            raise ConfigError(
                "placement: pre_scale and gain_out both make the branches of deep layers smaller. LayerNorm Scaling is for "
                "weights that do not know the depth: set backbone.gain=none, or leave out one of the two."
            )


PLACEMENTS: dict[str, Placement] = {
    # Cross-attention keeps the pre-norm alone and is not scaled (Magneto, section 2 and figure 2b).
    "magneto": Placement(
        pre=True,
        inner_attention=True,
        inner_ffn=True,
        final=True,
        gain_in=magneto_gain,
        gain_out=magneto_gain,
    ),
    "pre_ln": Placement(pre=True, final=True),
    "post_ln": Placement(post=True),
    "deepnorm": Placement(
        post=True,
        scale_cross_attention=True,
        alpha=deepnorm_alpha,
        gain_in=deepnorm_beta,
        gain_out=deepnorm_beta,
    ),
    "normformer": Placement(pre=True, inner_ffn=True, post_attention=True, head_scale=True, final=True),
    # What GPT-2 and most that follow it call Pre-LN; every branch counts, cross-attention too.
    "pre_ln_scaled": Placement(pre=True, final=True, gain_out=inverse_sqrt_depth, scale_cross_attention=True),
    "peri_ln": Placement(pre=True, post_attention=True, post_cross_attention=True, post_ffn=True, final=True),
    # OLMo 2 has the first, Swin v2 the second.
    "res_post_norm": Placement(post_attention=True, post_cross_attention=True, post_ffn=True, final=True),
    "res_post_norm_zero": Placement(
        post_attention=True, post_cross_attention=True, post_ffn=True, post_init=0.0, final=True
    ),
    "lns": Placement(pre=True, pre_scale=inverse_sqrt_layer, final=True),
    "mix_ln": Placement(pre=after_first_quarter, post=first_quarter, final=True),
    "hybrid_norm": Placement(
        stream=is_feed_forward, qkv=True, final=True, gain_out=inverse_sqrt_depth, scale_cross_attention=True
    ),
    "keel": Placement(pre=True, post=after_first_attention, alpha=keel_alpha),
    "layer_scale": Placement(
        pre=True, learned_scale="channels", learned_scale_init=layer_scale_init, final=True
    ),
    "rezero": Placement(learned_scale="scalar", learned_scale_init=zero),
    "complete_p": Placement(pre=True, branch=complete_p_weight, final=True),
    "pre_ln_head_norm": Placement(pre=True, inner_attention="heads", final=True),
}


def find_placement(name: str) -> Placement:
    """Return the row of `PLACEMENTS` with this name, or the `Placement` at this import path.

    Args:
        name: name of a row, as "magneto", or the path of an object in a module of your own, as "my_placements.peri_ln".

    Raises:
        ConfigError: there is no such row, or no `Placement` at that path.
    """
    if name in PLACEMENTS:
        return PLACEMENTS[name]
    module, dot, attribute = name.rpartition(".")
    if not dot:
        raise ConfigError(
            f"placement={name}: there is no such placement.{nearest(name, PLACEMENTS)} Choose from {', '.join(PLACEMENTS)}."
        )
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"placement={name}: cannot be imported: {error}. Set PYTHONPATH to the folder of the module, or use "
            f"{', '.join(PLACEMENTS)}."
        ) from error
    if not isinstance(found, Placement):
        raise ConfigError(f"placement={name}: is a {type(found).__name__}. Set it to a magneto.nn.Placement.")
    return found
