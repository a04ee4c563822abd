"""Draw a confusion matrix."""

import warnings
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from magneto.metrics.image_classification import NAMED

_LONGEST = 18  # characters of a class's name in the image


_DPI = 110


def draw_confusion(confusion: NDArray[np.int64], labels: Sequence[str]) -> NDArray[np.uint8]:
    """Return a confusion matrix as an image, (H, W, 3) uint8: shares of each true class in its row.

    Classes that neither occur nor are ever answered are left out. Up to `NAMED` of them have their names, and the
    shares in per cent; more are colours alone.
    """
    used = np.flatnonzero(confusion.sum(0) + confusion.sum(1))
    counts = confusion[np.ix_(used, used)]
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    named = len(used) <= NAMED
    side = max(4.5, 2.0 + 0.48 * len(used)) if named else 8.0  # inches
    figure = Figure(figsize=(side + 0.6, side), dpi=_DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap=matplotlib.colormaps["Blues"], vmin=0, vmax=1, interpolation="nearest")
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if named:
        names = [_short(labels[index]) for index in used.tolist()]
        plain = {"parse_math": False}  # a dollar in a name is no formula
        axes.set_xticks(range(len(used)), names, rotation=45, ha="right", rotation_mode="anchor", **plain)
        axes.set_yticks(range(len(used)), names, **plain)
        for row, column in np.argwhere(shares > 0.005):  # what rounds to 0 is left out
            share = shares[row, column]
            colour = "white" if share > 0.5 else "#333333"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=colour, fontsize=9)
    else:
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title(f"{len(used)} classes")
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # of writing systems that the font lacks
        canvas.draw()  # type: ignore[no-untyped-call]
    pixels = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
    return np.ascontiguousarray(pixels[..., :3])


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"
