"""The table of placements: where the norms of a Transformer stand, and how its depth scales residuals and weights.

The whole difference between Magneto and its baselines is one row of `PLACEMENTS`. Nothing else in the package knows a
placement by name. docs/add_a_placement.md adds one, in this table or outside of the package.

Sources, cited by equation number below:

- Magneto: "Foundation Transformers", arXiv 2210.06423 (eqs. 1-5 Sub-LN, 17 and 63 its gain);
- DeepNet: arXiv 2203.00555 (figure 2, section 4.3);
- NormFormer: arXiv 2110.09456.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from math import log, sqrt
from typing import Literal

from magneto.errors import ConfigError, nearest

Side = Literal["encoder", "decoder"]


@dataclass(frozen=True, kw_only=True)
class Depth:
    """Depth of a whole model, and the side that a formula is evaluated for.

    The formula of one side may need the depth of both, hence an object and not an integer.

    Args:
        encoder_layers: N of the papers; 0 in a decoder-only model.
        decoder_layers: M of the papers; 0 in an encoder-only model.
        side: "encoder" or "decoder".
    """

    encoder_layers: int
    decoder_layers: int
    side: Side

    def __post_init__(self) -> None:
        assert (self.encoder_layers if self.side == "encoder" else self.decoder_layers) > 0, self

    @property
    def own_layers(self) -> int:
        """Number of layers of this side."""
        return self.encoder_layers if self.side == "encoder" else self.decoder_layers

    @property
    def one_sided(self) -> bool:
        """Whether the model is encoder-only or decoder-only."""
        return self.encoder_layers == 0 or self.decoder_layers == 0


Formula = Callable[[Depth], float]


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


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A row of the table: the norms around and inside a residual sub-layer, and two formulas of the depth.

    The drawing at the head of `residual.py` shows where each norm stands.
    """

    pre: bool = False
    """Norm before the sub-layer, off the residual stream."""
    post: bool = False
    """Norm after the residual sum, on the stream itself."""
    final: bool = False
    """Norm after the last layer."""
    inner_attention: bool = False
    """Norm over the concatenated heads, before the output projection."""
    inner_ffn: bool = False
    """Norm over ffn_dim, after the activation, before fc2."""
    post_attention: bool = False
    """Norm over the output of self-attention, before the residual sum."""
    post_ffn: bool = False
    """Norm over the output of the feed-forward, before the residual sum."""
    head_scale: bool = False
    """Learned factor for each head of self-attention."""
    scale_cross_attention: bool = False
    """Whether `gain` holds for cross-attention too."""
    alpha: Formula = one
    """Weight of the residual stream in the sum."""
    gain: Formula = one
    """Xavier gain of v, out, fc1 and fc2."""


PLACEMENTS: dict[str, Placement] = {
    # Cross-attention keeps the pre-norm alone and is not scaled (Magneto, section 2 and figure 2b).
    "magneto": Placement(pre=True, inner_attention=True, inner_ffn=True, final=True, gain=magneto_gain),
    "pre_ln": Placement(pre=True, final=True),
    "post_ln": Placement(post=True),
    "deepnorm": Placement(post=True, scale_cross_attention=True, alpha=deepnorm_alpha, gain=deepnorm_beta),
    "normformer": Placement(pre=True, inner_ffn=True, post_attention=True, head_scale=True, final=True),
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
