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


def two_processes(
    folder: Path, overrides: list[str], script: Path = CONF.parent / "run.py"
) -> subprocess.Popen[str]:
    arguments = [*overrides, "trainer.devices=2", "trainer.strategy=ddp", "trainer.accelerator=cpu"]
    environment = {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "PYTHONPATH": str(CONF.parent)}
    return subprocess.Popen(
        [sys.executable, str(script), *arguments], cwd=folder, env={**os.environ, **environment}, text=True,
        stderr=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


@pytest.mark.slow
def test_two_processes_resume_exactly(text_overrides: list[str], tmp_path: Path) -> None:
    """Stopped between two logged steps: the loss logged next has the sums of each process, not twice the first's."""
    settings = [*text_overrides, "task=causal_lm", "trainer.max_steps=12", "callbacks.save_every=1"]
    settings.append("trainer.log_every_n_steps=4")
    whole = two_processes(tmp_path, [*settings, "name=whole"])
    assert whole.wait(300) == 0, whole.communicate()
    script = tmp_path / "stop.py"
    script.write_text(
        "from magneto.training import checkpointing; from magneto.cli import main\n"
        "save = checkpointing.Checkpoints._save\n"
        "def stop(self, trainer, name):\n"
        "    save(self, trainer, name)\n"
        "    self.signals.received = trainer.global_step >= 5\n"
        "checkpointing.Checkpoints._save = stop\nmain()\n"
    )
    first = two_processes(tmp_path, [*settings, "name=parts"], script)
    assert first.wait(300) == 130, first.communicate()
    runs = tmp_path / "runs/causal_lm"
    content = torch.load(runs / "parts/checkpoints/last.ckpt", weights_only=True)
    assert content["global_step"] == 6 and len(content["window"]) == 2
    assert content["callbacks"]["ConfigureRun"] == {"world_size": 2}
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
