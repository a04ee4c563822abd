"""What watches a run: checkpoints and interruption, logging and throughput, stability, reproducible random numbers."""

import math
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Self, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint
from torch import Tensor, nn

from magneto.data.loader import RunLoader
from magneto.data.module import DataModule
from magneto.errors import UserError
from magneto.tasks.base import Batch, Diverged, TaskModule


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What conf/callbacks sets; the file says what each is for."""

    probe_every: int = 50
    divergence_factor: float = 2.0
    save_every: int = 100
    ema_decay: float | None = None
    average_last: int | None = None
    samples: int = 8

    def __post_init__(self) -> None:
        for key, least in (("probe_every", 0), ("save_every", 1), ("samples", 0)):
            if getattr(self, key) < least:
                raise UserError(f"callbacks.{key}={getattr(self, key)}: must be {least} or more.")
        if self.divergence_factor <= 1:
            raise UserError(f"callbacks.divergence_factor={self.divergence_factor}: must be above 1.")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise UserError(f"callbacks.ema_decay={self.ema_decay}: must be between 0 and 1, or null.")
        if self.average_last is not None and self.average_last < 2:
            raise UserError(f"callbacks.average_last={self.average_last}: must be 2 or more, or null.")
        if self.average_last is not None and self.ema_decay is not None:
            raise UserError(
                "callbacks.average_last and callbacks.ema_decay are two ways to average weights: set one to null."
            )


class Interrupted(BaseException):
    """The run was asked to stop (SIGTERM, SIGINT or SIGUSR1).

    A BaseException, so that no handler of ordinary errors takes it for one.
    """


class StopSignals:
    """Turns SIGTERM, SIGINT and SIGUSR1 into `Interrupted`, for as long as the context lasts.

    SIGUSR1 is what SLURM sends before a job's time is up (`#SBATCH --signal=USR1@120`): the job is also to be queued again
    (`requeue`).

    At once where nothing has to be saved; while `defer` is in force, a first signal is only noted in `received`, so that
    the training step ends and its state is saved (`Checkpoints`), and a second one stops at once.
    """

    def __init__(self) -> None:
        self.received = False
        self.requeue = False
        self._deferred = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
        self._before = {number: signal.getsignal(number) for number in numbers}
        self._install()
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def defer(self) -> None:
        """Only note the next signal. Takes the place of Lightning's handler, which leaves a validation unsaved."""
        self._deferred = True
        self._install()

    def resume(self) -> None:
        """Stop at once again: also now, if a signal was noted meanwhile.

        Raises:
            Interrupted: a signal was noted.
        """
        self._deferred = False
        if self.received:
            raise Interrupted

    def _install(self) -> None:
        for number in self._before:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        first, self.received = not self.received, True
        self.requeue = self.requeue or number == signal.SIGUSR1
        if not (self._deferred and first):
            raise Interrupted


class StepSeed(Callback):
    """Seeds torch's generators before each training batch from (seed, rank, batch number).

    Dropout and stochastic depth of a step then depend on the run's seed and the step alone: a resumed run repeats an
    uninterrupted one without any generator state in its checkpoints.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Reseed."""
        # An odd multiplier spreads neighbouring runs and steps over the 64-bit seeds.
        key = (self.seed * 1_000_003 + trainer.global_rank) * 0x9E3779B97F4A7C15 + batch_idx
        torch.manual_seed(key % 2**63)


