"""Curves of metrics over optimizer steps: read from metrics.csv, averaged over seeds, thinned for a figure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from magneto.training import migrate
from magneto.training.files import read_metrics

HUGE = 1e100
"""Values above this are no measurements, and overflow in figures."""


@dataclass(frozen=True)
class Curve:
    """Metric of a run: `steps` (N,), increasing optimizer steps, and `values` (N,), finite or not."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]

    def finite(self) -> "Curve":
        """Return the points whose value is finite and does not overflow in a figure."""
        keep = np.abs(self.values) < HUGE
        return Curve(self.steps[keep], self.values[keep])


def read_curves(path: Path) -> dict[str, Curve]:
    """Return the curves of a metrics.csv (`read_metrics`); none of a missing or unreadable file.

    Of several values at one step the last counts: a resumed run repeats the steps after its checkpoint.
    """
    points: dict[str, dict[int, float]] = {}
    try:
        for step, metric, value in read_metrics(path):
            if 0 <= step < 2**63:
                points.setdefault(migrate.metric(metric), {})[step] = value
    except OSError:
        return {}
    curves = {}
    for metric, series in points.items():
        steps = np.array(sorted(series), dtype=np.int64)
        curves[metric] = Curve(steps, np.array([series[step] for step in steps.tolist()], dtype=np.float64))
    return curves


POINTS = 150  # a denser curve is averaged over neighbouring points before it is drawn


@dataclass(frozen=True)
class Band:
    """Mean, lowest and highest value of several seeds at `steps` (N,)."""

    steps: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def aggregate(curves: Sequence[Curve]) -> Band | None:
    """Return mean and range over seeds on the union of their steps, within the steps that every seed covers.

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


def thin(curve: Curve, points: int = POINTS) -> Curve:
    """Average neighbouring points of a long curve down to at most `points`; its end stays where it is."""
    size = math.ceil(curve.steps.size / points)
    if size <= 1:
        return curve
    edges = np.arange(curve.steps.size % size or size, curve.steps.size, size)
    parts = np.split(curve.values, edges)
    lasts = np.array([part[-1] for part in np.split(curve.steps, edges)], dtype=np.int64)
    return Curve(lasts, np.array([part.mean() for part in parts]))
