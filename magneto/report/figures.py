"""Figures of a comparison: result, learning curves, stability probe. Matplotlib's objects, no pyplot state.

A backbone has one colour in every figure (Okabe and Ito's palette, told apart by colour-blind readers); rows
of the same backbone differ in line style. Means and bands are over finished seeds, over the steps that all of
them cover: nothing is extrapolated. Runs that did not finish are drawn one by one up to their end.
"""

import math
import re
import textwrap
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from magneto.report.comparison import Row, Section
from magneto.report.loading import Curve
from magneto.training.result import STATUSES

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
_INK, _GRID = "#333333", "#dddddd"
_WIDTH = 9.0  # inches; about 830 pixels wide in a README, where 10 points then read as 13 pixels
_DPI = 160
_LAYER = re.compile(r"/layer_(\d+)$")  # how the stability probe names a layer's value
_POINTS = 150  # a denser curve is averaged over neighbouring points before it is drawn
_MOST = 20  # rows in one figure: more lines cannot be told apart
_CHARACTER = 0.083  # inches that one of a label takes on average at 10 points, with room to spare


@dataclass(frozen=True)
class SavedFigure:
    """A PNG that was written, what it shows in a heading, and in words for those who do not see it."""

    path: Path
    title: str
    alt: str


@dataclass(frozen=True)
class Band:
    """Mean, lowest and highest value of several seeds at `steps` (N,)."""

    steps: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


@dataclass(frozen=True)
class Style:
    """How the lines of a row look."""

    colour: str
    dash: Dash


def aggregate(curves: Sequence[Curve]) -> Band | None:
    """Mean and range over seeds on the union of their steps, within the steps that every seed covers.

    A seed that was not logged at a step is interpolated linearly between its own neighbouring points; outside
    its first and last point it has no value, so the band ends where the shortest curve does. None when no
    step is common.
    """
    finite = [curve for curve in map(Curve.finite, curves) if curve.steps.size]
    if not finite:
        return None
    start, end = max(curve.steps[0] for curve in finite), min(curve.steps[-1] for curve in finite)
    steps = np.unique(np.concatenate([curve.steps for curve in finite]))
    steps = steps[(steps >= start) & (steps <= end)]
    if not steps.size:
        return None
    values = np.stack([np.interp(steps, curve.steps, curve.values) for curve in finite])
    return Band(steps.astype(np.float64), values.mean(0), values.min(0), values.max(0))


def thin(curve: Curve, points: int = _POINTS) -> Curve:
    """Average neighbouring points of a long curve down to at most `points`; its end stays where it is."""
    size = math.ceil(curve.steps.size / points)
    if size <= 1:
        return curve
    edges = np.arange(curve.steps.size % size or size, curve.steps.size, size)
    parts = np.split(curve.values, edges)
    lasts = np.array([part[-1] for part in np.split(curve.steps, edges)], dtype=np.int64)
    return Curve(lasts, np.array([part.mean() for part in parts]))


def draw(section: Section, folder: Path) -> list[SavedFigure]:
    """Draw every figure that the section's runs have numbers for, as `<section>_<figure>.png` in `folder`.

    Of many rows those are drawn that are best in the primary_metric metric; the title says so.
    """
    styles = row_styles(section.rows)
    saved_figures = []
    drawn = _best_rows(section)
    part = f" (the best {len(drawn)} of {len(section.rows)})" if len(drawn) < len(section.rows) else ""

    def save(figure: Figure | None, name: str, title: str, alt: str) -> None:
        if figure is not None:
            path = folder / f"{section.slug}_{name}.png"
            _save(figure, path)
            saved_figures.append(SavedFigure(path, title + (part if name != by_value else ""), alt))

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
            f"{section.primary_metric} over {key}, for each backbone ({', '.join(swept)}) a line through its means, a dot a seed.",
        )
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
        words = _words(family)
        save(
            _layers(drawn, family, styles),
            re.sub(r"\W+", "_", family.removeprefix("probe/")),
            f"{words[0].upper()}{words[1:]} by layer",
            f"{family} of each layer over steps, a panel each for {rows}; last panel: over depth at the end.",
        )
    return saved_figures


