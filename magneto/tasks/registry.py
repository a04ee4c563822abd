"""Find the class of a task by its name or path, and load a trained task."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from magneto.errors import ConfigError, MagnetoError
from magneto.tasks.base import Task
from magneto.training.checkpoint_io import first_line, read_model
from magneto.training.files import CHECKPOINT_REMEDY
from magneto.training.sharding import empty_parameters


def task_class(path: str) -> type[Task]:
    """Return the task class named by `path` (`package.module.Class`).

    Raises:
        ConfigError: there is no such class, or it is not a task.
    """
    module, _, name = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"task._target_={path}: cannot be imported ({error}). Name a Task, package.module.Class."
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, Task)):
        raise ConfigError(f"task._target_={path}: is not a Task.")
    return cls


def load_task(path: str | Path, *, empty: bool = False) -> Task:
    """Return the task with its weights, from a checkpoint, an export folder or a run's folder alone.

    The averaged weights are taken where the run kept an exponential moving average.

    Args:
        path: of one of these.
        empty: leave out the values of the weights, which another process has.

    Raises:
        ConfigError: the path is none of these, or it is damaged.
    """
    if not empty:
        return make_trained(path, *read_model(path))
    hyper_parameters, weights = read_model(path, weights=False)
    with empty_parameters():
        return make_trained(path, hyper_parameters, weights)


def make_trained(
    path: str | Path, hyper_parameters: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> Task:
    """The task of hyper-parameters and weights that were read from `path`. Raises `ConfigError` if they are damaged."""
    try:
        task = task_class(hyper_parameters["task"])(
            **{key: value for key, value in hyper_parameters.items() if key != "task"}
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*non-meta parameter", UserWarning)  # of empty parameters
            task.load_state_dict(weights)
    except Exception as error:  # of whatever type: the file comes from outside
        reason = str(error).strip() if isinstance(error, MagnetoError) else first_line(error)
        raise ConfigError(
            f"{path}: the model cannot be built from it ({reason}) {CHECKPOINT_REMEDY}"
        ) from error
    return task.eval()
