"""Save the checkpoints of a run: the best one, the last one, that before a decay, and one before an interruption."""

import math
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from magneto.errors import ConfigError
from magneto.training.module import TrainingModule
from magneto.training.signals import Interrupted, StopSignals

GPU_POLL = 10
"""Steps after which processes on GPUs look whether one of them was asked to stop."""


class Checkpoints(Checkpoint):
    """Keep `best.ckpt` (by the task's monitor) and `last.ckpt`, and save before an interruption.

    Lightning's ModelCheckpoint renews its last checkpoint only when the best one changes, and it saves before a
    validation that is due at the same step: a run killed there would skip that validation when resumed. This callback
    saves after each validation, every `every` steps between two of them, and when a signal asks to stop. Where the
    learning rate begins to decay after a stable part, `stable.ckpt` is kept, from which a longer run can begin.

    Args:
        folder: where the files lie.
        monitor: metric of the validation.
        mode: `min` or `max`.
        every: optimizer steps between two saves of `last.ckpt`.
        signals: whether the run was asked to stop.
        stable: the step of `stable.ckpt`; None: there is none.
    """

    def __init__(
        self,
        folder: Path,
        monitor: str,
        mode: str,
        every: int,
        signals: StopSignals,
        stable: int | None = None,
    ) -> None:
        self.folder, self.monitor, self.mode, self.every = folder, monitor, mode, every
        self.signals, self.stable = signals, stable
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
        pl_module.asked_to_stop = lambda: self.signals.received

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
        if (batch_idx + 1) % trainer.val_check_batch == 0:
            return  # on_validation_end saves
        self._save_stable(trainer)
        assert isinstance(pl_module, TrainingModule)
        stop = self._any_asked(trainer, pl_module)
        if stop or trainer.global_step % self.every == 0:
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
        better = self.best is None or (value < self.best if self.mode == "min" else value > self.best)
        if better and math.isfinite(value):
            self.best, self.best_step = value, trainer.global_step
            self._save(trainer, "best")
        self._save(trainer, "last")
        self._save_stable(trainer)
        if self._stop_asked(trainer) and not trainer.should_stop:
            raise Interrupted

    def _any_asked(self, trainer: L.Trainer, module: TrainingModule) -> bool:
        """Return whether any process was asked to stop before this step; seldom from a GPU, which an answer stalls."""
        if module.stop_votes is None:
            return self.signals.received
        if module.stop_votes.is_cuda and trainer.global_step % GPU_POLL:
            return False
        return bool(module.stop_votes)

    def _stop_asked(self, trainer: L.Trainer) -> bool:
        return trainer.strategy.reduce_boolean_decision(self.signals.received, all=False)

    def _save_stable(self, trainer: L.Trainer) -> None:
        if trainer.global_step == self.stable:
            self._save(trainer, "stable")

    def _save(self, trainer: L.Trainer, name: str) -> None:
        path = self.folder / f"{name}.ckpt"
        try:
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
