"""Augmentation of log-mel features."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, Le, Lt

from magneto.errors import ConfigError

Tempo = Annotated[float, Ge(0.5), Le(2)]


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

    freq_masks: Annotated[int, Ge(0)] = 2
    freq_width: Annotated[int, Ge(0)] = 15
    time_masks: Annotated[int, Ge(0)] = 2
    time_ratio: Annotated[float, Ge(0), Lt(1)] = 0.1
    speed: tuple[Tempo, Tempo] | None = None

    def __post_init__(self) -> None:
        if self.speed is not None and self.speed[0] > self.speed[1]:
            raise ConfigError(
                f"data.augment.speed={self.speed}: the slowest tempo comes first, such as [0.9, 1.1]."
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
