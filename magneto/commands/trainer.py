"""Build the trainer with its callbacks and loggers from the configuration."""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher

from magneto.commands import console
from magneto.commands.build import build_extra
from magneto.config.parts import EXTRA_TRAINER_KEYS, LoggerConfig, Parts, TrainerConfig, defaults
from magneto.config.validate import from_mapping
from magneto.data.module import DataModule
from magneto.errors import ConfigError, MagnetoError, nearest
from magneto.tasks.base import Task
from magneto.training import checkpoint_io, checkpointing, reproducibility, signals, stability
from magneto.training.averaging import LastWeights, MovingAverage
from magneto.training.devices import precision, unusable_gpu
from magneto.training.loggers import CSVLogger, RunLogger, wandb_logger
from magneto.training.monitor import Monitor
from magneto.training.optim import decay_start
from magneto.training.run_folder import RunFolder
from magneto.training.sharding import ShardedStrategy

log = logging.getLogger("magneto")


STRATEGIES = ("auto", "ddp", "ddp_find_unused_parameters_false", "ddp_find_unused_parameters_true", "fsdp")


# Keys of the group trainer that are not passed on to lightning.Trainer as they stand.
_OWN_KEYS = ("precision", "matmul_precision", "compile", "threads", "max_steps", "val_check_interval")


# Arguments of lightning.Trainer that would have no effect, or end a run before its last step: what to use instead.
_NOT_SUPPORTED = {
    "gradient_clip_val": "the training step clips by itself. Use optimizer.gradient_clip",
    "gradient_clip_algorithm": "the training step clips by the global norm. Use optimizer.gradient_clip",
    "max_time": "the run would end before its learning rate has decayed. Use budget=10min or trainer.max_steps",
    "limit_train_batches": "the run would end before its last step. Use trainer.max_steps",
    "overfit_batches": "the run would end before its last step. Use debug=default to see that a configuration runs",
    "fast_dev_run": "the run would have no checkpoint to test. Use debug=default",
    "min_steps": "a run has exactly trainer.max_steps steps. Leave it out",
    "min_epochs": "the length of a run is counted in steps. Use trainer.max_steps",
    "max_epochs": "the length of a run is counted in steps. Use trainer.max_steps",
    "check_val_every_n_epoch": "validations are counted in steps. Use trainer.val_check_interval",
    "default_root_dir": "a run has its own folder. Use runs_dir= and name=",
    "logger": "the loggers are those of the group logger. Use logger.wandb",
    "enable_checkpointing": "a run always keeps its checkpoints. Use callbacks.save_minutes",
}


def trainer_config(settings: Mapping[str, Any]) -> TrainerConfig:
    """Return the group `trainer`, checked.

    Raises:
        ConfigError: a key is missing, unknown or not supported, or has a value that is not possible.
    """
    if settings.get("precision") == "bf16-true":
        raise ConfigError(
            "trainer.precision=bf16-true is not supported: weights and the residual stream would lose updates below 1/512 "
            "of their size. With a copy of the weights in fp32 it would save no memory: 16 bytes a parameter with Adam, "
            "as now. Set trainer.precision to bf16-mixed."
        )
    for key, value in settings.items():
        if key in _NOT_SUPPORTED:
            raise ConfigError(f"trainer.{key}={value} is not supported: {_NOT_SUPPORTED[key]}.")
    config = from_mapping(TrainerConfig, settings, "trainer", require=tuple(defaults(TrainerConfig)))
    strategy = config.strategy
    if strategy not in STRATEGIES:
        reason = f"there is no such strategy.{nearest(strategy, STRATEGIES)}"
        if strategy.startswith(("fsdp", "deepspeed")):
            reason = "weight decay, gradient clipping and the export would be wrong."
        elif strategy.startswith(("ddp_spawn", "ddp_fork", "ddp_notebook")):
            reason = "the metrics and the trained weights would stay in the child processes."
        elif strategy in StrategyRegistry.available_strategies():
            reason = "it is not tested with magneto."
        raise ConfigError(
            f"trainer.strategy={strategy} is not supported: {reason} Set trainer.strategy to ddp or fsdp, or "
            "to auto for one process."
        )
    if config.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise ConfigError(
            f"trainer.accelerator={config.accelerator}: torch finds no GPU.{unusable_gpu()} "
            "Set trainer.accelerator to auto to train on what there is."
        )
    return config


