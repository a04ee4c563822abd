"""Base of the kinds of data that can be streamed: a bounded part is prepared, and training examples come from shards."""

from abc import abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from torch.utils.data import DataLoader

from magneto.data.config import StreamConfig
from magneto.data.held_out import training_shards
from magneto.data.info import DatasetInfo
from magneto.data.prepared import PreparedDataModule
from magneto.data.streaming import ItemSource, Shares, StreamDataset, StreamLoader, Streams
from magneto.errors import ConfigError

STREAMS, WINDOW, HELD_OUT = 8, 4096, 1000
ROOM = 16_000_000  # characters of a window, at most

InfoT = TypeVar("InfoT", bound=DatasetInfo)
ConfigT = TypeVar("ConfigT", bound=StreamConfig)


class StreamedDataModule(PreparedDataModule[InfoT, ConfigT]):
    """Data of which `data.streaming=true` is offered; without it all is as in `PreparedDataModule`."""

    streams = True

    @property
    @abstractmethod
    def take(self) -> Callable[[Any], tuple[Any, int] | None]:
        """See `Streams.take`."""

    @abstractmethod
    def item_source(self) -> tuple[ItemSource, Callable[[Any], dict[str, Any]]]:
        """Return what makes items of the examples, and what makes a batch of items."""

    @property
    def group(self) -> Callable[[list[Any], np.random.Generator], list[Any]] | None:
        """See `Streams.group`."""
        return None

    def settings(self) -> dict[str, Any]:
        """Return how much of a streamed corpus is prepared."""
        return {"streaming": self.config.max_held_out or HELD_OUT} if self.config.streaming else {}

    def details(self) -> str:
        """Return what is streamed."""
        if not self.config.streaming or "train" not in self.splits:
            return ""
        return f"; those of train are a sample, {self.streamed.count} streams read {len(self.streamed.shards):,} shards"

    @cached_property
    def streamed(self) -> Streams[Any, Any]:
        """The streams of the training examples. Raises `MagnetoError` for too few shards."""
        return Streams(
            shards=[shard for reader in self.corpora.values() for shard in training_shards(reader.shards())],
            count=self.config.streams or STREAMS,
            window=self.config.shuffle_window or WINDOW,
            room=ROOM,
            seed=self.config.seed,
            take=self.take,
            group=self.group,
        )

    @property
    def batch_items(self) -> int:
        """Items of a batch of one process."""
        return self.batching.size or self.batching.budget

    def micro_batches(self, world_size: int) -> int | None:
        """See `DataModule`; the streams are shared out, too."""
        if not self.config.streaming:
            return super().micro_batches(world_size)
        count = self.config.streams or STREAMS
        if count % world_size:
            raise ConfigError(
                f"data.streams={count} does not divide by {world_size} processes. Set it to a multiple of {world_size}, of "
                "which each has at least one shard."
            )
        fewest = super().micro_batches(world_size)
        if fewest is None or self.global_batch is None:
            return None
        for micro_batches in range(fewest, self.global_batch // world_size + 1):
            if self._shares(0, world_size, micro_batches).fits():
                return micro_batches
        raise ConfigError(
            f"data.global_batch={self.global_batch} cannot be taken in equal parts from data.streams={count}. Set "
            "data.global_batch to a multiple of data.streams."
        )

    def _shares(self, rank: int, world_size: int, micro_batches: int | None) -> Shares:
        return Shares(
            streams=self.config.streams or STREAMS,
            rank=rank,
            world_size=world_size,
            batch_size=self.batch_items,
            global_batch=self.global_batch,
            micro_batches=micro_batches,
        )

    def train_dataloader(self) -> DataLoader[Any]:
        """Return all training batches of the run; of a streamed corpus they are made while it is read."""
        if not self.config.streaming:
            return super().train_dataloader()
        assert self.total_batches is not None, "configure_run comes before train_dataloader"
        shares = self._shares(self.rank, self.world_size, self.micro_batches(self.world_size))
        workers = self.num_workers
        if not shares.workers_fit(workers):
            fitting = max(count for count in range(workers) if shares.workers_fit(count))
            if self.config.num_workers != "auto":
                raise ConfigError(
                    f"data.num_workers={workers}: {shares.groups // shares.world_size} (groups of) streams of a process "
                    f"cannot be shared by that number of workers. Set data.num_workers to {fitting}, or data.streams to "
                    "a multiple of processes times workers."
                )
            workers = fitting
        source, collate = self.item_source()
        dataset = StreamDataset(source, collate, shares, self.total_batches)
        return StreamLoader(dataset, **self.worker_arguments(workers))
