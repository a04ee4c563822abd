"""Runs of several processes on one machine: the curve of one process, resuming, a process that is lost."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from magneto.config.groups import CONF
from magneto.errors import MagnetoError
from magneto.training import reproducibility
from tests.toys.captions import KINDS, caption_settings, write_squares
from tests.toys.runs import SHORT, SMALL, drive, folders, training_losses, values


def processes(
    count: int, folder: Path, overrides: list[str], script: Path = CONF.parent / "run.py"
) -> subprocess.Popen[str]:
    arguments = [*overrides, f"trainer.devices={count}", "trainer.strategy=ddp", "trainer.accelerator=cpu"]
    environment = {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "PYTHONPATH": str(CONF.parent)}
    return subprocess.Popen(
        [sys.executable, str(script), *arguments], cwd=folder, env={**os.environ, **environment}, text=True,
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def two_processes(
    folder: Path, overrides: list[str], script: Path = CONF.parent / "run.py"
) -> subprocess.Popen[str]:
    return processes(2, folder, overrides, script)


STOP = """
from magneto.training import checkpointing
from magneto.cli import main
save = checkpointing.Checkpoints._save
def stop(self, trainer, name):
    save(self, trainer, name)
    self.signals.received = trainer.global_step >= 5
checkpointing.Checkpoints._save = stop
main()
"""
"""A run that is asked to stop after five steps."""


@pytest.mark.slow
def test_two_processes_resume_exactly(text_overrides: list[str], tmp_path: Path) -> None:
    """Stopped between two logged steps: the loss logged next has the sums of each process, not twice the first's."""
    settings = [*text_overrides, "task=causal_lm", "trainer.max_steps=12", "callbacks.save_every=1"]
    settings.append("trainer.log_every_n_steps=4")
    whole = two_processes(tmp_path, [*settings, "name=whole"])
    assert whole.wait(300) == 0, whole.communicate()
    script = tmp_path / "stop.py"
    script.write_text(STOP)
    first = two_processes(tmp_path, [*settings, "name=parts"], script)
    assert first.wait(300) == 130, first.communicate()
    runs = tmp_path / "runs/causal_lm"
    content = torch.load(runs / "parts/checkpoints/last.ckpt", weights_only=True)
    assert content["global_step"] == 6 and len(content["window"]) == 2
    assert content["callbacks"]["ConfigureRun"] == {"world_size": 2, "micro_batches": None}
    second = two_processes(tmp_path, [*settings, "name=parts"])
    assert second.wait(300) == 0, second.communicate()
    assert values(runs / "parts") == values(runs / "whole")


@pytest.mark.slow
def test_lost_processes_are_reported(text_overrides: list[str], tmp_path: Path) -> None:
    process = two_processes(
        tmp_path,
        [
            *text_overrides,
            "task=causal_lm",
            "trainer.max_steps=5000",
            "trainer.val_check_interval=5000",
            "name=one",
        ],
    )
    deadline = time.monotonic() + 300
    while not (tmp_path / "runs/causal_lm/one/metrics.csv").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid), "-f", "run.py"], capture_output=True, text=True, check=True
    )
    os.kill(int(children.stdout.split()[0]), signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    assert "Another process of this run has ended" in errors and "repeat the command" in errors
    assert "Traceback" not in errors
    result = json.loads((tmp_path / "runs/causal_lm/one/result.json").read_text())
    assert result["status"] == "failed"


def _meet(rank: int, file: str, steps: tuple[int, ...]) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    trainer: Any = type("Trainer", (), {"world_size": 2})()
    start = reproducibility.SameStart({"folder": "one", "step": steps[rank]})
    if steps[0] == steps[1]:
        start.setup(trainer, None, "fit")  # type: ignore[arg-type]
    else:
        with pytest.raises(MagnetoError, match="step: 40 in process 0, 0 in process 1.*runs_dir"):
            start.setup(trainer, None, "fit")  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [(40, 40), (40, 0)])
def test_processes_agree_where_to_begin(tmp_path: Path, steps: tuple[int, ...]) -> None:
    """A run's folder on a disk of its own in each machine: every process refuses, and none waits."""
    torch.multiprocessing.start_processes(
        _meet, (str(tmp_path / "meet"), steps), nprocs=2, start_method="fork"
    )


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_two_processes_have_the_curve_of_one(optimizer: str, overrides: list[str], tmp_path: Path) -> None:
    """Of one with batches that are twice as large."""
    same = [*overrides, f"optimizer={optimizer}", "backbone.dropout=0", "callbacks.probe_every=0"]
    drive(same, "name=one", "data.batch_frames=1600")
    two = two_processes(tmp_path, [*same, "name=two", "data.batch_frames=800"])
    assert two.wait(500) == 0, two.communicate()
    run_folder = tmp_path / "runs/asr"
    assert training_losses(run_folder / "two") == pytest.approx(training_losses(run_folder / "one"), rel=1e-4)
    results = [
        json.loads((run_folder / name / "result.json").read_text())["metrics"] for name in ("one", "two")
    ]
    assert results[1]["test/cer"] == pytest.approx(results[0]["test/cer"])
    assert results[1]["test/loss"] == pytest.approx(results[0]["test/loss"], rel=1e-3)


