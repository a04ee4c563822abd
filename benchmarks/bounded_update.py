"""How far one step of SGD moves a network at initialisation, over depth and norm placement.

    python benchmarks/bounded_update.py                 # table, and docs/figures/bounded_update.png; minutes
    python benchmarks/bounded_update.py --seeds 2 --depths 6,48

The claim under test (Magneto, section 3.2; DeepNet, section 4): the change dF of the output after one update is
bounded, at depth L, by O(L) for Post-LN, O(log L) for Pre-LN and a constant for Magneto, whose gain of
sqrt(log 2L) cancels the logarithm that Sub-LN alone would leave.

As in the theory, the loss is linear in the output: minus its component along a direction, here a random unit
direction for each token, averaged over tokens. dF is the root mean square change of the output.
"""

import argparse
from collections.abc import Sequence
from math import exp, log
from pathlib import Path
from statistics import mean, stdev

import torch
import torch.nn.functional as F

from magneto.nn import BackboneConfig, Encoder

WIDTH, HEADS = 64, 4
BATCH, TOKENS = 8, 32
LEARNING_RATE = 1e-3
DEPTHS = (6, 12, 18, 24, 36, 48)

VARIANTS: dict[str, dict[str, str]] = {
    "Magneto": {"placement": "magneto"},
    "Magneto, no gain": {"placement": "magneto", "gain": "none"},
    "Pre-LN": {"placement": "pre_ln"},
    "NormFormer": {"placement": "normformer"},
    "DeepNorm": {"placement": "deepnorm"},
    "Post-LN": {"placement": "post_ln"},
}


def update_size(variant: dict[str, str], depth: int, seed: int) -> float:
    """Root mean square change of the output of a fresh encoder, `depth` layers deep, after one step of SGD."""
    torch.manual_seed(seed)
    encoder = Encoder(
        BackboneConfig(num_layers=depth, d_model=WIDTH, num_heads=HEADS, position="none", **variant)
    )
    x = torch.randn(BATCH, TOKENS, WIDTH)
    direction = F.normalize(torch.randn(BATCH, TOKENS, WIDTH), dim=-1)
    before = encoder(x)
    loss = -(before * direction).sum(-1).mean()
    optimizer = torch.optim.SGD(encoder.parameters(), lr=LEARNING_RATE)
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        return float((encoder(x) - before).square().mean().sqrt())


def update_sizes(variant: dict[str, str], depth: int, seeds: int) -> list[float]:
    """`update_size` for seeds 0, 1, ..."""
    return [update_size(variant, depth, seed) for seed in range(seeds)]


def geometric_mean(values: Sequence[float]) -> float:
    """The mean for quantities that differ by factors."""
    return exp(mean(log(value) for value in values))


def draw(sizes: dict[str, dict[int, list[float]]], path: Path) -> None:
    """Write the figure: dF over depth, and its growth relative to the least depth."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    figure, (absolute, relative) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    styles = {"Magneto": {"linewidth": 2.6, "zorder": 3}, "Magneto, no gain": {"linestyle": "--"}}
    for index, (name, by_depth) in enumerate(sizes.items()):
        depths = list(by_depth)
        means = [geometric_mean(values) for values in by_depth.values()]
        spread = [exp(stdev(map(log, values))) if len(values) > 1 else 1.0 for values in by_depth.values()]
        style = {"marker": "o", "markersize": 4, "color": f"C{index}", **styles.get(name, {})}
        absolute.plot(depths, means, label=name, **style)
        absolute.fill_between(
            depths,
            [m / s for m, s in zip(means, spread, strict=True)],
            [m * s for m, s in zip(means, spread, strict=True)],
            color=f"C{index}",
            alpha=0.15,
            linewidth=0,
        )
        relative.plot(depths, [m / means[0] for m in means], label=name, **style)
    for axes, title in (
        (absolute, "Change of the output after one SGD step (RMS)"),
        (relative, f"The same, relative to {depths[0]} layers"),
    ):
        axes.set(xscale="log", yscale="log", xlabel="layers", title=title)
        axes.set_xticks(depths)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
    relative.yaxis.set_major_formatter(ScalarFormatter())
    relative.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    """Measure, print the table, draw the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--depths", default=",".join(map(str, DEPTHS)), help="layers, comma-separated")
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--figure", type=Path, default=Path("docs/figures/bounded_update.png"))
    arguments = parser.parse_args()
    depths = [int(depth) for depth in arguments.depths.split(",")]

    print(
        f"Encoder, width {WIDTH}, {HEADS} heads, {BATCH} x {TOKENS} tokens, SGD {LEARNING_RATE}, "
        f"geometric mean of {arguments.seeds} seeds\n"
    )
    print("| placement | " + " | ".join(f"{depth} layers" for depth in depths) + " | growth |")
    print("|---|" + "---|" * (len(depths) + 1))
    sizes: dict[str, dict[int, list[float]]] = {}
    for name, variant in VARIANTS.items():
        sizes[name] = {depth: update_sizes(variant, depth, arguments.seeds) for depth in depths}
        means = [geometric_mean(values) for values in sizes[name].values()]
        row = " | ".join(f"{value:.2e}" for value in means)
        print(f"| {name} | {row} | x{means[-1] / means[0]:.1f} |", flush=True)
    draw(sizes, arguments.figure)
    print(f"\nfigure: {arguments.figure}")


if __name__ == "__main__":
    main()