def _best_rows(section: Section) -> tuple[Row, ...]:
    """All rows, or the `_MOST` with the best mean, in their order."""
    if len(section.rows) <= _MOST:
        return section.rows
    sign = -1 if section.better(section.primary_metric) == "max" else 1
    means = {
        row.label: sign * stat.mean for row in section.rows if (stat := row.stat(section.primary_metric))
    }
    best = sorted(section.rows, key=lambda row: means.get(row.label, math.inf))[:_MOST]
    return tuple(row for row in section.rows if row in best)


def _save(figure: Figure, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph .* missing"
        )  # a name in a script that the font does not have
        figure.savefig(path, dpi=_DPI, facecolor="white")


def row_styles(rows: Sequence[Row]) -> dict[str, Style]:
    """Row label -> colour and line style, the same in every figure and beside the row's name on the page."""
    if len({row.backbone for row in rows}) == 1 and len(rows) > 1:
        # One backbone throughout: its colour would tell nothing apart, so the others are used as well.
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


def _learning_metrics(section: Section, logged: list[str]) -> list[str]:
    """Training and validation loss, the monitored metric, others that should fall or rise; six at most."""
    first = ["train/loss", "val/loss", section.monitor]
    others = sorted(name for name in logged if re.fullmatch(r"(train|val)/[^/]+", name))
    others = [name for name in others if section.better(name)]
    others.sort(key=lambda name: name.startswith("train/"))
    return [name for name in dict.fromkeys([*first, *others]) if name in logged][:6]


def _figure(panels: int, columns: int, height: float) -> tuple[Figure, list[Axes]]:
    columns = min(columns, panels)
    rows = math.ceil(panels / columns)
    layout = ConstrainedLayoutEngine(h_pad=0.08, hspace=0.06)
    figure = Figure(figsize=(_WIDTH, height * rows + 0.55), layout=layout)
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(rows, columns, index + 1) for index in range(panels)]
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color("#888888")
        ax.grid(True, color=_GRID, linewidth=0.7)
        ax.set_axisbelow(True)
        ax.tick_params(labelsize=9, colors=_INK, length=3)
    return figure, axes


def _title(ax: Axes, text: str, width: float = _WIDTH - 1, indent: str = "") -> None:
    """A title above the left edge of axes that are about `width` inches wide."""
    ax.set_title(_wrap(text, width / 1.1, indent), fontsize=11, color=_INK, loc="left", parse_math=False)


def _wrap(text: str, width: float, indent: str = "") -> str:
    """`text` at 10 points in lines of at most `width` inches; what four lines do not hold is cut."""
    characters = int(width / _CHARACTER)
    lines = textwrap.wrap(text, characters, break_on_hyphens=False, max_lines=4, placeholder=" …")
    return "\n".join(indent + line for line in lines)


def _column_width(panels: int, columns: int) -> float:
    """Return the width in inches of the axes of one panel, without its labels."""
    return _WIDTH / min(columns, panels) - 0.7


def _words(metric: str) -> str:
    return (
        metric.removeprefix("probe/").replace("_", " ").replace("/", ", ").replace("rms", "RMS")
        if metric.startswith("probe/")
        else metric
    )


def _result(section: Section, styles: dict[str, Style]) -> Figure | None:
    if not any(row.values(section.primary_metric) for row in section.rows):
        return None
    names = [_wrap(row.label, 3.4) for row in section.rows]
    lines = max(name.count("\n") for name in names)
    figure, (ax,) = _figure(1, 1, (0.42 + 0.16 * lines) * len(section.rows) + 0.5)
    _dots(ax, section, styles, names)
    better = {"min": "  (lower is better)", "max": "  (higher is better)", None: ""}
    _title(ax, f"{section.primary_metric}{better[section.better(section.primary_metric)]}")
    return figure


