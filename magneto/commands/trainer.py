"""Build the trainer with its callbacks and loggers from the configuration."""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import lightning as L
import torch
from annotated_types import Ge
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher

from magneto.commands import console
from magneto.config import schema
from magneto.config.validate import check_types, from_mapping
from magneto.errors import ConfigError, MagnetoError, nearest
from magneto.tasks.base import Task
from magneto.training import checkpoint_io, checkpointing, reproducibility, signals, stability
from magneto.training.averaging import LastWeights
from magneto.training.devices import precision, unusable_gpu
from magneto.training.loggers import CSVLogger, RunLogger, wandb_logger
from magneto.training.loggers import Settings as LoggerSettings
from magneto.training.monitor import Monitor
from magneto.training.run_folder import RunFolder

log = logging.getLogger("magneto")


STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true")


# Keys of conf/trainer that are not passed on to lightning.Trainer as they stand.
_OWN_TRAINER_KEYS = ("precision", "compile", "threads", "max_steps", "val_check_interval")


# Further arguments of lightning.Trainer, to be added with +trainer.KEY=.
_EXTRA_TRAINER_KEYS = ("benchmark", "detect_anomaly", "inference_mode", "profiler", "sync_batchnorm")


# Arguments of lightning.Trainer that would have no effect, or end a run before its last step: what to use instead.
_NOT_SUPPORTED = {
    "gradient_clip_val": "the training step clips by itself. Use optimizer.gradient_clip",
    "gradient_clip_algorithm": "the training step clips by the global norm. Use optimizer.gradient_clip",
    "max_time": "the run would end before its learning rate has decayed. Use trainer.max_steps, or stop it with Ctrl-C",
    "limit_train_batches": "the run would end before its last step. Use trainer.max_steps",
    "overfit_batches": "the run would end before its last step. Use debug=default to see that a configuration runs",
    "fast_dev_run": "the run would have no checkpoint to test. Use debug=default",
    "min_steps": "a run has exactly trainer.max_steps steps. Leave it out",
    "min_epochs": "the length of a run is counted in steps. Use trainer.max_steps",
    "max_epochs": "the length of a run is counted in steps. Use trainer.max_steps",
    "check_val_every_n_epoch": "validations are counted in steps. Use trainer.val_check_interval",
    "default_root_dir": "a run has its own folder. Use runs_dir= and name=",
    "logger": "the loggers are those of the group logger. Use logger.wandb",
    "enable_checkpointing": "a run always keeps its checkpoints. Use callbacks.save_every",
}


@dataclass(frozen=True, kw_only=True)
class TrainerTypes:
    """The types of the keys of conf/trainer; Lightning checks the values of those that it takes."""

    accelerator: str
    devices: int | str | list[int]
    num_nodes: Annotated[int, Ge(1)]
    strategy: str
    precision: str
    max_steps: Annotated[int, Ge(1)]
    val_check_interval: Annotated[int, Ge(1)]
    accumulate_grad_batches: Annotated[int, Ge(1)]
    log_every_n_steps: Annotated[int, Ge(1)]
    limit_val_batches: int | float
    limit_test_batches: int | float
    num_sanity_val_steps: Annotated[int, Ge(-1)]
    deterministic: bool | Literal["warn"]
    compile: bool
    threads: Annotated[int, Ge(1)] | None
    enable_progress_bar: bool


