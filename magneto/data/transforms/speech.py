"""Augmentation of log-mel features."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from magneto.errors import DataError


@dataclass(frozen=True, kw_only=True)
class SpecAugment:
    """Masks over bands and over time, drawn again for each utterance and epoch, and a change of tempo.

    Masked features become 0, their mean. After Park et al. 2019 (arXiv 1904.08779) and 2020 (1912.05533).

    Args:
        freq_masks: number of band masks.
        freq_width: each is of 0 to `freq_width` bands.
        time_masks: number of time masks.
        time_ratio: each is of 0 to `time_ratio` x length frames, so that short utterances lose no larger share.
        speed: (slowest, fastest) tempo; None: unchanged. Features are interpolated in time; the pitch is unchanged.
    """

    freq_masks: int = 2
    freq_width: int = 15
    time_masks: int = 2
    time_ratio: float = 0.1
    speed: Sequence[float] | None = None

    def __post_init__(self) -> None:
        for name in ("freq_masks", "freq_width", "time_masks"):
            if getattr(self, name) < 0:
                raise DataError(f"augment.{name}={getattr(self, name)} must be 0 or more.")
        if not 0 <= self.time_ratio < 1:
            raise DataError(f"augment.time_ratio={self.time_ratio} must be at least 0 and below 1.")
        if self.speed is not None and not (
            len(self.speed) == 2 and 0.5 <= self.speed[0] <= self.speed[1] <= 2
        ):
            raise DataError(
                f"augment.speed={self.speed} must be two tempi within 0.5 and 2, slowest first: [0.9, 1.1]."
            )

    def tempo(self, random: np.random.Generator) -> float:
        """Return a random tempo, 1 if `speed` is None."""
        return 1.0 if self.speed is None else float(random.uniform(self.speed[0], self.speed[1]))

    def __call__(
        self, features: np.ndarray, random: np.random.Generator, least_frames: int = 1, tempo: float = 1.0
    ) -> np.ndarray:
        """Return (T', num_mels) float32 of features (T, num_mels), a new array; T' = T / tempo, but >= least_frames."""
        features = features.astype(np.float32)
        if tempo != 1.0:
            features = _stretch(features, max(min(least_frames, len(features)), round(len(features) / tempo)))
        frames, bands = features.shape
        for _ in range(self.freq_masks):
            width = random.integers(0, min(self.freq_width, bands) + 1)
            start = random.integers(0, bands - width + 1)
            features[:, start : start + width] = 0
        for _ in range(self.time_masks):
            width = random.integers(0, int(self.time_ratio * frames) + 1)
            start = random.integers(0, frames - width + 1)
            features[start : start + width] = 0
        return features


def _stretch(features: np.ndarray, frames: int) -> np.ndarray:
    """Interpolate (T, bands) linearly to (frames, bands)."""
    positions = np.linspace(0, len(features) - 1, frames)
    left = positions.astype(np.int64)
    right = np.minimum(left + 1, len(features) - 1)
    weight = (positions - left).astype(np.float32)[:, None]
    stretched: np.ndarray = features[left] * (1 - weight) + features[right] * weight
    return stretched