def _by_value(section: Section, styles: dict[str, Style]) -> Figure | None:
    """The primary_metric metric over the key that was swept; what did not finish stands above the frame."""
    if section.sweep is None or not any(row.values(section.primary_metric) for row in section.rows):
        return None
    key, swept = section.sweep
    figure, (ax,) = _figure(1, 1, 3.4)
    lost: Counter[float] = Counter()
    handles = []
    for backbone, rows in swept.items():
        colour = styles[next(iter(rows.values())).label].colour
        seeds = {
            value: list(row.values(section.primary_metric).values()) for value, row in sorted(rows.items())
        }
        measured = {value: found for value, found in seeds.items() if found}
        ax.plot(
            list(measured),
            [float(np.mean(found)) for found in measured.values()],
            color=colour,
            linewidth=1.8,
        )
        for value, found in measured.items():
            ax.scatter(
                [value] * len(found), found, s=45, color=colour, alpha=0.8, edgecolor="white", zorder=3
            )
        for value, row in rows.items():
            for run in row.runs:
                if not run.finished:
                    place, above = 1.03 + 0.06 * lost[value], ax.get_xaxis_transform()
                    ax.plot(
                        [value],
                        [place],
                        color=colour,
                        clip_on=False,
                        transform=above,
                        **_end_shape(run.status),
                    )
                    lost[value] += 1
        handles.append(Line2D([], [], color=colour, linewidth=2.2, label=backbone))
    values = sorted({value for rows in swept.values() for value in rows})
    if values[0] > 0 and values[-1] >= 4 * values[0]:
        ax.set_xscale("log")
    if len(values) <= 12:
        ax.set_xticks(values, [f"{value:g}" for value in values], rotation=45 if len(values) > 6 else 0)
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel(key, fontsize=9, color=_INK, parse_math=False)
    ax.set_ylabel(section.primary_metric, fontsize=9, color=_INK, parse_math=False)
    _legend(figure, handles + _end_markers(section.rows))
    return figure


def draw_overview(sections: Sequence[Section], folder: Path) -> SavedFigure:
    """Small multiples, a panel a section under its title: the primary_metric metric of every seed, as `overview.png`."""
    rows = max(len(section.rows) for section in sections)
    width = _column_width(len(sections), 3)
    titles = []
    for section in sections:
        arrow = {"min": " ↓", "max": " ↑", None: ""}[section.better(section.primary_metric)]
        titles.append(f"{_wrap(section.title, width)}\n{_wrap(section.primary_metric + arrow, width)}")
    lines = max(title.count("\n") for title in titles)
    figure, axes = _figure(len(sections), 3, 0.36 * rows + 0.65 + 0.2 * lines)
    for ax, section, title in zip(axes, sections, titles, strict=True):
        names = [_wrap(row.backbone or "run", 1.2) for row in section.rows]
        _dots(ax, section, row_styles(section.rows), names, ticks=3, reasons=False)
        ax.set_title(title, fontsize=10, color=_INK, loc="left", parse_math=False)
    marks = _end_markers([row for section in sections for row in section.rows])
    if marks:
        _legend(figure, marks)
    path = folder / "overview.png"
    _save(figure, path)
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
    """The primary_metric metric: a line of dots a row, the mean as a bar, and what did not finish at the right."""
    for index, row in enumerate(section.rows):
        colour, values = styles[row.label].colour, list(row.values(section.primary_metric).values())
        if values:
            ax.plot([float(np.mean(values))] * 2, [index - 0.28, index + 0.28], color=colour, linewidth=3)
            ax.scatter(
                values, [index] * len(values), s=55, color=colour, alpha=0.8, edgecolor="white", zorder=3
            )
        right = ax.get_yaxis_transform()
        lost = sorted((run.status for run in row.runs if not run.finished), key=STATUSES.index)
        for place, status in enumerate(lost):
            x = 1.02 + (0.025 if reasons else 0.07) * place
            ax.plot([x], [index], color=colour, clip_on=False, transform=right, **_end_shape(status))
        if lost and reasons:
            text = "\n".join(f"{lost.count(status)} {status}" for status in dict.fromkeys(lost))
            ax.text(
                1.02 + 0.025 * len(lost), index, text, fontsize=9, va="center", transform=right, color=_INK
            )
    ax.set_yticks(range(len(names)), names, fontsize=10, parse_math=False)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.margins(x=0.08)
    ax.xaxis.set_major_locator(MaxNLocator(ticks))


