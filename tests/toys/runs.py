"""Small, deterministic runs of the real configuration, for tests that drive `magneto.commands.run`."""

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_origin, get_type_hints
from unittest import mock

from hydra import compose, initialize_config_dir

from magneto.commands import run
from magneto.config.groups import CONF
from magneto.training import checkpointing

SHORT = (
    "trainer.precision=32-true",
    "trainer.accelerator=cpu",
    "trainer.max_steps=20",
    "trainer.val_check_interval=8",
    "trainer.log_every_n_steps=2",
    "trainer.enable_progress_bar=false",
    "callbacks.save_every=3",
    "callbacks.probe_every=5",
    "logger.wandb=disabled",
)
"""Twenty steps in fp32 that nobody watches."""
SMALL = (
    "backbone.num_layers=2",
    "backbone.d_model=32",
    "backbone.num_heads=2",
    "backbone.ffn_dim=64",
)
"""A backbone that computes them within a second."""


def folders(data_dir: Path, tmp_path: Path) -> list[str]:
    """Where data is prepared (shared by the tests of a worker) and where runs go."""
    return [f"data_dir={data_dir}", f"runs_dir={tmp_path / 'runs'}"]


def drive(settings: Sequence[str], *more: str) -> dict[str, Any]:
    """`magneto.commands.run` of the configuration with `settings` and, as if typed on the command line, `more`."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return run.run(compose("config", [*settings, *more]), more)


class Killed(RuntimeError):
    """The end of a run that was killed."""


@contextmanager
def killed_after_save(step: int) -> Iterator[None]:
    """Let a run die, by raising `Killed`, right after it has written last.ckpt at this step or later."""
    save = checkpointing.Checkpoints._save

    def save_and_die(self: checkpointing.Checkpoints, trainer: Any, name: str) -> None:
        save(self, trainer, name)
        if name == "last" and trainer.global_step >= step:
            raise Killed("killed")

    with mock.patch.object(checkpointing.Checkpoints, "_save", save_and_die):
        yield


def values(folder: str | Path, leave_out: str = "throughput/") -> list[tuple[str, ...]]:
    """All rows of metrics.csv but those that depend on the clock."""
    with (Path(folder) / "metrics.csv").open() as file:
        return [tuple(row) for row in csv.reader(file) if leave_out not in row[1]]


def training_losses(folder: str | Path) -> list[float]:
    """`train/loss` over the run."""
    return [float(value) for _, name, value in values(folder) if name == "train/loss"]


def info_of(kind: type, **given: Any) -> dict[str, Any]:
    """Return the info of that class as plain values: what is given, and empty values for the rest."""
    hints = get_type_hints(kind)
    needed = [field.name for field in fields(kind) if field.default is field.default_factory is MISSING]
    return {name: (get_origin(hints[name]) or hints[name])() for name in needed} | given