def check_trainer(settings: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for a key of `trainer` that is missing, unknown or not supported, or has a wrong value."""
    known = [field.name for field in fields(TrainerTypes)]
    schema.require(settings, known, "trainer")
    available = (*known, *_EXTRA_TRAINER_KEYS)
    for key, value in settings.items():
        if key in _NOT_SUPPORTED:
            raise ConfigError(f"trainer.{key}={value} is not supported: {_NOT_SUPPORTED[key]}.")
        if key not in available:
            raise ConfigError(
                f"trainer.{key}={value}: there is no such key, or it is not supported.{nearest(key, available)} "
                f"Choose from: {', '.join(available)}."
            )
    check_types(TrainerTypes, settings, "trainer")
    for key, reason in (
        ("limit_val_batches", "a validation chooses the checkpoint that is tested"),
        ("limit_test_batches", "a run ends with its test metrics"),
    ):
        if settings[key] == 0:
            raise ConfigError(f"trainer.{key}=0: {reason}. Set it to 1 for a single batch.")
    strategy = settings["strategy"]
    if strategy not in STRATEGIES:
        reason = f"there is no such strategy.{nearest(strategy, STRATEGIES)}"
        if strategy.startswith(("fsdp", "deepspeed")):
            reason = "weight decay, gradient clipping and the export would be wrong with sharded parameters."
        elif strategy.startswith(("ddp_spawn", "ddp_fork", "ddp_notebook")):
            reason = "the metrics and the trained weights would stay in the child processes."
        elif strategy in StrategyRegistry.available_strategies():
            reason = "it is not tested with magneto."
        raise ConfigError(
            f"trainer.strategy={strategy} is not supported: {reason} Use trainer.strategy=ddp, or auto for one process."
        )
    if settings["accelerator"] in ("gpu", "cuda") and not torch.cuda.is_available():
        raise ConfigError(
            f"trainer.accelerator={settings['accelerator']}: torch finds no GPU.{unusable_gpu()} "
            "Use trainer.accelerator=auto to train on what there is."
        )


def trainer_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of lightning.Trainer, checked."""
    settings = config["trainer"]
    arguments = {key: value for key, value in settings.items() if key not in _OWN_TRAINER_KEYS}
    arguments["precision"] = precision(settings["precision"], settings["accelerator"])
    return arguments | {
        "use_distributed_sampler": False,
        "enable_model_summary": False,
        "enable_progress_bar": settings["enable_progress_bar"] and console.has_bar(),
    }


def lightning_trainer(config: Mapping[str, Any], **further: Any) -> L.Trainer:
    """Return Lightning's trainer with the settings of `config["trainer"]`.

    Args:
        config: the resolved configuration.
        further: arguments of lightning.Trainer that are not the user's.

    Raises:
        ConfigError: Lightning refuses a setting, or the processes of the environment are not those of the settings.
    """
    check_trainer(config["trainer"])
    arguments = trainer_arguments(config) | further
    try:
        with lightning_errors():
            arguments["plugins"] = [*further.get("plugins", ()), *_cluster(config["trainer"])]
            trainer = L.Trainer(**arguments)
    except (TypeError, ValueError, RuntimeError, ImportError) as error:
        raise error if isinstance(error, MagnetoError) else ConfigError(f"trainer: {error}") from error
    _check_processes(trainer, config["trainer"])
    return trainer


@contextlib.contextmanager
def lightning_errors() -> Iterator[None]:
    """Turn what Lightning raises for a wrong setting into `ConfigError`."""
    try:
        yield
    except MisconfigurationException as error:
        raise ConfigError(f"trainer: {error}") from error


def _cluster(settings: Mapping[str, Any]) -> list[ClusterEnvironment]:
    """What Lightning is to know of SLURM: that `callbacks.StopSignals` saves and queues again, and not Lightning.

    Raises:
        RuntimeError: SLURM's variables do not say how many processes a machine has.
    """
    if TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return []
    alone = settings["devices"] in (1, "1") and settings["num_nodes"] == 1
    if alone and "SLURM_STEP_NUM_TASKS" not in os.environ and os.environ.get("SLURM_PROCID", "0") == "0":
        return [LightningEnvironment()]  # in the batch script itself, which srun has not multiplied
    return [SLURMEnvironment(auto_requeue=False)]


def _check_processes(trainer: L.Trainer, settings: Mapping[str, Any]) -> None:
    """Raise `ConfigError` unless the processes that were started are those that `trainer` works with."""
    started, starter = 1, ""
    cluster = trainer._accelerator_connector.cluster_environment
    if TorchElasticEnvironment.detect():
        started, starter = int(os.environ["WORLD_SIZE"]), "torchrun starts"
    elif isinstance(cluster, SLURMEnvironment):
        started, starter = cluster.world_size(), "SLURM starts"
    elif isinstance(cluster, LightningEnvironment) and (settings["num_nodes"] > 1 or cluster.node_rank() > 0):
        raise ConfigError(
            "trainer.num_nodes > 1 or NODE_RANK without torchrun or srun: each node would take itself for the first one. "
            "Start the run with torchrun or srun on every node (docs/cluster.md)."
        )
    expected = trainer.num_devices * settings["num_nodes"]
    if starter and started != expected:
        raise ConfigError(
            f"{starter} {started} processes, but trainer.devices={settings['devices']} and trainer.num_nodes="
            f"{settings['num_nodes']} make {expected}. Set trainer.devices to the processes on a node and trainer.num_nodes "
            "to the nodes, or start as many processes as these."
        )
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _MultiProcessingLauncher):  # Lightning's choice for auto in a notebook
        raise ConfigError(
            f"trainer.devices={settings['devices']} in a notebook: the metrics and the trained weights would stay in the "
            "child processes. Set trainer.devices=1, or run run.py in a shell."
        )
    sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    if sweep and not starter and launcher is not None:
        raise ConfigError(
            "-m cannot start several processes a job: Lightning's children would repeat the whole sweep. "
            "Run the jobs one by one (without -m), or start the sweep with torchrun or srun."
        )


