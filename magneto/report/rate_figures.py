"""Figures of a sweep over learning rates: results over the rate for each depth, and as a map of depth and rate."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from magneto.report.axes import INK, add_legend, line_colours, new_figure, set_title
from magneto.report.comparison import Section
from magneto.report.rates import Line, lines_of

Drawing = tuple[Figure, str, str, str]
"""A figure, the name of its file, its title, and a description in words."""


def rate_figures(section: Section) -> list[Drawing]:
    """Return the figures of a sweep over learning rates, none of any other section.

    Over the rate, unless the section's own figure of a swept number shows that; over the rate divided by the gain, if any
    placement has one; and of two depths or more a map for each placement.
    """
    lines = lines_of(section)
    if not lines:
        return []
    metric, found = lines[0].metric, []
    words = ", ".join(line.label for line in lines)
    if section.sweep is None:
        figure = _by_depth(lines, lambda line, rate: rate, "learning rate")
        found.append(
            (figure, "by_rate", f"{metric} by learning rate", f"{metric} over the learning rate of {words}.")
        )
    if any(line.gain != 1.0 for line in lines):
        name = "learning rate / gain of the output weights"
        figure = _by_depth(lines, lambda line, rate: rate / line.gain, name)
        found.append(
            (figure, "by_rate_and_gain", f"{metric} by {name}", f"{metric} over the {name} of {words}.")
        )
    depths = {line.depth for line in lines} - {None}
    if len(depths) > 1:
        about = (
            f"{metric} of each depth and learning rate, a panel for each of {', '.join(_by_label(lines))}."
        )
        found.append((_maps(lines), "depth_and_rate", f"{metric} by depth and learning rate", about))
    return found


def _by_depth(lines: Sequence[Line], place: Callable[[Line, float], float], label: str) -> Figure:
    """Draw a panel for each depth, in it a curve for each line through its means, and a dot for each seed."""
    depths = list(dict.fromkeys(line.depth for line in lines))
    depths.sort(key=lambda depth: depth or 0)
    figure, panels = new_figure(len(depths), 2, 3.0)
    colours = line_colours(list(_by_label(lines)))
    values = [value for line in lines for value in line.means.values()]
    low, high = min(values), max(values)
    for ax, depth in zip(panels, depths, strict=True):
        for line in lines:
            if line.depth != depth or not line.means:
                continue
            colour = colours[_name(line)]
            points = [(place(line, rate), value) for rate, value in sorted(line.means.items())]
            ax.plot(*zip(*points, strict=True), color=colour, linewidth=1.6)
            for rate, row in line.rows.items():
                seeds = list(row.values(line.metric).values())
                ax.scatter(
                    [place(line, rate)] * len(seeds), np.clip(seeds, low, high), color=colour, s=14, zorder=3
                )
        _rate_axis(ax, label, sorted({rate for line in lines for rate in line.rows}))
        ax.set_ylabel(lines[0].metric)
        ax.set_ylim(low - 0.04 * (high - low), high + 0.04 * (high - low))
        if depth is not None:
            set_title(ax, f"{depth} layers")
    handles = [Line2D([], [], color=colour, linewidth=2.2, label=name) for name, colour in colours.items()]
    add_legend(figure, handles)
    return figure


def _maps(lines: Sequence[Line]) -> Figure:
    """Draw a panel for each placement: depth upwards, rate to the right, the mean as colour and number."""
    groups = _by_label(lines)
    rates = sorted({rate for line in lines for rate in line.rows})
    depths = sorted({line.depth for line in lines if line.depth is not None})
    values = [value for line in lines for value in line.means.values()]
    figure, panels = new_figure(len(groups), 2, 0.5 * len(depths) + 1.2)
    better = "viridis" if lines[0].higher else "viridis_r"
    # The worst values would take the colours away from those that matter.
    ends = np.quantile(values, [0.1, 1.0] if lines[0].higher else [0.0, 0.9])
    for ax, (name, members) in zip(panels, groups.items(), strict=True):
        grid = np.full((len(depths), len(rates)), np.nan)
        for line in members:
            for rate, value in line.means.items():
                grid[depths.index(line.depth or 0), rates.index(rate)] = value
        ax.imshow(grid, cmap=better, vmin=ends[0], vmax=ends[1], aspect="auto", origin="lower")
        for (y, x), value in np.ndenumerate(grid):
            if np.isfinite(value):
                share = (value - ends[0]) / max(ends[1] - ends[0], 1e-9)
                light = share > 0.6 if lines[0].higher else share < 0.4
                ax.text(
                    x,
                    y,
                    f"{value:.2f}",
                    ha="center",
                    va="center",
                    fontsize=7,
                    color=INK if light else "white",
                )
        ax.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates], rotation=45)
        ax.set_yticks(range(len(depths)), [str(depth) for depth in depths])
        ax.grid(False)
        set_title(ax, name)
    panels[0].set_ylabel("layers")
    return figure


def _rate_axis(ax: Axes, label: str, rates: Sequence[float]) -> None:
    ax.set_xscale("log")
    ax.set_xticks(rates, [f"{rate:g}" for rate in rates])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.tick_params(axis="x", rotation=45)
    ax.set_xlabel(label)


def _name(line: Line) -> str:
    """Return the label without the depth."""
    return line.label if line.depth is None else line.label.replace(f" num_layers={line.depth}", "")


def _by_label(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """Return the lines of all depths by their name without it."""
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(_name(line), []).append(line)
    return groups
