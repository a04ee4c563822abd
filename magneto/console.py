"""What a person sees of a run: the log on the screen and in log.txt, the progress bar, the result."""

import contextlib
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.table import Table

from magneto.loggers import is_main_process
from magneto.tasks.base import TaskModule

log = logging.getLogger("magneto")


class ProgressBar(RichProgressBar):
    """Lightning's rich bar, over the steps of the whole run (a run is one Lightning epoch, whatever its data epochs)."""

    def _get_train_description(self, current_epoch: int) -> str:
        return "Training"


def log_to_screen() -> None:
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO if is_main_process() else logging.WARNING)


@contextlib.contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Our log on the screen, everybody's in the run's folder."""
    file = logging.FileHandler(path, encoding="utf-8", delay=True)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(file)
    root.setLevel(logging.INFO)
    try:
        with quiet_libraries():
            yield
    finally:
        root.removeHandler(file)
        file.close()


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Lightning's tips and device lists are not for the screen; known, harmless warnings of libraries are for no one."""
    lightning = logging.getLogger("lightning.pytorch")
    shown, lightning.handlers = lightning.handlers, []
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")
            warnings.filterwarnings("ignore", message=".*eval mode at the start of train.*")  # a frozen part
            # The values are those of all processes already: torchmetrics has gathered their counts.
            warnings.filterwarnings("ignore", message=".*sync_dist=True.*")
            yield
    finally:
        lightning.handlers = shown


def announce(task: TaskModule, trainer: L.Trainer, step: int) -> None:
    log.info(
        "%s: %s, %.1f M parameters, on %s x %d, precision %s, steps %d to %d",
        task.name, task.config.placement, task.num_parameters / 1e6, trainer.strategy.root_device, trainer.world_size,
        trainer.precision, step, task.total_steps,
    )  # fmt: skip


@rank_zero_only
def print_result(result: Mapping[str, Any], title: str) -> None:
    table = Table(show_header=False)
    for key, value in sorted(result["metrics"].items()):
        table.add_row(key, f"{value:.4f}" if math.isfinite(value) else str(value))
    if result.get("message"):
        table.add_row("message", result["message"])
    if "time" in result:
        table.add_row("minutes", f"{result['time']['wall_s'] / 60:.1f}")
    console = Console()
    console.print(title, markup=False, highlight=False, soft_wrap=True)  # a path stays whole, to be copied
    console.print(table)
