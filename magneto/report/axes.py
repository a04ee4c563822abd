"""Look of the figures: colours, line styles, titles, legends, scales and the marks of runs that did not finish.

A backbone has one colour in every figure (the palette of Okabe and Ito, which colour-blind readers can distinguish); rows of
the same backbone differ in line style.
"""

import math
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from magneto.report.comparison import Row
from magneto.report.curves import Curve

COLOURS = {
    "post_ln": "#009E73",
    "pre_ln": "#0072B2",
    "deepnorm": "#CC79A7",
    "normformer": "#E69F00",
    "magneto": "#D55E00",
}

_OTHER_COLOURS = ("#56B4E9", "#444444", "#8C6D31", "#7B4FA3")

Dash = Literal["-", "--", ":", "-."]

_DASHES: tuple[Dash, ...] = ("-", "--", ":", "-.")

INK = "#333333"

_WIDTH = 9.0  # inches; about 830 pixels wide in a README, where 10 points then read as 13 pixels

_CHARACTER = 0.083  # inches that one of a label takes on average at 10 points, with room to spare


_TICKS = {"color": INK, "labelsize": 9, "major.size": 3}

LOOK: dict[Any, Any] = {
    "axes.edgecolor": "#888888", "axes.spines.right": False, "axes.spines.top": False,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#dddddd", "grid.linewidth": 0.7,
    "axes.labelcolor": INK, "axes.labelsize": 9,
    "axes.titlecolor": INK, "axes.titlelocation": "left", "axes.titlesize": 11,
    **{f"{axis}tick.{key}": value for axis in "xy" for key, value in _TICKS.items()},
    "text.color": INK, "text.parse_math": False,  # a dollar in a name is no formula
    "legend.borderaxespad": 0.8, "legend.frameon": False,
    "savefig.dpi": 160, "savefig.facecolor": "white",
}  # fmt: skip
"""Settings of matplotlib: `with matplotlib.rc_context(LOOK)`."""


@dataclass(frozen=True)
class Style:
    """Colour and line style of a row."""

    colour: str
    dash: Dash


