"""Judges the hypotheses of README.md by its rules, from results.csv, and draws sensitivity and basin over depth.

    python experiments/depth_learning_rate/verdicts.py experiments/depth_learning_rate/results.csv

verdicts.md, a table, and sensitivity_and_basin.png are written beside the results, or into --out.
"""

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.lines import Line2D

from magneto.errors import MagnetoError
from magneto.report.axes import add_legend, line_colours, new_figure
from magneto.report.comparison import compare
from magneto.report.loading import load_runs
from magneto.report.rates import DEPTH, Line, lines_of, noise, verdict_at_best

STEPS, LONGER = 300, 1200
"""Of the grid's runs, and of the longer ones of H3."""
SHALLOW, DEEP = 6, (24, 48)
NOT_DECIDED = "not decided"
DRAWS = 1000
"""Draws of the noise that intervals of sensitivity and basin are from."""


@dataclass(frozen=True)
class Study:
    """All lines of the study, and sigma: the standard deviation over seeds at their best rates."""

    lines: Mapping[tuple[str, int, int], Line]
    """By variant (`pre_ln`, `magneto gain=none`, `magneto qk_norm z_loss`), depth and steps."""
    sigma: float

    @classmethod
    def read(cls, paths: Sequence[Path]) -> "Study":
        """Read results.csv files and folders of runs. Raises `MagnetoError` where no best rate has two seeds."""
        runs, problems = load_runs(paths)
        lines = [line for section in compare(runs, problems).sections for line in lines_of(section)]
        sigma = noise(lines)
        if sigma is None:
            raise MagnetoError(
                "No best rate has two seeds, so the noise is unknown. Run seed=2,3 at the best rates."
            )
        return cls({_key(line): line for line in lines if line.best is not None}, sigma[0])

    def pair(self, ours: str, theirs: str, depth: int, steps: int = STEPS) -> tuple[Line, Line] | None:
        """Return two lines of the same depth and length; None if one is missing."""
        keys = (ours, depth, steps), (theirs, depth, steps)
        return (self.lines[keys[0]], self.lines[keys[1]]) if all(key in self.lines for key in keys) else None

    def at_best(self, ours: str, theirs: str) -> tuple[str, list[str]]:
        """Compare two variants at the best rates of the deep models: the differences, and what each shows."""
        numbers, shown = [], []
        for depth in DEEP:
            lines = self.pair(ours, theirs, depth)
            gap, what = verdict_at_best(*lines, self.sigma) if lines else (None, NOT_DECIDED)
            shown.append(NOT_DECIDED if gap is None or "one seed" in what else what)
            if gap is not None:
                numbers.append(f"{depth} layers: {gap:+.3f}, {what}")
        return "; ".join(numbers), shown


def _key(line: Line) -> tuple[str, int, int]:
    row = next(iter(line.rows.values()))
    config, run = row.config, row.runs[0]
    options = {
        "gain=none": config.get("backbone.gain") == "none",
        "qk_norm": config.get("backbone.qk_norm", "").lower() == "true",
        "z_loss": float(config.get("task.z_loss", 0.0)) > 0,
    }
    variant = " ".join([line.backbone, *(name for name, chosen in options.items() if chosen)])
    return variant, int(config[DEPTH]), run.planned_steps or run.steps or 0


def bears_higher_rates(study: Study) -> tuple[str, str]:
    """H1: Magneto's largest stable rate is at least twice Pre-LN's in deep models."""
    numbers, twice, also_scaled = [], [], []
    for depth in DEEP:
        lines = study.pair("magneto", "pre_ln", depth)
        ours, theirs = (line.largest_stable for line in lines) if lines else (None, None)
        if lines is None or ours is None or theirs is None:
            return "; ".join(numbers), NOT_DECIDED
        scaled = ours / lines[0].gain
        numbers.append(f"{depth} layers: {ours:g} and {theirs:g}; {scaled:.2g} after the gain")
        twice.append(ours >= 2 * theirs)
        also_scaled.append(scaled > theirs)
    if not all(twice):
        return "; ".join(numbers), "does not hold"
    return "; ".join(numbers), "holds, also after the gain" if all(
        also_scaled
    ) else "holds, but not after the gain"


def is_as_good(study: Study) -> tuple[str, str]:
    """H2: Magneto's best is not worse than Pre-LN's in deep models."""
    numbers, shown = study.at_best("magneto", "pre_ln")
    if "worse" in shown:
        return numbers, "does not hold"
    if NOT_DECIDED in shown:
        return numbers, NOT_DECIDED
    return numbers, "holds: better" if set(shown) == {"better"} else "holds: not worse"


def gap_shrinks(study: Study) -> tuple[str, str]:
    """H3: Magneto's gap to Pre-LN with six layers is smaller in longer runs."""
    gaps, variance = [], 0.0
    for steps in (STEPS, LONGER):
        lines = study.pair("magneto", "pre_ln", SHALLOW, steps)
        if lines is None:
            return "", NOT_DECIDED
        ours, theirs = lines
        assert ours.best is not None and theirs.best is not None
        gaps.append(ours.best - theirs.best)
        variance += sum(study.sigma**2 / _seeds(line) for line in lines)
    numbers = f"{gaps[0]:+.3f} and {gaps[1]:+.3f}, standard error of the change {math.sqrt(variance):.3f}"
    return numbers, "holds" if gaps[0] - gaps[1] >= 3 * math.sqrt(variance) else "does not hold"


def gain_matters(study: Study) -> tuple[str, str]:
    """H4: Magneto's best is better than that without the gain in deep models."""
    numbers, shown = study.at_best("magneto", "magneto gain=none")
    if NOT_DECIDED in shown:
        return numbers, NOT_DECIDED
    return numbers, "holds" if set(shown) == {"better"} else "does not hold"


