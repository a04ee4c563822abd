"""Measure training: throughput, data wait, loss; stop a run that diverges."""

import math
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from magneto.data.batching import RunLoader
from magneto.training.devices import peak_flops
from magneto.training.module import Batch, Diverged, TrainingModule


class Usage(Callback):
    """Measure seconds and memory of a run, over all the times that it was resumed.

    The clock runs from the creation on. Work after the last checkpoint of a killed run is done again, and counts once.

    Args:
        peak_memory: gives the largest memory of this process so far, in bytes.
    """

    def __init__(self, peak_memory: Callable[[], int]) -> None:
        self._peak_memory = peak_memory
        self._before: dict[str, float] = {}
        self._started = time.monotonic()
        self._fit: list[float] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage == "fit":
            self._fit = [time.monotonic()]

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
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
        """Return the largest memory of any of the processes that made the run, in bytes."""
        return max(int(self._before.get("peak_memory_bytes", 0)), self._peak_memory())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = {key: float(value) for key, value in state_dict.items()}


class Monitor(Callback):
    """Log the training metrics and the throughput, and end a run that diverges.

    `throughput/mfu` is the share of the FLOP/s of a GPU that Lightning knows which the model's FLOPs take (PaLM, arXiv
    2204.02311, appendix B).

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
        self._peak_flops: float | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Look up what the device can do."""
        half = str(trainer.precision).startswith("bf16")
        self._peak_flops = peak_flops(pl_module.device, torch.bfloat16 if half else torch.float32)

    def state_dict(self) -> dict[str, Any]:
        """Return the losses that decide about divergence, and the work done so far."""
        return {"first_loss": self.first_loss, "smooth_loss": self.smooth_loss, "totals": dict(self.totals)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.first_loss, self.smooth_loss = state_dict["first_loss"], state_dict["smooth_loss"]
        self.totals.update(state_dict["totals"])

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count the work; log and check for divergence every `every` optimizer steps and at the end."""
        assert isinstance(pl_module, TrainingModule)
        work = dict(batch["work"])
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if stepped and (flops := getattr(trainer.optimizers[0], "flops", 0)):
            work["optimizer_flops"] = flops
        work["seconds"] = time.perf_counter() - self._started
        work["batches"] = 1
        for key, value in work.items():
            self._window[key] += value
        last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if not (stepped and trainer.global_step % self.every == 0) and not last:
            return
        loader = cast(RunLoader, trainer.train_dataloader)
        wait = loader.take_wait_seconds()
        self._window["wait_seconds"] += wait
        self._window["seconds"] += wait
        metrics = pl_module.flush_window()
        rates = _rates(self._window, trainer.world_size)
        if self._peak_flops:
            rates["mfu"] = rates["model_flops_per_s"] / trainer.world_size / self._peak_flops
        metrics |= {f"throughput/{key}": value for key, value in rates.items()}
        metrics["epoch"] = loader.epochs
        pl_module.record(metrics)
        pl_module.log("loss", metrics["train/loss"], prog_bar=True, logger=False)
        for key, value in self._window.items():
            self.totals[key] += value
        self._window.clear()
        self._check_divergence(metrics["train/loss"], metrics["probe/grad_norm"], trainer.global_step)

    def _check_divergence(self, loss: float, grad_norm: float, step: int) -> None:
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
        """Return work per second of all processes, over the whole run, resumed parts included."""
        return _rates(self.totals, world_size)


def _rates(work: dict[str, float], world_size: int) -> dict[str, float]:
    seconds = max(work["seconds"], 1e-9)
    rates = {
        f"{key}_per_s": value / seconds * world_size
        for key, value in work.items()
        if key not in ("seconds", "wait_seconds", "batches")
    }
    return rates | {"data_wait_fraction": work["wait_seconds"] / seconds}
