"""Where the normalisations of a Transformer sit, and what its depth does to residuals and initialisation.

The whole difference between Magneto and its baselines is one row of `PLACEMENTS`. A further placement is a
further row: nothing else in the package knows a placement by name.

Sources, cited by equation number below:

- Magneto: "Foundation Transformers", arXiv 2210.06423 (eqs. 1-5 Sub-LN, 17 and 63 its gain);
- DeepNet: arXiv 2203.00555 (figure 2, section 4.3);
- NormFormer: arXiv 2110.09456.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import log, sqrt
from typing import Literal

Side = Literal["encoder", "decoder"]


@dataclass(frozen=True, kw_only=True)
class Depth:
    """The depth of a whole model, and the side of it that a formula is asked for.

    N = `encoder_layers` and M = `decoder_layers` of the papers; an encoder-only model has M = 0, a
    decoder-only model N = 0. One side's formula may need both numbers, hence an object and not an integer.
    """

    encoder_layers: int
    decoder_layers: int
    side: Side

    def __post_init__(self) -> None:
        assert (self.encoder_layers if self.side == "encoder" else self.decoder_layers) > 0, self

    @property
    def own_layers(self) -> int:
        """Number of layers of the side asked for."""
        return self.encoder_layers if self.side == "encoder" else self.decoder_layers

    @property
    def one_sided(self) -> bool:
        """True for an encoder-only or decoder-only model."""
        return self.encoder_layers == 0 or self.decoder_layers == 0


Formula = Callable[[Depth], float]


def one(depth: Depth) -> float:
    """No dependence on depth: plain residuals, standard Xavier."""
    return 1.0


def magneto_gain(depth: Depth) -> float:
    """Xavier gain gamma of Sub-LN (Magneto, figure 2).

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
    """Residual weight alpha of DeepNorm (DeepNet, figure 2): x <- LN(alpha x + f(x))."""
    n, m = depth.encoder_layers, depth.decoder_layers
    if depth.one_sided:
        return float((2 * depth.own_layers) ** (1 / 4))
    if depth.side == "decoder":
        return float((3 * m) ** (1 / 4))
    return float(0.81 * (n**4 * m) ** (1 / 16))


def deepnorm_beta(depth: Depth) -> float:
    """Xavier gain beta of DeepNorm (DeepNet, figure 2)."""
    n, m = depth.encoder_layers, depth.decoder_layers
    if depth.one_sided:
        return float((8 * depth.own_layers) ** (-1 / 4))
    if depth.side == "decoder":
        return float((12 * m) ** (-1 / 4))
    return float(0.87 * (n**4 * m) ** (-1 / 16))


@dataclass(frozen=True, kw_only=True)
class Placement:
    """One row: the norms around and inside a residual sub-layer, and its two depth formulas.

    The image at the head of `residual.py` shows where each of them sits.
    """

    pre: bool = False  # before the sub-layer, off the residual stream
    post: bool = False  # after the residual sum, on the stream itself
    final: bool = False  # once, after the last layer
    inner_attention: bool = False  # over the concatenated heads, before the output projection
    inner_ffn: bool = False  # over ffn_dim, after the activation, before fc2
    post_attention: bool = False  # over the output of self-attention, before the residual sum
    post_ffn: bool = False  # over the output of the feed-forward, before the residual sum
    head_scale: bool = False  # a learned factor for each head of self-attention
    scale_cross_attention: bool = False  # whether `gain` holds for cross-attention too
    alpha: Formula = one  # weight of the residual stream in the sum
    gain: Formula = one  # Xavier gain of v, out, fc1, fc2


PLACEMENTS: dict[str, Placement] = {
    # Cross-attention keeps the pre-norm alone and is not scaled (Magneto, section 2 and figure 2b).
    "magneto": Placement(pre=True, inner_attention=True, inner_ffn=True, final=True, gain=magneto_gain),
    "pre_ln": Placement(pre=True, final=True),
    "post_ln": Placement(post=True),
    "deepnorm": Placement(post=True, scale_cross_attention=True, alpha=deepnorm_alpha, gain=deepnorm_beta),
    "normformer": Placement(pre=True, inner_ffn=True, post_attention=True, head_scale=True, final=True),
}
