"""Complete and check a composed configuration."""

from collections.abc import Mapping
from typing import Any

from hydra.utils import get_class
from omegaconf import OmegaConf

from magneto.config.groups import CONF, check_choices
from magneto.errors import ConfigError
from magneto.tasks.registry import task_class
from magneto.training import checkpoint_io


def check_task(config: Mapping[str, Any]) -> None:
    """Raise `ConfigError` unless task and data are chosen, and fit each other and the experiment."""
    check_choices(config)
    declared = config["experiment_task"]
    if declared is not None and declared != config["task"]["name"]:
        raise ConfigError(
            f"the experiment is made for task={declared}, but the command says task={config['task']['name']}. "
            f"Leave task= out of the command, or say task={declared}."
        )
    task = task_class(config["task"]["_target_"])
    if config["task"]["name"] != task.name:
        raise ConfigError(
            f"task.name={config['task']['name']}: the task's name is {task.name}. Use name= to name the run."
        )
    wanted = task.Data
    try:
        given = get_class(config["data"]["_target_"])
    except Exception as error:  # Hydra's own, of several types
        raise ConfigError(
            f"data._target_={config['data'].get('_target_')}: cannot be imported ({error})."
        ) from error
    if not issubclass(given, wanted):
        raise ConfigError(
            f"task={config['task']['name']} needs data of the kind {wanted.__name__}, and data={config['data']['name']} is "
            f"of the kind {given.__name__}. Leave data= out for the task's own corpus, or choose another one (docs/data.md)."
        )


def adopt_task(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of mode=test with the task of its checkpoint.

    What a task's own file sets of the data, and the chosen corpus leaves open, comes along: the masks of masked models.
    Raises `ConfigError` when there is no such checkpoint or no data.
    """
    hyper_parameters, _ = checkpoint_io.read_model(config["checkpoint"])
    target = hyper_parameters["task"]
    name = task_class(target).name
    if config["data"] is None:
        raise ConfigError(
            f"data= is missing: checkpoint={config['checkpoint']} is of task={name}. Say data= and what it is to "
            f"be tested on, or task={name} for that task's own corpus."
        )
    file = CONF / "task" / f"{name}.yaml"
    usual: Any = OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else {}
    own = usual.get("data") or {}
    data = {key: own.get(key) if value is None else value for key, value in config["data"].items()}
    return {**config, "task": {"name": name, "_target_": target}, "data": data}
