"""The examples of a split."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset


class PreparedDataset(Dataset[dict[str, Any]]):
    """The examples of a split. Asked for as (epoch, position), so that workers need no state.

    Attributes:
        lengths: (examples,), in what the budget of a batch counts.
    """

    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Any]:
        return self.example(*place)

    @abstractmethod
    def example(self, epoch: int, position: int) -> dict[str, Any]:
        """Return an example as it is in this epoch."""


class BatchDataset(PreparedDataset):
    """The examples of a split, of which whole batches are made at once. Asked for as a list of one epoch's."""

    def __getitems__(self, places: Sequence[tuple[int, int]]) -> dict[str, Any]:
        return self.batch(places[0][0], np.array([position for _, position in places]))

    def example(self, epoch: int, position: int) -> dict[str, Any]:
        """Return a batch of one."""
        return self.batch(epoch, np.array([position]))

    @abstractmethod
    def batch(self, epoch: int, positions: np.ndarray) -> dict[str, Any]:
        """Return the batch of these examples as they are in this epoch."""