def trainer_arguments(settings: TrainerConfig) -> dict[str, Any]:
    """Return keyword arguments of lightning.Trainer."""
    arguments = {key: value for key, value in vars(settings).items() if key not in _OWN_KEYS}
    for key in EXTRA_TRAINER_KEYS:
        if arguments[key] is None:
            del arguments[key]
    return arguments | {
        "precision": precision(settings.precision, settings.accelerator),
        "use_distributed_sampler": False,
        "enable_model_summary": False,
        "enable_progress_bar": bool(progress_bar(settings)),
    }


def lightning_trainer(settings: TrainerConfig, **further: Any) -> L.Trainer:
    """Return Lightning's trainer.

    Args:
        settings: the user's.
        further: arguments of lightning.Trainer that are not the user's.

    Raises:
        ConfigError: Lightning refuses a setting, or the processes of the environment are not those of the settings.
    """
    arguments = trainer_arguments(settings) | further
    if settings.strategy == "fsdp":
        arguments["strategy"] = ShardedStrategy()
    try:
        with lightning_errors():
            arguments["plugins"] = [*further.get("plugins", ()), *_cluster(settings)]
            trainer = L.Trainer(**arguments)
    except (TypeError, ValueError, RuntimeError, ImportError) as error:
        raise error if isinstance(error, MagnetoError) else ConfigError(f"trainer: {error}") from error
    _check_processes(trainer, settings)
    return trainer


@contextlib.contextmanager
def lightning_errors() -> Iterator[None]:
    """Turn what Lightning raises for a wrong setting into `ConfigError`."""
    try:
        yield
    except MisconfigurationException as error:
        raise ConfigError(f"trainer: {error}") from error


def _cluster(settings: TrainerConfig) -> list[ClusterEnvironment]:
    """Return the environment of SLURM where `StopSignals` saves and queues again, and not Lightning.

    Raises:
        RuntimeError: SLURM's variables do not say how many processes a machine has.
    """
    if TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return []
    alone = settings.devices in (1, "1") and settings.num_nodes == 1
    if alone and "SLURM_STEP_NUM_TASKS" not in os.environ and os.environ.get("SLURM_PROCID", "0") == "0":
        return [LightningEnvironment()]  # in the batch script itself, which srun has not multiplied
    return [SLURMEnvironment(auto_requeue=False)]


def _check_processes(trainer: L.Trainer, settings: TrainerConfig) -> None:
    """Raise `ConfigError` unless the processes that were started are those that `trainer` works with."""
    started, starter = 1, ""
    cluster = trainer._accelerator_connector.cluster_environment
    if TorchElasticEnvironment.detect():
        started, starter = int(os.environ["WORLD_SIZE"]), "torchrun starts"
    elif isinstance(cluster, SLURMEnvironment):
        started, starter = cluster.world_size(), "SLURM starts"
    elif isinstance(cluster, LightningEnvironment) and (settings.num_nodes > 1 or cluster.node_rank() > 0):
        raise ConfigError(
            "trainer.num_nodes > 1 or NODE_RANK without torchrun or srun: each node would be the first one. "
            "Start the run with torchrun or srun on every node (docs/cluster.md)."
        )
    expected = trainer.num_devices * settings.num_nodes
    if starter and started != expected:
        raise ConfigError(
            f"{starter} {started} processes, but trainer.devices={settings.devices} and trainer.num_nodes="
            f"{settings.num_nodes} make {expected}. Set trainer.devices to the processes on a node and trainer.num_nodes "
            "to the nodes, or start as many processes as these."
        )
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _MultiProcessingLauncher):  # Lightning's choice for auto in a notebook
        raise ConfigError(
            f"trainer.devices={settings.devices} in a notebook: the metrics and the trained weights would stay in the "
            "child processes. Set trainer.devices=1, or run run.py in a shell."
        )
    sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    if sweep and not starter and launcher is not None:
        raise ConfigError(
            "-m cannot start several processes a job: Lightning's children would repeat the whole sweep. "
            "Run the jobs one by one (without -m), or start the sweep with torchrun or srun."
        )


def progress_bar(settings: TrainerConfig) -> list[L.Callback]:
    """Return the progress bar as a list of callbacks, empty where it is switched off or the output is no terminal."""
    return [console.ProgressBar()] if settings.enable_progress_bar and console.has_bar() else []


