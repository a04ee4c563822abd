"""The leaderboard of time_to_quality.py: how a task is judged, the results of the runs, their table and their figure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any


@dataclass(frozen=True)
class Goal:
    """How a task is judged."""

    metric: str
    label: str
    higher: bool
    factor: float = 1.0

    def best(self, values: Iterable[Any], key: Callable[[Any], float] | None = None) -> Any:
        """Return the best of some values, or of what has the best `key`."""
        return max(values, key=key) if self.higher else min(values, key=key)


GOALS = {
    "causal_lm": Goal("bits_per_byte", "bits per byte", higher=False),
    "mlm": Goal("accuracy", "accuracy of masked tokens, %", higher=True, factor=100),
    "mt": Goal("bleu", "BLEU", higher=True),
    "beit": Goal("accuracy", "accuracy of hidden codes, %", higher=True, factor=100),
    "asr": Goal("cer", "character error rate", higher=False),
    "vl": Goal("r1", "mean R@1, %", higher=True, factor=100),
}


@dataclass(frozen=True)
class Result:
    """A run of one system."""

    system: str
    task: str
    seed: int
    lr: float | None
    """None: magneto's default."""
    minutes: float
    steps: int
    parameters: int
    curve: Sequence[Sequence[float]]
    """Minutes of training and the metric on validation data."""
    test: float


def minutes_to(curve: Sequence[Sequence[float]], value: float, goal: Goal) -> float | None:
    """Return when a curve first reaches a value, between two of its points by a straight line; None: it does not."""
    before: Sequence[float] | None = None
    for point in curve:
        if goal.best((point[1], value)) == point[1]:
            if before is None or before[1] == point[1]:
                return point[0]
            share = (value - before[1]) / (point[1] - before[1])
            return before[0] + share * (point[0] - before[0])
        before = point
    return None


def table(results: Mapping[str, list[Result]], lines: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Return the leaderboard in Markdown."""
    head = (
        "| task | measure, test split | system | parameters | learning rate | minutes | result, each seed | "
        "minutes of magneto to the peer's last validation value |\n|:--|:--|:--|--:|--:|--:|--:|--:|"
    )
    rows = [head]
    for task, runs in results.items():
        goal = GOALS[task]
        own = [run for run in runs if run.system == "magneto"]
        chosen = next(run for run in runs if run.system != "magneto")
        peers = [run for run in runs if run.system != "magneto"][: len(own)]
        reached = minutes_to(own[0].curve, chosen.curve[-1][1], goal)
        faster = (
            "not reached"
            if reached is None
            else f"{reached:.1f} of {chosen.minutes:.1f}: x{chosen.minutes / reached:.2f}"
        )
        for group, note in ((own, faster), (peers, "")):
            first = group[0]
            rate = "default" if first.lr is None else f"{first.lr:g}"
            values = ", ".join(f"{run.test:.3g}" for run in group)
            minutes = mean(run.minutes for run in group)
            rows.append(
                f"| {task} | {goal.label} | {first.system} | {first.parameters / 1e6:.1f} M | {rate} | {minutes:.1f} | "
                f"{values} | {note} |"
            )
        rows += [
            f"| {task} | {goal.label} | {name} | | | | {value:.3g} | |"
            for name, value in lines[task]["test"].items()
        ]
    return "\n".join(rows)


def draw(
    results: Mapping[str, list[Result]], lines: Mapping[str, Mapping[str, Mapping[str, float]]], file: Path
) -> None:
    """Draw the validation metric over minutes, a panel a task."""
    from matplotlib.figure import Figure

    columns = min(3, len(results))
    rows = -(-len(results) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, (task, runs) in zip(axes, results.items(), strict=False):
        chosen = next(run for run in runs if run.system != "magneto")
        for run in runs:
            own = run.system == "magneto"
            label = "magneto" if own else f"{run.system.split(',')[0]} (Trainer), lr {run.lr:g}"
            shown = label not in axis.get_legend_handles_labels()[1]
            whole = run.lr == chosen.lr and run.steps >= chosen.steps / 2  # not a trial
            style = {"color": "C0"} if own else {"color": "C1", "alpha": 1.0 if whole else 0.35}
            axis.plot(*zip(*run.curve, strict=True), marker=".", label=label if shown else None, **style)
        for name, value in lines[task]["val"].items():
            axis.axhline(value, color="grey", linestyle="--", linewidth=1, label=name)
        axis.set(title=task, xlabel="minutes of training", ylabel=GOALS[task].label)
        axis.legend(fontsize=7)
    for axis in axes[len(results) :]:
        axis.remove()
    figure.savefig(file, dpi=150)
