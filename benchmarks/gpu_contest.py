"""Contests of `gpu.py`: contestants that take turns with one training step each.

A step is forward, backward, clipping of the gradient and AdamW with fused kernels, in bf16 autocast, on one batch that lies
on the device. Ours goes through the hooks of the task, as in a run. Ratios are medians over rounds.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
import torch
from gpu_report import Report, quiet
from language_step import growth
from timing import Step, ratio, rounds_of
from torch import Tensor, nn

from magneto.tasks.base import Task
from magneto.training.devices import peak_flops


@dataclass(frozen=True)
class Setting:
    """How everything is timed.

    Attributes:
        device: cpu or cuda.
        small: toy shapes.
        compiled: the layers of our causal LM and the plain model, as `trainer.compile=true` and `torch.compile`.
        rounds: turns of each contestant.
        folder: for corpora, prepared data and runs.
    """

    device: str
    small: bool
    compiled: bool
    rounds: int
    folder: Path

    @property
    def accelerator(self) -> str:
        """As Lightning calls the device."""
        return "gpu" if self.device == "cuda" else self.device

    @property
    def peak(self) -> float | None:
        """FLOP/s in bf16, where they are known."""
        return peak_flops(torch.device(self.device), torch.bfloat16)


@dataclass(frozen=True)
class Work:
    """What a training step works on.

    Attributes:
        batch: on the device.
        count: of what speed is measured in.
        unit: its name.
        flops: model FLOPs of our model; None: they are not counted.
    """

    batch: dict[str, Any]
    count: float
    unit: str
    flops: float | None = None


@dataclass
class Contestant:
    """A model to be timed.

    Attributes:
        build: makes it, and its training step.
        alike: its model FLOPs are those of ours.
    """

    build: Callable[[], tuple[nn.Module, Step]]
    alike: bool = False


# --- one training step -----------------------------------------------------------------------------------


def our_step(task: Task, batch: dict[str, Any], setting: Setting) -> Step:
    """Return the step of a task by its own hooks, in the order of Lightning."""
    attach(task, setting)
    task.to(setting.device).train()
    configured: Any = task.configure_optimizers()
    optimizer = configured["optimizer"]

    def step() -> None:
        with torch.autocast(setting.device, torch.bfloat16):
            loss = task.training_step(batch, 0)
        loss.backward()
        task.on_before_optimizer_step(optimizer)
        task.configure_gradient_clipping(optimizer)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def attach(task: Task, setting: Setting) -> None:
    """Give a task the trainer that its hooks ask."""
    trainer = L.Trainer(
        accelerator=setting.accelerator, devices=1, precision="bf16-mixed", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.training = True
    task.trainer = trainer


def step_of(model: nn.Module, loss: Callable[[nn.Module], Tensor], device: str) -> Step:
    """Return the step of any other model, as its users write it."""
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            value = loss(model)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def waits(step: Step, device: str) -> dict[str, float]:
    """Return `waits`: at how many operations of a step the host waits for the GPU; nothing of a CPU."""
    if device != "cuda":
        return {}
    with count_waits() as found:
        step()
    return {"waits": len(found)}


@contextmanager
def count_waits() -> Iterator[list[str]]:
    """Collect, in a list that is complete afterwards, the messages of torch about operations that wait for the GPU."""
    found: list[str] = []
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield found
    finally:
        torch.cuda.set_sync_debug_mode("default")
        found += (text for one in caught if "synchronizing CUDA operation" in (text := str(one.message)))


# --- contests --------------------------------------------------------------------------------------------


def contest(
    report: Report,
    setting: Setting,
    part: str,
    prefix: str,
    contestants: Mapping[str, Contestant],
    reference: str,
    work: Work,
) -> None:
    """Add a row for each contestant.

    Args:
        report: that gets the rows.
        setting: device and rounds.
        part: of the report.
        prefix: of the rows' names.
        contestants: by name; one that fails (out of memory, not installed) leaves the others in the race.
        reference: whose time is 1.
        work: of each step.
    """
    steps: dict[str, Step] = {}
    found: dict[str, dict[str, float]] = {}

    def enter(name: str) -> None:
        torch.manual_seed(0)
        with quiet(setting.folder / "log.txt"):
            model, step = contestants[name].build()
        kept = sum(t.numel() * t.element_size() for t in model.parameters()) / 2**20
        found[name] = {"memory_mib": kept + growth(step, setting.device)} | waits(step, setting.device)
        steps[name] = step

    def race() -> None:
        seconds = rounds_of(steps, setting.rounds, setting.device)
        for name in steps:
            each = median(seconds[name])
            values = {"ms": 1e3 * each, "rate": work.count / each} | found[name]
            if reference in steps:
                values["relative"] = ratio(seconds, name, reference)
            if contestants[name].alike and setting.peak and work.flops:
                values["mfu"] = work.flops / each / setting.peak
            report.add(part, prefix + name, unit=work.unit, **values)

    for name in contestants:
        report.run(part, prefix + name, partial(enter, name))
    if steps:
        report.run(part, f"{prefix}the race", race)