@pytest.mark.slow
def test_two_processes_train_vision_language(prepared_dir: Path, tmp_path: Path) -> None:
    """With both losses: pairs are compared over both processes, and every expert gets its gradient in each."""
    same = [
        "task=vl", *caption_settings(write_squares(tmp_path / "squares")), *folders(prepared_dir, tmp_path), *SMALL, *SHORT,
        "trainer.max_steps=8", "data.batch_size=12", "task.losses={masked: 1, contrastive: 1}", "data.masking={}",
        "task.target=random_projection", "task.random_codes=32", "backbone.fusion_layers=1", "backbone.drop_path=0",
    ]  # fmt: skip
    two = two_processes(tmp_path, [*same, "name=two"])
    assert two.wait(500) == 0, two.communicate()
    result = json.loads((tmp_path / "runs/vl/two/result.json").read_text())
    assert result["status"] == "finished" and result["steps"] == 8
    assert result["data_facts"]["evaluation"]["test"]["images"] == KINDS, (
        "both processes' parts are one gallery"
    )
    curve = training_losses(tmp_path / "runs/vl/two")
    assert curve[-1] < curve[0]


@pytest.mark.slow
def test_a_global_batch_for_any_processes(text_overrides: list[str], tmp_path: Path) -> None:
    """One, two and four processes have the same curve, also where a run goes on with another number of them."""
    settings = [
        *text_overrides, "task=causal_lm", "trainer.max_steps=8", "callbacks.save_every=1", "trainer.log_every_n_steps=1",
        "data.batch_size=2", "data.global_batch=8", "backbone.dropout=0", "callbacks.probe_every=0", "callbacks.samples=0",
    ]  # fmt: skip
    drive(settings, "name=one")
    for count, name in ((2, "two"), (4, "four")):
        run = processes(count, tmp_path, [*settings, f"name={name}"])
        assert run.wait(300) == 0, run.communicate()
    script = tmp_path / "stop.py"
    script.write_text(STOP)
    first = two_processes(tmp_path, [*settings, "name=moved"], script)
    assert first.wait(300) == 130, first.communicate()
    moved = drive(settings, "name=moved")
    assert moved["status"] == "finished" and moved["steps"] == 8
    runs = tmp_path / "runs/causal_lm"
    expected = training_losses(runs / "one")
    assert len(expected) == 8
    for name in ("two", "four", "moved"):
        assert training_losses(runs / name) == pytest.approx(expected, rel=1e-6), name
        result = json.loads((runs / name / "result.json").read_text())
        assert result["throughput"]["tokens_per_s"] > 0
    checkpoints = [
        torch.load(runs / name / "checkpoints/last.ckpt", weights_only=True) for name in ("one", "moved")
    ]
    progress = [c["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"] for c in checkpoints]
    totals = [c["callbacks"]["Monitor"]["totals"]["tokens"] for c in checkpoints]
    assert progress[0] == progress[1] and totals[0] == totals[1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["data.global_batch=9", "trainer.devices=2", "trainer.strategy=ddp"],
            "does not divide by 2 processes. Set it to 10",
        ),
        (
            ["data.global_batch=8", "trainer.accumulate_grad_batches=3"],
            "makes 4 micro-batches a step with 1 processes, not",
        ),
        (["data.global_batch=0"], "data.global_batch=0"),
    ],
)
def test_global_batch_refused(text_overrides: list[str], more: list[str], message: str) -> None:
    with pytest.raises(MagnetoError, match=message):
        drive([*text_overrides, "task=causal_lm", "data.batch_size=2", "trainer.accelerator=cpu"], *more)


def test_compared_examples_do_not_accumulate(tmp_path: Path) -> None:
    """Contrastive learning of parts of a batch is not that of the batch: the size that would do is named."""
    settings = [
        "task=vl",
        *folders(tmp_path / "data", tmp_path),
        "data.batch_size=16",
        "data.global_batch=64",
    ]
    with pytest.raises(MagnetoError, match="data.global_batch=64 is 4 batches.*Set data.batch_size to 64"):
        drive(settings)


COUNT = """
import atexit, json, os, sys
import torch
from magneto.cli import main
calls = []
for name in ("all_reduce", "broadcast", "barrier", "all_gather", "all_gather_object", "broadcast_object_list"):
    def counted(*args, plain=getattr(torch.distributed, name), name=name, **kwargs):
        calls.append((name, STEP[0]))
        return plain(*args, **kwargs)
    setattr(torch.distributed, name, counted)
from magneto.data import batching
from magneto.training.reproducibility import StepSeed
STEP = [-1]
start = StepSeed.on_train_batch_start
def begin(self, trainer, module, batch, index):
    STEP[0] = index
    start(self, trainer, module, batch, index)
StepSeed.on_train_batch_start = begin
cut = batching.cut
def planned(*args, **kwargs):
    calls.append(("plan", STEP[0]))
    return cut(*args, **kwargs)
batching.cut = planned
main()
if os.environ.get("LOCAL_RANK", "0") == "0":
    json.dump(calls, open("calls.json", "w"))
"""
"""A run that notes what its processes send, besides the gradients, and each planning of the data, by training batch."""


@pytest.mark.slow
def test_messages_of_a_step(text_overrides: list[str], tmp_path: Path) -> None:
    """One sum over the processes a step, one more where a line is logged, no barrier, and no planning of the data."""
    script = tmp_path / "count.py"
    script.write_text(COUNT)
    settings = [
        *text_overrides, "task=causal_lm", "name=counted", "trainer.max_steps=12", "trainer.val_check_interval=12",
        "trainer.log_every_n_steps=4", "callbacks.save_every=100", "callbacks.probe_every=0",
    ]  # fmt: skip
    run = two_processes(tmp_path, settings, script)
    assert run.wait(300) == 0, run.communicate()
    calls = json.loads((tmp_path / "calls.json").read_text())
    for batch in range(1, 11):  # the first and the last begin and end the run
        sent = [name for name, at in calls if at == batch]
        assert sent == ["all_reduce"] * (2 if (batch + 1) % 4 == 0 else 1), (batch, sent)
