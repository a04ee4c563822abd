"""Check a configuration before a run: errors that need no data are raised before anything is fetched or written."""

import logging
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
from lightning.pytorch.loggers import Logger

from magneto.commands import budget, build, trainer
from magneto.commands.build import check_task
from magneto.config import schema
from magneto.config.parts import (
    CallbacksConfig,
    LoggerConfig,
    OptimizerConfig,
    Parts,
    SchedulerConfig,
    defaults,
)
from magneto.config.validate import from_mapping
from magneto.data.cache import is_complete
from magneto.data.module import DataModule
from magneto.errors import ConfigError, MagnetoError
from magneto.nn.config import BackboneConfig
from magneto.tasks.registry import task_class
from magneto.training import checkpoint_io, devices, loggers
from magneto.training.optim import schedule

log = logging.getLogger("magneto")

Part = TypeVar("Part")


def check(config: Mapping[str, Any]) -> Parts:
    """Check the whole configuration for its mode.

    Nothing is left on the disk, and nothing is fetched.

    Returns:
        the groups that the trainer is built from.

    Raises:
        ConfigError: an unknown or impossible value, a path that does not exist or is not writable, too little free space,
            or a device that is not there.
    """
    schema.check(config)
    mode = config["mode"]
    parts = Parts(
        trainer=trainer.trainer_config(config["trainer"]),
        callbacks=_part(CallbacksConfig, config, "callbacks"),
        logger=_part(LoggerConfig, config, "logger"),
    )
    if mode in ("test", "predict", "export"):
        _check_checkpoint(config)
        if mode == "export" and config["output"]:
            check_writable(Path(config["output"]), "output")
    if mode in ("train", "prepare", "test"):
        check_writable(Path(config["data_dir"]), "data_dir")
        _check_source(config["init_from"])
    planned = None
    if mode in ("train", "test"):
        planned = trainer.lightning_trainer(parts.trainer, logger=False, enable_checkpointing=False)
    if config["budget"] is not None:
        budget.check(config["budget"], parts.trainer)
    if mode in ("train", "prepare"):
        check_task(config)
        data = build.build_data(config["data"])
        _check_parts(config)
        if planned is not None:
            trainer.share_batch(planned, data, parts.trainer)
            _check_shares(config, data, planned)
        build.build_extra(parts.callbacks.extra, "callbacks.extra", L.Callback)
        build.build_extra(parts.logger.extra, "logger.extra", Logger)
        loggers.check(parts.logger)
        _check_space(data)
    if mode == "train":
        check_writable(Path(config["runs_dir"]) / config["task"]["name"], "runs_dir")
        if config["resume"] not in ("auto", "never", "must"):
            checkpoint_io.check_file(config["resume"], f"resume={config['resume']}")
        if parts.trainer.accelerator == "auto" and (reason := devices.unusable_gpu()):
            log.warning("training on the CPU.%s", reason)
    return parts


def _part(cls: type[Part], config: Mapping[str, Any], group: str) -> Part:
    return from_mapping(cls, config[group], group, require=tuple(defaults(cls)))


def check_writable(path: Path, key: str) -> None:
    """Raise `ConfigError` unless the folder `path`, or the nearest one above it that exists, can be written.

    A file is written there and removed: permissions alone do not show read-only file systems and quotas.
    """
    there = path.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
        if there != path.absolute():
            tempfile.TemporaryDirectory(dir=there, prefix=".magneto-").cleanup()
    except OSError as error:
        raise ConfigError(
            f"{key}: {path} cannot be written ({error.strerror}: {there}). Set {key} to a folder that can be written."
        ) from error


def _check_checkpoint(config: Mapping[str, Any]) -> None:
    path = config["checkpoint"]
    if not path:
        raise ConfigError(
            f"mode={config['mode']} needs checkpoint=: a run's folder, its checkpoints/best.ckpt, or an export folder."
        )
    if not (model := checkpoint_io.of_run(path)).is_dir():
        checkpoint_io.check_file(model, f"checkpoint {model}")


def _check_source(source: str | None) -> None:
    """Raise `ConfigError` for an `init_from=` that names nothing."""
    if source is None or (source.startswith("hf:") and source != "hf:"):
        return
    path = Path(source.removeprefix("beit3:"))
    if source in ("", "hf:", "beit3:") or not path.exists():
        raise ConfigError(
            f"init_from={source}: there is nothing with this name. Use a run's folder, a checkpoint, an export folder, "
            "hf:NAME_OR_FOLDER or beit3:FILE."
        )


def _check_parts(config: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for a value that the optimizer, schedule, task or backbone refuse."""
    from_mapping(OptimizerConfig, config["optimizer"], "optimizer")
    schedule(from_mapping(SchedulerConfig, config["scheduler"], "scheduler"), config["trainer"]["max_steps"])
    options = {key: value for key, value in config["task"].items() if key not in ("_target_", "name")}
    from_mapping(task_class(config["task"]["_target_"]).Options, options, "task")
    schema.require(config["backbone"], ["placement"], "backbone")
    if config["init_from"] is None:  # else the pretrained model decides the shape
        backbone = dict(config["backbone"])
        if backbone.get("grid") is None and backbone.get("position") == "relative_2d":
            backbone["grid"] = 1  # the task sets it, from the images
        try:
            BackboneConfig.from_dict(backbone)
        except MagnetoError as error:
            named = str(error).startswith("backbone.")
            raise ConfigError(str(error) if named else f"backbone: {error}") from error


def _check_shares(config: Mapping[str, Any], data: DataModule, planned: L.Trainer) -> None:
    """Raise `ConfigError` where `data.global_batch` would be made up of parts that do not add up to it."""
    task, count = task_class(config["task"]["_target_"]), planned.accumulate_grad_batches
    options = {key: value for key, value in config["task"].items() if key not in ("_target_", "name")}
    if data.global_batch and count > 1 and not task.accumulates(from_mapping(task.Options, options, "task")):
        raise ConfigError(
            f"data.global_batch={data.global_batch} is {count} batches of each process, and task={task.name} compares the "
            f"examples of one. Set data.batch_size to {data.global_batch // planned.world_size} or more, or take more "
            "processes."
        )


def _check_space(data: DataModule) -> None:
    """Raise `ConfigError` if the corpora, where they know their size, need more than the free space of the disk."""
    needed = sum(
        source.missing_bytes(data.data_dir)
        for source in getattr(data, "corpora", {}).values()
        if hasattr(source, "missing_bytes")
    )
    there = data.data_dir.absolute()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    folder = getattr(data, "folder", None)  # of prepared data, which needs no corpus any more
    if needed > free and not (folder is not None and is_complete(folder)):
        raise ConfigError(
            f"data_dir={data.data_dir}: the corpus needs about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free. "
            "Free space, or set data_dir to a folder on a larger disk."
        )