def scaled_init_explains(study: Study) -> tuple[str, str]:
    """H5: where Magneto is better than Pre-LN, GPT-2's initialisation closes half of the gap."""
    shares = {}
    _, shown = study.at_best("magneto", "pre_ln")
    for depth, what in zip(DEEP, shown, strict=True):
        scaled = study.lines.get(("pre_ln_scaled", depth, STEPS))
        lines = study.pair("magneto", "pre_ln", depth)
        if what == "better" and scaled is not None and lines is not None:
            best = [line.best for line in (*lines, scaled)]
            shares[depth] = (best[1] - best[2]) / (best[1] - best[0])
    if not shares:
        return "", f"{NOT_DECIDED}: no depth at which magneto is better"
    numbers = "; ".join(f"{depth} layers: {share:.0%} of the gap" for depth, share in shares.items())
    return numbers, "holds" if min(shares.values()) >= 0.5 else "does not hold"


def norms_of_queries_suffice(study: Study) -> tuple[str, str]:
    """H6: with qk-norm and z-loss the sensitivities of Pre-LN and Magneto do not differ."""
    lines = study.pair("magneto qk_norm z_loss", "pre_ln qk_norm z_loss", DEEP[0])
    if lines is None or any(line.sensitivity is None for line in lines):
        return "", NOT_DECIDED
    ours, theirs = (line.sensitivity or 0.0 for line in lines)
    error = math.hypot(*(float(np.std(noisy(line, study.sigma)[0])) for line in lines))
    numbers = f"{ours:.3f} and {theirs:.3f}, standard error of the difference {error:.3f}"
    return numbers, "holds" if abs(ours - theirs) < 3 * error else "does not hold"


HYPOTHESES: Mapping[str, Callable[[Study], tuple[str, str]]] = {
    "H1": bears_higher_rates,
    "H2": is_as_good,
    "H3": gap_shrinks,
    "H4": gain_matters,
    "H5": scaled_init_explains,
    "H6": norms_of_queries_suffice,
}


def _seeds(line: Line) -> int:
    assert line.best_rate is not None
    return len(line.rows[line.best_rate].values(line.metric)) or 1


def noisy(line: Line, sigma: float) -> tuple[list[float], list[float]]:
    """Return sensitivities and basins (octaves) of the line with the noise of its seeds added anew to each mean."""
    random = np.random.default_rng(0)
    found: tuple[list[float], list[float]] = [], []
    for _ in range(DRAWS):
        draw = replace(line)
        # Where cached_property keeps the means, which all measures start from.
        vars(draw)["means"] = {
            rate: mean + random.normal(0, sigma) / math.sqrt(len(line.rows[rate].runs))
            for rate, mean in line.means.items()
        }
        if draw.sensitivity is not None and draw.basin is not None:
            found[0].append(draw.sensitivity)
            found[1].append(draw.basin[0])
    return found


def draw(study: Study, file: Path) -> None:
    """Write the figure: sensitivity and basin over depth, with 95 % intervals over the noise of seeds."""
    grid = {
        key: line for key, line in study.lines.items() if key[2] == STEPS and line.sensitivity is not None
    }
    names = list(dict.fromkeys(name for name, _, _ in grid))
    colours = line_colours(names)
    figure, panels = new_figure(2, 2, 3.0)
    for place, name in enumerate(names):
        lines = {
            depth: line
            for (variant, depth, _), line in sorted(grid.items(), key=lambda i: i[0][1])
            if variant == name
        }
        # Side by side, not one upon the other.
        x = [depth * 2 ** (0.06 * (place - (len(names) - 1) / 2)) for depth in lines]
        spreads = [noisy(line, study.sigma) for line in lines.values()]
        middles = (
            [line.sensitivity for line in lines.values()],
            [(line.basin or (0.0,))[0] for line in lines.values()],
        )
        for ax, middle, part in zip(panels, middles, (0, 1), strict=True):
            bounds = np.array([np.percentile(spread[part], (2.5, 97.5)) for spread in spreads]).T
            ax.plot(x, middle, color=colours[name], linewidth=1.6, marker="o", markersize=4)
            ax.vlines(x, *bounds, color=colours[name], linewidth=1.0)
    depths = sorted({depth for _, depth, _ in grid})
    for ax, label in zip(panels, ("sensitivity, bits per byte", "basin, octaves of the rate"), strict=True):
        ax.set_xscale("log")
        ax.set_xticks(depths, [str(depth) for depth in depths])
        ax.minorticks_off()
        ax.set_xlabel("layers")
        ax.set_ylabel(label)
    add_legend(figure, [Line2D([], [], color=colours[name], linewidth=2.2, label=name) for name in names])
    FigureCanvasAgg(figure).print_png(file)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the table and the figure; returns the exit code (2: a user's mistake)."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="results.csv, or folders of runs")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: the folder of the first PATH")
    options = parser.parse_args(arguments)
    try:
        study = Study.read(options.paths)
    except MagnetoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = [(name, *judge(study)) for name, judge in HYPOTHESES.items()]
    lines = ["| hypothesis | bits per byte, or rates | verdict |", "|:--|:--|:--|"]
    lines += [f"| {name} | {numbers} | {verdict} |" for name, numbers, verdict in rows]
    text = "\n".join([*lines, "", f"sigma = {study.sigma:.4f}", ""])
    out = options.out or (options.paths[0] if options.paths[0].is_dir() else options.paths[0].parent)
    out.mkdir(parents=True, exist_ok=True)
    (out / "verdicts.md").write_text(text, encoding="utf-8")
    draw(study, out / "sensitivity_and_basin.png")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
