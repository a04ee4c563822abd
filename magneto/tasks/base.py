"""What every task shares: a task is a stem, a backbone, a head, a loss, and what it measures.

A task implements `build`, `step`, `evaluate`, and where it has something to show, `samples` and `predict`. This class
owns the rest: strict options, normalisation of the loss, clipping, optimizer and schedule, logging, evaluation.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torchmetrics import MeanMetric, Metric

from magneto.data.module import DataModule
from magneto.errors import UserError, from_mapping
from magneto.nn.config import BackboneConfig
from magneto.nn.transformer import Stack
from magneto.training.loggers import log_samples
from magneto.training.optim import OptimizerConfig, SchedulerConfig, build_optimizer, build_scheduler

log = logging.getLogger("magneto")

Batch = dict[str, Any]
Sample = dict[str, Any]


@dataclass
class StepOutput:
    """What `TaskModule.step` gives back.

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
    logs: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class PredictInput:
    """What a user gives to `mode=predict`.

    Attributes:
        path: `input=`, a file or a folder; "-" is the standard input.
        prompts: `prompt=`, given on the command line itself.
        key: what the user called the path, for messages.
    """

    path: str | None = None
    prompts: tuple[str, ...] | None = None
    key: str = "input"

    def lines(self) -> Iterator[str]:
        """The prompts, or the lines of the file as they come, without their ends and without a byte order mark.

        A later line that is not UTF-8 is read as an empty one, and named in the log: the others keep their places.

        Raises:
            UserError: there is no such file, or its first line is not UTF-8 text.
        """
        if self.prompts is not None:
            yield from self.prompts
            return
        assert self.path is not None
        if self.path != "-" and (
            not Path(self.path).exists() or Path(self.path).is_dir()
        ):  # a pipe is read, too
            raise UserError(
                f'{self.key}={self.path}: no such file. Name a text file, or "-" for the standard input.'
            )
        with contextlib.ExitStack() as opened:
            stream = (
                sys.stdin.buffer if self.path == "-" else opened.enter_context(Path(self.path).open("rb"))
            )
            for number, line in enumerate(stream, start=1):
                try:
                    yield line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    why = f"{self.key}={self.path}, line {number}: not UTF-8 text ({error.reason} at byte {error.start})"
                    if number == 1:
                        raise UserError(f"{why}. Convert the file to UTF-8.") from error
                    log.warning("%s: read as an empty line", why)
                    yield ""

    def unanswered(self, number: int, why: UserError) -> None:
        """Log why line `number` has an empty answer.

        Raises:
            UserError: `why`, where it is the only prompt of the command line.
        """
        if self.prompts is not None and len(self.prompts) == 1:
            raise why
        log.warning("line %d of the input has an empty answer: %s", number, why)


class Diverged(RuntimeError):
    """The loss is not finite or has grown beyond the bound: a result of the run, not a crash."""


