"""Average the weights of a run's last validations (`callbacks.average_last`).

What fairseq's users do with `average_checkpoints.py` before they translate: the mean of the last few checkpoints costs
nothing at inference and generalises better (Vaswani et al., arXiv 1706.03762, 6.1, average the last 5). As there, the
average is what is tested and exported, without a comparison with the best weights, which would use the validation
split once more.

    checkpoints/weights-00000800.safetensors   plain weights of each of the last validations
    checkpoints/average.ckpt                   their mean, a checkpoint for mode=test, predict and export

Nothing of this is in the state of the training: a resumed run finds the files of the validations before its checkpoint,
and writes those after it again.
"""

import logging
from collections.abc import Container
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from magneto.errors import ConfigError
from magneto.training.checkpoint_io import AtomicCheckpointIO
from magneto.training.module import TrainingModule

log = logging.getLogger("magneto")

AVERAGE = "average.ckpt"


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
        if trainer.sanity_checking or trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        path = self.folder / f"weights-{trainer.global_step:08d}.safetensors"
        temporary = path.with_suffix(".part")
        weights = {name: value.detach().cpu().contiguous() for name, value in pl_module.state_dict().items()}
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

    def save_average(self, task: TrainingModule) -> Path:
        """Write `task`, which has the average, as a checkpoint. Returns its path."""
        path = self.folder / AVERAGE
        steps = list(self.files())
        content: dict[str, Any] = {
            "hyper_parameters": dict(task.hparams),
            "state_dict": {name: value.detach().cpu() for name, value in task.state_dict().items()},
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
