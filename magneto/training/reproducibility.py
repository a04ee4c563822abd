"""Callbacks that make a run reproducible: seeds of each step, position in the data, equal start on all processes."""

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from magneto.data.module import DataModule
from magneto.errors import ConfigError
from magneto.training.module import TrainingModule
from magneto.training.sharding import is_sharded


class StepSeed(Callback):
    """Seed torch's generators before each training batch from (seed, rank, batch number).

    Dropout and stochastic depth of a step then depend on the run's seed and the step alone: a resumed run repeats an
    uninterrupted one without any generator state in its checkpoints.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        # An odd multiplier spreads neighbouring runs and steps over the 64-bit seeds.
        key = (self.seed * 1_000_003 + trainer.global_rank) * 0x9E3779B97F4A7C15 + batch_idx
        torch.manual_seed(key % 2**63)


def data_of(trainer: L.Trainer) -> DataModule:
    """Return the run's data module."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, DataModule)
    return data


class ConfigureRun(Callback):
    """Pass to the data module what only the running trainer knows: the length of the run, and its rank.

    Keep in the checkpoint the number of processes that share the batches: with another number they are other batches, unless
    `data.global_batch` says what a step sees. Then the position in the data is moved to what the same step is now.
    """

    world_size = 1
    micro_batches: int | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"world_size": self.world_size, "micro_batches": self.micro_batches}

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Count batches and the work of a process as if the run had had these processes from the beginning."""
        stored = checkpoint["callbacks"].get("ConfigureRun", {})
        before, count = stored.get("micro_batches"), trainer.accumulate_grad_batches
        if before is None or (stored["world_size"], before) == (trainer.world_size, count):
            return
        fit = checkpoint["loops"]["fit_loop"]
        batches = checkpoint["global_step"] * count
        for progress in ("total", "current"):
            fit["epoch_loop.batch_progress"][progress] = dict.fromkeys(
                fit["epoch_loop.batch_progress"][progress], batches
            )
        for loader in fit["state_dict"]["combined_loader"]:
            loader["consumed"] = batches
        totals = checkpoint["callbacks"]["Monitor"]["totals"]
        for key in totals.keys() - {"seconds", "wait_seconds"}:
            totals[key] *= stored["world_size"] / trainer.world_size

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Configure the data once the processes are up, before any loader is made."""
        assert isinstance(pl_module, TrainingModule)
        # Lightning sends its own signal to all processes at each batch; here `StopSignals` takes them (`Checkpoints`).
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        if is_sharded(trainer):
            self._check_evaluations(trainer)
        total = pl_module.total_steps * trainer.accumulate_grad_batches
        self.world_size = trainer.world_size
        self.micro_batches = data_of(trainer).micro_batches(trainer.world_size)
        data_of(trainer).configure_run(total, rank=trainer.global_rank, world_size=trainer.world_size)

    def _check_evaluations(self, trainer: L.Trainer) -> None:
        """Raise `ConfigError` where a process would have no batch, and the others wait for its part of the weights."""
        data = data_of(trainer)
        for split, examples in (("validation", data.val_set), ("test", data.test_set)):
            if len(examples) < trainer.world_size:
                raise ConfigError(
                    f"The {split} split has {len(examples)} examples, fewer than the {trainer.world_size} processes that "
                    "share the weights. Use fewer processes (trainer.devices), trainer=ddp, or more data."
                )


class SameStart(Callback):
    """Refuse to train where the processes of a run do not begin at the same step of the same run.

    Args:
        start: what this process has decided, plain values by name.
    """

    def __init__(self, start: Mapping[str, Any]) -> None:
        self.start = dict(start)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Compare once the processes are up, before a checkpoint is read. Every process raises, so that none waits."""
        if trainer.world_size == 1 or stage != "fit":
            return
        starts: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(starts, self.start)
        for rank, start in enumerate(starts):
            if start != starts[0]:
                both = "; ".join(
                    f"{key}: {starts[0].get(key)} in process 0, {start.get(key)} in process {rank}"
                    for key in starts[0]
                    if start.get(key) != starts[0][key]
                )
                raise ConfigError(
                    f"The processes of this run do not agree on where it begins ({both}). Set runs_dir to a folder that all "
                    "machines share, and start the same command in each."
                )
