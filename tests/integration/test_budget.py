"""budget=10min: the length of a run from the measured speed; kept for a sweep, and for a run that is resumed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from magneto.commands import budget
from magneto.config.parts import TrainerConfig
from magneto.errors import ConfigError
from magneto.report.comparison import compare
from magneto.report.loading import load_runs

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`speed(step_s, validation_s)`: what is measured from now on, once."""

    def set_speed(*seconds: float) -> None:
        answers = [budget.Speed(*seconds)]
        monkeypatch.setattr(budget, "measure", lambda *_: answers.pop())

    return set_speed


def trainer_of(result: dict[str, Any]) -> dict[str, Any]:
    return yaml.safe_load((Path(result["folder"]) / "config.yaml").read_text())["trainer"]


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10min", 600), ("1.5 h", 5400)])
def test_times(text: str, seconds: float) -> None:
    assert budget.seconds_of(text) == seconds


def test_several_processes_refused() -> None:
    with pytest.raises(ConfigError, match=r"trainer.devices=2.* Set trainer.max_steps instead"):
        budget.check("10min", TrainerConfig(devices=2))


def test_steps_fill_the_time(run_text: Run, speed: Callable[..., None]) -> None:
    """Two validations, as the configuration has; numbers of two digits; one measurement for all seeds and rates."""
    speed(0.5, 2.0)
    short = ["task=causal_lm", "trainer.max_steps=6", "trainer.val_check_interval=3", "budget=10s"]
    first = run_text(*short, "name=first")
    assert first["steps"] == 12  # (10 - 2 * 2) / 0.5
    assert trainer_of(first)["max_steps"] == 12 and trainer_of(first)["val_check_interval"] == 6
    second = run_text(*short, "name=second", "seed=2", "optimizer.lr=1e-4")
    assert second["steps"] == 12
    speed(0.25, 2.0)
    third = run_text(*short, "name=third", "backbone.num_layers=1")
    assert third["steps"] == 24
    runs, _ = load_runs([first["folder"], third["folder"]])
    assert len(compare(runs).sections) == 1, "runs of one time compete, whatever their steps"


def test_a_resumed_run_keeps_its_length(
    run_text: Run, speed: Callable[..., None], kill_after_save: Any, tmp_path: Path
) -> None:
    speed(0.5, 0.0)
    whole = run_text("task=causal_lm", "budget=5s", "name=whole")
    with kill_after_save(3):
        run_text("task=causal_lm", "budget=5s", "name=parts")
    for file in (tmp_path / "runs" / ".speed").iterdir():
        file.unlink()
    parts = run_text("task=causal_lm", "budget=5s", "name=parts")
    assert parts["steps"] == whole["steps"] == 10
    assert parts["metrics"] == whole["metrics"]


def test_too_short(run_text: Run, speed: Callable[..., None]) -> None:
    speed(2.0, 30.0)
    with pytest.raises(ConfigError, match=r"budget=10s: .* validations of 30 s and steps of 2 s do not fit"):
        run_text("task=causal_lm", "budget=10s")


@pytest.mark.parametrize("task", ["causal_lm", "mlm"])
def test_the_measured_speed(run_text: Run, task: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """A real measurement changes no number of the run, and mode=config shows what it leads to.

    The budget is long enough for a busy machine, whose validation alone takes two seconds.
    """
    monkeypatch.setattr(budget, "TRIAL_S", 0.2)
    result = run_text(
        f"task={task}", "budget=6s", "trainer.val_check_interval=1000", "trainer.max_steps=1000"
    )
    steps = result["steps"]
    assert steps >= 2
    run_text(
        "mode=config",
        f"task={task}",
        "budget=6s",
        "trainer.val_check_interval=1000",
        "trainer.max_steps=1000",
    )
    assert (
        yaml.safe_load(capsys.readouterr().out.split("next:")[-1].split("\n", 4)[-1])["trainer"]["max_steps"]
        == steps
    )
    plain = run_text(
        f"task={task}", f"trainer.max_steps={steps}", f"trainer.val_check_interval={steps}", "name=plain"
    )
    assert plain["metrics"] == result["metrics"]


def test_dry_run_says_what_it_would_take(
    run_text: Run, speed: Callable[..., None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Ten steps of half a minute and two validations of a minute; nothing is trained, and a run that ended takes no time."""
    speed(30.0, 60.0)
    short = ("task=causal_lm", "trainer.max_steps=10", "trainer.val_check_interval=5", "name=planned")
    planned = run_text(*short, "dry_run=true")
    assert planned == {"status": "planned", "folder": None, "seconds": 420.0}
    assert not (tmp_path / "runs/causal_lm").exists()
    assert "10 steps of 30 s and 2 validations of 60 s: 7.0 min" in capsys.readouterr().out
    run_text(*short)
    assert run_text(*short, "dry_run=true")["seconds"] == 0
    assert "planned: finished already" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="dry_run=true has no effect with mode=prepare"):
        run_text(*short, "dry_run=true", "mode=prepare")
