"""Record each job of a sweep (`-m`) on disk, whatever launcher ran it, and write the report at the end."""

import atexit
import contextlib
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from magneto.errors import MagnetoError
from magneto.training.files import write_atomically

_JOBS = "MAGNETO_SWEEP_JOBS"  # in the environment, which a launcher's processes inherit


def task_overrides(hydra_config: Any) -> list[str]:
    """Return the overrides as they were typed: one that holds `${...}` is not resolved."""
    return cast(list[str], OmegaConf.to_container(hydra_config.overrides.task, resolve=False))


def record(
    overrides: Sequence[str], folder: str | None, error: str | None, seconds: float | None = None
) -> None:
    """Note how this job of the sweep ended.

    A launcher may run it in another process or on another machine: only the disk is shared with the process that started
    the sweep.

    Args:
        overrides: those of the job.
        folder: the run's folder; None where there is none.
        error: what went wrong; None if nothing did.
        seconds: that it would take (`dry_run=true`).
    """
    job = HydraConfig.get()
    content = {"overrides": list(overrides), "folder": folder, "error": error, "seconds": seconds}
    records = Path(job.sweep.dir)
    if records.is_dir():  # else the sweep was stopped, and its jobs on other machines continue
        write_atomically(records / f"job_{job.job.num:05d}.json", json.dumps(content))


def pruned(config: Mapping[str, Any]) -> str | None:
    """Return why `sweep.prune_rates` leaves this job out, or None.

    It does where a run of the same configuration, seed included, has diverged at a lower learning rate. Jobs of lower rates
    come first if they are written in rising order; those that a launcher runs at the same time are not waited for.
    """
    from magneto.training.run_config import difference  # late: --help need not wait for them
    from magneto.training.run_folder import RunFolder

    rate = config["optimizer"]["lr"]
    for file in sorted(Path(config["runs_dir"], config["task"]["name"]).glob("*/result.json")):
        folder = RunFolder(file.parent)
        result = folder.read_result()
        if result is None or result.status != "diverged" or not folder.config.is_file():
            continue
        given = folder.read_given()
        lower = given["optimizer"]["lr"]
        same_rate = {**given, "optimizer": {**given["optimizer"], "lr": rate}}
        if lower < rate and not difference(same_rate, config):
            return f"left out: optimizer.lr={lower:g} diverged ({folder.path}; sweep.prune_rates=true)"
    return None


def objective(result: Mapping[str, Any]) -> float:
    """Return what a sweeper such as Optuna optimises: the best validation value of the monitored metric, else nan.

    It is not the test metric that runs are compared by: a search must not see the test split.
    """
    best = (result.get("monitor") or {}).get("best")
    return float("nan") if best is None or result.get("status") != "finished" else float(best)


def title(number: int, overrides: Sequence[str]) -> str:
    """Return `job 3 of 6: seed=2`, with the swept overrides where Hydra's own sweeper makes all combinations."""
    total, *swept = os.environ.get(_JOBS, "").split(" ")
    shown = [one for one in overrides if not swept or one.split("=")[0].lstrip("+") in swept]
    return f"job {number + 1}{f' of {total}' if total else ''}: {' '.join(shown)}"


def _count_jobs(config: DictConfig) -> None:
    os.environ.pop(_JOBS, None)
    if str(config.hydra.sweeper._target_).endswith(".BasicSweeper"):
        arguments = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
        arguments += task_overrides(config.hydra)
        loader = GlobalHydra.instance().config_loader()  # knows the files of a glob
        parsed = OverridesParser.create(loader).parse_overrides(arguments)
        swept = {one.key_or_group: one for one in parsed if one.is_sweep_override()}
        count = math.prod(len(list(one.sweep_iterator())) for one in swept.values())
        os.environ[_JOBS] = " ".join([str(count), *swept])


class SweepReport(Callback):
    """Hydra callback: when a sweep ends, write the comparison of its runs and name the jobs that failed."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make the folder of the records, or exit with code 2 if it cannot be written; count the jobs."""
        folder = Path(config.hydra.sweep.dir)
        atexit.register(_remove, folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            print(
                f"error: runs_dir={config.runs_dir}: cannot be written ({error}). Set runs_dir to a writable folder.",
                file=sys.stderr,
            )
            sys.exit(2)
        _count_jobs(config)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Write `reports/` beside the runs; exit with code 1 if a job failed, after all the others ran."""
        from magneto.report import folder_name, write_report
        from magneto.report.screen import print_report
        from magneto.training.loggers import is_main_process

        overrides = task_overrides(config.hydra)
        folder = Path(config.hydra.sweep.dir)
        jobs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("job_*.json"))]
        common = set.intersection(*(set(job["overrides"]) for job in jobs)) if len(jobs) > 1 else set()
        failed = [
            f"{' '.join(one for one in job['overrides'] if one not in common)}: {job['error']}"
            for job in jobs
            if job["error"]
        ]
        if config.dry_run:
            planned = [job["seconds"] for job in jobs if job["seconds"] is not None]
            print(
                f"{len(planned)} runs, {sum(seconds > 0 for seconds in planned)} of them to be trained: "
                f"{sum(planned) / 3600:.2f} hours one after the other, without tests"
            )
        runs = list(dict.fromkeys(Path(job["folder"]) for job in jobs if job["folder"]))
        runs = [run for run in runs if (run / "result.json").exists()]
        if runs and is_main_process():
            target = runs[0].parent / "reports" / folder_name(overrides)
            try:
                files = write_report(runs, target, command=f"python run.py -m {' '.join(overrides)}")
                print_report(files)
            except MagnetoError as error:
                failed.append(f"report: {error}")
        if failed:
            print("failed jobs:\n  " + "\n  ".join(failed), file=sys.stderr)
            sys.exit(1)


def _remove(folder: Path) -> None:
    """Remove the records, and the folder unless a launcher has left its log files there."""
    with contextlib.suppress(OSError):  # it is not empty, or was never made
        for path in (*folder.glob("job_*.json"), folder / "multirun.yaml"):
            path.unlink(missing_ok=True)
        folder.rmdir()
        folder.parent.rmdir()