def _panels(rows: Sequence[Row], metrics: Sequence[str], styles: dict[str, Style]) -> Figure | None:
    """One panel a metric, every row in each, one legend above."""
    if not metrics:
        return None
    figure, axes = _figure(len(metrics), 2, 2.6)
    for ax, metric in zip(axes, metrics, strict=True):
        _panel(ax, metric, rows, styles, _column_width(len(metrics), 2))
    handles = [
        Line2D([], [], color=style.colour, linestyle=style.dash, linewidth=2.2, label=_wrap(row.label, 7.5))
        for row in rows
        for style in [styles[row.label]]
    ]
    _legend(figure, handles + _end_markers(rows))
    return figure


def _end_markers(rows: Sequence[Row]) -> list[Line2D]:
    """Legend entries for the marks at the ends of runs that did not finish, as far as they occur."""
    statuses = {run.status for row in rows for run in row.runs}
    marks = []
    if "diverged" in statuses:
        marks.append(Line2D([], [], color=_INK, linestyle="", label="diverged", **_end_shape("diverged")))
    stopped = " or ".join(sorted(statuses - {"finished", "diverged"}))
    if stopped:
        marks.append(Line2D([], [], color=_INK, linestyle="", label=stopped, **_end_shape("failed")))
    return marks


def _end_shape(status: str) -> dict[str, Any]:
    """A cross where a run diverged, an open square where it stopped otherwise."""
    if status == "diverged":
        return {"marker": "x", "markersize": 8, "markeredgewidth": 2.4}
    return {"marker": "s", "markersize": 7, "markeredgewidth": 1.6, "fillstyle": "none"}


def _legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    """One legend above all panels, in as many columns as its longest label leaves room for."""
    labels = [str(handle.get_label()) for handle in handles]
    longest = max(len(line) for label in labels for line in label.split("\n"))
    columns = max(1, min(len(handles), int(figure.get_figwidth() * 11 / (longest + 6))))
    # The layout takes the room of the legend from the panels, so the figure grows by it.
    tallest = 1 + max(label.count("\n") for label in labels)
    figure.set_figheight(figure.get_figheight() + 0.2 * tallest * (math.ceil(len(handles) / columns) - 1))
    legend = figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=columns,
        fontsize=10,
        frameon=False,
        labelcolor=_INK,
        borderaxespad=0.8,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _panel(ax: Axes, metric: str, rows: Sequence[Row], styles: dict[str, Style], width: float) -> None:
    bands: list[NDArray[np.float64]] = []
    ends: list[tuple[Curve, str, str]] = []
    averaged = 1
    for row in rows:
        style = styles[row.label]
        found = [run.curves[metric] for run in row.finished if metric in run.curves]
        averaged = max([averaged, *(math.ceil(curve.steps.size / _POINTS) for curve in found)])
        band = aggregate([thin(curve) for curve in found])
        if band is not None:
            marker = "o" if band.steps.size == 1 else ""
            ax.plot(band.steps, band.mean, style.dash, color=style.colour, linewidth=1.8, marker=marker)
            if len(found) > 1:
                ax.fill_between(band.steps, band.low, band.high, color=style.colour, alpha=0.18, linewidth=0)
            bands += [band.low, band.high]
        for run in row.runs:
            if not run.finished and metric in run.curves:
                curve = thin(run.curves[metric])
                dot = "o" if curve.finite().steps.size == 1 else ""  # a line needs two points
                ax.plot(
                    curve.steps,
                    curve.values,
                    style.dash,
                    color=style.colour,
                    linewidth=1.2,
                    alpha=0.8,
                    marker=dot,
                )
                ends.append((curve, run.status, style.colour))
    _scale(
        ax,
        bands,
        [curve for curve, _, _ in ends],
        logarithmic="loss" in metric or metric.startswith("probe/"),
    )
    for curve, status, colour in ends:
        _mark_end(ax, curve, status, colour)
    _title(ax, _words(metric) + (f"  (mean of {averaged} logged points)" if averaged > 1 else ""), width)
    _steps_axis(ax, 5)


