"""From the parts of a composed configuration to objects: data, task, trainer with its callbacks, loggers.

Every value is checked here or in the constructor that takes it, so that a mistake is told by its key.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import hydra
import lightning as L
import torch
from annotated_types import Ge
from hydra.errors import InstantiationException
from hydra.utils import get_class
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import OmegaConf

from magneto import callbacks, checkpoint
from magneto.averaging import LastWeights
from magneto.cli import CONF, options
from magneto.data.base import DataModule
from magneto.errors import UserError, check_types, from_mapping, nearest
from magneto.loggers import CSVLogger, wandb_logger
from magneto.loggers import Settings as LoggerSettings
from magneto.runs import RunFolder
from magneto.tasks.base import TaskModule, task_class

log = logging.getLogger("magneto")

PRECISIONS = ("auto", "32-true", "bf16-mixed", "64-true")
# Keys of conf/trainer that are not passed on to lightning.Trainer as they stand.
_OWN_TRAINER_KEYS = ("precision", "compile", "threads", "max_steps", "val_check_interval")


def check_task(config: Mapping[str, Any]) -> None:
    """Raise `UserError` unless task and data are chosen, and fit each other and the experiment."""
    tasks = options("task")
    if config["task"] is None:
        raise UserError(f"task= is missing. Choose one: {', '.join(f'task={task}' for task in tasks)}.")
    declared = config["experiment_task"]
    if declared is not None and declared != config["task"]["name"]:
        raise UserError(
            f"the experiment is made for task={declared}, but the command says task={config['task']['name']}. "
            f"Leave task= out of the command, or say task={declared}."
        )
    if config["data"] is None:
        raise UserError(f"data= is missing. Choose one: {', '.join(options('data'))}.")
    wanted = task_class(config["task"]["_target_"]).Data
    try:
        given = get_class(config["data"]["_target_"])
    except Exception as error:  # Hydra's own, of several types
        raise UserError(
            f"data._target_={config['data'].get('_target_')}: cannot be imported ({error})."
        ) from error
    if not issubclass(given, wanted):
        raise UserError(
            f"task={config['task']['name']} needs data of the kind {wanted.__name__}, and data={config['data']['name']} is "
            f"of the kind {given.__name__}. Leave data= out for the task's own corpus, or choose another one (docs/data.md)."
        )


def adopt_task(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of mode=test with the task of its checkpoint.

    What a task's own file sets of the data, and the chosen corpus leaves open, comes along: the masks of masked models.
    Raises `UserError` when there is no such checkpoint or no data.
    """
    hyper_parameters, _ = checkpoint.read_model(config["checkpoint"])
    target = hyper_parameters["task"]
    name = task_class(target).name
    if config["data"] is None:
        raise UserError(
            f"data= is missing: checkpoint={config['checkpoint']} is of task={name}. Say data= and what it is to "
            f"be tested on, or task={name} for that task's own corpus."
        )
    file = CONF / "task" / f"{name}.yaml"
    usual: Any = OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else {}
    own = usual.get("data") or {}
    data = {key: own.get(key) if value is None else value for key, value in config["data"].items()}
    return {**config, "task": {"name": name, "_target_": target}, "data": data}


