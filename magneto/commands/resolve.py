"""Complete and check a composed configuration: once a job, before the run's folder opens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from magneto.commands import budget, build, console, preflight
from magneto.config import schema
from magneto.config.groups import CONF
from magneto.config.parts import Parts
from magneto.data.module import DataModule
from magneto.errors import ConfigError
from magneto.pretrained import init_from
from magneto.pretrained.resolve import adopt
from magneto.tasks.base import Task
from magneto.tasks.registry import task_class
from magneto.training import checkpoint_io
from magneto.training.loggers import is_main_process
from magneto.training.resume import follow
from magneto.training.run_folder import RunFolder, Start, run_folder


@dataclass(frozen=True, kw_only=True)
class ResolvedRun:
    """The complete configuration of a job, and what was read for it. Nothing is added later.

    Attributes:
        config: the complete configuration, plain values.
        given: `config` before the prepared data and the task completed it: a repeated command gives the same.
        overrides: of the command line.
        parts: the groups that the trainer is built from.
        folder: of the run.
        start: how the run of mode=train begins. Where it has ended already, nothing further is resolved.
        data: the prepared data.
        pretrained: what `init_from` names, read.
        trained: hyper-parameters and weights of `checkpoint`, for mode=test.
    """

    config: Mapping[str, Any]
    given: Mapping[str, Any]
    overrides: tuple[str, ...]
    parts: Parts
    folder: RunFolder | None = None
    start: Start | None = None
    data: DataModule | None = None
    pretrained: init_from.Pretrained | None = None
    trained: tuple[dict[str, Any], dict[str, Tensor]] | None = None


def resolve(cfg: DictConfig, overrides: Sequence[str] = ()) -> ResolvedRun:
    """Complete the configuration by what follows from pretrained weights, from a checkpoint, and from prepared data.

    In this order: refusals that need no data; the shape and the tokenizer of `init_from`, or the task of `checkpoint`;
    whether the run has ended; the data, prepared; what the task derives from them, such as a visual tokenizer or the
    patches on a side of an image. mode=config prepares data only where the task derives something from them.

    Args:
        cfg: the composed configuration (conf/config.yaml).
        overrides: of the command line: they name the run.

    Raises:
        MagnetoError: a mistake in the configuration, the data or the files, with its remedy.
    """
    config = schema.to_dict(cfg)
    mode = config["mode"]
    if mode == "config":
        config["mode"] = "train"
    with console.quiet_libraries():
        parts = preflight.check(config)
    known: dict[str, Any] = {"overrides": tuple(overrides), "parts": parts}
    if mode in ("predict", "export"):
        return ResolvedRun(config=config, given=config, **known)
    if mode == "test":
        known["trained"] = checkpoint_io.read_model(config["checkpoint"])
        config = _of_checkpoint(config, known["trained"][0])
        build.check_task(config)
    if config["init_from"] is not None:
        known["pretrained"] = init_from.read_pretrained(config["init_from"])
        config = adopt(config, overrides, known["pretrained"])
    if mode == "test":
        return ResolvedRun(config=config, given=config, **known)
    task = task_class(config["task"]["_target_"])
    if mode == "config" and not derives(task) and config["budget"] is None:
        return ResolvedRun(config=config, given=config, **known)
    if mode == "train":
        folder, resume = run_folder(config, overrides), config["resume"]
        start = folder.look(config, resume) if is_main_process() else follow(folder, resume)
        known |= {"folder": folder, "start": start}
        if start.result is not None:
            return ResolvedRun(config=config, given=config, **known)
    data = build.build_data(config["data"])
    data.prepare()
    complete = completed(config, task, data)
    if config["budget"] is not None and mode != "prepare":
        length: Any = budget.length_of(complete, config, parts, data, known.get("folder"))
        complete["trainer"] = complete["trainer"] | length
        known["parts"] = replace(parts, trainer=replace(parts.trainer, **length))
    return ResolvedRun(config=complete, given=config, data=data, **known)


def derives(task: type[Task]) -> bool:
    """Return whether a task derives a part of its configuration from prepared data."""
    return any(
        getattr(task, name).__func__ is not getattr(Task, name).__func__ for name in ("prepare", "shape_from")
    )


def completed(config: Mapping[str, Any], task: type[Task], data: DataModule) -> dict[str, Any]:
    """Return `config` with what `task` derives from its prepared data: options of its own, and the backbone's positions."""
    options = task.prepare(config, data)
    shape = task.shape_from(config["backbone"], data.info.to_dict())
    return {**config, "task": config["task"] | options, "backbone": config["backbone"] | shape}


def _of_checkpoint(config: Mapping[str, Any], hyper_parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration of mode=test with the task and the backbone of its checkpoint.

    What a task's own file sets of the data, and the chosen corpus leaves open, comes along: the masks of masked models.

    Raises:
        ConfigError: the command names another task, or no data.
    """
    target, source = hyper_parameters["task"], config["checkpoint"]
    name = task_class(target).name
    given = config["task"]
    if given is not None and given["name"] != name:
        raise ConfigError(
            f"checkpoint {source} is of task {name!r}, and the command has task={given['name']}. Set task to {name}."
        )
    data = config["data"]
    if data is None:
        raise ConfigError(
            f"data= is missing: checkpoint={source} is of task={name}. Set data to what it is to be tested on, or task to "
            f"{name} for that task's own corpus."
        )
    if given is None:
        file = CONF / "task" / f"{name}.yaml"
        of_task: Any = OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else {}
        own = of_task.get("data") or {}
        data = {key: own.get(key) if value is None else value for key, value in data.items()}
    others = ("task", "backbone", "info", "optimizer", "scheduler", "total_steps", "num_samples")
    options = {key: value for key, value in hyper_parameters.items() if key not in others}
    return {
        **config,
        "task": {"name": name, "_target_": target, **options},
        "backbone": hyper_parameters["backbone"],
        "data": data,
    }
