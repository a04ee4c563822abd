"""Base of all data modules: what a run asks of its data, and the loaders of its batches."""

import os
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import lightning as L
import torch
from torch.utils.data import DataLoader

from magneto.data.batching import EvaluationSampler, RunLoader, TokenBudgetSampler, ignore_signals
from magneto.data.dataset import PreparedDataset
from magneto.data.info import DatasetInfo
from magneto.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class Batching:
    """How examples are put into batches.

    Attributes:
        budget: padded tokens or frames of a training batch on one rank.
        eval_budget: of an evaluation batch; None: the same.
        max_batch_size: examples of a training batch on one rank, None for as many as the budget holds.
        eval_max_batch_size: of an evaluation batch.
        pad_to_multiple: what collate rounds lengths up to.
        size: the data's own setting of a batch, such as `data.batch_size`; None: `budget`. `data.global_batch` has its unit.
    """

    budget: int
    eval_budget: int | None = None
    max_batch_size: int | None = None
    eval_max_batch_size: int | None = None
    pad_to_multiple: int = 1
    size: int | None = None


def loader_workers() -> int:
    """Return how many processes load batches if nobody says it: those of `DataConfig.num_workers`."""
    gpus = torch.cuda.device_count()
    return min(8, max(1, (os.cpu_count() or 1) // gpus - 1)) if gpus else 0


class DataModule(L.LightningDataModule):
    """One kind of data, in batches by length; `setup` opens `train_set`, `val_set` and `test_set`.

    The engine calls, in this order: `prepare()`, or `for_model(info)`, in one process or in all; `info`; `setup(stage)`;
    `configure_run(...)`, once it knows how long the run is and where it resumes; then Lightning asks for the
    loaders.
    """

    Info: ClassVar[type[DatasetInfo]]
    """Class of `info`, from which a model of this data is built."""
    train_set: PreparedDataset
    val_set: PreparedDataset
    test_set: PreparedDataset

    def __init__(
        self,
        *,
        data_dir: str = "data",
        num_workers: int | Literal["auto"] = "auto",
        seed: int = 0,
        global_batch: int | None = None,
    ) -> None:
        super().__init__()
        self.data_dir = Path(data_dir).expanduser()
        self.num_workers = loader_workers() if num_workers == "auto" else num_workers
        self.seed, self.global_batch = seed, global_batch
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
    def for_model(self, info: Mapping[str, Any]) -> Self:
        """Return this data, prepared for the model of a checkpoint with this info: evaluation batches as it expects
        them (its tokenizer...).

        Raises:
            MagnetoError: this data does not fit that model.
        """

    @property
    @abstractmethod
    def batching(self) -> Batching:
        """How examples are put into batches."""

    @abstractmethod
    def collate(self, dataset: Any) -> Callable[[Any], dict[str, Any]]:
        """Return what makes a batch of items of `dataset`."""

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

    def micro_batches(self, world_size: int) -> int | None:
        """Return how many batches of each process make up `data.global_batch`; None: that is not set.

        They are as few as the data's own setting, the largest batch of one process, allows.

        Raises:
            ConfigError: the processes cannot share it equally.
        """
        if self.global_batch is None:
            return None
        share, rest = divmod(self.global_batch, world_size)
        if rest:
            raise ConfigError(
                f"data.global_batch={self.global_batch} does not divide by {world_size} processes. Set it to "
                f"{(share + 1) * world_size}, or use another number of processes."
            )
        fewest = -(-share // (self.batching.size or self.batching.budget))
        return next(count for count in range(fewest, share + 1) if share % count == 0)

    def batches_per_epoch(self, world_size: int = 1) -> int:
        """Return the training batches that one rank sees in an epoch: the same number in every epoch."""
        if not hasattr(self, "train_set"):
            self.setup("fit")
        return self._train_sampler(0, 0, world_size).batches_per_epoch

    def epoch_of(self, batch: int) -> int:
        """Return the epoch of the run's `batch`-th training batch, both counted from 0."""
        return batch // self.batches_per_epoch(self.world_size)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return all training batches of the run; len() is their number, also where some are done."""
        assert self.total_batches is not None, "configure_run comes before train_dataloader"
        sampler = self._train_sampler(self.total_batches, self.rank, self.world_size)
        return self._loader(self.train_set, sampler, RunLoader)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return each validation example once, over all ranks."""
        return self._evaluation_loader(self.val_set)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return each test example once, over all ranks."""
        return self._evaluation_loader(self.test_set)

    def _train_sampler(self, total: int, rank: int, world_size: int) -> TokenBudgetSampler:
        batching = self.batching
        size = batching.size or batching.budget
        share = Fraction(self.global_batch or size, size)  # of a whole step, where its batch is set
        most = batching.max_batch_size
        return TokenBudgetSampler(
            self.train_set.lengths,
            budget=int(batching.budget * share),
            total_batches=total,
            rank=rank,
            world_size=world_size,
            seed=self.seed,
            pad_to_multiple=batching.pad_to_multiple,
            max_batch_size=None if most is None else max(1, int(most * share)),
            micro_batches=self.micro_batches(world_size),
        )

    def _evaluation_loader(self, dataset: PreparedDataset) -> DataLoader[Any]:
        sampler = EvaluationSampler(
            dataset.lengths,
            budget=self.batching.eval_budget or self.batching.budget,
            rank=self.rank,
            world_size=self.world_size,
            pad_to_multiple=self.batching.pad_to_multiple,
            max_batch_size=self.batching.eval_max_batch_size,
        )
        return self._loader(dataset, sampler)

    def _loader(
        self, dataset: PreparedDataset, sampler: Any, kind: type[DataLoader[Any]] = DataLoader
    ) -> DataLoader[Any]:
        workers = self.worker_arguments(self.num_workers)
        return kind(dataset, batch_sampler=sampler, collate_fn=self.collate(dataset), **workers)

    def worker_arguments(self, num_workers: int) -> dict[str, Any]:
        """Return the arguments of a loader that say how its batches are made."""
        return {
            "num_workers": num_workers,
            "worker_init_fn": ignore_signals,
            "persistent_workers": num_workers > 0,
            "pin_memory": torch.cuda.is_available(),
        }