def _scale(ax: Axes, bands: list[NDArray[np.float64]], strays: list[Curve], logarithmic: bool) -> None:
    """Fit the y axis to the finished runs: a run that explodes leaves through the top and is marked there."""
    outside = [curve.finite().values for curve in strays]
    inside = np.concatenate(bands) if bands else np.concatenate(outside) if outside else np.zeros(0)
    if not inside.size:
        return
    everything = np.concatenate([inside, *outside])
    low, high = float(inside.min()), float(inside.max())
    if logarithmic and everything.min() > 0 and high / low > 8:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 1e3 else (1.0,)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
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


def _mark_end(ax: Axes, curve: Curve, status: str, colour: Any) -> None:
    """Mark where a run that did not finish ends; at the frame if its last value lies outside."""
    low, high = ax.get_ylim()
    finite = curve.finite()
    value = float(curve.values[-1])
    if math.isnan(value):
        value = float(finite.values[-1]) if finite.values.size else high
    end = min(max(value, low), high)
    ax.plot(
        [curve.steps[-1]], [end], linestyle="", color=colour, clip_on=False, zorder=5, **_end_shape(status)
    )


def _layers(rows: Sequence[Row], family: str, styles: dict[str, Style]) -> Figure | None:
    """Small multiples on one scale: a panel a row, a line a layer; last, all rows over depth at their end."""
    logged = {name for row in rows for run in row.runs for name in run.curves}
    names = sorted((name for name in logged if _LAYER.sub("", name) == family), key=_layer_number)
    shades = [matplotlib.colormaps["viridis"](0.9 * i / max(1, len(names) - 1)) for i in range(len(names))]
    columns = 2 if len(rows) in (1, 3) else 3
    width = _column_width(len(rows) + 1, columns)
    lines = max(_wrap(row.label, width / 1.1).count("\n") for row in rows)
    figure, axes = _figure(len(rows) + 1, columns, 2.5 + 0.2 * lines)
    inside: list[NDArray[np.float64]] = []
    ends: list[tuple[Axes, Curve, str, Any]] = []
    for ax, row in zip(axes, rows, strict=False):
        for name, shade in zip(names, shades, strict=True):
            band = aggregate([thin(run.curves[name]) for run in row.finished if name in run.curves])
            if band is not None:
                dot = "o" if band.steps.size == 1 else ""
                ax.plot(band.steps, band.mean, color=shade, linewidth=1.6, marker=dot)
                inside.append(band.mean)
            for run in row.runs:
                if not run.finished and name in run.curves:
                    curve = thin(run.curves[name])
                    ax.plot(curve.steps, curve.values, color=shade, linewidth=1.0)
                    ends.append((ax, curve, run.status, shade))
        _title(ax, row.label, width, indent="     ")
        # The key to the last panel; a title stands 6 points above its axes, so does this square.
        ax.annotate(
            "■", (0, 1), (0, 6), "axes fraction", "offset points", fontsize=11, color=styles[row.label].colour
        )
        _steps_axis(ax, 4)
    _depth_profile(axes[-1], rows, names, styles)
    for ax in axes:
        _scale(ax, inside, [curve for _, curve, _, _ in ends], logarithmic=True)
    for ax, curve, status, shade in ends:
        _mark_end(ax, curve, status, shade)
    few = range(len(names)) if len(names) <= 8 else (0, len(names) // 2, len(names) - 1)
    layers = [
        Line2D([], [], color=shades[i], linewidth=2.2, label=f"layer {_layer_number(names[i])}") for i in few
    ]
    _legend(figure, layers + _end_markers(rows))
    return figure


def _depth_profile(ax: Axes, rows: Sequence[Row], names: Sequence[str], styles: dict[str, Style]) -> None:
    """The last value of every layer, averaged over the finished seeds (over all if none finished)."""
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
    _title(ax, "at the last step")
    ax.set_xlabel("layer", fontsize=9, color=_INK)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _steps_axis(ax: Axes, ticks: int) -> None:
    ax.set_xlabel("optimizer steps", fontsize=9, color=_INK)
    ax.xaxis.set_major_locator(MaxNLocator(ticks, integer=True))


def _layer_number(name: str) -> int:
    match = _LAYER.search(name)
    assert match is not None
    return int(match.group(1))
