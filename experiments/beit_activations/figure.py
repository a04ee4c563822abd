"""Draws the figure of this study, and prints its table, from the runs of README.md.

    python experiments/beit_activations/figure.py runs/beit          (or the folders of the runs)

Above: root mean square of the last layer's output over training; below: of every layer's output at the end. A column for
each depth, a colour for each backbone, full lines in fp32 and broken ones in bf16; several seeds are averaged.
"""

import argparse
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from magneto.report.axes import COLOURS
from magneto.report.loading import Run, load_runs

FORMATS = {"32-true": "fp32", "bf16-mixed": "bf16"}
DASHES = {"fp32": "-", "bf16": "--"}
FP16_LARGEST = 65504.0

Key = tuple[int, str, str]
"""Layers, backbone, number format."""


def measured(run: Run, what: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Steps (S,) and values (layers, S) of `probe/<what>/layer_NN`."""
    names = sorted(name for name in run.curves if re.fullmatch(rf"probe/{what}/layer_\d+", name))
    curves = [run.curves[name] for name in names]
    return curves[0].steps, np.stack([curve.values for curve in curves])


def grouped(runs: Sequence[Run]) -> dict[Key, list[Run]]:
    """Runs that differ in their seed alone, in the order of the figure. Other runs than those of README.md are left out."""
    found: dict[Key, list[Run]] = defaultdict(list)
    for run in runs:
        precision = FORMATS.get(run.config["trainer"]["precision"])
        if run.task == "beit" and run.status in ("finished", "diverged") and precision is not None:
            found[run.config["backbone"]["num_layers"], run.backbone, precision].append(run)
    order = {name: place for place, name in enumerate(COLOURS)}
    return dict(sorted(found.items(), key=lambda item: (item[0][0], order[item[0][1]], item[0][2])))


def mean(runs: Sequence[Run], what: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """`measured`, averaged over seeds up to the step that all of them reached."""
    parts = [measured(run, what) for run in runs]
    length = min(len(steps) for steps, _ in parts)
    return parts[0][0][:length], np.mean([values[:, :length] for _, values in parts], axis=0)


def draw(groups: dict[Key, list[Run]], path: Path) -> None:
    """Write the figure."""
    depths = sorted({depth for depth, _, _ in groups})
    figure = Figure(figsize=(9.0, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes: list[list[Axes]] = [
        [figure.add_subplot(2, len(depths), 1 + row * len(depths) + column) for column in range(len(depths))]
        for row in range(2)
    ]
    for (depth, backbone, precision), runs in groups.items():
        above, below = (row[depths.index(depth)] for row in axes)
        steps, values = mean(runs, "activation_rms")
        style = {"color": COLOURS[backbone], "linestyle": DASHES[precision], "linewidth": 1.8}
        above.plot(steps, values[-1], **style)
        below.plot(range(1, depth + 1), values[:, -1], **style)
    for row, (title, label) in enumerate(
        (("last layer", "optimizer step"), ("at the end of training", "layer"))
    ):
        low = min(ax.get_ylim()[0] for ax in axes[row])
        high = max(ax.get_ylim()[1] for ax in axes[row])
        for ax, depth in zip(axes[row], depths, strict=True):
            ax.set_title(f"{depth} layers, {title}", fontsize=11, loc="left")
            ax.set_xlabel(label)
            ax.set_ylabel("activation RMS")
            ax.set_yscale("log")
            ax.set_ylim(max(low, 0.1), high * 1.3)
            ax.grid(True, color="#dddddd", linewidth=0.7)
            ax.spines[["top", "right"]].set_visible(False)
    handles = [
        Line2D([], [], color=COLOURS[name], linewidth=2.2, label=name)
        for name in dict.fromkeys(backbone for _, backbone, _ in groups)
    ]
    handles += [
        Line2D([], [], color="#333333", linestyle=DASHES[name], label=name)
        for name in dict.fromkeys(precision for _, _, precision in groups)
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), frameon=False)
    figure.savefig(path, dpi=160, facecolor="white")


def table(groups: dict[Key, list[Run]]) -> str:
    """Markdown: magnitudes of the last layer, the largest value of all layers and steps, and the loss."""
    lines = [
        "| layers | backbone | format | seeds | first RMS | last RMS | largest value | of fp16's range | test/loss |",
        "|--:|:--|:--|--:|--:|--:|--:|--:|--:|",
    ]
    for (depth, backbone, precision), runs in groups.items():
        _, rms = mean(runs, "activation_rms")
        largest = max(float(measured(run, "activation_max")[1].max()) for run in runs)
        losses = [run.metrics["test/loss"] for run in runs if "test/loss" in run.metrics]
        loss = f"{np.mean(losses):.3f}" if losses else "diverged"
        lines.append(
            f"| {depth} | {backbone} | {precision} | {len(runs)} | {rms[-1, 0]:.2f} | {rms[-1, -1]:.2f} | {largest:.1f} | "
            f"{100 * largest / FP16_LARGEST:.2f} % | {loss} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Draw and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("activations.png"))
    arguments = parser.parse_args()
    runs, problems = load_runs(arguments.runs)
    groups = grouped(runs)
    if not groups:
        parser.error("there are no runs of task=beit with trainer.precision=32-true or bf16-mixed")
    print(table(groups))
    for problem in problems:
        print(f"left out: {problem}")
    draw(groups, arguments.output)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
