"""Correctness of `gpu.py`: ten steps of each task beside the CPU's, a run that is resumed, an export that is read back.

All of it by what a user calls: `run.py`'s own function, on the real configuration with a toy model and a made-up corpus.
Dropout is off, whose masks differ between devices; initial weights, order of the data and masks come from the CPU on both.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from gpu_report import FAILED, OK, Report, quiet
from gpu_tasks import toy_settings

from tests.toys.runs import Killed, drive, killed_after_save, training_losses, values

STEPS = 10
FP32 = 5e-4
"""Largest relative difference of a loss from the CPU's, for sums in another order: 5 % more learning rate make 6e-3."""
BF16 = {"causal_lm": 5e-3, "mlm": 5e-3, "mt": 5e-3, "beit": 5e-2, "asr": 5e-2, "vl": 5e-2}
"""The same of bf16: about four times what it was on a CPU, and less than the half of what another seed makes."""
RESUMED = 1e-3
"""The same of a resumed run on a GPU, where not all kernels repeat their bits (CTC's backward pass); 0 on a CPU."""
EXPORTED = 1e-5
"""The same of the metrics of an export."""
NEUTRAL = (
    "optimizer.lr=2e-3", "scheduler.warmup=0", "backbone.dropout=0", "backbone.drop_path=0",
    f"trainer.max_steps={STEPS}", f"trainer.val_check_interval={STEPS}", "trainer.log_every_n_steps=1",
    "trainer.limit_val_batches=1", "trainer.limit_test_batches=1", f"callbacks.save_every={STEPS // 2}",
    "callbacks.samples=0", "callbacks.probe_every=0", "data.num_workers=0",
)  # fmt: skip
CODEBOOK = (
    "task.default_tokenizer={codes: 32, code_width: 8, width: 16, blocks: 1, steps: 10, batch_size: 16}"
)


@contextmanager
def full_fp32() -> Iterator[None]:
    """Let no kernel of a GPU compute fp32 in TF32, which cuDNN's convolutions do by default."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def deviation(found: Sequence[float], expected: Sequence[float]) -> float:
    """Return the largest relative difference; infinity where a number is missing or not finite."""
    if len(found) != len(expected) or not all(map(math.isfinite, [*found, *expected])):
        return math.inf
    return max(abs(a - b) / max(abs(b), 1e-8) for a, b in zip(found, expected, strict=True))


def losses(result: dict[str, Any]) -> list[float]:
    """Return the training loss of each step and the loss on test data."""
    return [*training_losses(result["folder"]), result["metrics"]["test/loss"]]


class TaskChecks:
    """The checks of one task.

    Args:
        task: its name.
        device: cpu or cuda.
        folder: for corpora, prepared data and runs.
    """

    def __init__(self, task: str, device: str, folder: Path) -> None:
        self.task, self.device, self.log = task, device, folder / "log.txt"
        codebook = [CODEBOOK] if task == "beit" else []
        self.settings = [*toy_settings(task, folder), *codebook, *NEUTRAL]

    def train(self, name: str, device: str, precision: str = "32-true") -> dict[str, Any]:
        """Return the result of a run."""
        accelerator = "gpu" if device == "cuda" else device
        more = (f"name={name}", f"trainer.accelerator={accelerator}", f"trainer.precision={precision}")
        with quiet(self.log):
            result = drive(self.settings, *more)
        if result["status"] != "finished":
            raise RuntimeError(f"the run {result['status']}: {result['message']}")
        return result

    @cached_property
    def reference(self) -> dict[str, Any]:
        """The run on the CPU, in fp32."""
        return self.train("reference", "cpu")

    @cached_property
    def whole(self) -> dict[str, Any]:
        """The run on the device, in fp32."""
        return self.train("whole", self.device)

    def fp32(self) -> tuple[float, float, str]:
        """Return the deviation from the CPU, its tolerance, and a remark."""
        return deviation(losses(self.whole), losses(self.reference)), FP32, ""

    def bf16(self) -> tuple[float, float, str]:
        """The same of bf16."""
        found = self.train("bf16", self.device, "bf16-mixed")
        return deviation(losses(found), losses(self.reference)), BF16[self.task], ""

    def resume(self) -> tuple[float, float, str]:
        """Kill a run halfway and repeat it: metrics, curves and weights beside those of the whole one."""
        try:
            with killed_after_save(STEPS // 2):
                self.train("parts", self.device)
        except Killed:
            parts = self.train("parts", self.device)
        else:
            raise RuntimeError("the run was not stopped")
        log = (Path(parts["folder"]) / "log.txt").read_text(encoding="utf-8")
        if "resuming from" not in log:
            raise RuntimeError("the run began again instead of going on")
        both = self.whole, parts
        weights = [
            torch.load(last_checkpoint(result), "cpu", weights_only=True)["state_dict"] for result in both
        ]
        same = values(both[0]["folder"]) == values(both[1]["folder"])
        same &= all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
        found = 0.0 if same else max(deviation(losses(parts), losses(self.whole)), 1e-12)
        tolerance = RESUMED if self.device == "cuda" else 0.0
        return found, tolerance, "bit for bit" if same else "not bit for bit"

    def export(self) -> tuple[float, float, str]:
        """Test what was exported: metrics beside those of the run."""
        accelerator = "gpu" if self.device == "cuda" else self.device
        folder = Path(self.whole["folder"])
        with quiet(self.log):
            record = drive(
                self.settings, "mode=test", f"checkpoint={folder / 'export'}", f"output={folder / 'read_back.json'}",
                f"trainer.accelerator={accelerator}", "trainer.precision=32-true",
            )  # fmt: skip
        expected = {name: value for name, value in self.whole["metrics"].items() if name.startswith("test/")}
        found = [record["metrics"].get(name, math.nan) for name in expected]
        return deviation(found, list(expected.values())), EXPORTED, f"{len(expected)} metrics"


def last_checkpoint(result: dict[str, Any]) -> Path:
    """Return the last checkpoint of a run."""
    return Path(result["folder"]) / "checkpoints" / "last.ckpt"


def check_tasks(report: Report, tasks: Sequence[str], device: str, folder: Path) -> None:
    """Add four rows for each task."""
    with full_fp32():
        for task in tasks:
            start = partial(TaskChecks, task, device, folder)
            if (checks := report.run("correctness", f"{task}, corpus", start)) is None:
                continue
            for name in ("fp32", "bf16", "resume", "export"):
                what = f"{task}, {name}"
                report.run("correctness", what, partial(compare, report, what, getattr(checks, name)))


def compare(report: Report, name: str, check: Callable[[], tuple[float, float, str]]) -> None:
    """Add the row of a check that was made."""
    found, tolerance, remark = check()
    note = ", ".join(filter(None, (f"deviation {found:.1e}, at most {tolerance:.0e} allowed", remark)))
    report.add(
        "correctness", name, OK if found <= tolerance else FAILED, note, deviation=found, tolerance=tolerance
    )
