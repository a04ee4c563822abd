"""Log metrics to `metrics.csv` always, and to Weights & Biases where it works."""

import csv
import functools
import io
import logging
import os
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import requests.utils
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from magneto.config.parts import LoggerConfig, WandbMode
from magneto.errors import ConfigError
from magneto.training.files import read_metrics, write_atomically

log = logging.getLogger("magneto")

FINISH_S = 600.0
"""Seconds that the upload may take after a run; what is then missing is on disk, for `wandb sync`."""
_MAX_NAME = 128  # characters of a name or a group that W&B's server takes
CONNECT_S = 30.0
"""Seconds that W&B's server has to answer before a run goes offline."""
_ALIASES = {"dryrun": "offline", "run": "online"}  # older names of W&B's


def is_main_process() -> bool:
    """Return whether this process writes the run's files: the only one, or the one of rank 0."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


class CSVLogger(Logger):
    """Append `step,metric,value` lines to one file.

    Lightning's own CSV logger deletes the file of a run that is resumed and rewrites it whole at each new column. This
    one only appends, so a killed process loses nothing, and a resumed one continues the file (`rewind`).
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    name = "metrics"
    version = ""
    """None: a run has one file."""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml holds them."""

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
        """Remove what a killed run logged after its checkpoint, damaged lines, and the test, which is made again."""
        if self.path.exists():
            rows = read_metrics(self.path)
            kept = [row for row in rows if row[0] <= step and not row[1].startswith("test/")]
            text = io.StringIO(newline="")
            csv.writer(text).writerows([("step", "metric", "value"), *((s, m, repr(v)) for s, m, v in kept)])
            write_atomically(self.path, text.getvalue())


def from_environment(settings: LoggerConfig) -> LoggerConfig:
    """Return `settings` with W&B's own environment variables in place of every value that is the default."""
    given: dict[str, Any] = {
        "project": os.environ.get("WANDB_PROJECT"),
        "entity": os.environ.get("WANDB_ENTITY"),
        "group": os.environ.get("WANDB_RUN_GROUP"),
        "tags": [tag for tag in os.environ.get("WANDB_TAGS", "").split(",") if tag],
    }
    default = LoggerConfig()
    chosen: dict[str, Any] = {
        key: value
        for key, value in given.items()
        if value and (getattr(settings, key) or getattr(default, key)) == getattr(default, key)
    }
    return replace(settings, **chosen)


def has_wandb_key() -> bool:
    """Return whether W&B would find an API key: in the environment or in the netrc file."""
    import wandb as wandb_sdk

    own = os.environ.get("WANDB_BASE_URL")
    hosts = [own] if own else [wandb_sdk.Settings().base_url, "https://api.wandb.ai"]
    return bool(os.environ.get("WANDB_API_KEY")) or any(
        requests.utils.get_netrc_auth(host) is not None for host in hosts
    )


def wandb_mode(settings: LoggerConfig) -> str:
    """Return the mode of W&B: online, offline or disabled. Needs no network.

    Where `settings.wandb` is auto, WANDB_MODE or WANDB_DISABLED of the environment decides, and then whether there is a key.

    Raises:
        ConfigError: there is no such mode, or it is online and there is no key.
    """
    mode: str = settings.wandb
    if mode == "auto":
        disabled = os.environ.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes", "on")
        mode = os.environ.get("WANDB_MODE") or ("disabled" if disabled else "auto")
        mode = _ALIASES.get(mode, mode)
        if mode not in (modes := get_args(WandbMode)):
            raise ConfigError(
                f"WANDB_MODE={mode} of the environment: must be one of {', '.join(modes)}, or unset. Correct WANDB_MODE."
            )
    if mode == "auto":
        return "online" if has_wandb_key() else "offline"
    if mode == "online" and not has_wandb_key():
        raise ConfigError(
            "logger.wandb=online: there is no API key. Run `wandb login`, set WANDB_API_KEY, or use logger.wandb=offline."
        )
    return mode


def check(settings: LoggerConfig) -> None:
    """Raise ConfigError for a setting that W&B would refuse when the run starts. Needs no network."""
    if wandb_mode(settings) == "disabled":
        return
    import wandb as wandb_sdk

    for key, name in {
        "project": "project",
        "entity": "entity",
        "group": "run_group",
        "tags": "run_tags",
    }.items():
        value = getattr(settings, key)
        try:
            wandb_sdk.Settings(**{name: value})
        except (ValueError, wandb_sdk.Error) as error:
            raise ConfigError(f"logger.{key}={value}: W&B does not accept it ({_reason(error)}).") from error
    for name, value in os.environ.items():
        # The mode was read above; W&B itself refuses an empty one.
        if not name.startswith("WANDB_") or name == "WANDB_MODE":
            continue
        try:
            wandb_sdk.Settings().update_from_env_vars({name: value})
        except (ValueError, wandb_sdk.Error) as error:
            raise ConfigError(
                f"{name} of the environment: W&B does not accept it ({_reason(error)}). Correct it or unset it."
            ) from error


def _reason(error: Exception) -> str:
    errors = getattr(error, "errors", None)  # of pydantic, whose text has several lines and a link
    return str(errors()[0]["msg"]) if callable(errors) else str(error)


