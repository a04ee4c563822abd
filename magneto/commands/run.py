"""Run what `mode=` asks for."""

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from magneto.commands import console
from magneto.commands.export import export_model
from magneto.commands.predict import predict
from magneto.commands.resolve import resolve
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
    threads = cfg.trainer.get("threads")
    with devices.cpu_threads(threads if isinstance(threads, int) else None):
        if mode == "train":
            return train(cfg, overrides)
        resolved = resolve(cfg, overrides)
        if mode == "test":
            return test(resolved)
        if mode == "config":
            print(to_yaml(resolved.config), end="")
        return {"mode": mode}
