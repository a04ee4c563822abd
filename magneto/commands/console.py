"""Show a run on the screen and in its log.txt: log lines, progress bar, validations."""

import contextlib
import logging
import logging.handlers
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint, RichProgressBar
from rich.console import Console
from rich.progress import ProgressColumn
from rich.progress import Task as BarTask
from rich.table import Column
from rich.text import Text

from magneto.commands.summary import duration, number
from magneto.tasks.base import Task
from magneto.training.checkpointing import Checkpoints
from magneto.training.loggers import is_main_process

log = logging.getLogger("magneto")

LINE_EVERY_S = 30.0
"""Seconds between two lines with the loss, where there is no progress bar."""


def has_bar() -> bool:
    """Return whether a progress bar can be drawn: not where the output goes into a file or a pipe."""
    console = Console()
    return console.is_terminal or console.is_jupyter


class ProgressBar(RichProgressBar):
    """Lightning's rich bar, over the steps of the whole run (a run is one Lightning epoch, whatever its data epochs)."""

    text = ""
    """Text beside the bar."""

    def _get_train_description(self, current_epoch: int) -> str:
        return "Training"

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        """Keep training loss and monitored metric for their column; Lightning's own would break the line."""
        assert isinstance(pl_module, Task)
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)  # the end of W&B's id
        if pl_module.monitor in pl_module.evaluated:
            shown[pl_module.monitor] = pl_module.evaluated[pl_module.monitor]
        self.text = "  ".join(f"{name} {value:.3f}" for name, value in shown.items())
        return {}

    def configure_columns(self, trainer: L.Trainer) -> list[ProgressColumn]:
        """Leave the speed out where the terminal is narrow; add the metrics."""
        columns = super().configure_columns(trainer)
        narrow = Console().width < 100
        return [*(columns[:-1] if narrow else columns), _Metrics(self)]


class _Metrics(ProgressColumn):
    """The text of the bar, in one line."""

    def __init__(self, bar: ProgressBar) -> None:
        super().__init__(Column(no_wrap=True))
        self.bar = bar

    def render(self, task: BarTask) -> Text:
        return Text(self.bar.text if task.id == self.bar.train_progress_bar_id else "")


class ProgressLines(Checkpoint):
    """Log a line at each validation and, where there is no progress bar, one with the loss every `LINE_EVERY_S`.

    A `Checkpoint`, since Lightning calls these last: `saver` has then decided whether the value is the best one.

    Args:
        saver: the run's checkpoints.
        bar: whether there is a progress bar.
    """

    def __init__(self, saver: Checkpoints, bar: bool) -> None:
        self.saver, self.bar = saver, bar
        self._start = self._last = 0.0
        self._first_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start = time.monotonic()
        self._last = -LINE_EVERY_S
        self._first_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the loss, if it is time."""
        assert isinstance(pl_module, Task)
        if self.bar or time.monotonic() - self._last < LINE_EVERY_S:
            return
        loss = trainer.callback_metrics.get("loss")
        if loss is not None:
            self._log(trainer, pl_module, f"loss {number(float(loss))}")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the monitored metric."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        assert isinstance(pl_module, Task)
        saver = self.saver
        if saver.best is None:
            best = "no best one yet"
        elif saver.best_step == trainer.global_step:
            best = "best, saved"
        else:
            best = f"best {number(saver.best)} at {saver.best_step}"
        value = number(pl_module.evaluated[saver.monitor])
        self._log(trainer, pl_module, f"{saver.monitor} {value} ({best})")

    def _log(self, trainer: L.Trainer, task: Task, text: str) -> None:
        self._last = time.monotonic()
        step, total = trainer.global_step, task.total_steps
        line = f"step {step}/{total}  {text}"
        if self._first_step < step < total:
            left = (self._last - self._start) / (step - self._first_step) * (total - step)
            line += f"  {duration(left)} left"
        log.info("%s", line)


class _Screen(logging.Handler):
    """Write to the present standard error, which the progress bar replaces while it is drawn."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(BrokenPipeError):  # nobody reads: no reason for a run to end
            print(self.format(record), file=sys.stderr, flush=True)


def log_to_screen() -> None:
    """Print the log's messages, of the main process alone but for warnings."""
    if not any(isinstance(handler, _Screen) for handler in log.handlers):
        log.addHandler(_Screen())
        log.setLevel(logging.INFO if is_main_process() else logging.WARNING)


@contextlib.contextmanager
def log_file() -> Iterator[Callable[[Path], None]]:
    """Write our log and that of all libraries, Lightning's profiler included, to a file: call the result with its path.

    Until then it is kept in memory: a run's folder is opened when its data are prepared.
    """
    waiting = logging.handlers.MemoryHandler(capacity=10_000, flushLevel=logging.CRITICAL + 1)
    root = logging.getLogger()
    root.addHandler(waiting)
    root.setLevel(logging.INFO)

    def write_to(path: Path) -> None:
        file = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        waiting.setTarget(file)
        waiting.flushLevel = logging.NOTSET
        waiting.flush()

    try:
        with quiet_libraries(waiting):
            yield write_to
    finally:
        root.removeHandler(waiting)
        file = waiting.target
        waiting.close()
        if file is not None:
            file.close()


@contextlib.contextmanager
def quiet_libraries(*instead: logging.Handler) -> Iterator[None]:
    """Keep Lightning's tips and device lists off the screen, and known, harmless warnings of libraries away.

    Args:
        instead: handlers that get Lightning's messages, which do not reach the root logger.
    """
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    shown = [logger.handlers for logger in loggers]
    for logger in loggers:
        logger.handlers = list(instead)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")
            warnings.filterwarnings("ignore", message=".*has `__len__` defined.*")  # of streams that share it
            warnings.filterwarnings("ignore", message=".*eval mode at the start of train.*")  # a frozen part
            # The values are those of all processes already: torchmetrics has gathered their counts.
            warnings.filterwarnings("ignore", message=".*sync_dist=True.*")
            warnings.filterwarnings(
                "ignore", message=".*overridden `on_before_batch_transfer`.*"
            )  # the task counts
            yield
    finally:
        for logger, handlers in zip(loggers, shown, strict=True):
            logger.handlers = handlers


def announce(task: Task, trainer: L.Trainer) -> None:
    """Log what is about to be trained, on what."""
    count = task.num_parameters
    size = f"{count / 1e6:.1f} M" if count >= 1e6 else f"{count / 1e3:.0f} k"
    several = f" x {trainer.world_size}" if trainer.world_size > 1 else ""
    log.info(
        "%s: %s, %s parameters, %s%s, %s, %d steps",
        task.name, task.config.placement, size, trainer.strategy.root_device, several, trainer.precision,
        task.total_steps,
    )  # fmt: skip
