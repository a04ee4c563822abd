"""Sweeps in separate processes: the report, the failed jobs and the exit code, whatever launcher runs the jobs."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from magneto.config.groups import CONF

COMMAND = [sys.executable, str(CONF.parent / "run.py"), "-m"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]


def sweep(folder: Path, overrides: list[str]) -> subprocess.CompletedProcess[str]:
    folder.mkdir(exist_ok=True)
    return subprocess.run(
        [*COMMAND, *overrides, "runs_dir=runs"],
        cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip


def outcome(folder: Path, done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    """Return what must not depend on the launcher."""
    (report,) = (folder / "runs/causal_lm/reports").glob("*/report.md")
    results = sorted((folder / "runs/causal_lm").glob("*/result.json"))
    return {
        "exit": done.returncode,
        "failed": done.stderr[done.stderr.index("failed jobs:") :].splitlines()[:3],
        "report": re.findall(r"report: .*/(causal_lm/reports/\S+)", done.stdout),
        "runs in it": [
            line.split("|")[1] for line in report.read_text().splitlines() if line.startswith("|")
        ],
        "jobs": sorted(line for line in done.stdout.splitlines() if line.startswith("job ")),
        "metrics": {path.parent.name: json.loads(path.read_text())["metrics"] for path in results},
        "left": sorted(path.name for path in folder.iterdir())
        + sorted(p.name for p in (folder / "runs").iterdir()),
    }


@pytest.mark.slow
def test_joblib_sweep_ends_as_the_serial_one(text_overrides: list[str], tmp_path: Path) -> None:
    """2 x 2, half of which cannot be: both name the failed jobs, write the report of the others and exit with 1."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    settings = [o for o in text_overrides if not o.startswith(("runs_dir=", "backbone.num_heads="))]
    settings += ["task=causal_lm", "backbone=pre_ln,magneto", "backbone.num_heads=2,3"]
    serial = outcome(tmp_path / "serial", sweep(tmp_path / "serial", settings))
    joblib = outcome(tmp_path / "joblib", sweep(tmp_path / "joblib", [*settings, *JOBLIB]))
    assert serial["exit"] == 1
    assert [line.split(":")[0].split() for line in serial["failed"][1:]] == [
        ["backbone=pre_ln", "backbone.num_heads=3"],
        ["backbone=magneto", "backbone.num_heads=3"],
    ]
    assert (
        len(serial["metrics"]) == 2 and len(serial["report"]) == 1 and serial["left"] == ["runs", "causal_lm"]
    )
    assert joblib == serial
    assert (
        serial["jobs"][0] == "job 1 of 4: backbone=pre_ln backbone.num_heads=2" and len(serial["jobs"]) == 4
    )
    again = sweep(tmp_path / "serial", [*settings[:-1], "backbone.num_heads=2"])
    assert again.returncode == 0 and again.stdout.count("already finished") == 2


@pytest.mark.slow
def test_submitit_sweeps(text_overrides: list[str], tmp_path: Path) -> None:
    """Each job a process that submitit starts, as on a cluster: the report and the results of the serial sweep."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    settings = [o for o in text_overrides if not o.startswith("runs_dir=")]
    settings += ["task=causal_lm", "trainer.max_steps=4", "backbone=pre_ln,magneto"]
    launcher = ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10"]
    results = {}
    for name, more in (("serial", []), ("submitit", launcher)):
        done = sweep(tmp_path / name, [*settings, *more])
        assert done.returncode == 0, done.stderr
        runs = tmp_path / name / "runs/causal_lm"
        assert len(list(runs.glob("reports/*/report.md"))) == 1
        results[name] = {
            path.parent.name: json.loads(path.read_text())["metrics"] for path in runs.glob("*/result.json")
        }
    assert len(results["serial"]) == 2 and results["submitit"] == results["serial"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "number"), [(["data.num_workers=2"], signal.SIGTERM), (JOBLIB, signal.SIGINT)]
)
def test_interrupted_sweep_exits_with_130(
    launcher: list[str], number: signal.Signals, text_overrides: list[str], tmp_path: Path
) -> None:
    """Every process gets the signal, as from Ctrl-C, `timeout` or scancel: workers leave the answer to the main one."""
    if launcher is JOBLIB:
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    settings = [o for o in text_overrides if not o.startswith("trainer.max_steps=")]
    process = subprocess.Popen(
        [*COMMAND, *settings, "task=causal_lm", "trainer.max_steps=5000", "seed=1,2", *launcher],
        cwd=tmp_path, env=ENVIRONMENT, start_new_session=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    deadline = time.monotonic() + 500
    while not list((tmp_path / "runs").glob("causal_lm/*/checkpoints/last.ckpt")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 130 and "Traceback" not in output, output
    assert "repeat the command to" in output
    assert not (tmp_path / "runs/sweeps").exists()
    if launcher is not JOBLIB:
        assert not list(tmp_path.glob("runs/causal_lm/magneto*seed2*")), "the sweep stops"


@pytest.mark.slow
def test_rates_above_a_diverged_one_are_left_out(text_overrides: list[str], tmp_path: Path) -> None:
    """Of three rates the second diverges: with pruning the third is not run, and repeating the command says so again."""
    settings = [o for o in text_overrides if not o.startswith("runs_dir=")]
    settings += ["task=causal_lm", "optimizer=sgd", "optimizer.gradient_clip=null", "scheduler.warmup=0"]
    settings += ["optimizer.lr=1e-3,1e9,1e12", "sweep.prune_rates=true"]
    for _ in range(2):
        done = sweep(tmp_path, settings)
        assert done.returncode == 0, done.stderr
        assert "left out: optimizer.lr=1e+09 diverged" in done.stdout
    statuses = {
        result["config"]["optimizer"]["lr"]: result["status"]
        for result in (json.loads(path.read_text()) for path in tmp_path.glob("runs/causal_lm/*/result.json"))
    }
    assert statuses == {1e-3: "finished", 1e9: "diverged"}
    alone = subprocess.run(
        [sys.executable, COMMAND[1], "task=causal_lm", "sweep.prune_rates=true"],
        cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (
        alone.returncode == 2
        and "sweep.prune_rates=true has no effect without a sweep. Add -m" in alone.stderr
    )


@pytest.mark.slow
def test_dry_run_of_a_sweep_adds_up(text_overrides: list[str], tmp_path: Path) -> None:
    settings = [o for o in text_overrides if not o.startswith("runs_dir=")]
    done = sweep(tmp_path, [*settings, "task=causal_lm", "seed=1,2", "dry_run=true"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("validations of") == 2 and done.stdout.count("(measured before)") == 1
    assert re.search(r"2 runs, 2 of them to be trained: 0\.0\d hours", done.stdout), done.stdout
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [".speed"]
