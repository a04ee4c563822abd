"""Averages of the weights: a moving one (`callbacks.ema_decay`), that of the last validations (`callbacks.average_last`).

The moving average takes the place of the weights in every validation and in the checkpoints that are tested.

The other is what fairseq's users make with `average_checkpoints.py` before they translate: the mean of the last few
checkpoints costs nothing at inference and generalises better (Vaswani et al., arXiv 1706.03762, 6.1, average the last 5).
As there, the average is what is tested and exported, without a comparison with the best weights, which would use the
validation split once more.

    checkpoints/weights-00000800.safetensors   plain weights of each of the last validations
    checkpoints/average.ckpt                   their mean, a checkpoint for mode=test, predict and export

Nothing of it is in the state of the training: a resumed run finds the files of the validations before its checkpoint, and
writes those after it again.
"""

import logging
from collections.abc import Container
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from magneto.errors import ConfigError
from magneto.training import migrate
from magneto.training.checkpoint_io import AtomicCheckpointIO
from magneto.training.module import TrainingModule
from magneto.training.sharding import load_parts, local_part, whole_weights

log = logging.getLogger("magneto")

AVERAGE = "average.ckpt"


class MovingAverage(Callback):
    """Keep an exponential moving average of the weights, begun with those after the first step.

    As Lightning's `EMAWeightAveraging` does and in its form of checkpoints, and also for sharded weights.

    Args:
        decay: share of the average that a step leaves.
    """

    state_key = "EMAWeightAveraging"
    """Of the checkpoints of earlier versions."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self._average: dict[str, Tensor] = {}
        self._updates = self._last_step = 0

    def state_dict(self) -> dict[str, Any]:
        return {"latest_update_step": self._last_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._last_step = state_dict["latest_update_step"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Begin with the first weights, or go on with the average of the checkpoint, on the weights' device."""
        self._average = {
            name: self._average[name].to(p.device) if name in self._average else p.detach().clone()
            for name, p in pl_module.named_parameters()
        }

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take in the weights of a new step."""
        if trainer.global_step <= self._last_step:
            return
        for name, parameter in pl_module.named_parameters():
            average, current = local_part(self._average[name]), local_part(parameter.detach())
            average.copy_(current if not self._updates else self.decay * average + (1 - self.decay) * current)
        self._updates += 1
        self._last_step = trainer.global_step

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Validate the average."""
        self._swap(pl_module)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go on with the weights."""
        self._swap(pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the average in the model."""
        self._swap(pl_module)
        self._average = {}

    def _swap(self, module: L.LightningModule) -> None:
        for name, parameter in module.named_parameters():
            if name in self._average:
                average, current = local_part(self._average[name]), local_part(parameter.detach())
                kept = average.clone()
                average.copy_(current)
                current.copy_(kept)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the average in the place of the weights, and these beside it."""
        if self._average:
            checkpoint["current_model_state"] = checkpoint["state_dict"]
            names = {id(parameter): name for name, parameter in pl_module.named_parameters()}
            averaged = {
                name: self._average[names[id(parameter)]]
                for name, parameter in pl_module.named_parameters(remove_duplicate=False)
            }
            checkpoint["state_dict"] = {**checkpoint["state_dict"], **averaged}
            checkpoint["averaging_state"] = {"n_averaged": torch.tensor(self._updates)}

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take over both; of a run without an average, its weights are its beginning."""
        self._average = {
            name: checkpoint["state_dict"][name].clone() for name, _ in pl_module.named_parameters()
        }
        if "current_model_state" in checkpoint:
            self._updates = int(checkpoint["averaging_state"]["n_averaged"])
            load_parts(pl_module, migrate.weights(checkpoint["current_model_state"]))


class LastWeights(Callback):
    """Keep the weights of the last validations, and average them.

    Args:
        folder: where the files lie, the run's checkpoints.
        count: how many validations.
    """

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count

    def files(self) -> dict[int, Path]:
        """Return step -> the weights kept of it, in the order of the steps."""
        paths = sorted(self.folder.glob("weights-*.safetensors"))  # as their steps: these have eight digits
        return {int(path.stem[8:]): path for path in paths if path.stem[8:].isdecimal()}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remove what a killed run wrote after the checkpoint that this one continues from."""
        if trainer.is_global_zero:
            for step, path in self.files().items():
                if step > trainer.global_step:
                    path.unlink()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the weights; drop those that are too old. Before `Checkpoints` saves: it is the later callback."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        weights = whole_weights(pl_module)
        if not trainer.is_global_zero:
            return
        path = self.folder / f"weights-{trainer.global_step:08d}.safetensors"
        temporary = path.with_suffix(".part")
        try:
            save_file(weights, temporary)
            temporary.replace(path)
        except (OSError, SafetensorError) as error:
            temporary.unlink(missing_ok=True)
            raise ConfigError(
                f"{path}: the weights cannot be written ({error}). Free space and repeat the command: the run continues "
                f"from its last checkpoint. callbacks.average_last keeps {self.count} files of this size."
            ) from error
        for old in list(self.files().values())[: -self.count]:
            old.unlink()

    def load_average(self, task: TrainingModule) -> None:
        """Load the mean of the kept weights into `task`."""
        files = self.files()
        log.info(
            "the average of the weights after steps %s is tested and exported", ", ".join(map(str, files))
        )
        parameters = {name for name, _ in task.named_parameters(remove_duplicate=False)}
        task.load_state_dict(mean_weights(list(files.values()), parameters))

    def save_average(self, task: TrainingModule, weights: dict[str, Tensor]) -> Path:
        """Write the `weights` of `task`, which has the average, as a checkpoint. Returns its path."""
        path = self.folder / AVERAGE
        steps = list(self.files())
        content: dict[str, Any] = {
            "hyper_parameters": dict(task.hparams),
            "state_dict": weights,
            "global_step": steps[-1],
            "averaged_steps": steps,
        }
        try:
            AtomicCheckpointIO().save_checkpoint(content, path)
        except OSError as error:
            raise ConfigError(
                f"{path}: the average cannot be written ({error}). Free space and repeat the command: only the test is made "
                "again."
            ) from error
        return path


def mean_weights(files: list[Path], parameters: Container[str]) -> dict[str, Tensor]:
    """Return the mean of the parameters in safetensors files, summed in fp64; the other tensors are the last file's."""
    if not files:
        raise ConfigError(
            "callbacks.average_last: the weights of the last validations (checkpoints/weights-*.safetensors) are gone. "
            "Use resume=never to start over."
        )
    sums: dict[str, Tensor] = {}
    for path in files:
        try:
            last = load_file(path)
        except (OSError, SafetensorError) as error:
            raise ConfigError(
                f"{path}: damaged ({error}). Remove it and repeat the command: the other validations are averaged."
            ) from error
        for name, value in last.items():
            if name in parameters:
                sums[name] = sums[name] + value.double() if name in sums else value.double()
    return {
        name: (sums[name] / len(files)).to(value.dtype) if name in sums else value
        for name, value in last.items()
    }