def _guarded(name: str) -> Any:
    method: Callable[..., None] = getattr(WandbLogger, name)

    @functools.wraps(method)
    def call(self: "RunLogger", *args: Any, **kwargs: Any) -> None:
        self.attempt(method, self, *args, **kwargs)

    return call


class RunLogger(WandbLogger):
    """Lightning's W&B logger that never ends a run: a failure is reported once, and nothing more is sent.

    Args:
        run: the started W&B run.
        folder: the run's folder; files that wait for their upload are kept in it and not below the home folder, which
            need not be writable.
    """

    log_metrics = _guarded("log_metrics")
    log_table = _guarded("log_table")
    log_image = _guarded("log_image")
    log_audio = _guarded("log_audio")

    def __init__(self, run: Any, folder: Path) -> None:
        super().__init__(experiment=run, save_dir=folder)
        self.failed = False
        self._own_data_dir = "WANDB_DATA_DIR" not in os.environ
        if self._own_data_dir:
            os.environ["WANDB_DATA_DIR"] = str((folder / "wandb").absolute())
        self.attempt(run.define_metric, "trainer/global_step")  # what WandbLogger sends the step as
        self.attempt(run.define_metric, "*", step_metric="trainer/global_step", step_sync=True)

    def attempt(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """Call `call` unless W&B has failed before; report the first failure."""
        if self.failed:
            return
        try:
            call(*args, **kwargs)
        except Exception as error:  # of W&B, its service or the file system: none concerns the training
            self._report(error)

    def _report(self, error: Exception) -> None:
        if not self.failed:
            log.warning(
                "W&B failed (%s: %s). The run continues without it; metrics.csv has all values.",
                type(error).__name__, error,
            )  # fmt: skip
        self.failed = True

    def keep_best(self, monitor: str, mode: str) -> None:
        """Have W&B's summary show the best value of `monitor` beside the last one; `mode` is min or max."""
        self.attempt(
            self.experiment.define_metric, monitor, summary=f"{mode},last", step_metric="trainer/global_step"
        )

    def summarize(self, values: Mapping[str, Any]) -> None:
        """Set values of W&B's summary."""
        self.attempt(self.experiment.summary.update, dict(values))

    def finish(self) -> None:
        """End the W&B run and wait until it is written or sent."""
        try:
            self.experiment.finish()
        except Exception as error:
            self._report(error)
        if self._own_data_dir:
            os.environ.pop("WANDB_DATA_DIR", None)


def wandb_logger(folder: Path, settings: LoggerConfig, config: Mapping[str, Any]) -> RunLogger | None:
    """Return the run's W&B logger, or None when it is disabled or does not work.

    It never asks a question and never ends the run: without a key, or where the service does not answer, the run is kept
    offline, for `wandb sync`. The W&B id is kept in the folder, so that a resumed run continues the same W&B run.

    Args:
        folder: the run's folder, whose name the W&B run takes.
        settings: mode, project and so on; the environment decides where they have their default (`from_environment`).
        config: the resolved configuration, shown by W&B without what is null.
    """
    settings = from_environment(settings)
    mode = wandb_mode(settings)
    if mode == "disabled" or not is_main_process():
        return None
    import wandb as wandb_sdk

    task, seed = config["task"]["name"], config["seed"]
    # The runs of one configuration that differ by their seed: W&B draws their mean and spread.
    group = settings.group or f"{task}/{re.sub(rf'[-_]?seed[-_=]?{seed}(?![0-9])', '', folder.name)}"
    name = os.environ.get("WANDB_NAME") if config["name"] is None else None

    def start(mode: Any) -> RunLogger:
        run = wandb_sdk.init(
            project=settings.project, entity=settings.entity, group=group[:_MAX_NAME], tags=list(settings.tags),
            name=name or folder.name[:_MAX_NAME], config=_without_null(config), dir=folder, id=_run_id(folder / "wandb_id"),
            resume="allow", mode=mode, reinit="finish_previous",
            settings=wandb_sdk.Settings(
                init_timeout=CONNECT_S, finish_timeout=FINISH_S, finish_timeout_raises=True,
                console="off", silent=True, capture_loggers={"magneto": "INFO"},
                x_transaction_log_flush_interval=1.0,  # seconds that a killed run loses
            ),
        )  # fmt: skip
        return RunLogger(run, folder)

    modes = ["online", "offline"] if mode == "online" else ["offline"]
    for mode in modes:
        try:
            return start(mode)
        except Exception as error:  # W&B's own, pydantic's, of the network, of files
            reason = f"{type(error).__name__}: {_reason(error)}"
            wandb_sdk.teardown()  # its service keeps the id of a failed attempt in use
            if mode == "online":
                log.warning("W&B cannot be reached (%s): this run is logged offline.", reason)
            else:
                log.warning("W&B cannot be used (%s): metrics.csv alone has the values.", reason)
    return None


def _run_id(file: Path) -> str:
    """Return the id that `file` holds; a new one, written to it, where there is none or it is damaged."""
    stored = file.read_text(encoding="utf-8", errors="replace").strip() if file.is_file() else ""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", stored):
        stored = secrets.token_hex(4)
        write_atomically(file, stored)
    return stored


def _without_null(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_null(value) if isinstance(value, Mapping) else value
        for key, value in tree.items()
        if value is not None
    }
