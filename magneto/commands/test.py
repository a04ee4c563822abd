"""`mode=test`: evaluate a trained model on the test split of some data."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from magneto.commands import build, console, summary
from magneto.commands.resolve import ResolvedRun
from magneto.commands.train import primary_metric_of
from magneto.commands.trainer import build_tester, lightning_errors
from magneto.errors import ConfigError, MagnetoError
from magneto.tasks import registry
from magneto.training import checkpoint_io
from magneto.training.files import finite, write_atomically
from magneto.training.provenance import git_revision, versions
from magneto.training.run_config import slug

log = logging.getLogger("magneto")


def test(run: ResolvedRun) -> dict[str, Any]:
    """Evaluate the model of `checkpoint` on the test split of `data`.

    Returns:
        what is written to `file`.
    """
    config = run.config
    target = _test_file(config)
    assert run.trained is not None
    task = registry.make_trained(config["checkpoint"], *run.trained)
    data = build.build_data(config["data"])
    info = task.hparams["info"]
    data = data.for_model(info if task.uses_labels else {**info, "labels": []})
    with console.quiet_libraries():
        trainer = build_tester(run.parts.trainer, target.parent)
        with lightning_errors():
            trainer.test(task, datamodule=data, verbose=False)
    record = {
        "mode": "test",
        "task": task.name,
        "checkpoint": config["checkpoint"],
        "data": config["data"]["name"],
        "metrics": task.evaluated,
        "evaluation": task.evaluation_info,
        "git": git_revision(),
        "versions": versions(),
        "config": {key: config[key] for key in ("task", "backbone", "data")},
    }
    if trainer.is_global_zero:
        print(f"{config['checkpoint']} on {config['data']['name']}:")
        print(summary.metric_lines(task.evaluated, primary_metric=primary_metric_of(task)))
        try:
            write_atomically(target, json.dumps(finite(record), indent=2, ensure_ascii=False) + "\n")
            log.info("written to %s", target)
        except MagnetoError as error:
            if config["output"]:
                raise
            log.warning("%s Or set output to a file.", error)
    return {**record, "file": str(target)}


def _test_file(config: Mapping[str, Any]) -> Path:
    """Return the file for the metrics: `output=`, or `test-<data>.json` in the run's or the export's folder."""
    if config["output"]:
        target = Path(config["output"])
        if target.exists():
            raise ConfigError(f"output={target}: exists already. Remove it or choose another file.")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"output={target}: cannot be written ({error}). Choose another file."
            ) from error
        return target
    source = Path(config["checkpoint"])
    own = source.parent if checkpoint_io.is_checkpoint(source) else source
    if own.name in ("checkpoints", "export") and (own.parent / "config.yaml").is_file():
        own = own.parent
    return own / f"test-{slug([config['data']['name']])}.json"
