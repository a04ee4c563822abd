"""Save the checkpoints of a run: the best one, the last one, that before a decay, and one before an interruption."""

import math
import os
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from magneto.data.streaming import ShardError
from magneto.errors import ConfigError
from magneto.training.checkpoint_io import AtomicCheckpointIO
from magneto.training.module import TrainingModule
from magneto.training.sharding import is_sharded
from magneto.training.signals import Interrupted, StopSignals

GPU_POLL = 10
"""Steps after which processes on GPUs look whether one of them was asked to stop."""


class Checkpoints(Checkpoint):
    """Keep `best.ckpt` (by the task's monitor) and `last.ckpt`, and save before an interruption.

    Lightning's ModelCheckpoint renews its last checkpoint only when the best one changes, and it saves before a
    validation that is due at the same step: a run killed there would skip that validation when resumed. This callback
    saves after each validation, every `minutes` or `every` steps between two of them, and when a signal asks to stop. Files
    of one moment are one file with several names, where the disk has links. Where the learning rate begins to decay after a
    stable part, `stable.ckpt` is kept, from which a longer run can begin.

    Args:
        folder: where the files lie.
        monitor: metric of the validation.
        mode: `min` or `max`.
        signals: whether the run was asked to stop.
        minutes: between two saves of `last.ckpt`, by the clock of the first process.
        every: optimizer steps between two of them; None: the minutes alone decide.
        stable: the step of `stable.ckpt`; None: there is none.
    """

    def __init__(
        self,
        folder: Path,
        monitor: str,
        mode: str,
        signals: StopSignals,
        *,
        minutes: float,
        every: int | None = None,
        stable: int | None = None,
    ) -> None:
        self.folder, self.monitor, self.mode = folder, monitor, mode
        self.signals, self.minutes, self.every, self.stable = signals, minutes, every, stable
        self._saved_at = time.monotonic()
        self._written: Path | None = None
        self.best: float | None = None
        self.best_step = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the best value and its step."""
        return {"best": self.best, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.best_step = state_dict["best"], state_dict["best_step"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let signals wait until the state is saved."""
        if not (self.folder / "best.ckpt").exists():
            self.best, self.best_step = None, 0  # the run continues from another folder's checkpoint
        self.signals.defer()
        assert isinstance(pl_module, TrainingModule)
        self._saved_at = time.monotonic()
        # The first process alone looks at its clock.
        pl_module.asks = lambda: (self.signals.received, trainer.is_global_zero and self._is_time())

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop at once again: all is saved."""
        self.signals.resume()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when it is time; on the last batch, ask for a final validation."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            trainer.should_stop = True  # Lightning then validates, whatever the interval
            return
        assert isinstance(trainer.val_check_batch, int)
        self._written = None
        if (batch_idx + 1) % trainer.val_check_batch == 0:
            return  # on_validation_end saves
        self._save_stable(trainer)
        assert isinstance(pl_module, TrainingModule)
        stop, due = self._asked(trainer, pl_module)
        if stop or due or (self.every is not None and trainer.global_step % self.every == 0):
            self._save(trainer, "last")
        if stop:
            raise Interrupted

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save both files where the monitored metric is the best so far, else the last one."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        assert isinstance(pl_module, TrainingModule)
        if self.monitor not in pl_module.evaluated:
            raise ConfigError(
                f"monitor {self.monitor!r}: the validation gives no such metric, only {', '.join(pl_module.evaluated)}."
            )
        value = pl_module.evaluated[self.monitor]
        self._written = None
        better = self.best is None or (value < self.best if self.mode == "min" else value > self.best)
        if better and math.isfinite(value):
            self.best, self.best_step = value, trainer.global_step
            self._save(trainer, "best")
        self._save(trainer, "last")
        self._save_stable(trainer)
        if self._stop_asked(trainer) and not trainer.should_stop:
            raise Interrupted

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Save what a single process has learned before a shard of its data could not be read."""
        if not isinstance(exception, ShardError) or trainer.world_size > 1:  # the others are within a step
            return
        batches = trainer.fit_loop.epoch_loop.batch_progress.current.completed
        if batches and batches % trainer.accumulate_grad_batches == 0:
            self._save(trainer, "last")

    def _is_time(self) -> bool:
        return time.monotonic() - self._saved_at >= 60 * self.minutes

    def _asked(self, trainer: L.Trainer, module: TrainingModule) -> tuple[bool, bool]:
        """Return whether any process asked to stop, and to save, before this step; seldom of a GPU, which this stalls."""
        if module.votes is None:
            return self.signals.received, self._is_time()
        if module.votes.is_cuda and trainer.global_step % GPU_POLL:
            return False, False
        stop, save = module.votes.tolist()
        return stop > 0, save > 0

    def _stop_asked(self, trainer: L.Trainer) -> bool:
        return trainer.strategy.reduce_boolean_decision(self.signals.received, all=False)

    def _save_stable(self, trainer: L.Trainer) -> None:
        if trainer.global_step == self.stable:
            self._save(trainer, "stable")

    def _save(self, trainer: L.Trainer, name: str) -> None:
        path = self.folder / f"{name}.ckpt"
        self._saved_at = time.monotonic()
        try:
            if self._written is not None and not is_sharded(trainer):
                if trainer.is_global_zero:
                    writer = trainer.strategy.checkpoint_io
                    assert isinstance(writer, AtomicCheckpointIO)
                    writer.run(partial(_give_name, self._written, path))
                return
            self._written = path
            trainer.save_checkpoint(path)  # whole or not at all: `checkpoint_io.AtomicCheckpointIO`
        except OSError as error:
            cause: BaseException | None = error
            while cause is not None:  # of a second signal during a write, torch makes a failed one
                if isinstance(cause, Interrupted):
                    raise cause from None
                cause = cause.__context__
            raise ConfigError(
                f"{path}: the checkpoint cannot be written ({error}). The last complete one is kept; "
                "free space and repeat the command: the run continues from there."
            ) from error


def _give_name(file: Path, path: Path) -> None:
    """Let `path` be the same file as `file`, or a copy of it on a disk without links; whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    try:
        os.link(file, part)
    except OSError:
        shutil.copyfile(file, part)
    part.replace(path)
