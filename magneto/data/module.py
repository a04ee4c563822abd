"""Base of all data modules: folders that are prepared once, info that is read from them, loaders."""

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self, cast

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from magneto.data.batching import EvaluationSampler, RunLoader, TokenBudgetSampler, ignore_signals
from magneto.data.info import DatasetInfo
from magneto.errors import ConfigError, DataError

log = logging.getLogger(__name__)


class DataModule(L.LightningDataModule):
    """One kind of data. Constructors take plain values (and corpora made of plain values).

    The engine calls, in this order: `prepare()`, or `for_model(info)`, in one process or in all; `info`; `setup(stage)`;
    `configure_run(...)`, once it knows how long the run is and where it resumes; then Lightning asks for the
    loaders.
    """

    Info: ClassVar[type[DatasetInfo]]
    """Class of `info`, from which a model of this data is built."""

    def __init__(self, *, data_dir: str = "data", num_workers: int = 0, seed: int = 0) -> None:
        super().__init__()
        if num_workers < 0:
            raise ConfigError(
                f"data.num_workers={num_workers} must be 0 or more; 0 loads in the main process."
            )
        self.data_dir = Path(data_dir).expanduser()
        self.num_workers = num_workers
        self.seed = seed
        self.total_batches: int | None = None
        self.consumed_batches = 0
        self.rank, self.world_size = 0, 1

    @abstractmethod
    def prepare(self) -> None:
        """Fetch, check and convert the corpus: idempotent, locked, atomic. Needs no accelerator."""

    @property
    @abstractmethod
    def info(self) -> DatasetInfo:
        """Info of the prepared data. Raises `MagnetoError` before `prepare`."""

    @abstractmethod
    def batches_per_epoch(self, world_size: int = 1) -> int:
        """Training batches that one rank sees in an epoch."""

    @abstractmethod
    def for_model(self, info: Mapping[str, Any]) -> Self:
        """Return this data, prepared for the model of a checkpoint with this info: evaluation batches as it expects
        them (its tokenizer...).

        Raises:
            MagnetoError: this data does not fit that model.
        """

    def configure_run(
        self, total_batches: int, consumed_batches: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        """Say how many training batches the whole run has on each rank and how many of them are done."""
        if not 0 <= consumed_batches <= total_batches:
            raise DataError(
                f"The checkpoint stands at batch {consumed_batches}, but the run has only {total_batches}: "
                "raise the number of steps, or start again with resume=never."
            )
        self.total_batches, self.consumed_batches = total_batches, consumed_batches
        self.rank, self.world_size = rank, world_size

    def epoch_of(self, batch: int) -> int:
        """The epoch of the run's `batch`-th training batch, both counted from 0."""
        return batch // self.batches_per_epoch(self.world_size)

    @abstractmethod
    def train_dataloader(self) -> DataLoader[Any]:
        """The training batches that are left of the run: len() = total - consumed."""


@dataclass(frozen=True, kw_only=True)
class Batching:
    """How examples are put into batches.

    Attributes:
        budget: padded tokens or frames of a training batch on one rank.
        eval_budget: of an evaluation batch.
        max_batch_size: examples of a training batch on one rank, None for as many as the budget holds.
        eval_max_batch_size: of an evaluation batch.
        pad_to_multiple: what collate rounds lengths up to.
    """

    budget: int
    eval_budget: int
    pad_to_multiple: int
    max_batch_size: int | None = None
    eval_max_batch_size: int | None = None


class BucketedDataset(Protocol):
    """A split. Items are asked for as (epoch, position in the split)."""

    lengths: np.ndarray
    """(examples,), in what the budget counts."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Any]: ...


class BucketedDataModule(DataModule):
    """A data module that buckets by length; `setup` opens `train_set`, `val_set` and `test_set`."""

    train_set: BucketedDataset
    val_set: BucketedDataset
    test_set: BucketedDataset
    _counted: tuple[BucketedDataset, int, int] | None = None
    """The training set, the number of processes, and the batches of an epoch that follow."""

    @property
    @abstractmethod
    def batching(self) -> Batching:
        """How examples are put into batches."""

    @abstractmethod
    def collate(self, dataset: Any) -> Callable[[Any], dict[str, Any]]:
        """What makes a batch of items of `dataset`."""

    def _train_sampler(self, total: int, rank: int, world_size: int) -> TokenBudgetSampler:
        return TokenBudgetSampler(
            self.train_set.lengths,
            budget=self.batching.budget,
            total_batches=total,
            rank=rank,
            world_size=world_size,
            seed=self.seed,
            pad_to_multiple=self.batching.pad_to_multiple,
            max_batch_size=self.batching.max_batch_size,
        )

    def batches_per_epoch(self, world_size: int = 1) -> int:
        """Training batches that one rank sees in an epoch: the same number in every epoch."""
        if not hasattr(self, "train_set"):
            self.setup("fit")
        # Planning sorts the corpus, and each line of the log asks.
        known = self._counted
        if known is None or known[0] is not self.train_set or known[1] != world_size:
            count = self._train_sampler(0, 0, world_size).batches_per_epoch
            known = self._counted = (self.train_set, world_size, count)
        return known[2]

    def train_dataloader(self) -> DataLoader[Any]:
        """All training batches of the run."""
        assert self.total_batches is not None, "configure_run comes before train_dataloader"
        sampler = self._train_sampler(self.total_batches, self.rank, self.world_size)
        return self._loader(self.train_set, sampler, RunLoader)

    def val_dataloader(self) -> DataLoader[Any]:
        """Each validation example once, over all ranks."""
        return self._evaluation_loader(self.val_set)

    def test_dataloader(self) -> DataLoader[Any]:
        """Each test example once, over all ranks."""
        return self._evaluation_loader(self.test_set)

    def _evaluation_loader(self, dataset: BucketedDataset) -> DataLoader[Any]:
        sampler = EvaluationSampler(
            dataset.lengths,
            budget=self.batching.eval_budget,
            rank=self.rank,
            world_size=self.world_size,
            pad_to_multiple=self.batching.pad_to_multiple,
            max_batch_size=self.batching.eval_max_batch_size,
        )
        return self._loader(dataset, sampler)

    def _loader(
        self, dataset: BucketedDataset, sampler: Any, kind: type[DataLoader[Any]] = DataLoader
    ) -> DataLoader[Any]:
        return kind(
            cast(Dataset[Any], dataset),
            batch_sampler=sampler,
            collate_fn=self.collate(dataset),
            num_workers=self.num_workers,
            worker_init_fn=ignore_signals,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )
