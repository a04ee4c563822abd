"""`mode=train`: from a composed configuration to a finished run.

    resolve -> task(backbone, info, optimizer) -> Trainer.fit -> test of the best checkpoint -> export -> result.json

A run lives in its folder (magneto/training/run_folder.py). The same command resumes it, or reports that it has finished.
"""

import contextlib
import errno
import logging
import os
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig

from magneto.commands import build, console, summary
from magneto.commands.resolve import ResolvedRun, resolve
from magneto.commands.trainer import build_loggers, build_trainer, close, lightning_errors, share_batch
from magneto.data.cache import UNWRITABLE, short_hash
from magneto.data.module import DataModule
from magneto.errors import ConfigError, MagnetoError
from magneto.pretrained.init_from import initialize_from
from magneto.tasks import registry
from magneto.tasks.base import Task
from magneto.training import checkpoint_io, monitor, reproducibility
from magneto.training.averaging import LastWeights
from magneto.training.files import CHECKPOINT_REMEDY
from magneto.training.loggers import RunLogger, is_main_process
from magneto.training.memory import memory_of_run, peak_memory, reset_peak_memory
from magneto.training.module import Diverged
from magneto.training.result import RunResult
from magneto.training.resume import check_progress, follow, read_start, while_restoring
from magneto.training.run_config import compared
from magneto.training.run_folder import RunFolder, Start
from magneto.training.sharding import empty_parameters, is_sharded, whole_weights
from magneto.training.signals import Interrupted, StopSignals

log = logging.getLogger("magneto")


