"""`budget=10min`: train for the number of steps that this machine makes in that time.

The schedule of a run needs its length in steps, so the speed is measured before it starts, by a short trial of the same
training: a few seconds of steps, and some batches of a validation. The measurement is kept in `runs_dir`, so that the
seeds and learning rates of a sweep have runs of one length.
"""

import json
import logging
import platform
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch

from magneto.commands import build, console, summary
from magneto.commands.trainer import lightning_trainer, share_batch
from magneto.config.parts import Parts, TrainerConfig
from magneto.data.cache import short_hash
from magneto.data.module import DataModule
from magneto.errors import ConfigError
from magneto.tasks.base import Task
from magneto.training.files import write_atomically
from magneto.training.reproducibility import ConfigureRun
from magneto.training.run_folder import RunFolder

log = logging.getLogger("magneto")

UNITS = {"s": 1, "min": 60, "h": 3600}
WARMUP_STEPS, TRIAL_STEPS = 3, 1000
TRIAL_S = 10.0
"""Of timed steps at least, and at most of a validation's batches."""


@dataclass(frozen=True)
class Speed:
    """Seconds of an optimizer step and of a whole validation."""

    step_s: float
    validation_s: float


def seconds_of(budget: str) -> float:
    """Return a time such as `10min`, `90s` or `1.5h` in seconds. Raises `ConfigError` for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|h)", str(budget))
    if match is None or float(match[1]) == 0:
        raise ConfigError(
            f"budget={budget}: is no time. Set budget to a number with a unit: 90s, 10min or 2h."
        )
    return float(match[1]) * UNITS[match[2]]


def check(budget: str, settings: TrainerConfig) -> None:
    """Raise `ConfigError` for a budget that is no time, or whose speed would be that of several processes."""
    seconds_of(budget)
    if settings.devices not in (1, "1") or settings.num_nodes > 1:
        raise ConfigError(
            f"budget={budget}: the speed is measured in one process, and trainer.devices={settings.devices}, "
            f"trainer.num_nodes={settings.num_nodes} start several. Set trainer.max_steps instead."
        )


def length_of(
    config: Mapping[str, Any],
    given: Mapping[str, Any],
    parts: Parts,
    data: DataModule,
    folder: RunFolder | None,
) -> dict[str, int]:
    """Return `max_steps` and `val_check_interval` for the budget of a configuration, with as many validations as it has.

    Args:
        config: the complete configuration.
        given: the same before it was completed.
        parts: its trainer.
        data: prepared.
        folder: of the run: one that is continued keeps its length.

    Raises:
        ConfigError: not a step fits beside the validations.
    """
    settings, budget = parts.trainer, config["budget"]
    recorded = None if folder is None else folder.recorded(given, config["resume"])
    if recorded is not None:
        return {key: recorded["trainer"][key] for key in ("max_steps", "val_check_interval")}
    speed, kept = speed_of(config, parts, data)
    validations = max(1, settings.max_steps // settings.val_check_interval)
    left = seconds_of(budget) - validations * speed.validation_s
    interval = _two_digits(left / speed.step_s / validations)
    if interval < 1:
        raise ConfigError(
            f"budget={budget}: {validations} validations of {speed.validation_s:.3g} s and steps of {speed.step_s:.3g} s "
            "do not fit. Set budget to a longer time, or trainer.val_check_interval to trainer.max_steps for one validation."
        )
    log.info(
        "budget=%s: %d steps of %.3g s and %d validations of %.3g s (%s)",
        budget, interval * validations, speed.step_s, validations, speed.validation_s,
        f"as measured before: {kept}" if kept else "measured",
    )  # fmt: skip
    return {"max_steps": interval * validations, "val_check_interval": interval}


def speed_of(config: Mapping[str, Any], parts: Parts, data: DataModule) -> tuple[Speed, Path | None]:
    """Return the speed of a training on this machine, and the file that keeps it if it was measured before.

    Args:
        config: the complete configuration.
        parts: its trainer.
        data: prepared.
    """
    file = Path(config["runs_dir"]) / ".speed" / f"{_key(config, parts.trainer)}.json"
    if file.is_file():
        return Speed(**json.loads(file.read_bytes())), file
    log.info("measuring the speed")
    with console.quiet_libraries():
        measured = measure(config, parts, data)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(asdict(measured)) + "\n")
    return measured, None


def plan(config: Mapping[str, Any], parts: Parts, data: DataModule) -> tuple[float, str]:
    """Return the seconds that a run will take on this machine, without its test, and a sentence about it (`dry_run=true`).

    Args:
        config: the complete configuration.
        parts: its trainer.
        data: prepared.
    """
    settings = parts.trainer
    speed, kept = speed_of(config, parts, data)
    validations = max(1, settings.max_steps // settings.val_check_interval)
    seconds = settings.max_steps * speed.step_s + validations * speed.validation_s
    parameters = build.build_task(config, data).num_parameters
    return seconds, (
        f"{parameters / 1e6:.1f} M parameters, {settings.max_steps:,} steps of {speed.step_s:.3g} s and {validations} "
        f"validations of {speed.validation_s:.3g} s{' (measured before)' if kept else ''}: {summary.duration(seconds)}"
    )


def measure(config: Mapping[str, Any], parts: Parts, data: DataModule) -> Speed:
    """Train for some seconds, and evaluate some batches; nothing is kept.

    Args:
        config: the complete configuration.
        parts: its trainer.
        data: prepared.
    """
    settings = replace(parts.trainer, enable_progress_bar=False)
    steps = max(settings.max_steps, TRIAL_STEPS)
    task = build.build_task({**config, "trainer": config["trainer"] | {"max_steps": steps}}, data)
    task.initialize()
    if settings.compile:
        task.compile_layers(settings.compile)
    watch = _Stopwatch()
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False}
    L.seed_everything(config["seed"], verbose=False)
    trial = lightning_trainer(
        settings, max_epochs=1, limit_val_batches=0, callbacks=[ConfigureRun(), watch], **quiet
    )
    share_batch(trial, data, settings)
    trial.fit(task, datamodule=data)
    batches = data.val_dataloader()
    limit = settings.limit_val_batches
    count = min(limit, len(batches)) if isinstance(limit, int) else max(1, int(limit * len(batches)))
    return Speed(
        step_s=watch.seconds_per_batch * trial.accumulate_grad_batches,
        validation_s=count * _evaluation_s(task, data, settings, quiet, count),
    )


def _evaluation_s(
    task: Task, data: DataModule, settings: TrainerConfig, quiet: dict[str, Any], count: int
) -> float:
    """Return the seconds of a batch of a validation: of two, and of as many more as `TRIAL_S` allows."""
    tester = lightning_trainer(settings, limit_val_batches=min(2, count), callbacks=[ConfigureRun()], **quiet)
    begin = time.perf_counter()
    tester.validate(task, datamodule=data, verbose=False)
    each = (time.perf_counter() - begin) / min(2, count)
    more = min(count, int(TRIAL_S / each))
    if more <= 2:
        return each
    tester = lightning_trainer(settings, limit_val_batches=more, callbacks=[ConfigureRun()], **quiet)
    begin = time.perf_counter()
    tester.validate(task, datamodule=data, verbose=False)
    return (time.perf_counter() - begin) / more


class _Stopwatch(L.Callback):
    """Time training batches, the waiting for data included, and stop after `TRIAL_S` seconds."""

    def __init__(self) -> None:
        self.begin = 0.0
        self.seconds_per_batch = 0.0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        warmup = WARMUP_STEPS * trainer.accumulate_grad_batches
        timed = batch_idx + 1 - warmup
        if timed <= 0:
            self.begin = time.perf_counter()
            return
        passed = time.perf_counter() - self.begin
        self.seconds_per_batch = passed / timed
        trainer.should_stop = passed > TRIAL_S and timed >= warmup


def _key(config: Mapping[str, Any], settings: TrainerConfig) -> str:
    """Return a hash of all that the speed depends on."""
    trainer = {"precision", "accelerator", "accumulate_grad_batches", "compile", "limit_val_batches"}
    own = {
        **{name: config[name] for name in ("task", "backbone")},
        "data": {key: value for key, value in config["data"].items() if key not in ("seed", "data_dir")},
        "optimizer": config["optimizer"]["name"],
        "trainer": {key: getattr(settings, key) for key in trainer},
        "machine": [platform.node(), torch.get_num_threads(), torch.cuda.is_available()],
    }
    return short_hash(json.loads(json.dumps(own, sort_keys=True, default=str)))


def _two_digits(number: float) -> int:
    """Return the number with its first two digits, rounded down."""
    whole = max(0, int(number))
    unit = 10 ** max(0, len(str(whole)) - 2)
    return whole // unit * unit
