"""The training loop of a model: loss of the global batch, clipping, evaluation, logging. It knows no task."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_
from torchmetrics import MeanMetric, Metric

from magneto.config.parts import OptimizerConfig, SchedulerConfig
from magneto.config.validate import from_mapping
from magneto.training import migrate, sharding
from magneto.training.optim import build_optimizer, build_scheduler
from magneto.training.samples import Sample, log_samples, save_images

Batch = dict[str, Any]


class StepOutput(NamedTuple):
    """Result of `TrainingModule.step`; a tuple, in which sharding finds the tensors that a backward pass begins at.

    Attributes:
        loss_sum: scalar, the loss summed over the batch. A sum, not a mean: the base class divides by the weight of
            the whole global batch, so that accumulation and several processes give the gradient of one big batch.
        weight: scalar, what the sum is to be divided by (target characters, masked tokens, examples).
        outputs: whatever `evaluate` and `samples` need (logits, lengths).
        logs: further sums to be divided by `weight` and logged as `train/<name>`.
    """

    loss_sum: Tensor
    weight: Tensor
    outputs: Any = None
    logs: Mapping[str, Tensor] = {}


class Diverged(RuntimeError):
    """The loss is not finite or has grown beyond the bound: a result of the run, not a crash."""


class TrainingModule(L.LightningModule):
    """Train and evaluate a model by the sums that `step` returns.

    A subclass builds its modules, puts its metrics into `self.scores`, calls `register_scores()` and implements `step`; the
    other hooks have defaults.

    Args:
        optimizer: fields of `OptimizerConfig`.
        scheduler: fields of `SchedulerConfig`.
        total_steps: optimizer steps of the whole run: the length of the schedule.
        num_samples: how many examples to show at each evaluation.

    Raises:
        MagnetoError: an unknown or impossible value in any of them, naming the key and the remedy.
    """

    monitor: str
    mode: str = "min"

    def __init__(
        self,
        *,
        optimizer: Mapping[str, Any],
        scheduler: Mapping[str, Any],
        total_steps: int,
        num_samples: int = 8,
    ) -> None:
        super().__init__()
        self.optimizer_config = from_mapping(OptimizerConfig, optimizer, "optimizer")
        self.scheduler_config = from_mapping(SchedulerConfig, scheduler, "scheduler")
        self.total_steps = total_steps
        self.num_samples = num_samples
        self.scores: dict[str, Metric] = {}
        self._window: dict[str, Tensor | float] = {}
        self._weight: Tensor | None = None
        self.asks: Callable[[], Sequence[bool]] = lambda: ()
        """What this process wants of all at a step, such as to stop; it travels with the weight of the step's batch."""
        self.votes: Tensor | None = None
        """How many processes wanted each before the last step; None: there is one process, or no step yet."""
        self._grad_norm: Tensor | None = None
        self._shown: list[Sample] = []
        self.first_batch = True
        """Of an evaluation, in every process."""
        self.evaluated: dict[str, float] = {}
        """Metrics of the last evaluation, by their logged names."""
        self.evaluation_info: dict[str, dict[str, float]] = {}
        """Values of the metrics named `facts/...` of each split: they describe its data, and no model changes them."""
        self.samples_file: Path | None = None

    def register_scores(self) -> None:
        """Make the metrics in `self.scores` and the mean loss modules of this one, so that they move to its device."""
        self._loss = MeanMetric()
        self._metrics = nn.ModuleDict({"loss": self._loss, **self.scores})

    # ------------------------------------------------------------------ hooks

    def step(self, batch: Batch) -> StepOutput:
        """Return the loss of one batch, in training as in evaluation."""
        raise NotImplementedError

    def evaluate(self, batch: Batch, output: StepOutput) -> Any:
        """Update `self.scores` with one batch, and return what `samples` needs of it, such as decoded texts."""

    def samples(self, batch: Batch, output: StepOutput, evaluated: Any) -> list[Sample]:
        """Return what a person would look at, an object of plain values for each example, with its `id`.

        `image`, if there is one, is a uint8 array (H, W) or (H, W, 3).

        Args:
            batch: of an evaluation.
            output: of `step`.
            evaluated: what `evaluate` returned.
        """
        return []

    def recording(self, sample: Sample) -> Path | None:
        """Return a file with the sound of one of the `samples`, for loggers that play it."""
        return None

    def overview(self) -> list[Sample]:
        """Return samples of a whole evaluation, from the state of `self.scores`: metrics are reset after it."""
        return []

    def after_evaluation(self, split: str) -> None:
        """Do what is left to do at the end of an evaluation, in every process: metrics are reset after it."""

    def target_mask(self, batch: Batch) -> Tensor | None:
        """Return the positions of a batch that have a target, (B, T) bool, for `at_targets`; None: it is not used."""
        return None

    def throughput_counts(self, batch: Batch) -> dict[str, float]:
        """Return the counts of throughput: `examples`, and `tokens` or `audio_seconds`."""
        return {"examples": float(len(batch["id"]))}

    def flops(self, batch: Batch) -> float:
        """Return the model FLOPs of one training step on this batch, padding included (forward and backward pass)."""
        raise NotImplementedError

    def tokenizer_json(self) -> str | None:
        """Return the tokenizer as a `tokenizer.json`, for the export; None where there is none."""
        return None

    def named_layers(self) -> Iterator[tuple[str, nn.Module]]:
        """Return the layers with the names that the stability probe gives them."""
        return iter(())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call `forward`. Of a sharded module without hooks, which gather and free its weights around a whole `step`."""
        return (
            self.forward(*args, **kwargs)
            if isinstance(self, FSDPModule)
            else super().__call__(*args, **kwargs)
        )

    def configure_model(self) -> None:
        """Share the parameters among the processes where `trainer.strategy=fsdp` does: each layer is a unit of its own."""
        if self.device_mesh is not None and not isinstance(self, FSDPModule):
            layers = [layer for _, layer in self.named_layers()]
            device = self.trainer.strategy.root_device
            sharding.shard(self, layers, self.device_mesh["data_parallel"], device)

    # ------------------------------------------------------------------ training

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Count, and find the targets, while the batch is on the host: later each number would wait for the GPU."""
        if self.trainer.training:
            batch["work"] = {**self.throughput_counts(batch), "model_flops": self.flops(batch)}
        if (mask := self.target_mask(batch)) is not None:
            batch["target_index"] = _indices(mask)
        return batch

    def at_targets(self, batch: Batch, values: Tensor) -> Tensor:
        """Return `values` (B, T, ...) at the N positions of `target_mask`, row by row: (N, ...)."""
        index = batch.get("target_index")
        if index is None:
            mask = self.target_mask(batch)
            assert mask is not None, "a task that calls this says where its targets are"
            index = _indices(mask)
        return values.flatten(0, 1)[index]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One micro-batch: its summed loss; the division by the global weight follows in `on_before_optimizer_step`."""
        output = self.step(batch)
        weight = output.weight.detach()
        self._weight = weight if self._weight is None else self._weight + weight
        sums = {"loss": output.loss_sum.detach(), "weight": weight, **output.logs}
        for key, value in sums.items():
            self._window[key] = self._window.get(key, 0.0) + value.detach()
        # Lightning divides by the number of accumulated batches; the global weight does that job here.
        return output.loss_sum * self.trainer.accumulate_grad_batches

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the summed gradients by the weight of the global batch, whatever its parts."""
        assert self._weight is not None
        weight = self._weight
        self._weight = None
        if self.trainer.world_size > 1:  # one message a step, besides the gradients
            asked = torch.tensor(
                [float(one) for one in self.asks()], dtype=torch.float64, device=weight.device
            )
            sums = self._sum_over_ranks(torch.cat((weight.double()[None], asked)))
            weight, self.votes = sums[0].to(weight.dtype), sums[1:]
        sharding.average_unsharded(self)
        gradients = [sharding.local_part(p.grad) for p in self.parameters() if p.grad is not None]
        # The ranks' gradients are averaged already: hence the world size.
        torch._foreach_mul_(gradients, self.trainer.world_size / weight.clamp(min=1e-8))

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Measure the global gradient norm at every step, and clip it where the optimizer's config says so."""
        parameters = [p for p in self.parameters() if p.grad is not None]
        self._grad_norm = sharding.total_norm([p.grad for p in parameters if p.grad is not None])
        if self.optimizer_config.gradient_clip:
            for sharded in (True, False):
                kind = [p for p in parameters if isinstance(p, DTensor) == sharded]
                clip_grads_with_norm_(kind, self.optimizer_config.gradient_clip, self._grad_norm)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimizer and schedule from their configs."""
        optimizer = build_optimizer(
            self, self.optimizer_config, bf16=str(self.trainer.precision).startswith("bf16")
        )
        scheduler = build_scheduler(optimizer, self.scheduler_config, self.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def flush_window(self) -> dict[str, float]:
        """Means over the micro-batches since the last call, of the whole global batch: `train/loss` and what `step` logs."""
        window = torch.stack(
            [torch.as_tensor(v, dtype=torch.float64, device="cpu") for v in self._window.values()]
        )
        sums = dict(zip(self._window, self._sum_over_ranks(window.to(self.device)).tolist(), strict=True))
        self._window = {}
        weight = max(sums.pop("weight"), 1e-8)
        assert self._grad_norm is not None
        return {
            **{f"train/{key}": value / weight for key, value in sums.items()},
            "probe/grad_norm": float(self._grad_norm),
            "lr": float(self.trainer.optimizers[0].param_groups[0]["lr"]),
        }

    # ------------------------------------------------------------------ evaluation

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss, metrics and samples of one batch."""
        output = self.step(batch)
        mean = output.loss_sum.float() / output.weight.clamp(min=1e-8)
        self._loss.update(mean, output.weight)
        evaluated = self.evaluate(batch, output)
        if self.num_samples:
            self._shown.extend(self.samples(batch, output, evaluated))
        self.first_batch = False
        sharding.release(self)

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Log `val/...`."""
        self._end_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Log `test/...`."""
        self._end_evaluation("test")

    def _end_evaluation(self, split: str) -> None:
        shown, self._shown = sorted(self._shown, key=lambda sample: str(sample["id"])), []
        values, info, probes = self._computed(split)
        if not self.trainer.sanity_checking:
            self.evaluated = values
            if info:
                self.evaluation_info[split] = info
            self.record(values | (probes if split == "val" else {}))
            # For any Lightning callback that watches a metric, and for the progress bar.
            self.log_dict(values, logger=False)
            stride = max(1, len(shown) // max(self.num_samples, 1))
            self._show(split, "samples", shown[::stride][: self.num_samples])
            self._show(split, "overview", self.overview() if self.num_samples else [])
            self.after_evaluation(split)
        self.first_batch = True
        for metric in self._metrics.values():
            metric.reset()  # type: ignore[operator]

    def _computed(self, split: str) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
        """Return the values of the metrics, of those named `facts/...` and of those named `probe/...`."""
        values: dict[str, float] = {}
        info: dict[str, float] = {}
        probes: dict[str, float] = {}
        for name, metric in self._metrics.items():
            result = metric.compute()  # type: ignore[operator]
            for key, value in (result if isinstance(result, Mapping) else {name: result}).items():
                if key.startswith("facts/"):
                    info[key.removeprefix("facts/")] = float(value)
                elif key.startswith("probe/"):
                    probes[key] = float(value)
                else:
                    values[f"{split}/{key}"] = float(value)
        return values, info, probes

    def _show(self, split: str, what: str, shown: Sequence[Sample]) -> None:
        if not shown or not self.trainer.is_global_zero:
            return
        rows = [{"step": self.global_step, "split": split, **sample} for sample in shown]
        if self.samples_file is not None:
            kept = [save_images(row, self.samples_file.parent, f"{split}-{row['id']}") for row in rows]
            with self.samples_file.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in kept)
        if any(hasattr(logger, "log_audio") for logger in self.loggers):
            rows = [{**row, "audio": path} if (path := self.recording(row)) else row for row in rows]
        for logger in self.loggers:
            log_samples(logger, f"{split}/{what}", rows, self.global_step)

    # ------------------------------------------------------------------ helpers

    def record(self, metrics: Mapping[str, float]) -> None:
        """Send `metrics` to every logger, at the number of optimizer steps done."""
        for logger in self.loggers:
            logger.log_metrics(dict(metrics), step=self.global_step)

    def _sum_over_ranks(self, value: Tensor) -> Tensor:
        value = value.clone()
        if self.trainer.world_size > 1:  # Lightning's `reduce` waits at a barrier first
            torch.distributed.all_reduce(value)
        return value

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the unfinished logging window and the last evaluation, so that a resumed run logs the same."""
        checkpoint["evaluated"] = dict(self.evaluated)
        own = torch.tensor([float(value) for value in self._window.values()], dtype=torch.float64)
        every = self.trainer.strategy.all_gather(own.to(self.device)).reshape(self.trainer.world_size, -1)
        # One window of each process.
        checkpoint["window"] = [dict(zip(self._window, row, strict=True)) for row in every.tolist()]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore them, whatever version wrote them."""
        checkpoint["state_dict"] = migrate.weights(checkpoint["state_dict"])
        self.evaluated = dict(checkpoint.get("evaluated", {}))
        windows = checkpoint.get("window", {})
        if isinstance(windows, Mapping):  # of an older version: that of the first process alone
            windows = [windows]
        rank = self.global_rank
        if len(windows) == self.trainer.world_size:
            self._window = dict(windows[rank])
        else:  # their sums are what counts: the first process has them
            self._window = {key: sum(one[key] for one in windows) for key in windows[0]} if rank == 0 else {}


def _indices(mask: Tensor) -> Tensor:
    return mask.flatten().nonzero().squeeze(1)