def build_data(node: Mapping[str, Any]) -> DataModule:
    """The data module that `config["data"]` describes; a constructor's refusal is passed on without Hydra's wrapping."""
    arguments = {name: value for name, value in node.items() if name != "name"}
    _check_arguments(arguments, "data")
    try:
        module = hydra.utils.instantiate(arguments, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from None
        raise UserError(f"data: {cause or error}") from error
    assert isinstance(module, DataModule), module
    return module


def _check_arguments(node: Mapping[str, Any], where: str) -> None:
    """Raise `UserError` for an argument of another type than the constructor's, of `node` and of all nodes in it."""
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
        check_types(owner, plain, where)


def prepared_data(overrides: Sequence[str]) -> DataModule:
    """The data that `run.py` trains on with these overrides, prepared and set up: for scripts and notebooks.

    Raises `UserError` as a run does; Hydra's own exception for a key that there is not.
    """
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        composed = hydra.compose("config", list(overrides))
    config: Any = OmegaConf.to_container(composed, resolve=True, enum_to_str=True)
    check_task(config)
    data = build_data(config["data"])
    data.prepare()
    data.setup("fit")
    return data


def build_task(config: Mapping[str, Any], data: DataModule) -> TaskModule:
    """The task, sized by the facts of the prepared data."""
    options = {key: value for key, value in config["task"].items() if key not in ("_target_", "name")}
    return task_class(config["task"]["_target_"])(
        backbone=config["backbone"],
        spec=data.spec.to_dict(),
        optimizer=config["optimizer"],
        scheduler=config["scheduler"],
        total_steps=config["trainer"]["max_steps"],
        num_samples=config["callbacks"]["samples"],
        **options,
    )


def precision(setting: str, accelerator: str) -> str:
    """`auto` is bf16 autocast where the hardware multiplies in bf16 (CUDA, AVX512-BF16, AMX), fp32 elsewhere."""
    if setting not in PRECISIONS:
        raise UserError(
            f"trainer.precision={setting}: must be one of {', '.join(PRECISIONS)}.{nearest(setting, PRECISIONS)}"
        )
    if setting != "auto":
        return setting
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16-mixed" if native else "32-true"


@dataclass(frozen=True, kw_only=True)
class TrainerTypes:
    """What `check_types` is to know of `trainer`; the rest is Lightning's, which checks it."""

    accumulate_grad_batches: Annotated[int, Ge(1)]
    log_every_n_steps: Annotated[int, Ge(1)]
    num_nodes: Annotated[int, Ge(1)]
    threads: Annotated[int, Ge(1)] | None
    compile: bool
    enable_progress_bar: bool


def trainer_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of lightning.Trainer, checked."""
    settings = config["trainer"]
    arguments = {key: value for key, value in settings.items() if key not in _OWN_TRAINER_KEYS}
    arguments["precision"] = precision(settings["precision"], settings["accelerator"])
    return arguments | {"use_distributed_sampler": False, "enable_model_summary": False}


def progress_bar(config: Mapping[str, Any]) -> list[L.Callback]:
    """The progress bar as a list of callbacks, empty where it is switched off."""
    return [callbacks.ProgressBar()] if config["trainer"]["enable_progress_bar"] else []


def build_trainer(
    config: Mapping[str, Any],
    folder: RunFolder,
    task: TaskModule,
    loggers: list[Logger],
    signals: callbacks.StopSignals,
) -> tuple[L.Trainer, callbacks.Monitor, callbacks.Checkpoints]:
    """The trainer, and those of its callbacks that the result is read from."""
    settings = config["trainer"]
    watch = from_mapping(callbacks.Settings, config["callbacks"], "callbacks")
    steps, interval = settings["max_steps"], settings["val_check_interval"]
    for key, value in (("max_steps", steps), ("val_check_interval", interval)):
        if not isinstance(value, int) or value < 1:
            raise UserError(f"trainer.{key}={value}: must be a whole number of optimizer steps, 1 or more.")
    if settings["limit_val_batches"] == 0:
        raise UserError(
            "trainer.limit_val_batches=0: a validation chooses the checkpoint that is tested. Say 1 for a single batch."
        )
    monitor = callbacks.Monitor(settings["log_every_n_steps"], watch.divergence_factor)
    saver = callbacks.Checkpoints(folder.checkpoints, task.monitor, task.mode, watch.save_every, signals)
    watching: list[L.Callback] = [callbacks.ConfigureRun(), callbacks.StepSeed(config["seed"])]
    if watch.ema_decay:
        if (window := round(1 / (1 - watch.ema_decay))) > steps:
            log.warning(
                "callbacks.ema_decay=%s averages the weights over about %d steps, and the run has %d: the average stays "
                "near the weights of the start. Set it to %.4g or less.",
                watch.ema_decay,
                window,
                steps,
                1 - 1 / max(2, steps // 10),
            )
        # Buffers are taken over as they are: an average of indices or of a codebook's directions would be neither.
        watching.append(EMAWeightAveraging(decay=watch.ema_decay, use_buffers=False))
    if watch.average_last:
        watching.append(LastWeights(folder.checkpoints, watch.average_last))
    watching += [monitor, callbacks.StabilityProbe(watch.probe_every), saver, *progress_bar(config)]
    accumulate = settings["accumulate_grad_batches"]
    try:
        trainer = L.Trainer(
            **trainer_arguments(config),
            # One Lightning epoch is the whole run: the loader has all its batches, over any number of data epochs.
            max_epochs=1,
            val_check_interval=interval * accumulate,
            check_val_every_n_epoch=None,
            default_root_dir=folder.path,
            logger=loggers,
            callbacks=watching,
            plugins=[checkpoint.AtomicCheckpointIO()],
            enable_checkpointing=True,
        )
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise UserError(f"trainer: {error}") from error
    return trainer, monitor, saver


def build_loggers(folder: RunFolder, config: Mapping[str, Any], step: int) -> list[Logger]:
    """metrics.csv, rewound to `step`, and W&B unless it is disabled."""
    csv_logger = CSVLogger(folder.metrics)
    csv_logger.rewind(step)
    settings = from_mapping(LoggerSettings, config["logger"], "logger")
    settings = replace(settings, group=settings.group or config["task"]["name"])
    wandb = wandb_logger(folder.path, settings, config)
    return [csv_logger] if wandb is None else [csv_logger, wandb]


def close(loggers: Sequence[Logger]) -> None:
    """End the W&B run whatever happened, so that the next job of a sweep has one of its own."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()
