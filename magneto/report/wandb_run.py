"""The report as a Weights & Biases run of job type `report`: its table and its figures."""

import logging
import os
from pathlib import Path
from typing import Any

from magneto.report.content import Report
from magneto.report.markup import records

log = logging.getLogger("magneto")

_CONNECT_S = 20.0


def log_to_wandb(report: Report, project: str) -> Path:
    """Log the rows of table.csv and the figures: online if there is a key, else offline.

    Returns:
        The run's own folder below the report's folder; of an offline run, what `wandb sync` takes.
    """
    import wandb  # here, with Lightning behind has_wandb_key, so that a plain report starts at once

    from magneto.training.loggers import has_wandb_key

    options: dict[str, Any] = {
        "project": project,
        "name": report.title,
        "job_type": "report",
        "dir": str(report.folder),
        "settings": wandb.Settings(console="off", init_timeout=_CONNECT_S, silent=True, x_disable_stats=True),
    }
    if "WANDB_MODE" not in os.environ:  # which wandb.init obeys by itself
        options["mode"] = "online" if has_wandb_key() else "offline"
    try:
        run = wandb.init(**options)
    except wandb.Error as error:
        log.warning("W&B cannot be reached (%s): the report is logged offline", error)
        run = wandb.init(**options | {"mode": "offline"})
    with run:
        run_folder = Path(run.settings.sync_dir)
        rows = records(report.comparison)
        header = list(dict.fromkeys(name for row in rows for name in row))
        data = [[row.get(name) for name in header] for row in rows]
        images = {
            figure.path.stem: wandb.Image(str(figure.path), caption=figure.title)
            for figure in report.saved_figures
        }
        run.log(
            {"table": wandb.Table(columns=list[Any](header), data=data, allow_mixed_types=True), **images}
        )
    return run_folder