def progress_bar(config: Mapping[str, Any]) -> list[L.Callback]:
    """The progress bar as a list of callbacks, empty where it is switched off or cannot be drawn."""
    return [console.ProgressBar()] if config["trainer"]["enable_progress_bar"] and console.has_bar() else []


def build_trainer(
    config: Mapping[str, Any],
    folder: RunFolder,
    task: Task,
    loggers: list[Logger],
    signals: signals.StopSignals,
    others: Sequence[L.Callback] = (),
) -> tuple[L.Trainer, Monitor, checkpointing.Checkpoints]:
    """The trainer, with `others` before its own callbacks, and those of these that the result is read from."""
    settings = config["trainer"]
    watch = from_mapping(checkpointing.Settings, config["callbacks"], "callbacks")
    monitor = Monitor(settings["log_every_n_steps"], watch.divergence_factor)
    saver = checkpointing.Checkpoints(folder.checkpoints, task.monitor, task.mode, watch.save_every, signals)
    steps = settings["max_steps"]
    watching: list[L.Callback] = [
        *others,
        reproducibility.ConfigureRun(),
        reproducibility.StepSeed(config["seed"]),
    ]
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
    bar = progress_bar(config)
    watching += [monitor, stability.StabilityProbe(watch.probe_every), saver, *bar]
    watching.append(console.ProgressLines(saver, bar=bool(bar)))
    trainer = lightning_trainer(
        config,
        # One Lightning epoch is the whole run: the loader has all its batches, over any number of data epochs.
        max_epochs=1,
        val_check_interval=settings["val_check_interval"] * settings["accumulate_grad_batches"],
        check_val_every_n_epoch=None,
        # Under SLURM, Lightning loads any hpc_ckpt_*.ckpt that it finds there instead of the given checkpoint.
        default_root_dir=folder.path / "lightning",
        logger=loggers,
        callbacks=watching,
        plugins=[checkpoint_io.AtomicCheckpointIO()],
        enable_checkpointing=True,
    )
    return trainer, monitor, saver


def build_tester(config: Mapping[str, Any], folder: Path) -> L.Trainer:
    """The trainer of mode=test. Raises `MagnetoError` as `build_trainer` does."""
    return lightning_trainer(
        config,
        logger=False,
        enable_checkpointing=False,
        default_root_dir=folder / "lightning",
        callbacks=[reproducibility.ConfigureRun(), *progress_bar(config)],
    )


def build_loggers(folder: RunFolder, config: Mapping[str, Any], step: int, task: Task) -> list[Logger]:
    """metrics.csv, rewound to `step`, and W&B unless it is disabled."""
    csv_logger = CSVLogger(folder.metrics)
    csv_logger.rewind(step)
    settings = from_mapping(LoggerSettings, config["logger"], "logger")
    wandb = wandb_logger(folder.path, settings, config)
    if wandb is None:
        return [csv_logger]
    wandb.keep_best(task.monitor, task.mode)
    return [csv_logger, wandb]


def close(loggers: Sequence[Logger]) -> None:
    """End the W&B run whatever happened, so that the next job of a sweep has one of its own."""
    for logger in loggers:
        if isinstance(logger, RunLogger):
            logger.finish()
