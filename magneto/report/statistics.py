"""Means, spreads and differences over seeds, with intervals of Student's t."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

# Two-sided 95% quantiles of Student's t for 1 to 10 degrees of freedom; above, `_t95`'s expansion is good
# to 1e-3.
_T95 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)


@dataclass(frozen=True)
class Stat:
    """Mean and sample standard deviation (None for a single value) of one metric over `n` finished seeds."""

    mean: float
    sd: float | None
    n: int


@dataclass(frozen=True)
class Difference:
    """Mean difference to the reference row with its 95% interval; `paired` by seed, else Welch's."""

    mean: float
    low: float
    high: float
    paired: bool


def summarise(values: Iterable[float]) -> Stat | None:
    """Return mean and sample standard deviation; a single value has no deviation."""
    array = np.array(list(values), dtype=np.float64)
    if not array.size:
        return None
    return Stat(float(array.mean()), float(array.std(ddof=1)) if array.size > 1 else None, array.size)


def difference(ours: dict[int, float], theirs: dict[int, float]) -> Difference | None:
    """Return the mean of `ours` minus the mean of `theirs` (seed -> value), with a 95% interval by Student's t.

    Paired over the seeds that both have when these are two or more, else Welch's with its degrees of freedom
    rounded down (a slightly wider interval). None when either side has a single value.
    """
    shared = sorted(set(ours) & set(theirs))
    if len(shared) >= 2:
        gaps = np.array([ours[seed] - theirs[seed] for seed in shared])
        error, freedom = gaps.std(ddof=1) / math.sqrt(len(shared)), len(shared) - 1
        centre = float(gaps.mean())
    elif len(ours) >= 2 and len(theirs) >= 2:
        a, b = np.array(list(ours.values())), np.array(list(theirs.values()))
        va, vb = a.var(ddof=1) / a.size, b.var(ddof=1) / b.size
        error, centre = math.sqrt(va + vb), float(a.mean() - b.mean())
        spread = va**2 / (a.size - 1) + vb**2 / (b.size - 1)
        freedom = max(1, int((va + vb) ** 2 / spread)) if spread else 1
    else:
        return None
    half = float(_t95(freedom) * error)
    return Difference(centre, centre - half, centre + half, len(shared) >= 2)


def _t95(freedom: int) -> float:
    """Return the 97.5% quantile of Student's t, above the table by the Cornish-Fisher expansion of the normal's."""
    if freedom <= len(_T95):
        return _T95[freedom - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def pooled_deviation(groups: Iterable[Iterable[float]]) -> tuple[float, int] | None:
    """Return the standard deviation within groups and its degrees of freedom; None if no group has two values."""
    squares, freedom = 0.0, 0
    for group in groups:
        values = np.array(list(group), dtype=np.float64)
        if values.size > 1:
            squares += float(((values - values.mean()) ** 2).sum())
            freedom += values.size - 1
    return (math.sqrt(squares / freedom), freedom) if freedom else None


def exceeds_noise(difference: float, seeds: int, sigma: float) -> bool:
    """Return whether a difference of two means of `seeds` values is three of its standard errors: the noise rule.

    Args:
        difference: of the means.
        seeds: values in each mean.
        sigma: standard deviation of a single value.
    """
    return abs(difference) * math.sqrt(seeds / 2) >= 3 * sigma
