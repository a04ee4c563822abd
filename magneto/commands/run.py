"""Run what `mode=` asks for."""

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from magneto.commands import console, preflight, resolve
from magneto.commands.export import export_model
from magneto.commands.predict import predict
from magneto.commands.test import test
from magneto.commands.train import prepare_data, train
from magneto.config import schema
from magneto.pretrained import init_from
from magneto.training import devices


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
    config = schema.to_dict(cfg)
    mode = config["mode"]
    console.log_to_screen()
    with console.quiet_libraries():
        preflight.check(config)
    if mode == "predict":
        return predict(config)
    if mode == "export":
        return export_model(config)
    if mode == "test" and config["task"] is None:
        config = resolve.adopt_task(config)
    resolve.check_task(config)
    config = init_from.adopt(config, overrides)
    with devices.cpu_threads(config["trainer"]["threads"]):
        if mode == "prepare":
            prepare_data(config)
            return {"mode": mode}
        return test(config) if mode == "test" else train(config, overrides)