class Checkpoints(Checkpoint):
    """Keeps `best.ckpt` (by the task's monitor) and `last.ckpt`, and saves before an asked-for end.

    Lightning's ModelCheckpoint renews its last checkpoint only when the best one changes, and it saves before a
    validation that is due at the same step: a run killed there would skip that validation when resumed. This callback
    saves after each validation, every `every` steps between two of them, and when a signal asks to stop.

    Args:
        folder: where the two files lie.
        monitor: metric of the validation.
        mode: `min` or `max`.
        every: optimizer steps between two saves of `last.ckpt`.
        signals: tells that the run was asked to stop.
    """

    def __init__(self, folder: Path, monitor: str, mode: str, every: int, signals: StopSignals) -> None:
        self.folder, self.monitor, self.mode, self.every = folder, monitor, mode, every
        self.signals = signals
        self.best: float | None = None
        self.best_step = 0

    def state_dict(self) -> dict[str, Any]:
        """Best value and its step."""
        return {"best": self.best, "best_step": self.best_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore best value and its step."""
        self.best, self.best_step = state_dict["best"], state_dict["best_step"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """From now on a signal waits until the state is saved."""
        if not (self.folder / "best.ckpt").exists():
            self.best, self.best_step = None, 0  # the run goes on from another folder's checkpoint
        self.signals.defer()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """All is saved."""
        self.signals.resume()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when it is time; on the last batch, ask for a final validation."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            trainer.should_stop = True  # Lightning then validates, whatever the interval
            return
        assert isinstance(trainer.val_check_batch, int)
        if (batch_idx + 1) % trainer.val_check_batch == 0:
            return  # on_validation_end saves
        stop = self._stop_asked(trainer)
        if stop or trainer.global_step % self.every == 0:
            self._save(trainer, "last")
        if stop:
            raise Interrupted

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save both files where the monitored metric is the best so far, else the last one."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        assert isinstance(pl_module, TaskModule)
        if self.monitor not in pl_module.evaluated:
            raise UserError(
                f"monitor {self.monitor!r}: the validation gives no such metric, only {', '.join(pl_module.evaluated)}."
            )
        value = pl_module.evaluated[self.monitor]
        better = self.best is None or (value < self.best if self.mode == "min" else value > self.best)
        if better and math.isfinite(value):
            self.best, self.best_step = value, trainer.global_step
            self._save(trainer, "best")
        self._save(trainer, "last")
        if self._stop_asked(trainer) and not trainer.should_stop:
            raise Interrupted

    def _stop_asked(self, trainer: L.Trainer) -> bool:
        return trainer.strategy.reduce_boolean_decision(self.signals.received, all=False)

    def _save(self, trainer: L.Trainer, name: str) -> None:
        path = self.folder / f"{name}.ckpt"
        try:
            trainer.save_checkpoint(path)  # whole or not at all: `checkpoint.AtomicCheckpointIO`
        except OSError as error:
            cause: BaseException | None = error
            while (
                cause is not None
            ):  # a second signal in the middle of a write, which torch takes for a failed one
                if isinstance(cause, Interrupted):
                    raise cause from None
                cause = cause.__context__
            raise UserError(
                f"{path}: the checkpoint cannot be written ({error}). The last complete one is kept; "
                "free space and repeat the command: the run goes on from there."
            ) from error


def data_of(trainer: L.Trainer) -> DataModule:
    """The run's data module."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(data, DataModule)
    return data


class ConfigureRun(Callback):
    """Tells the data module what only the running trainer knows: the length of the run, and its rank.

    Keeps in the checkpoint by how many processes the batches are shared: with another number they are other batches.
    """

    world_size = 1

    def state_dict(self) -> dict[str, Any]:
        """The number of processes."""
        return {"world_size": self.world_size}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Called once the processes are up, before any loader is made."""
        assert isinstance(pl_module, TaskModule)
        total = pl_module.total_steps * trainer.accumulate_grad_batches
        self.world_size = trainer.world_size
        data_of(trainer).configure_run(total, rank=trainer.global_rank, world_size=trainer.world_size)


class SameStart(Callback):
    """Refuses to train where the processes of a run do not begin at the same place of the same run.

    Args:
        start: what this process has decided, plain values by name.
    """

    def __init__(self, start: Mapping[str, Any]) -> None:
        self.start = dict(start)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Called once the processes are up, before a checkpoint is read. Every process finds out, so none waits for ever."""
        if trainer.world_size == 1 or stage != "fit":
            return
        starts: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(starts, self.start)
        for rank, start in enumerate(starts):
            if start != starts[0]:
                both = "; ".join(
                    f"{key}: {starts[0].get(key)} in process 0, {start.get(key)} in process {rank}"
                    for key in starts[0]
                    if start.get(key) != starts[0][key]
                )
                raise UserError(
                    f"The processes of this run do not agree on where it begins ({both}). Set runs_dir to a folder that all "
                    "machines share, and start the same command in each."
                )


class Usage(Callback):
    """What the run has cost, over all the times that it was resumed: seconds and memory.

    The clock runs from the creation on. What was done after the last checkpoint of a killed run is done again, and counts
    once.

    Args:
        peak_memory: gives the largest memory of this process so far, in bytes.
    """

    def __init__(self, peak_memory: Callable[[], int]) -> None:
        self._peak_memory = peak_memory
        self._before: dict[str, float] = {}
        self._started = time.monotonic()
        self._fit: list[float] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Training begins."""
        if stage == "fit":
            self._fit = [time.monotonic()]

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Training has ended."""
        if stage == "fit":
            self._fit.append(time.monotonic())

    def state_dict(self) -> dict[str, float]:
        """`wall_s` and, of it, `fit_s` in seconds; `peak_memory_bytes`."""
        now = time.monotonic()
        fit = ([*self._fit, now][1] - self._fit[0]) if self._fit else 0.0
        return {
            "wall_s": self._before.get("wall_s", 0.0) + now - self._started,
            "fit_s": self._before.get("fit_s", 0.0) + fit,
            "peak_memory_bytes": self.peak_memory,
        }

    @property
    def peak_memory(self) -> int:
        """The largest memory of any of the processes that made the run, in bytes."""
        return max(int(self._before.get("peak_memory_bytes", 0)), self._peak_memory())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self._before = {key: float(value) for key, value in state_dict.items()}


class Monitor(Callback):
    """Logs the training metrics and the throughput, and ends a run that diverges.

    Args:
        every: optimizer steps between two logged values.
        divergence_factor: the run has diverged when the exponentially smoothed training loss exceeds the first logged
            one this many times, or when a loss is not finite.
    """

    def __init__(self, every: int, divergence_factor: float) -> None:
        self.every, self.divergence_factor = every, divergence_factor
        self.first_loss: float | None = None
        self.smooth_loss: float | None = None
        self.totals: dict[str, float] = defaultdict(float)
        self._window: dict[str, float] = defaultdict(float)
        self._started = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The losses that the verdict compares, and the work done so far."""
        return {"first_loss": self.first_loss, "smooth_loss": self.smooth_loss, "totals": dict(self.totals)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        self.first_loss, self.smooth_loss = state_dict["first_loss"], state_dict["smooth_loss"]
        self.totals.update(state_dict["totals"])

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Start the clock of this batch."""
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count the work; log and judge every `every` optimizer steps and at the end."""
        assert isinstance(pl_module, TaskModule)
        work = pl_module.units(batch)
        work["model_flops"] = pl_module.flops(batch)
        work["seconds"] = time.perf_counter() - self._started
        work["batches"] = 1
        for key, value in work.items():
            self._window[key] += value
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if not (stepped and trainer.global_step % self.every == 0) and not last:
            return
        wait = cast(RunLoader, trainer.train_dataloader).take_wait_seconds()
        self._window["wait_seconds"] += wait
        self._window["seconds"] += wait
        metrics = pl_module.flush_window()
        metrics |= {
            f"throughput/{key}_per_s": value / self._window["seconds"] * trainer.world_size
            for key, value in self._window.items()
            if key not in ("seconds", "wait_seconds", "batches")
        }
        metrics["throughput/data_wait_fraction"] = wait / self._window["seconds"]
        metrics["epoch"] = (batch_idx + 1) / data_of(trainer).batches_per_epoch(trainer.world_size)
        pl_module.record(metrics)
        pl_module.log("loss", metrics["train/loss"], prog_bar=True, logger=False)
        for key, value in self._window.items():
            self.totals[key] += value
        self._window.clear()
        self._judge(metrics["train/loss"], metrics["probe/grad_norm"], trainer.global_step)

    def _judge(self, loss: float, grad_norm: float, step: int) -> None:
        for what, value in (("loss", loss), ("gradient norm", grad_norm)):
            if not math.isfinite(value):
                raise Diverged(f"the {what} became {value} at step {step}")
        self.first_loss = loss if self.first_loss is None else self.first_loss
        self.smooth_loss = loss if self.smooth_loss is None else 0.9 * self.smooth_loss + 0.1 * loss
        if self.smooth_loss > self.divergence_factor * self.first_loss:
            raise Diverged(
                f"the smoothed training loss rose to {self.smooth_loss:.4g} at step {step}, "
                f"over {self.divergence_factor:g} times the first one ({self.first_loss:.4g})"
            )

    def throughput(self, world_size: int) -> dict[str, float]:
        """Means over the whole run, also over what was trained before it was resumed: work per second of all processes."""
        seconds = max(self.totals["seconds"], 1e-9)
        rates = {
            f"{key}_per_s": value / seconds * world_size
            for key, value in self.totals.items()
            if key not in ("seconds", "wait_seconds", "batches")
        }
        return rates | {"data_wait_fraction": self.totals["wait_seconds"] / seconds}


class StabilityProbe(Callback):
    """Looks into the network every `every` steps, and logs under `probe/`.

    - `activation_rms/layer_NN`: root mean square of each layer's output, over batch, time (padding included) and width:
      the magnitude that grows in deep Sub-LN vision models (microsoft/torchscale issue 14).
    - `activation_max/layer_NN`: the largest absolute value in it, which is what a number format has to hold.
      Both over all passes of the step, where a task has several (`task=vl`: pictures, texts, pairs).
    - `update_to_weight/...`: ||change of the weights in this step|| / ||weights||, for stem, backbone and head and over all.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._before: dict[str, Tensor] | None = None
        # Of each pass of a layer: its largest value, the mean of its squares, and over how many.
        self._seen: dict[str, list[tuple[Tensor, Tensor, int]]] = defaultdict(list)
        self._stack: Any = None

    def _due(self, trainer: L.Trainer, batch_idx: int) -> bool:
        # Of the batches that a step accumulates, the last one is looked at.
        step, more = divmod(batch_idx + 1, trainer.accumulate_grad_batches)
        return self.every > 0 and more == 0 and (step % self.every == 0 or step == 1)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Hook the layers for this one step."""
        assert isinstance(pl_module, TaskModule)
        if self._due(trainer, batch_idx):
            # Compiled layers ignore hooks that come later: this step runs them uncompiled.
            self._stack = torch.compiler.set_stance("force_eager")
            self._stack.__enter__()
            self._seen.clear()
            self._handles = [
                layer.register_forward_hook(self._hook(name)) for name, layer in pl_module.named_layers()
            ]

    def _hook(self, name: str) -> Callable[..., None]:
        def store(module: nn.Module, inputs: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            hidden = hidden.detach().float()
            self._seen[name].append((hidden.abs().max(), hidden.square().mean(), hidden.numel()))

        return store

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Remember the weights."""
        if self._stack is not None:
            self._before = {name: p.detach().clone() for name, p in pl_module.named_parameters()}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Log what was seen; remove the hooks."""
        if self._stack is None:
            return
        self._unhook()
        assert isinstance(pl_module, TaskModule)
        metrics = {}
        for name, passes in self._seen.items():
            total = sum(float(square) * count for _, square, count in passes)
            metrics[f"probe/activation_rms/{name}"] = math.sqrt(total / sum(count for *_, count in passes))
            metrics[f"probe/activation_max/{name}"] = max(float(largest) for largest, *_ in passes)
        if self._before is not None:
            squares: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
            for name, parameter in pl_module.named_parameters():
                before = self._before[name]
                change = float((parameter.detach() - before).square().sum())
                for part in ("all", name.split(".", 1)[0]):
                    squares[part][0] += change
                    squares[part][1] += float(before.square().sum())
            self._before = None
            metrics |= {
                f"probe/update_to_weight/{part}": math.sqrt(change / max(size, 1e-30))
                for part, (change, size) in squares.items()
            }
        pl_module.record(metrics)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Remove the hooks."""
        if self._stack is not None:
            self._unhook()

    def _unhook(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._stack.__exit__(None, None, None)
        self._stack = None


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Run with `count` CPU threads (None: leave it), and restore."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
