"""Where metrics go: `metrics.csv` always, Weights & Biases beside it whenever it can."""

import csv
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import requests.utils
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning_utilities.core.rank_zero import rank_zero_warn

from magneto.errors import UserError

WANDB_MODES = ("auto", "online", "offline", "disabled")


def is_main_process() -> bool:
    """Whether this process writes the run's files: the only one, or the one of rank 0."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


class CSVLogger(Logger):
    """Appends `step,metric,value` lines to one file.

    Lightning's own CSV logger deletes the file of a run that is resumed and rewrites it whole at each new column. This
    one only appends, so a killed process loses nothing, and a resumed one continues the file (`rewind`).
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.stem

    @property
    def version(self) -> str:
        """One file a run: no versions."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: config.yaml holds them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one line a metric; `step` counts optimizer steps."""
        new = not self.path.exists()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(("step", "metric", "value"))
            writer.writerows((step, name, repr(float(value))) for name, value in metrics.items())

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Forget what a killed run logged after its checkpoint, damaged lines, and the test, which is made again."""
        if self.path.exists():
            rows = read_metrics(self.path)
            kept = [row for row in rows if row[0] <= step and not row[1].startswith("test/")]
            temporary = self.path.with_suffix(".tmp")
            with temporary.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(
                    [("step", "metric", "value"), *((s, m, repr(v)) for s, m, v in kept)]
                )
            temporary.replace(self.path)


def log_samples(logger: Any, key: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
    """Send examples to a logger that has tables; the values under `picture` are uint8 arrays, shown as pictures."""
    if not hasattr(logger, "log_table"):
        return
    columns = list(rows[0])
    if "picture" in columns:
        import wandb as wandb_sdk

        rows = [{**row, "picture": wandb_sdk.Image(row["picture"])} for row in rows]
    table = [[row.get(column) for column in columns] for row in rows]
    logger.log_table(key=key, columns=columns, data=table, step=step)


def read_metrics(path: Path) -> list[tuple[int, str, float]]:
    """The rows of a metrics.csv; a line that a killed process or machine left damaged is dropped.

    A complete line ends with a line break: a value cut in two would otherwise still read as a number.
    """
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
        # Line by line: to the csv module, a stray quotation mark would make one value of all that follows.
        fields = next(csv.reader([line]), []) if '"' in line else line.split(",")
        try:
            step, metric, value = fields
            row = int(step), metric, float(value)
        except ValueError:  # also the header
            continue
        if "\0" not in metric and "\ufffd" not in metric:
            rows.append(row)
    return rows


def has_wandb_key() -> bool:
    """Whether W&B would find an API key: in the environment or in the netrc file."""
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    return bool(os.environ.get("WANDB_API_KEY")) or requests.utils.get_netrc_auth(host) is not None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What conf/logger sets: `wandb` is auto (online where there is a key), online, offline or disabled."""

    wandb: str = "auto"
    project: str = "magneto"
    entity: str | None = None
    group: str | None = None
    tags: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.wandb not in WANDB_MODES:
            raise UserError(f"logger.wandb={self.wandb}: must be one of {', '.join(WANDB_MODES)}.")


def wandb_logger(folder: Path, settings: Settings, config: Mapping[str, Any]) -> WandbLogger | None:
    """The run's W&B logger, or None when disabled.

    It never asks a question and never waits for a network: without a key the run is kept offline, for `wandb sync`. The
    W&B id is kept in the folder, so that a resumed run goes on as the same W&B run.

    Args:
        folder: the run's folder, whose name the W&B run takes.
        settings: project and mode; WANDB_MODE of the environment decides where the mode is auto.
        config: the resolved configuration, shown by W&B.
    """
    mode = (os.environ.get("WANDB_MODE") or "auto") if settings.wandb == "auto" else settings.wandb
    if mode not in WANDB_MODES:
        raise UserError(
            f"WANDB_MODE={mode} of the environment: must be one of {', '.join(WANDB_MODES)}, or unset."
        )
    if mode == "disabled" or not is_main_process():
        return None
    if mode == "auto":
        mode = "online" if has_wandb_key() else "offline"

    elif mode == "online" and not has_wandb_key():
        raise UserError(
            "logger.wandb=online: there is no API key. Run `wandb login`, set WANDB_API_KEY, or say logger.wandb=offline."
        )

    import wandb as wandb_sdk

    id_file = folder / "wandb_id"
    if not id_file.exists():
        id_file.write_text(secrets.token_hex(4), encoding="utf-8")

    def start(mode: Literal["online", "offline"]) -> WandbLogger:
        run = wandb_sdk.init(
            project=settings.project, entity=settings.entity, group=settings.group, tags=list(settings.tags),
            name=folder.name, config=dict(config), dir=folder,
            id=id_file.read_text(encoding="utf-8").strip(), resume="allow", mode=mode, reinit="finish_previous",
            settings=wandb_sdk.Settings(init_timeout=30, console="off", silent=True),
        )  # fmt: skip
        run.define_metric("trainer/global_step")  # what WandbLogger sends the step as
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        return WandbLogger(experiment=run, save_dir=folder)

    if mode == "online":
        try:
            return start("online")
        except wandb_sdk.Error as error:
            rank_zero_warn(
                f"W&B cannot be reached ({error}): this run is logged offline; send it later with `wandb sync`."
            )
    return start("offline")