class TaskModule(L.LightningModule):
    """Base class of the tasks.

    Args:
        backbone: fields of `BackboneConfig`.
        spec: the frozen facts of the prepared data (vocabulary, feature width), as plain values.
        optimizer: fields of `OptimizerConfig`.
        scheduler: fields of `SchedulerConfig`.
        total_steps: optimizer steps of the whole run: the length of the schedule.
        num_samples: how many examples to show at each evaluation.
        options: fields of the task's own `Options`.

    Raises:
        UserError: an unknown or impossible value in any of them, naming the key and the remedy.
    """

    name: ClassVar[str]
    monitor: str
    mode: str = "min"
    Options: ClassVar[type]
    Data: ClassVar[type[DataModule]]
    """The kind of data that it learns from."""
    headline: ClassVar[str | None] = None
    """The metric that runs are compared by, without its split, where it is not the monitored one."""
    example_input: str | None = None
    """What `mode=predict` takes, for the command at the end of a run; None: nothing."""
    uses_labels: ClassVar[bool] = True
    """Whether the classes of the data, if it has any, are what is learnt: other data must have the same ones then."""

    def __init__(
        self,
        *,
        backbone: Mapping[str, Any],
        spec: Mapping[str, Any],
        optimizer: Mapping[str, Any],
        scheduler: Mapping[str, Any],
        total_steps: int,
        num_samples: int = 8,
        **options: Any,
    ) -> None:
        super().__init__()
        backbone = {**backbone, **self.shape_from(backbone, spec)}
        self.config = BackboneConfig.from_dict(backbone)
        self.spec = dict(spec)
        self.optimizer_config = from_mapping(OptimizerConfig, optimizer, "optimizer")
        self.scheduler_config = from_mapping(SchedulerConfig, scheduler, "scheduler")
        self.total_steps = total_steps
        self.num_samples = num_samples
        self.options: Any = from_mapping(self.Options, options, "task")
        self.save_hyperparameters(
            {
                "task": f"{type(self).__module__}.{type(self).__qualname__}",
                "backbone": backbone,
                "spec": self.spec,
                "optimizer": dict(optimizer),
                "scheduler": dict(scheduler),
                "total_steps": total_steps,
                "num_samples": num_samples,
                **options,
            },
            logger=False,  # loggers get the run's configuration; a tokenizer of megabytes is nothing to look at
        )
        self.scores: dict[str, Metric] = {}
        self.build()
        self._loss = MeanMetric()
        self._metrics = nn.ModuleDict({"loss": self._loss, **self.scores})
        self._window: dict[str, Tensor | float] = {}
        self._weight: Tensor | None = None
        self._grad_norm: Tensor | None = None
        self._shown: list[Sample] = []
        self.evaluated: dict[str, float] = {}
        """Metrics of the last evaluation, by their logged names."""
        self.evaluation_facts: dict[str, dict[str, float]] = {}
        """What the metrics named `facts/...` say of the data of each split: no model changes it."""
        self.samples_file: Path | None = None

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, map_location: Any = None) -> Self:  # type: ignore[override]
        """Return the task with its weights; `magneto.training.checkpoint_io.load_task` does the same for any task.

        Args:
            checkpoint_path: a run's folder, a checkpoint or an export folder.
            map_location: the device to put it on; None: the CPU.

        Raises:
            UserError: there is no such model, it is damaged, or it is of another task.
        """
        from magneto.training.checkpoint_io import load_task

        task = load_task(checkpoint_path)
        if not isinstance(task, cls):
            raise UserError(
                f"{checkpoint_path} is of task={task.name}, not of {cls.__name__}. Use {type(task).__name__}, or "
                "magneto.training.checkpoint_io.load_task for any task."
            )
        return task if map_location is None else task.to(map_location)

    # ------------------------------------------------------------------ what a task implements

    def build(self) -> None:
        """Make stem, stack and head, and put the metrics of the evaluation into `self.scores`."""
        raise NotImplementedError

    @classmethod
    def shape_from(cls, backbone: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of the backbone that follow from the data, such as the patches on a side of a picture."""
        return {}

    @classmethod
    def prepare(cls, config: Mapping[str, Any], data: DataModule) -> dict[str, Any]:
        """Options that need work beyond the data's own, such as a model whose outputs are this task's targets.

        Called by every process once the data is prepared; what takes long goes through `prepare_once`.

        Args:
            config: the whole resolved configuration.
            data: of this task, prepared.

        Returns:
            what to put into `config["task"]`, plain values.
        """
        return {}

    def initialize(self) -> None:
        """What a fresh run does before training and a resumed one finds in its checkpoint: read given weights."""

    def step(self, batch: Batch) -> StepOutput:
        """Loss of one batch, in training as in evaluation."""
        raise NotImplementedError

    def evaluate(self, batch: Batch, output: StepOutput) -> None:
        """Feed `self.scores` with one batch."""

    def samples(self, batch: Batch, output: StepOutput) -> list[Sample]:
        """What a person would look at, an object of plain values for each example, with its `id`.

        `picture`, if there is one, is a uint8 array (H, W) or (H, W, 3).
        """
        return []

    def recording(self, sample: Sample) -> Path | None:
        """Return a file with the sound of one of the `samples`, for loggers that play it."""
        return None

    def overview(self) -> list[Sample]:
        """As `samples`, of a whole evaluation, once its metrics are known."""
        return []

    def units(self, batch: Batch) -> dict[str, float]:
        """What throughput is counted in: `examples`, and `tokens` or `audio_seconds`."""
        return {"examples": float(len(batch["id"]))}

    def flops(self, batch: Batch) -> float:
        """Model FLOPs of one training step on this batch, padding included (forward and backward pass)."""
        raise NotImplementedError

    def predict(self, inputs: PredictInput, options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Apply the model to what a user gives: plain results.

        A result with `text` is printed as a line, and its other keys are kept for `output=`. One that has `piece` alone
        is printed at once and without a line break, for what comes bit by bit; a result follows whose `text` begins with
        these pieces. A line that the model cannot take gets an empty answer, see `PredictInput.unanswered`.

        Args:
            inputs: what to apply it to.
            options: what the user set in the group `predict`, to be checked by the task.
        """
        raise UserError(f"task {self.name}: mode=predict is not offered.")

    def tokenizer_json(self) -> str | None:
        """The tokenizer as a `tokenizer.json`, for the export; None where the task has none."""
        return None

    def named_layers(self) -> Iterator[tuple[str, nn.Module]]:
        """The layers of the backbone, as the stability probe names them: `layer_00`, or `encoder/layer_00`."""
        for path, stack in self._stacks():
            side = next((part for part in path.split(".") if part in ("encoder", "decoder")), None)
            prefix = f"{side}/" if side else ""
            yield from ((f"{prefix}layer_{index:02d}", layer) for index, layer in enumerate(stack.layers))

    def _stacks(self) -> list[tuple[str, Stack]]:
        """The stacks of the backbone by their paths, without those of a model that only gives targets."""
        return [
            (path, module)
            for path, module in self.named_modules()
            if isinstance(module, Stack) and not path.startswith("target.")
        ]

    def layer_modules(self) -> list[nn.Module]:
        """What makes the input of the layers (stem, absolute positions), and the layers, for `optimizer.layer_decay`.

        Relative positions belong to no layer; they have the head's learning rate, as in BEiT's fine-tuning.

        Raises:
            UserError: the task has more than one stack, so that its layers stand in no single order.
        """
        stacks = self._stacks()
        if len(stacks) != 1:
            raise UserError(
                f"optimizer.layer_decay={self.optimizer_config.layer_decay}: task={self.name} has {len(stacks)} stacks, "
                "whose layers have no single order. Set it to null."
            )
        stack = stacks[0][1]
        stem = [module for name, module in self.named_children() if name == "stem"]
        below = [module for module in (*stem, stack.position, stack.input_norm) if module is not None]
        return [nn.ModuleList(below), *stack.layers]

    def compile_layers(self) -> None:
        """Compile each layer in place: parameter names stay as they are, and equal layers share one compilation."""
        # A multiway layer has a graph for each kind of input and of length; beyond the limit it would run uncompiled.
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
        for _, layer in self.named_layers():
            layer.compile()

    @property
    def num_parameters(self) -> int:
        """Trainable parameters."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def require_positions(self, length: int, setting: str, remedy: str) -> None:
        """Refuse data whose longest sequence is beyond the reach of the backbone's positions.

        Args:
            length: tokens of the longest sequence, special tokens and padding included.
            setting: what in the data's configuration decides it, with its value.
            remedy: what to set it to.

        Raises:
            UserError: the positions reach less far.
        """
        reach = self.config.max_positions
        if self.config.position in ("learned", "sinusoidal", "rotary") and length > reach:
            raise UserError(
                f"{setting} is more than backbone.max_positions={reach} (position={self.config.position}): {remedy}, or "
                "raise backbone.max_positions, unless it comes with init_from."
            )

    # ------------------------------------------------------------------ training

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
        weight = self._sum_over_ranks(self._weight)
        self._weight = None
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        # DDP has averaged over the ranks already: hence the world size.
        torch._foreach_mul_(gradients, self.trainer.world_size / weight.clamp(min=1e-8))

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Measure the global gradient norm at every step, and clip it where the optimizer's config says so."""
        parameters = [p for p in self.parameters() if p.grad is not None]
        self._grad_norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.optimizer_config.gradient_clip:
            clip_grads_with_norm_(parameters, self.optimizer_config.gradient_clip, self._grad_norm)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Optimizer and schedule from their configs."""
        optimizer = build_optimizer(self, self.optimizer_config)
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
        self._evaluation_step(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """As `validation_step`."""
        self._evaluation_step(batch)

    def on_validation_epoch_end(self) -> None:
        """Log `val/...`."""
        self._end_evaluation("val")

    def on_test_epoch_end(self) -> None:
        """Log `test/...`."""
        self._end_evaluation("test")

    def _evaluation_step(self, batch: Batch) -> None:
        output = self.step(batch)
        mean = output.loss_sum.float() / output.weight.clamp(min=1e-8)
        self._loss.update(mean, output.weight)
        self.evaluate(batch, output)
        if self.num_samples:
            self._shown.extend(self.samples(batch, output))

    def _end_evaluation(self, split: str) -> None:
        values: dict[str, float] = {}
        facts: dict[str, float] = {}
        probes: dict[str, float] = {}
        for name, metric in self._metrics.items():
            result = metric.compute()  # type: ignore[operator]
            for key, value in (result if isinstance(result, Mapping) else {name: result}).items():
                if key.startswith("facts/"):
                    facts[key.removeprefix("facts/")] = float(value)
                elif key.startswith("probe/"):
                    probes[key] = float(value)
                else:
                    values[f"{split}/{key}"] = float(value)
            metric.reset()  # type: ignore[operator]
        shown, self._shown = sorted(self._shown, key=lambda sample: str(sample["id"])), []
        if self.trainer.sanity_checking:
            return
        self.evaluated = values
        if facts:
            self.evaluation_facts[split] = facts
        self.record(values | (probes if split == "val" else {}))
        # For any Lightning callback that watches a metric, and for the progress bar.
        self.log_dict(values, logger=False)
        stride = max(1, len(shown) // max(self.num_samples, 1))
        self._show(split, "samples", shown[::stride][: self.num_samples])
        self._show(split, "overview", self.overview() if self.num_samples else [])

    def _show(self, split: str, what: str, shown: Sequence[Sample]) -> None:
        if not shown or not self.trainer.is_global_zero:
            return
        rows = [{"step": self.global_step, "split": split, **sample} for sample in shown]
        if self.samples_file is not None:
            kept = [save_picture(row, self.samples_file.parent, f"{split}-{row['id']}") for row in rows]
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
        reduced = self.trainer.strategy.reduce(value.clone(), reduce_op="sum")
        assert isinstance(reduced, Tensor)
        return reduced

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the unfinished logging window and the last evaluation, so that a resumed run tells the same."""
        checkpoint["evaluated"] = dict(self.evaluated)
        own = torch.tensor([float(value) for value in self._window.values()], dtype=torch.float64)
        rows = (
            self.trainer.strategy.all_gather(own.to(self.device))
            .reshape(self.trainer.world_size, -1)
            .tolist()
        )
        checkpoint["window"] = [
            dict(zip(self._window, row, strict=True)) for row in rows
        ]  # one of each process

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore them."""
        self.evaluated = dict(checkpoint.get("evaluated", {}))
        windows = checkpoint.get("window", {})
        if isinstance(windows, Mapping):  # of an older version: that of the first process alone
            windows = [windows]
        rank = self.global_rank
        self._window = dict(windows[rank]) if rank < len(windows) else {}


def save_picture(row: Sample, folder: Path, name: str) -> Sample:
    """Write `row["picture"]`, if there is one, as a PNG file below `folder`; the row then holds its relative path."""
    if "picture" not in row:
        return row
    file = Path("samples") / (re.sub(r"[^\w.-]+", "_", name) + ".png")
    (folder / file).parent.mkdir(exist_ok=True)
    Image.fromarray(row["picture"]).save(folder / file)
    return {**row, "picture": file.as_posix()}


def task_class(path: str) -> type[TaskModule]:
    """The task class named by `path` (`package.module.Class`).

    Raises:
        UserError: there is no such class, or it is not a task.
    """
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"task._target_={path}: cannot be imported ({error}). Name a TaskModule, package.module.Class."
        ) from error
    if not (isinstance(found, type) and issubclass(found, TaskModule)):
        raise UserError(f"task._target_={path}: is not a TaskModule.")
    return found