def build_trainer(
    parts: Parts,
    seed: int,
    folder: RunFolder,
    task: Task,
    signals: signals.StopSignals,
    others: Sequence[L.Callback] = (),
) -> tuple[L.Trainer, Monitor, checkpointing.Checkpoints]:
    """Return the trainer, with `others` before its own callbacks, and the two of these that the result is read from."""
    settings, watch = parts.trainer, parts.callbacks
    monitor = Monitor(settings.log_every_n_steps, watch.divergence_factor)
    steps = settings.max_steps
    stable = decay_start(task.scheduler_config, steps)
    saver = checkpointing.Checkpoints(
        folder.checkpoints,
        task.monitor,
        task.mode,
        signals,
        minutes=watch.save_minutes,
        every=watch.save_every,
        stable=stable,
    )
    callbacks: list[L.Callback] = [
        *others,
        reproducibility.ConfigureRun(),
        reproducibility.StepSeed(seed),
    ]
    if watch.ema_decay:
        if (window := round(1 / (1 - watch.ema_decay))) > steps:
            log.warning(
                "callbacks.ema_decay=%s averages the weights over about %d steps, and the run has %d: the average stays "
                "near the weights of the start. Set it to %.4g or less.",
                watch.ema_decay, window, steps, 1 - 1 / max(2, steps // 10),
            )  # fmt: skip
        callbacks.append(MovingAverage(watch.ema_decay))
    if watch.average_last:
        callbacks.append(LastWeights(folder.checkpoints, watch.average_last))
    bar = progress_bar(settings)
    callbacks += [monitor, stability.StabilityProbe(watch.probe_every)]
    callbacks += [*build_extra(watch.extra, "callbacks.extra", L.Callback), saver, *bar]
    callbacks.append(console.ProgressLines(saver, bar=bool(bar)))
    trainer = lightning_trainer(
        settings,
        # One Lightning epoch is the whole run: the loader has all its batches, over any number of data epochs.
        max_epochs=1,
        val_check_interval=settings.val_check_interval * settings.accumulate_grad_batches,
        check_val_every_n_epoch=None,
        # Under SLURM, Lightning loads any hpc_ckpt_*.ckpt that it finds there instead of the given checkpoint.
        default_root_dir=folder.path / "lightning",
        logger=[],
        callbacks=callbacks,
        plugins=[checkpoint_io.AtomicCheckpointIO(background=watch.save_async)],
        enable_checkpointing=True,
    )
    if isinstance(trainer.strategy, DDPStrategy):
        # Gradients lie in the memory of the messages, not beside it. Of all buffers running means alone need messages.
        running = any(isinstance(module, torch.nn.BatchNorm1d) for module in task.modules())
        trainer.strategy._ddp_kwargs.update(gradient_as_bucket_view=True, broadcast_buffers=running)
    return trainer, monitor, saver


def share_batch(trainer: L.Trainer, data: DataModule, settings: TrainerConfig) -> None:
    """Let the trainer accumulate as many batches as make up `data.global_batch`, if that is set.

    Raises:
        ConfigError: the processes cannot share it, or another number of accumulated batches was asked for.
    """
    count = data.micro_batches(trainer.world_size)
    if count is None:
        return
    if settings.accumulate_grad_batches not in (1, count):
        raise ConfigError(
            f"data.global_batch={data.global_batch} makes {count} micro-batches a step with {trainer.world_size} processes, "
            f"not trainer.accumulate_grad_batches={settings.accumulate_grad_batches}. Leave that out, and lower the "
            "data's own batch setting for smaller ones."
        )
    trainer.accumulate_grad_batches = count
    trainer.val_check_interval = settings.val_check_interval * count


def build_tester(settings: TrainerConfig, folder: Path) -> L.Trainer:
    """Return the trainer of mode=test. Raises `MagnetoError` as `build_trainer` does."""
    return lightning_trainer(
        settings,
        logger=False,
        enable_checkpointing=False,
        default_root_dir=folder / "lightning",
        callbacks=[reproducibility.ConfigureRun(), *progress_bar(settings)],
    )


def build_loggers(
    folder: RunFolder, settings: LoggerConfig, config: Mapping[str, Any], step: int, task: Task
) -> list[Logger]:
    """Return the logger of metrics.csv, rewound to `step`, the user's own, and that of W&B unless it is disabled."""
    csv_logger = CSVLogger(folder.metrics)
    csv_logger.rewind(step)
    loggers: list[Logger] = [csv_logger, *build_extra(settings.extra, "logger.extra", Logger)]
    wandb = wandb_logger(folder.path, settings, config)
    if wandb is not None:
        wandb.keep_best(task.monitor, task.mode)
        loggers.append(wandb)
    return loggers


def close(loggers: Sequence[Logger]) -> None:
    """End the W&B run whatever happened, so that the next job of a sweep has one of its own."""
    for logger in loggers:
        if isinstance(logger, RunLogger):
            logger.finish()
