"""Run what `mode=` asks for."""

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from magneto.commands import budget, console
from magneto.commands.export import export_model
from magneto.commands.predict import predict
from magneto.commands.resolve import ResolvedRun, resolve
from magneto.commands.test import test
from magneto.commands.train import train
from magneto.config.schema import Mode
from magneto.training import devices
from magneto.training.run_folder import to_yaml


def run(cfg: DictConfig, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Do what `cfg.mode` says.

    Args:
        cfg: the composed configuration (conf/config.yaml).
        overrides: the command line's overrides: they name the run.

    Returns:
        the content of result.json and `folder` for mode=train; a small record of what was done for the others.

    Raises:
        MagnetoError: a mistake in the configuration, the data or the files, with its remedy.
    """
    console.log_to_screen()
    mode = Mode(cfg.mode).value
    if mode == "predict":
        return predict(resolve(cfg, overrides))
    if mode == "export":
        return export_model(resolve(cfg, overrides))
    threads, products = cfg.trainer.get("threads"), cfg.trainer.get("matmul_precision")
    products = products if products in ("high", "medium") else None  # others are reported by the check
    with devices.compute_settings(threads if isinstance(threads, int) else None, products):
        if mode == "train" and not cfg.dry_run:
            return train(cfg, overrides)
        resolved = resolve(cfg, overrides)
        if mode == "train":
            return _plan(resolved)
        if mode == "test":
            return test(resolved)
        if mode == "config":
            print(to_yaml(resolved.config), end="")
        return {"mode": mode}


def _plan(run: ResolvedRun) -> dict[str, Any]:
    """Say what `mode=train` would do: the answer to `dry_run=true`."""
    assert run.folder is not None and run.start is not None
    if run.start.result is not None:
        seconds, words = 0.0, f"{run.start.result.status} already"
    else:
        assert run.data is not None
        seconds, words = budget.plan(run.config, run.parts, run.data)
    print(f"{run.folder.path}: {words}")
    return {"status": "planned", "folder": None, "seconds": seconds}
