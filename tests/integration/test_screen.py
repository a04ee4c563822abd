"""What is on the screen and in log.txt while a run goes on."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from magneto.commands.console import ProgressLines
from magneto.tasks.base import Task
from magneto.training.checkpointing import Checkpoints
from magneto.training.signals import StopSignals
from tests.toys.runs import values

ROOT = Path(__file__).parents[2]


def test_lines_of_a_run(run, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal: no bar, a line a validation, a summary; all of it in log.txt, and Lightning's profiler too."""
    result = run("+trainer.profiler=simple", "trainer.enable_progress_bar=true")
    screen = capsys.readouterr()
    lines = [line for line in screen.err.splitlines() if line.startswith("step ")]
    assert re.fullmatch(r"step \d+/20  loss \d+\.\d{4}  .+ left", lines[0])
    validations = [line for line in lines if "val/cer" in line]
    assert [line.split()[1] for line in validations] == ["8/20", "16/20", "20/20"]
    assert re.fullmatch(r"step 8/20  val/cer \d\.\d{4} \(best, saved\)  \d+ s left", validations[0])
    assert validations[-1].endswith(")"), "nothing is left"
    assert "Training" not in screen.out + screen.err and "v_num" not in screen.out + screen.err
    assert f"val/cer  {result['monitor']['best']:.4f}".replace("  ", "") in screen.out.replace(" ", "")
    log = (Path(result["folder"]) / "log.txt").read_text()
    for line in validations:
        assert line in log
    rows = [row for row in values(result["folder"]) if "blank" in row[1]]
    assert [row[:2] for row in rows] == [(step, "probe/blank_ratio") for step in ("8", "16", "20")]
    assert not any("blank" in name for name in result["metrics"]), "a probe is no metric"
    assert "FIT Profiler Report" in log and "FIT Profiler Report" not in screen.out + screen.err
    assert screen.out[screen.out.index(": finished") :] in log, "the summary"
    run("+trainer.profiler=simple", "trainer.enable_progress_bar=true", "summary=full")
    again = capsys.readouterr().out
    assert "already finished; use resume=never to start over" in again
    assert all(name in again for name in result["metrics"])


class Stub(Task):
    """A task of which nothing is known but its length and its last validation."""

    monitor = "val/x"

    def __init__(self) -> None:
        L.LightningModule.__init__(self)
        self.total_steps, self.evaluated = 1000, {}


def test_time_left_counts_this_process_only(tmp_path, monkeypatch, caplog) -> None:
    """A run resumed at step 500 that makes 100 steps in 50 s has 200 s left for 400."""
    caplog.set_level("INFO", "magneto")
    saver = Checkpoints(tmp_path, "val/x", "min", StopSignals(), minutes=10)
    lines, task = ProgressLines(saver, bar=True), Stub()
    trainer: Any = type("T", (), {"global_step": 500, "sanity_checking": False})()
    trainer.state = type("S", (), {"fn": "fit"})()
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    lines.on_train_start(trainer, task)
    trainer.global_step, now = 600, 1050.0
    task.evaluated, saver.best, saver.best_step = {"val/x": 0.5}, 0.25, 300
    lines.on_validation_end(trainer, task)
    assert caplog.messages == ["step 600/1000  val/x 0.5000 (best 0.2500 at 300)  3.3 min left"]
    saver.best, saver.best_step = 0.5, 600
    lines.on_validation_end(trainer, task)
    assert "(best, saved)" in caplog.messages[-1]


@pytest.mark.slow
def test_bar_fits_terminal(overrides: list[str], tmp_path: Path, width: int = 80) -> None:
    """On a terminal the bar, the metric in it, and every line of ours stay within its width."""
    import pty

    given = [one for one in overrides if "enable_progress_bar" not in one and "runs_dir" not in one]
    main, child = pty.openpty()
    environment = {
        **os.environ,
        "COLUMNS": str(width),
        "LINES": "40",
        "TERM": "xterm",
        "OMP_NUM_THREADS": "1",
    }
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), *given, "name=a"],
        stdin=child, stdout=child, stderr=child, cwd=tmp_path, env=environment,
    )  # fmt: skip
    os.close(child)
    read = bytearray()
    try:
        while part := os.read(main, 65536):
            read += part
    except OSError:  # Linux: the other end is closed
        pass
    os.close(main)
    assert process.wait(timeout=60) == 0, read.decode()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", read.decode())
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", plain) if line.strip()]
    bars = [line for line in lines if line.startswith("Training")]
    assert any(re.search(r"loss \d+\.\d{3}  val/cer \d\.\d{3}$", line) for line in bars), bars[-1]
    assert all(len(line) <= width for line in bars + [line for line in lines if line.startswith("step ")])
    assert "v_num" not in plain and "step 8/20  val/cer" in plain
