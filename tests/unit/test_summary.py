"""The summary at the end of a run: what it says, and that it needs no heavy import."""

import sys
from pathlib import Path

import pytest

from magneto.commands import summary
from magneto.training.result import RunResult

RESULT = RunResult(
    task="asr", name="a", seed=1, config={}, status="finished", monitor="val/cer", mode="min", best=0.25, best_step=60,
    primary_metric="test/cer", example_input="input=recording.wav", steps=100, wall_s=90.0, data_wait_fraction=0.034,
    metrics={"test/cer": 0.3, "test/wer": float("nan"), "val/cer": 0.5},
)  # fmt: skip


def test_short_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Primary metric, best value with its step, time, places that can be copied, and the next commands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["/somewhere/run.py"])
    folder = tmp_path / "runs/asr/a"
    (folder / "export").mkdir(parents=True)
    (folder / "samples.jsonl").touch()
    (folder / "wandb/offline-run-1").mkdir(parents=True)
    assert summary.summarize(RESULT, folder, "finished").splitlines() == [
        "runs/asr/a: finished",
        "  test/cer     0.3000     primary metric",
        "  val/cer      0.2500     best, at step 60 of 100",
        "  time         1.5 min, 3% of it data loading",
        "  export       runs/asr/a/export",
        "  samples      runs/asr/a/samples.jsonl",
        "  W&B          wandb sync runs/asr/a/wandb/offline-run-*",
        "  all metrics  runs/asr/a/result.json (summary=full prints them)",
        "next:",
        "  python run.py mode=predict checkpoint=runs/asr/a input=recording.wav",
        "  python -m magneto.report runs/asr/a",
    ]


def test_full_summary(tmp_path: Path) -> None:
    """Every metric is there, whatever its value."""
    text = summary.summarize(RESULT, tmp_path, "finished", full=True)
    assert "  test/cer  0.3000\n  test/wer  nan\n  val/cer   0.5000\n" in text
    assert "all metrics" not in text


def test_summary_of_a_diverged_run(tmp_path: Path) -> None:
    """A run without metrics and export names none."""
    result = RunResult(
        task="asr", name="a", seed=1, config={}, status="diverged", message="the loss became nan", steps=3
    )
    assert summary.summarize(result, tmp_path, "diverged").splitlines() == [
        f"{tmp_path}: diverged",
        "  message  the loss became nan",
    ]


def test_commands_survive_the_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with a space is quoted for the shell, one with a comma for Hydra too."""
    folder = tmp_path / "a b,c"
    (folder / "export").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    text = summary.summarize(RESULT, folder, "finished")
    assert """'checkpoint="a b,c"' input=""" in text
    assert "magneto.report 'a b,c'" in text


def test_durations() -> None:
    """The unit fits the size."""
    seconds = (0.4, 45, 90, 3599, 5400, 86400, 200000)
    assert [summary.duration(one) for one in seconds] == [
        "0 s", "45 s", "1.5 min", "60.0 min", "1.5 h", "24.0 h", "2.3 days",
    ]  # fmt: skip