def train(cfg: DictConfig, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Resolve, train, test and export a run, or continue it where it ended.

    Args:
        cfg: the composed configuration.
        overrides: of the command line.

    Returns:
        the content of result.json, and `folder`.

    Raises:
        MagnetoError: a mistake in the configuration or the data, which leaves no folder behind, or an error of the machine.
    """
    reset_peak_memory()
    usage = monitor.Usage(peak_memory)
    with contextlib.ExitStack() as held, StopSignals() as signals:
        keep_log = held.enter_context(console.log_file())
        result = folder = opened = None
        try:
            run = resolve(cfg, overrides)
            folder, start = run.folder, run.start
            assert folder is not None and start is not None
            if start.result is not None:
                return _already_ended(folder, start.result, run)
            assert run.data is not None
            result = RunResult.of_config(run.config, folder.path.name, overrides=overrides)
            full = run.config["summary"] == "full"
            L.seed_everything(run.config["seed"], verbose=False)
            sharded = run.parts.trainer.strategy == "fsdp" and not is_main_process()
            with empty_parameters(sharded):
                task = build.build_task(run.config, run.data)
            if is_main_process():
                held.enter_context(folder.lock())
                start = folder.begin(run.config, run.config["resume"], run.given)
                if start.result is not None:
                    return _already_ended(folder, start.result, run)
                opened = folder
                keep_log(folder.path / "log.txt")
            else:
                start = follow(folder, run.config["resume"])
            log.info("run %s", folder.path)
            if start.checkpoint is None:
                task.initialize()
                if run.pretrained is not None and not sharded:
                    log.info("%s", initialize_from(task, run.pretrained))
            run = replace(run, pretrained=None)  # the task has its weights
            result = replace(result, **_fit_and_test(run, folder, start, signals, task, usage))
            peak = usage.peak_memory
            del run, task, usage  # each holds data or weights (Lightning gives callbacks the task's `log`)
        except Interrupted:
            log.warning("interrupted before training: repeat the command to resume")
            if result is None or folder is None:  # while the configuration was resolved
                if signals.requeue:
                    _requeue()
                return {"status": "interrupted", "metrics": {}, "folder": None}
            result = replace(result, status="interrupted", message="stopped before training")
            peak = peak_memory()
        except BaseException as error:
            if opened is not None and result is not None:
                failure = replace(result, status="failed", message=f"{type(error).__name__}: {error}")
                with contextlib.suppress(MagnetoError):  # the error itself matters more than its record
                    opened.write_result(failure)
            explained = _explained(error, folder)
            if explained is None:
                raise
            raise explained from error
        signals.defer()  # what is done is written
        result = replace(result, **memory_of_run(peak))
        if opened is not None:
            opened.write_result(result)
            text = summary.summarize(result, folder.path, result.status, full=full)
            print(text)
            with contextlib.suppress(OSError), (folder.path / "log.txt").open("a", encoding="utf-8") as file:
                file.write(text + "\n")
        if result.status == "interrupted" and signals.requeue:
            _requeue()
    return {**result.to_dict(), "folder": str(folder.path)}


def _already_ended(folder: RunFolder, result: RunResult, run: ResolvedRun) -> dict[str, Any]:
    if is_main_process():
        print(summary.ended(result, folder.path, full=run.config["summary"] == "full"))
    return {**result.to_dict(), "folder": str(folder.path)}


def _explained(error: BaseException, folder: RunFolder | None) -> MagnetoError | None:
    """Return the message for an error whose cause lies outside the program; None for any other error."""
    if isinstance(error, OSError):
        file, own = error.filename, None if folder is None else folder.path.absolute()
        inside = own is not None and isinstance(file, str) and Path(file).absolute().is_relative_to(own)
        if inside or error.errno in UNWRITABLE:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            return ConfigError(
                f"{file or own or 'a file'} cannot be written ({error.strerror}). The last complete checkpoint is kept; "
                f"{'free space' if full else 'change its permissions or remove it'} and repeat the command: the run "
                "continues from there."
            )
    lost = isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error)
    )
    if lost:
        return ConfigError(
            f"Another process of this run has ended ({checkpoint_io.first_line(error)}): its own output has the reason. The "
            "last complete checkpoint is kept; repeat the command: the run continues from there."
        )
    return None


def _requeue() -> None:
    """Ask SLURM to run this job again, as SIGUSR1 announced its end; the same command then continues the run."""
    job = os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ.get("SLURM_JOB_ID")
    if job is None or not is_main_process():
        return
    if os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{job}_{os.environ.get('SLURM_ARRAY_TASK_ID')}"
    try:
        done = subprocess.run(
            ["scontrol", "requeue", job], capture_output=True, text=True, timeout=60, check=False
        )
        reason = done.stderr.strip() if done.returncode else None
    except (OSError, subprocess.SubprocessError) as error:
        reason = str(error)
    if reason is None:
        log.info("job %s is queued again", job)
    else:
        log.warning("job %s cannot be queued again (%s): repeat the command to continue", job, reason)


def _fit_and_test(
    run: ResolvedRun,
    folder: RunFolder,
    start: Start,
    signals: StopSignals,
    task: Task,
    usage: monitor.Usage,
) -> dict[str, Any]:
    """Train and test; return what the result says of the outcome."""
    config, settings, data = run.config, run.parts.trainer, run.data
    assert data is not None
    task.samples_file = folder.samples if is_main_process() else None
    content = read_start(task, start, folder) if start.checkpoint else None
    step = content["global_step"] if content else 0
    agreed = reproducibility.SameStart(
        {"folder": folder.path.name, "step": step, "configuration": short_hash(compared(config))}
    )
    others = [agreed, usage]
    trainer, monitor, saver = build_trainer(run.parts, config["seed"], folder, task, signals, others)
    share_batch(trainer, data, settings)
    if content:
        check_progress(content, start, trainer)
        folder.rewind_samples(step)
        log.info("resuming from %s, step %d", start.checkpoint, step)
    del content
    loggers = build_loggers(folder, run.parts.logger, config, step, task)
    try:
        trainer.loggers = loggers
        console.announce(task, trainer)
        if settings.compile:
            task.compile_layers(settings.compile)
        status, message = "finished", None
        metrics: dict[str, float] = {}
        try:
            try:
                with lightning_errors():
                    trainer.fit(task, datamodule=data, ckpt_path=start.checkpoint, weights_only=True)
            except Exception as error:
                if isinstance(error, MagnetoError) or not while_restoring(error):
                    raise
                raise ConfigError(
                    f"checkpoint {start.checkpoint}: the run cannot continue from it ({checkpoint_io.first_line(error)}). "
                    f"{CHECKPOINT_REMEDY}"
                ) from error
            metrics = _evaluate_best(folder, trainer, data, task)
        except Diverged as error:
            status, message = "diverged", str(error)
            log.warning("the run has diverged: %s", error)
        except (Interrupted, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not signals.received:
                raise  # else another process of the run has ended
            status, message = "interrupted", f"stopped at step {trainer.global_step}"
            log.warning(
                "interrupted at step %d: repeat the command to resume from the last checkpoint",
                trainer.global_step,
            )
        metrics = dict(task.evaluated) | metrics
        spent = usage.state_dict()
        for logger in loggers:
            if isinstance(logger, RunLogger):
                logger.summarize(
                    # The monitored metric has its minimum or maximum in the summary too (`keep_best`).
                    {key: value for key, value in metrics.items() if key != task.monitor}
                    | {f"best/{task.monitor}": saver.best, "best/step": saver.best_step, "status": status}
                    | {"minutes": spent["wall_s"] / 60, "parameters": task.num_parameters}
                    | {"peak_memory_gib": spent["peak_memory_bytes"] / 2**30}
                )
    finally:
        close(loggers)
    throughput, spent = monitor.throughput(trainer.world_size), usage.state_dict()
    info = {
        key: value
        for key, value in task.info.to_dict().items()
        if key != "features" and not key.endswith("tokenizer")
    }
    return {
        "status": status,
        "message": message,
        "monitor": task.monitor,
        "mode": task.mode,
        "best": saver.best,
        "best_step": saver.best_step,
        "primary_metric": primary_metric_of(task),
        "example_input": task.example_input,
        "metrics": metrics,
        "steps": trainer.global_step,
        "parameters": task.num_parameters,
        "gain": task.output_gain,
        "world_size": trainer.world_size,
        "wall_s": spent["wall_s"],
        "fit_s": spent["fit_s"],
        "data_wait_fraction": throughput.pop("data_wait_fraction"),
        "throughput": throughput,
        "probe": {
            "diverged": status == "diverged",
            "first_loss": monitor.first_loss,
            "smooth_loss": monitor.smooth_loss,
        },
        "data_facts": info | ({"evaluation": task.evaluation_info} if task.evaluation_info else {}),
    }


def primary_metric_of(task: Task) -> str:
    """Return the logged name of the metric that runs are compared by."""
    return f"test/{task.primary_metric or task.monitor.split('/', 1)[-1]}"


def _evaluate_best(folder: RunFolder, trainer: L.Trainer, data: DataModule, task: Task) -> dict[str, float]:
    """Test and export the best checkpoint, or the average that the run keeps. Returns the metrics."""
    path = folder.best if folder.best.exists() else folder.last
    best = registry.load_task(path, empty=is_sharded(trainer) and not trainer.is_global_zero)
    best.samples_file = task.samples_file
    kept = next((one for one in trainer.callbacks if isinstance(one, LastWeights)), None)  # type: ignore[attr-defined]
    if kept is not None and trainer.is_global_zero:
        kept.load_average(best)
    trainer.test(best, datamodule=data, verbose=False)
    task.evaluation_info |= best.evaluation_info
    weights = whole_weights(best)
    if trainer.is_global_zero:
        if kept is not None:
            kept.save_average(best, weights)
        checkpoint_io.export(best, folder.path / "export", weights)
    return best.evaluated
