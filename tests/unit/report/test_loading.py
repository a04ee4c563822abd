"""Reading of run folders: what can be read, and what is left out with its reason."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from magneto.report import write_report
from magneto.report.curves import read_curves
from magneto.report.loading import load_runs, read_samples
from tests.unit.report.runs import make_run, run_with


def test_run_is_read(tmp_path: Path) -> None:
    metrics = {"test/cer": 0.4, "test/wer": 1, "test/a": float("nan"), "test/b": None}
    run = run_with(tmp_path, metrics=metrics, status="diverged", message="why")
    assert (run.task, run.data, run.backbone, run.seed, run.status, run.message) == (
        "asr", "stamps", "magneto", 1, "diverged", "why",
    )  # fmt: skip
    assert run.metrics == {"test/cer": 0.4, "test/wer": 1.0}
    assert (run.best, run.best_step, run.wall_s) == (0.5, 200, 120.0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"schema": 1, "sta', "cannot be read"),
        ("[1]", "not an object"),
        ('{"schema": 9}', "schema is 9"),
        ('{"schema": 1}', "status is missing"),
        ('{"schema": 1, "status": "great"}', "status is 'great'"),
        ('{"schema": 1, "status": "finished", "task": "asr", "name": "x", "seed": "one"}', "seed is 'one'"),
        (
            '{"schema": 1, "status": "finished", "metrics": {"a": "b"}, "task": "a", "name": "x", "seed": 1, "config": {}}',
            "metrics.a",
        ),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_broken_result_is_left_out(tmp_path: Path, text: str | bytes, reason: str) -> None:
    """A result that cannot be read is a problem with its reason; the other runs are compared."""
    make_run(tmp_path)
    broken = tmp_path / "asr" / "broken"
    broken.mkdir()
    (broken / "result.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    runs, problems = load_runs([tmp_path])
    assert [run.name for run in runs] == ["magneto-tiny-seed1"]
    (problem,) = problems
    assert "broken" in problem and reason in problem


def test_runs_are_found_once(tmp_path: Path) -> None:
    """Folders inside a run and those set aside by resume=never are no runs of their own."""
    folder = make_run(tmp_path)
    nested = folder / "wandb" / "files"
    nested.mkdir(parents=True)
    (nested / "result.json").write_text("{}")
    make_run(tmp_path, name="magneto-tiny-seed1.old2")  # what resume=never set aside
    runs, (problem,) = load_runs([tmp_path, folder, tmp_path / "asr" / "."])
    assert [run.name for run in runs] == ["magneto-tiny-seed1"]
    assert "magneto-tiny-seed1.old2" in problem and "resume=never" in problem
    assert len(load_runs([tmp_path, tmp_path / "asr" / "magneto-tiny-seed1.old2"])[0]) == 2


def test_links_are_followed_once(tmp_path: Path) -> None:
    make_run(tmp_path / "elsewhere")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "linked").symlink_to(tmp_path / "elsewhere" / "asr")
    (tmp_path / "runs" / "circle").symlink_to(tmp_path / "runs")
    (run,), problems = load_runs([tmp_path / "runs"])
    assert run.folder == tmp_path / "runs/linked/magneto-tiny-seed1" and not problems


def test_result_above_hides_no_runs_below(tmp_path: Path) -> None:
    """`name=..` once wrote a run into the folder of all runs."""
    folder = make_run(tmp_path)
    for name in ("result.json", "metrics.csv", "config.yaml"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (folder / "checkpoints" / "result.json").write_text("{}")
    runs, problems = load_runs([tmp_path])
    assert [run.folder for run in runs] == [tmp_path, folder] and not problems


def test_unreadable_files_are_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root reads everything, so that a refusing system is played."""
    make_run(tmp_path)
    folder = make_run(tmp_path, seed=2)
    for name in ("metrics.csv", "samples.jsonl"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()
    closed = tmp_path / "closed"
    closed.mkdir()
    scandir = os.scandir

    def refusing(path: Any) -> Any:
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    runs, problems = load_runs([tmp_path])
    assert len(runs) == 2 and not runs[1].curves and not runs[1].samples
    assert [problem.split(": ")[0] for problem in problems] == [
        str(closed), str(folder / "metrics.csv"), str(folder / "samples.jsonl")
    ]  # fmt: skip
    assert write_report([tmp_path], tmp_path / "out").html.is_file()


def test_damaged_values_are_reported(tmp_path: Path) -> None:
    """Steps and values beyond all numbers, a stray quotation mark, half a character, an image that cannot be."""
    folder = make_run(
        tmp_path / "runs",
        overrides=("name=caf\udce9",),
        metrics={"test/cer": 0.5, "test/wer": 1e300},
        curves={"train/loss": [(1, 2.0), (2, 1e300)]},
        samples=[{"id": "\ud800", "kind": ["x"], "image": "a\0b", "hypothesis": "\udcff"}],
    )
    with (folder / "metrics.csv").open("a") as file:
        file.write(
            '3,"train/loss,1.0\n4,train/loss,1.0\n99999999999999999999,train/loss,1.0\n-1,train/loss,1\n'
        )
        file.write("5,train/loss,1.0\n" + "x" * 200_000 + '"\n')
    (run,), _ = load_runs([tmp_path / "runs"])
    assert run.curves["train/loss"].steps.tolist() == [1, 2, 4, 5] and "test/wer" not in run.metrics
    assert write_report([tmp_path / "runs"], tmp_path / "out").html.stat().st_size > 10_000


def test_curves_of_a_resumed_run(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    file.write_text(
        "step,metric,value\n10,train/loss,3.0\n20,train/loss,2.0\n30,tra10,val/cer,0.5\n20,train/loss,2.5\n"
        "30,train/loss,nan\n\0\0\nstep,metric,value\n40,train/loss,0.4"
    )
    curves = read_curves(file)
    assert set(curves) == {"train/loss"}
    # The last line lacks its line feed: 0.4 or 0.4123?
    assert curves["train/loss"].steps.tolist() == [10, 20, 30]
    assert curves["train/loss"].values[:2].tolist() == [3.0, 2.5]  # the repeated step after the resume counts
    assert np.isnan(curves["train/loss"].values[2])
    assert read_curves(tmp_path / "missing.csv") == {}


def test_samples_keep_the_last_of_each_id(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    file.write_text(
        '{"id": "a", "step": 1, "hypothesis": "x"}\n{"id": 7}\n{"id": "a", "step": 2}\n[1]\n{"id": "b", "st'
    )
    assert read_samples(file) == {"a": {"id": "a", "step": 2}, "7": {"id": 7}}
    file.write_text(
        '{"id": "a", "split": "val"}\n{"id": "a", "split": "test"}\n{"id": "b", "split": "val"}\n'
    )
    assert read_samples(file) == {"a": {"id": "a", "split": "test"}}
