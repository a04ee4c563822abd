"""Build the data module and the task from a composed configuration.

Every value is checked here or in the constructor that takes it, so that a message names its key.
"""

import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import hydra
from hydra.errors import InstantiationException
from hydra.utils import get_class
from omegaconf import OmegaConf

from magneto.config.groups import CONF, check_choices
from magneto.config.validate import check_keys, check_types
from magneto.data.module import DataModule
from magneto.errors import ConfigError, MagnetoError
from magneto.tasks.base import Task
from magneto.tasks.registry import task_class

log = logging.getLogger("magneto")


def build_data(node: Mapping[str, Any]) -> DataModule:
    """Return the data module that `config["data"]` describes; a constructor's error is raised without Hydra's wrapping."""
    module = _instantiate({name: value for name, value in node.items() if name != "name"}, "data")
    assert isinstance(module, DataModule), module
    for name, source in getattr(module, "corpora", {}).items():
        if not hasattr(source, "fingerprint"):
            raise ConfigError(
                f"data.corpora.{name}={source}: this is no corpus. Set its _target_, or leave it out."
            )
    return module


def build_extra(nodes: Mapping[str, Any], where: str, kind: type) -> list[Any]:
    """Return the objects that a user adds to a run by `_target_`.

    Args:
        nodes: name -> `_target_` and arguments.
        where: the key that holds them, `callbacks.extra` or `logger.extra`.
        kind: what they must be.

    Raises:
        ConfigError: one cannot be made, or is of another kind.
    """
    made = []
    for name, node in nodes.items():
        if not isinstance(node, Mapping) or "_target_" not in node:
            raise ConfigError(f"{where}.{name}={node}: names no class. Set {where}.{name}._target_.")
        one = _instantiate(node, f"{where}.{name}")
        if not isinstance(one, kind):
            raise ConfigError(
                f"{where}.{name}._target_={node['_target_']}: is no {kind.__module__}.{kind.__name__}. Use a class "
                "derived from it."
            )
        made.append(one)
    return made


def _instantiate(node: Mapping[str, Any], where: str) -> Any:
    _check_arguments(node, where)
    try:
        return hydra.utils.instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, MagnetoError):
            raise cause from None
        raise ConfigError(f"{where}: {cause or error}") from error


def _check_arguments(node: Mapping[str, Any], where: str) -> None:
    """Raise `ConfigError` for an argument of another type than the constructor's, of `node` and of all nodes in it."""
    plain = {}
    for key, value in node.items():
        if isinstance(value, Mapping):
            _check_arguments(value, f"{where}.{key}")
        else:
            plain[key] = value
    if "_target_" in plain:
        try:
            owner = get_class(plain["_target_"])
        except Exception:  # Hydra's own, of several types: it says what is wrong when it makes the object
            return
        parameters = inspect.signature(owner).parameters
        if all(one.kind is not one.VAR_KEYWORD for one in parameters.values()):
            check_keys(plain.keys() - {"_target_"}, parameters, where)
        check_types(owner, plain, where)


def prepared_data(overrides: Sequence[str]) -> DataModule:
    """Return the data that `run.py` trains on with these overrides, prepared and set up: for scripts and notebooks.

    Raises `MagnetoError` as a run does; Hydra's own exception for a key that there is not.
    """
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        composed = hydra.compose("config", list(overrides))
    config: Any = OmegaConf.to_container(composed, resolve=True, enum_to_str=True)
    check_task(config)
    data = build_data(config["data"])
    data.prepare()
    data.setup("fit")
    return data


def build_task(config: Mapping[str, Any], data: DataModule) -> Task:
    """Return the task, sized by the info of the prepared data."""
    options = {key: value for key, value in config["task"].items() if key not in ("_target_", "name")}
    return task_class(config["task"]["_target_"])(
        backbone=config["backbone"],
        info=data.info.to_dict(),
        optimizer=config["optimizer"],
        scheduler=config["scheduler"],
        total_steps=config["trainer"]["max_steps"],
        num_samples=config["callbacks"]["samples"],
        **options,
    )


def check_task(config: Mapping[str, Any]) -> None:
    """Raise `ConfigError` unless task and data are chosen, and fit each other and the experiment."""
    check_choices(config)
    declared = config["experiment_task"]
    if declared is not None and declared != config["task"]["name"]:
        raise ConfigError(
            f"the experiment is made for task={declared}, but the command has task={config['task']['name']}. "
            f"Leave task= out of the command, or set it to {declared}."
        )
    task = task_class(config["task"]["_target_"])
    if config["task"]["name"] != task.name:
        raise ConfigError(
            f"task.name={config['task']['name']}: the task's name is {task.name}. Use name= to name the run."
        )
    try:
        given = get_class(config["data"]["_target_"])
    except Exception as error:  # Hydra's own, of several types
        raise ConfigError(
            f"data._target_={config['data'].get('_target_')}: cannot be imported ({error}). Set it to the path of a data "
            "module."
        ) from error
    if not issubclass(given, task.Data):
        raise ConfigError(
            f"task={task.name} needs data of the kind {task.Data.__name__}, and data={config['data']['name']} is "
            f"of the kind {given.__name__}. Leave data= out for the task's own corpus, or choose another one (docs/data.md)."
        )
