"""Decide where a run continues, and refuse a checkpoint that does not fit it."""

import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L

from magneto.errors import ConfigError
from magneto.training import checkpoint_io
from magneto.training.files import CHECKPOINT_REMEDY
from magneto.training.module import TrainingModule
from magneto.training.result import ENDED
from magneto.training.run_folder import RunFolder, Start


def follow(folder: RunFolder, resume: str) -> Start:
    """Return the decision of the main process, as a further process of the same run sees it."""
    if resume == "never":
        return Start()
    if resume not in ("auto", "must"):
        return Start(checkpoint=Path(resume))
    if folder.read_result_status() in ENDED:
        return Start(result=folder.read_result())
    return Start(checkpoint=folder.last if folder.last.exists() else None)


def read_start(task: TrainingModule, start: Start, folder: RunFolder) -> dict[str, Any]:
    """Return the content of the checkpoint that the run continues from, which fits the task and its data."""
    assert start.checkpoint is not None
    content = checkpoint_io.read_checkpoint(start.checkpoint, weights=False)
    stored = content["hyper_parameters"]
    if stored["task"] != task.hparams["task"]:
        raise ConfigError(
            f"checkpoint {start.checkpoint} is of another task ({stored['task']}), not {task.hparams['task']}."
        )
    # Where the same files came from may differ, what was made of them may not.
    origins = ("corpus", "corpora")
    info = task.hparams["info"]
    both = info.keys() & stored["info"].keys()  # a newer version may have added one
    changed = sorted(key for key in both.difference(origins) if stored["info"][key] != info[key])
    if changed:
        raise ConfigError(
            f"checkpoint {start.checkpoint} was trained on other data than what is prepared now: {', '.join(changed)} "
            "differ. Restore the data, use resume=never to start over, or use init_from= to take the weights alone."
        )
    shapes = {name: tuple(getattr(value, "shape", ())) for name, value in content["state_dict"].items()}
    own = {name: tuple(value.shape) for name, value in task.state_dict().items()}
    if shapes != own:
        differing = sorted(name for name in shapes.keys() | own.keys() if shapes.get(name) != own.get(name))
        raise ConfigError(
            f"checkpoint {start.checkpoint} does not fit this model, {len(differing)} tensors differ, such as "
            f"{differing[0]} ({shapes.get(differing[0])} there, {own.get(differing[0])} here). Use the settings that it was "
            "trained with, or init_from= to take its weights alone."
        )
    step = content["global_step"]
    elsewhere = start.checkpoint.resolve().parent != folder.checkpoints.resolve()
    if step >= stored["total_steps"] and elsewhere:
        raise ConfigError(
            f"resume={start.checkpoint}: that run has made all of its {step} steps, and its learning rate has come to its "
            "end. Use init_from= to take its weights, or repeat the whole run with more steps; with scheduler=wsd, a longer "
            "run can begin at its checkpoints/stable.ckpt."
        )
    if step > task.total_steps or (step == task.total_steps and elsewhere):
        raise ConfigError(
            f"resume={start.checkpoint}: it is at step {step}, and trainer.max_steps={task.total_steps} leaves nothing "
            "to do. Set trainer.max_steps to a larger number."
        )
    return content


def check_progress(content: Mapping[str, Any], start: Start, trainer: L.Trainer) -> None:
    """Refuse a checkpoint of a run whose batches were made or counted in another way: its position would be another one."""
    instead = "use resume=never to start over, or use init_from= to take the weights alone."
    try:
        batches = content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["processed"]
        stored = content["callbacks"].get("ConfigureRun", {})
        processes, micro_batches = stored.get("world_size", trainer.world_size), stored.get("micro_batches")
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"checkpoint {start.checkpoint}: the run cannot continue from it ({checkpoint_io.first_line(error)}). "
            f"{CHECKPOINT_REMEDY}"
        ) from error
    if micro_batches is not None:  # of data.global_batch, which any number of processes shares
        return
    if processes != trainer.world_size:
        raise ConfigError(
            f"checkpoint {start.checkpoint} was trained by {processes} processes; {trainer.world_size} would have other "
            f"batches. Set trainer.devices and trainer.num_nodes so that there are {processes}, {instead} A run with "
            "data.global_batch goes on with any number."
        )
    step, accumulate = content["global_step"], trainer.accumulate_grad_batches
    if batches != step * accumulate:
        raise ConfigError(
            f"checkpoint {start.checkpoint} is at step {step} after {batches} batches, and "
            f"trainer.accumulate_grad_batches={accumulate} makes {step * accumulate} of it. Set "
            f"trainer.accumulate_grad_batches={batches / max(step, 1):g}, {instead}"
        )


def while_restoring(error: BaseException) -> bool:
    """Whether an exception comes out of Lightning's reading of a checkpoint."""
    return any(
        Path(frame.f_code.co_filename).name == "checkpoint_connector.py"
        and frame.f_code.co_name.startswith(("restore", "resume"))
        for frame, _ in traceback.walk_tb(error.__traceback__)
    )