def save_figure(figure: Figure, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a script that the font does not have
        figure.savefig(path)


def row_styles(rows: Sequence[Row]) -> dict[str, Style]:
    """Return row label -> style, the same in every figure and beside the row's name on the page."""
    if len({row.backbone for row in rows}) == 1 and len(rows) > 1:
        # One backbone in all rows: its colour would distinguish nothing, so the others are used as well.
        own = COLOURS.get(rows[0].backbone, _OTHER_COLOURS[0])
        cycle = [own, *(colour for colour in (*COLOURS.values(), *_OTHER_COLOURS) if colour != own)]
        return {
            row.label: Style(cycle[index % len(cycle)], _DASHES[index // len(cycle) % len(_DASHES)])
            for index, row in enumerate(rows)
        }
    unknown = list(dict.fromkeys(row.backbone for row in rows if row.backbone not in COLOURS))
    colours = COLOURS | {name: _OTHER_COLOURS[i % len(_OTHER_COLOURS)] for i, name in enumerate(unknown)}
    seen: dict[str, int] = {}
    styles = {}
    for row in rows:
        index = seen.setdefault(row.backbone, 0)
        seen[row.backbone] += 1
        styles[row.label] = Style(colours[row.backbone], _DASHES[index % len(_DASHES)])
    return styles


def line_colours(names: Sequence[str]) -> dict[str, str]:
    """Return name -> colour: that of the placement that a name begins with, if it is free, else another one."""
    own = {name: COLOURS.get(name.split(" ")[0]) for name in names}
    colours: dict[str, str] = {}
    for name in names:
        wanted = own[name]
        used = set(colours.values())
        free = [c for c in (*_OTHER_COLOURS, *COLOURS.values()) if c not in used and c not in own.values()]
        colours[name] = wanted if wanted and wanted not in used else (free or [*_OTHER_COLOURS])[0]
    return colours


def new_figure(panels: int, columns: int, height: float) -> tuple[Figure, list[Axes]]:
    columns = min(columns, panels)
    rows = math.ceil(panels / columns)
    layout = ConstrainedLayoutEngine(h_pad=0.08, hspace=0.06)
    figure = Figure(figsize=(_WIDTH, height * rows + 0.55), layout=layout)
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(rows, columns, index + 1) for index in range(panels)]


def set_title(ax: Axes, text: str, width: float = _WIDTH - 1, indent: str = "") -> None:
    """Set a title above the left edge of axes that are about `width` inches wide."""
    ax.set_title(wrap(text, width / 1.1, indent))


def wrap(text: str, width: float, indent: str = "") -> str:
    """Return `text` in lines of at most `width` inches at 10 points, four at most; the rest is cut."""
    characters = int(width / _CHARACTER)
    lines = textwrap.wrap(text, characters, break_on_hyphens=False, max_lines=4, placeholder=" …")
    return "\n".join(indent + line for line in lines)


def column_width(panels: int, columns: int) -> float:
    """Return the width in inches of the axes of one panel, without its labels."""
    return _WIDTH / min(columns, panels) - 0.7


def metric_name(metric: str) -> str:
    if not metric.startswith("probe/"):
        return metric
    return metric.removeprefix("probe/").replace("_", " ").replace("/", ", ").replace("rms", "RMS")


def end_markers(rows: Sequence[Row]) -> list[Line2D]:
    """Return legend entries for the end marks of runs that did not finish, as far as there are any."""
    statuses = {run.status for row in rows for run in row.runs}
    marks = []
    if "diverged" in statuses:
        marks.append(Line2D([], [], color=INK, linestyle="", label="diverged", **end_shape("diverged")))
    stopped = " or ".join(sorted(statuses - {"finished", "diverged"}))
    if stopped:
        marks.append(Line2D([], [], color=INK, linestyle="", label=stopped, **end_shape("failed")))
    return marks


def end_shape(status: str) -> dict[str, Any]:
    """Return the marker of a run's end: a cross if it diverged, an open square if it stopped otherwise."""
    if status == "diverged":
        return {"marker": "x", "markersize": 8, "markeredgewidth": 2.4}
    return {"marker": "s", "markersize": 7, "markeredgewidth": 1.6, "fillstyle": "none"}


def add_legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    """Add one legend above all panels, in as many columns as its longest label allows."""
    labels = [str(handle.get_label()) for handle in handles]
    longest = max(len(line) for label in labels for line in label.split("\n"))
    columns = max(1, min(len(handles), int(figure.get_figwidth() * 11 / (longest + 6))))
    # The layout takes the room of the legend from the panels, so the figure grows by it.
    tallest = 1 + max(label.count("\n") for label in labels)
    figure.set_figheight(figure.get_figheight() + 0.2 * tallest * (math.ceil(len(handles) / columns) - 1))
    figure.legend(handles=handles, loc="outside upper left", ncols=columns)


def fit_scale(ax: Axes, bands: list[NDArray[np.float64]], strays: list[Curve], logarithmic: bool) -> None:
    """Fit the y axis to the finished runs; a run that explodes leaves at the top and is marked there."""
    outside = [curve.finite().values for curve in strays]
    inside = np.concatenate(bands) if bands else np.concatenate(outside) if outside else np.zeros(0)
    if not inside.size:
        return
    everything = np.concatenate([inside, *outside])
    low, high = float(inside.min()), float(inside.max())
    if logarithmic and everything.min() > 0 and high / low > 8:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 1e3 else (1.0,)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_locator(NullLocator())
        ratio = high / low
        ax.set_ylim(
            max(low / ratio**0.05, everything.min() * 0.9),
            min(high * ratio**0.3, everything.max() * ratio**0.05),
        )
        return
    room = (high - low) or abs(high) or 1.0
    ax.set_ylim(
        max(low - 0.3 * room, min(everything.min(), low) - 0.05 * room),
        min(high + 0.3 * room, max(everything.max(), high) + 0.05 * room),
    )


def mark_end(ax: Axes, curve: Curve, status: str, colour: Any) -> None:
    """Mark where a run that did not finish ends; at the frame if its last value lies outside."""
    low, high = ax.get_ylim()
    finite = curve.finite()
    value = float(curve.values[-1])
    if math.isnan(value):
        value = float(finite.values[-1]) if finite.values.size else high
    end = min(max(value, low), high)
    ax.plot(
        [curve.steps[-1]], [end], linestyle="", color=colour, clip_on=False, zorder=5, **end_shape(status)
    )


def steps_axis(ax: Axes, ticks: int) -> None:
    ax.set_xlabel("optimizer steps")
    ax.xaxis.set_major_locator(MaxNLocator(ticks, integer=True))
