"""The study of depth and learning rate: its hypotheses, judged on results whose answer is known."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from magneto.report import write_report
from tests.unit.report.runs import make_run

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "depth_learning_rate"
RATES = (1e-3, 2e-3, 4e-3, 8e-3)
BITS = "val/bits_per_byte"


@pytest.fixture(scope="module")
def verdicts() -> ModuleType:
    spec = importlib.util.spec_from_file_location("verdicts", FOLDER / "verdicts.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_line(
    root: Path, backbone: str, depth: int, values: tuple[float, ...], steps: int = 300, **config: Any
) -> None:
    """A run at each rate; three seeds, 0.004 apart, at the best one."""
    for rate, value in zip(RATES, values, strict=True):
        for seed in (1, 2, 3) if value == min(values) else (1,):
            metrics = {BITS: value + 0.004 * (seed - 2) * (value == min(values)), "val/loss": 2 * value}
            keys = {"optimizer.lr": rate, "backbone.num_layers": depth, "trainer.max_steps": steps}
            options = {"backbone.gain": None, "backbone.qk_norm": False, "task.z_loss": 0.0} | {
                {"z_loss": "task.z_loss"}.get(key, f"backbone.{key}"): option
                for key, option in config.items()
            }
            make_run(
                root, backbone, seed, task="causal_lm", data="sotu", monitor=BITS, metrics=metrics, steps=steps,
                name="-".join(map(str, (backbone, depth, rate, seed, steps, *config))), config=keys | options,
                probe={"first_loss": 8.0}, gain=1.5 if backbone == "magneto" and "gain" not in config else 1.0,
            )  # fmt: skip


def judged(verdicts: ModuleType, root: Path) -> dict[str, tuple[str, str]]:
    """Judge the results.csv of the runs at `root`."""
    report = write_report([root], root / "report")
    study = verdicts.Study.read([report.results])
    return {name: judge(study) for name, judge in verdicts.HYPOTHESES.items()}


def test_what_the_paper_claims(tmp_path: Path, verdicts: ModuleType) -> None:
    """Magneto bears four times the rate and is better by 0.1 in deep models; half of that is GPT-2's initialisation."""
    for depth in (24, 48):
        make_line(tmp_path, "magneto", depth, (2.3, 2.2, 2.1, 2.0))
        make_line(tmp_path, "magneto", depth, (2.3, 2.2, 2.1, 2.2), gain="none")
        make_line(tmp_path, "pre_ln", depth, (2.2, 2.1, 2.6, 2.9))
        make_line(tmp_path, "pre_ln_scaled", depth, (2.2, 2.04, 2.6, 2.9))
    for steps, gap in ((300, 0.1), (1200, 0.02)):
        make_line(tmp_path, "magneto", 6, (2.3, 2.2, 2.0 + gap, 2.3), steps)
        make_line(tmp_path, "pre_ln", 6, (2.3, 2.2, 2.0, 2.3), steps)
    make_line(tmp_path, "magneto", 24, (2.0, 2.1, 2.2, 2.3), qk_norm=True, z_loss=1e-4)
    make_line(tmp_path, "pre_ln", 24, (2.0, 2.1, 2.2, 2.302), qk_norm=True, z_loss=1e-4)
    found = judged(verdicts, tmp_path)
    assert {name: verdict for name, (_, verdict) in found.items()} == {
        "H1": "holds, also after the gain",
        "H2": "holds: better",
        "H3": "holds",
        "H4": "holds",
        "H5": "holds",
        "H6": "holds",
    }
    assert found["H5"][0] == "24 layers: 60% of the gap; 48 layers: 60% of the gap"
    assert found["H3"][0].startswith("+0.100 and +0.020")


def test_the_opposite(tmp_path: Path, verdicts: ModuleType) -> None:
    for depth in (24, 48):
        make_line(tmp_path, "magneto", depth, (2.3, 2.2, 2.1, 2.9))
        make_line(tmp_path, "magneto", depth, (2.3, 2.2, 2.1, 2.9), gain="none")
        make_line(tmp_path, "pre_ln", depth, (2.3, 2.2, 2.0, 2.9))
        make_line(tmp_path, "pre_ln_scaled", depth, (2.3, 2.2, 2.0, 2.9))
    for steps in (300, 1200):
        make_line(tmp_path, "magneto", 6, (2.3, 2.2, 2.1, 2.3), steps)
        make_line(tmp_path, "pre_ln", 6, (2.3, 2.2, 2.0, 2.3), steps)
    make_line(tmp_path, "magneto", 24, (2.0, 2.01, 2.02, 2.03), qk_norm=True, z_loss=1e-4)
    make_line(tmp_path, "pre_ln", 24, (2.0, 2.5, 2.6, 2.7), qk_norm=True, z_loss=1e-4)
    found = {name: verdict for name, (_, verdict) in judged(verdicts, tmp_path).items()}
    assert found.pop("H5").startswith("not decided")
    assert set(found.values()) == {"does not hold"}


def test_missing_runs_decide_nothing(
    tmp_path: Path, verdicts: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table says so, and beside it the figure is drawn; without seeds there is no noise to judge by."""
    make_line(tmp_path / "runs", "magneto", 24, (2.3, 2.2, 2.1, 2.0))
    make_line(tmp_path / "runs", "pre_ln", 12, (2.3, 2.2, 2.1, 2.0))
    assert verdicts.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out")]) == 0
    table = (tmp_path / "out" / "verdicts.md").read_text()
    assert table.count("not decided") == 6 and "sigma = 0.0040" in table
    assert (tmp_path / "out" / "sensitivity_and_basin.png").stat().st_size > 10_000
    for folder in (tmp_path / "runs" / "causal_lm").iterdir():
        if "-1-300" not in folder.name:
            folder.rename(tmp_path / folder.name)
    capsys.readouterr()
    assert verdicts.main([str(tmp_path / "runs")]) == 2
    assert "No best rate has two seeds" in capsys.readouterr().err
