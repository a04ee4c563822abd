"""How a training went, in three numbers that its curves give and results.csv keeps."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from magneto.report.curves import Curve

SPIKE_DEVIATIONS, SPIKE_WINDOW = 6.0, 128
"""A spike is more than 6 standard deviations of the last 128 logged values above their mean (OLMo-core: spike score)."""


@dataclass(frozen=True)
class Ending:
    """Training losses in the middle and at the end of a run, and the share of its logged steps that spike."""

    loss_middle: float | None
    """Mean of the fifth of the logged training losses in the middle; None without any."""
    loss_end: float | None
    """Mean of the last tenth."""
    spike_score: float
    """Of the training loss or the norm of the gradient, whichever spikes more."""

    @classmethod
    def of_curves(cls, curves: Mapping[str, Curve]) -> "Ending":
        """Compute it from a run's curves."""
        loss = curves.get("train/loss")
        spikes = [_spikes(curves[name]) for name in ("train/loss", "probe/grad_norm") if name in curves]
        return cls(_part(loss, 0.4, 0.6), _part(loss, 0.9, 1.0), max(spikes, default=0.0))

    def at_plateau(self, lowest: float) -> bool:
        """Return whether the second half brought hardly anything of what the loss is above its rivals' `lowest`."""
        if self.loss_middle is None or self.loss_end is None or self.loss_end <= 1.1 * lowest:
            return False
        return self.loss_middle - self.loss_end < 0.1 * (self.loss_end - lowest)


def _spikes(curve: Curve) -> float:
    values = curve.finite().values
    if values.size <= SPIKE_WINDOW:
        return 0.0
    windows = np.lib.stride_tricks.sliding_window_view(values[:-1], SPIKE_WINDOW)
    limits = windows.mean(1) + SPIKE_DEVIATIONS * windows.std(1)
    return float(np.mean(values[SPIKE_WINDOW:] > limits))


def _part(curve: Curve | None, start: float, end: float) -> float | None:
    """Return the mean of a part of a curve's finite values, between two shares of them."""
    if curve is None:
        return None
    values = curve.finite().values
    first = int(start * values.size)
    part = values[first : max(int(end * values.size), first + 1)]
    return float(part.mean()) if part.size else None
