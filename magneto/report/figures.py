"""Figures of a comparison: result, learning curves, stability probe. Matplotlib's objects, no pyplot state.

Means and bands are over finished seeds, over the steps that all of them cover: nothing is extrapolated. Runs that did not
finish are drawn one by one up to their end.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import NDArray

from magneto.report.axes import (
    LOOK,
    Style,
    add_legend,
    column_width,
    end_markers,
    end_shape,
    fit_scale,
    mark_end,
    metric_name,
    new_figure,
    row_styles,
    save_figure,
    set_title,
    steps_axis,
    wrap,
)  # fmt: skip
from magneto.report.comparison import Row, Section
from magneto.report.curves import POINTS, Curve, aggregate, thin
from magneto.report.rate_figures import rate_figures
from magneto.training.result import STATUSES

_LAYER = re.compile(r"/layer_(\d+)$")  # how the stability probe names a layer's value

_MOST = 20  # rows in one figure: more lines cannot be distinguished


@dataclass(frozen=True)
class SavedFigure:
    """PNG file of a figure, with its heading and a description in words; a `leading` one stands before the results."""

    path: Path
    title: str
    alt: str
    leading: bool = False


@matplotlib.rc_context(LOOK)
def draw(section: Section, folder: Path) -> list[SavedFigure]:
    """Draw every figure that the section's runs have numbers for, as `<section>_<figure>.png` in `folder`.

    Of many rows only the best in the primary metric are drawn, and the title says so.
    """
    styles = row_styles(section.rows)
    saved_figures: list[SavedFigure] = []
    drawn = _best_rows(section)
    part = f" (the best {len(drawn)} of {len(section.rows)})" if len(drawn) < len(section.rows) else ""

    def save(figure: Figure | None, name: str, title: str, alt: str, leading: bool = False) -> None:
        if figure is not None:
            path = folder / f"{section.slug}_{name}.png"
            save_figure(figure, path)
            heading = title + ("" if leading or name == by_value else part)
            saved_figures.append(SavedFigure(path, heading, alt, leading))

    by_value = re.sub(r"\W+", "_", f"by_{section.sweep[0]}") if section.sweep else ""
    rows = ", ".join(row.label for row in drawn)
    save(
        _result(replace(section, rows=drawn), styles),
        "result",
        f"{section.primary_metric}, each seed",
        f"Dot plot of {section.primary_metric} for {rows}: a dot a seed, a bar at the mean, as in the table.",
    )
    if section.sweep is not None:
        key, swept = section.sweep
        save(
            _by_value(section, styles),
            by_value,
            f"{section.primary_metric} by {key}",
            f"{section.primary_metric} over {key}, for each backbone ({', '.join(swept)}) a line through its means, "
            "a dot a seed.",
        )
    for figure, name, title, alt in rate_figures(section):
        save(figure, name, title, alt, leading=True)
    logged = {name: None for run in section.runs for name in run.curves}
    save(
        _panels(drawn, _learning_metrics(section, list(logged)), styles),
        "learning_curves",
        "Learning curves",
        f"Learning curves over optimizer steps of {rows}: mean line and range over seeds.",
    )
    scalars = sorted(name for name in logged if name.startswith("probe/") and not _LAYER.search(name))
    save(
        _panels(drawn, scalars, styles),
        "stability",
        "Stability probe",
        f"{', '.join(scalars)} over optimizer steps of {rows}.",
    )
    for family in sorted({_LAYER.sub("", name) for name in logged if _LAYER.search(name)}):
        words = metric_name(family)
        save(
            _layers(drawn, family, styles),
            re.sub(r"\W+", "_", family.removeprefix("probe/")),
            f"{words[0].upper()}{words[1:]} by layer",
            f"{family} of each layer over steps, a panel each for {rows}; last panel: over depth at the end.",
        )
    return saved_figures


def _best_rows(section: Section) -> tuple[Row, ...]:
    """Return all rows, or the `_MOST` with the best mean, in their order."""
    if len(section.rows) <= _MOST:
        return section.rows
    sign = -1 if section.better(section.primary_metric) == "max" else 1
    means = {
        row.label: sign * stat.mean for row in section.rows if (stat := row.stat(section.primary_metric))
    }
    best = sorted(section.rows, key=lambda row: means.get(row.label, math.inf))[:_MOST]
    return tuple(row for row in section.rows if row in best)


def _learning_metrics(section: Section, logged: list[str]) -> list[str]:
    """Return training and validation loss, the monitored metric and others with a direction; six at most."""
    first = ["train/loss", "val/loss", section.monitor]
    others = sorted(name for name in logged if re.fullmatch(r"(train|val)/[^/]+", name))
    others = [name for name in others if section.better(name)]
    others.sort(key=lambda name: name.startswith("train/"))
    return [name for name in dict.fromkeys([*first, *others]) if name in logged][:6]


def _result(section: Section, styles: dict[str, Style]) -> Figure | None:
    if not any(row.values(section.primary_metric) for row in section.rows):
        return None
    names = [wrap(row.label, 3.4) for row in section.rows]
    lines = max(name.count("\n") for name in names)
    figure, (ax,) = new_figure(1, 1, (0.42 + 0.16 * lines) * len(section.rows) + 0.5)
    _dots(ax, section, styles, names)
    better = {"min": "  (lower is better)", "max": "  (higher is better)", None: ""}
    set_title(ax, f"{section.primary_metric}{better[section.better(section.primary_metric)]}")
    return figure


def _by_value(section: Section, styles: dict[str, Style]) -> Figure | None:
    """Draw the primary metric over the swept key; runs that did not finish are above the frame."""
    if section.sweep is None or not any(row.values(section.primary_metric) for row in section.rows):
        return None
    key, swept = section.sweep
    figure, (ax,) = new_figure(1, 1, 3.4)
    lost: Counter[float] = Counter()
    handles = []
    for backbone, rows in swept.items():
        colour = styles[next(iter(rows.values())).label].colour
        means = []
        for value, row in sorted(rows.items()):
            if scores := list(row.values(section.primary_metric).values()):
                means.append((value, float(np.mean(scores))))
                _scatter(ax, [value] * len(scores), scores, colour, 45)
            for run in row.runs:
                if not run.finished:
                    _end(ax, value, 1.03 + 0.06 * lost[value], run.status, colour, ax.get_xaxis_transform())
                    lost[value] += 1
        if means:
            ax.plot(*zip(*means, strict=True), color=colour, linewidth=1.8)
        handles.append(Line2D([], [], color=colour, linewidth=2.2, label=backbone))
    values = sorted({value for rows in swept.values() for value in rows})
    if values[0] > 0 and values[-1] >= 4 * values[0]:
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter("{x:g}")
    if len(values) <= 12:
        ax.set_xticks(values, [f"{value:g}" for value in values], rotation=45 if len(values) > 6 else 0)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel(key)
    ax.set_ylabel(section.primary_metric)
    add_legend(figure, handles + end_markers(section.rows))
    return figure


@matplotlib.rc_context(LOOK)
def draw_overview(sections: Sequence[Section], folder: Path) -> SavedFigure:
    """Draw `overview.png`: a panel per section with the primary metric of every seed."""
    rows = max(len(section.rows) for section in sections)
    width = column_width(len(sections), 3)
    titles = []
    for section in sections:
        arrow = {"min": " ↓", "max": " ↑", None: ""}[section.better(section.primary_metric)]
        titles.append(f"{wrap(section.title, width)}\n{wrap(section.primary_metric + arrow, width)}")
    lines = max(title.count("\n") for title in titles)
    figure, axes = new_figure(len(sections), 3, 0.36 * rows + 0.65 + 0.2 * lines)
    for ax, section, title in zip(axes, sections, titles, strict=True):
        names = [wrap(row.backbone or "run", 1.2) for row in section.rows]
        _dots(ax, section, row_styles(section.rows), names, ticks=3, reasons=False)
        ax.set_title(title, fontsize=10)
    marks = end_markers([row for section in sections for row in section.rows])
    if marks:
        add_legend(figure, marks)
    path = folder / "overview.png"
    save_figure(figure, path)
    shown = ", ".join(section.title for section in sections)
    alt = f"A dot plot for each of {shown}: a dot a seed, a bar at the mean, as in the table."
    return SavedFigure(path, "Every task, each seed", alt)


def _dots(
    ax: Axes,
    section: Section,
    styles: dict[str, Style],
    names: Sequence[str],
    ticks: int = 6,
    reasons: bool = True,
) -> None:
    """Draw the primary metric: a line of dots per row, the mean as a bar, runs that did not finish at the right."""
    for index, row in enumerate(section.rows):
        colour, values = styles[row.label].colour, list(row.values(section.primary_metric).values())
        if values:
            ax.plot([float(np.mean(values))] * 2, [index - 0.28, index + 0.28], color=colour, linewidth=3)
            _scatter(ax, values, [index] * len(values), colour, 55)
        right = ax.get_yaxis_transform()
        lost = sorted((run.status for run in row.runs if not run.finished), key=STATUSES.index)
        for index_of_run, status in enumerate(lost):
            _end(ax, 1.02 + (0.025 if reasons else 0.07) * index_of_run, index, status, colour, right)
        if lost and reasons:
            text = "\n".join(f"{lost.count(status)} {status}" for status in dict.fromkeys(lost))
            ax.text(1.02 + 0.025 * len(lost), index, text, fontsize=9, va="center", transform=right)
    ax.set_yticks(range(len(names)), names, fontsize=10)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.margins(x=0.08)
    ax.xaxis.set_major_locator(MaxNLocator(ticks))


def _scatter(ax: Axes, x: Sequence[float], y: Sequence[float], colour: str, size: float) -> None:
    ax.scatter(x, y, s=size, color=colour, alpha=0.8, edgecolor="white", zorder=3)


def _end(ax: Axes, x: float, y: float, status: str, colour: str, transform: Any) -> None:
    """Mark a run that did not finish outside of the frame."""
    ax.plot([x], [y], color=colour, clip_on=False, transform=transform, **end_shape(status))


def _panels(rows: Sequence[Row], metrics: Sequence[str], styles: dict[str, Style]) -> Figure | None:
    """Draw a panel per metric with every row, and one legend above."""
    if not metrics:
        return None
    figure, axes = new_figure(len(metrics), 2, 2.6)
    for ax, metric in zip(axes, metrics, strict=True):
        lines = _Lines()
        for row in rows:
            lines.draw(ax, row, metric, styles[row.label].colour, styles[row.label].dash)
        fit_scale(ax, lines.bands, lines.strays, logarithmic="loss" in metric or metric.startswith("probe/"))
        lines.mark_ends()
        mean = f"  (mean of {lines.averaged} logged points)" if lines.averaged > 1 else ""
        set_title(ax, metric_name(metric) + mean, column_width(len(metrics), 2))
        steps_axis(ax, 5)
    handles = [
        Line2D([], [], color=style.colour, linestyle=style.dash, linewidth=2.2, label=wrap(row.label, 7.5))
        for row in rows
        for style in [styles[row.label]]
    ]
    add_legend(figure, handles + end_markers(rows))
    return figure


@dataclass
class _Lines:
    """Curves drawn on one scale: means with the range over finished seeds, and each other run up to its end.

    `averaged` is the largest number of logged points that a drawn one is the mean of.
    """

    bands: list[NDArray[np.float64]] = field(default_factory=list)
    ends: list[tuple[Axes, Curve, str, Any]] = field(default_factory=list)
    averaged: int = 1

    @property
    def strays(self) -> list[Curve]:
        return [curve for _, curve, _, _ in self.ends]

    def draw(self, ax: Axes, row: Row, metric: str, colour: Any, dash: str = "-", band: bool = True) -> None:
        curves = [run.curves[metric] for run in row.finished if metric in run.curves]
        self.averaged = max([self.averaged, *(math.ceil(curve.steps.size / POINTS) for curve in curves)])
        seeds = aggregate([thin(curve) for curve in curves])
        if seeds is not None:
            marker = "o" if seeds.steps.size == 1 else ""  # a line needs two points
            ax.plot(seeds.steps, seeds.mean, dash, color=colour, linewidth=1.8, marker=marker)
            if band and len(curves) > 1:
                ax.fill_between(seeds.steps, seeds.low, seeds.high, color=colour, alpha=0.18, linewidth=0)
            self.bands += [seeds.low, seeds.high] if band else [seeds.mean]
        for run in row.runs:
            if not run.finished and metric in run.curves:
                curve = thin(run.curves[metric])
                marker = "o" if curve.finite().steps.size == 1 else ""
                ax.plot(
                    curve.steps, curve.values, dash, color=colour, linewidth=1.2, alpha=0.8, marker=marker
                )
                self.ends.append((ax, curve, run.status, colour))

    def mark_ends(self) -> None:
        """Mark the runs that did not finish, once the scale is known."""
        for end in self.ends:
            mark_end(*end)


def _layers(rows: Sequence[Row], family: str, styles: dict[str, Style]) -> Figure | None:
    """Draw panels on one scale: one per row with a line per layer; the last has all rows over depth at their end."""
    logged = {name for row in rows for run in row.runs for name in run.curves}
    names = sorted((name for name in logged if _LAYER.sub("", name) == family), key=_layer_number)
    shades = [matplotlib.colormaps["viridis"](0.9 * i / max(1, len(names) - 1)) for i in range(len(names))]
    columns = 2 if len(rows) in (1, 3) else 3
    width = column_width(len(rows) + 1, columns)
    heads = max(wrap(row.label, width / 1.1).count("\n") for row in rows)
    figure, axes = new_figure(len(rows) + 1, columns, 2.5 + 0.2 * heads)
    lines = _Lines()
    for ax, row in zip(axes, rows, strict=False):
        for name, shade in zip(names, shades, strict=True):
            lines.draw(ax, row, name, shade, band=False)
        set_title(ax, row.label, width, indent="     ")
        # The key to the last panel; a title stands 6 points above its axes, so does this square.
        ax.annotate(
            "■", (0, 1), (0, 6), "axes fraction", "offset points", fontsize=11, color=styles[row.label].colour
        )
        steps_axis(ax, 4)
    _depth_profile(axes[-1], rows, names, styles)
    for ax in axes:
        fit_scale(ax, lines.bands, lines.strays, logarithmic=True)
    lines.mark_ends()
    few = range(len(names)) if len(names) <= 8 else (0, len(names) // 2, len(names) - 1)
    layers = [
        Line2D([], [], color=shades[i], linewidth=2.2, label=f"layer {_layer_number(names[i])}") for i in few
    ]
    add_legend(figure, layers + end_markers(rows))
    return figure


def _depth_profile(ax: Axes, rows: Sequence[Row], names: Sequence[str], styles: dict[str, Style]) -> None:
    """Draw the last value of every layer, averaged over the finished seeds (over all if none finished)."""
    for row in rows:
        layers, means = [], []
        for name in names:
            curves = [run.curves[name].finite() for run in row.finished or row.runs if name in run.curves]
            lasts = [curve.values[-1] for curve in curves if curve.steps.size]
            if lasts:
                layers.append(_layer_number(name))
                means.append(float(np.mean(lasts)))
        style = styles[row.label]
        ax.plot(layers, means, style.dash, color=style.colour, marker="o", markersize=4)
    set_title(ax, "at the last step")
    ax.set_xlabel("layer")
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _layer_number(name: str) -> int:
    match = _LAYER.search(name)
    assert match is not None
    return int(match.group(1))
