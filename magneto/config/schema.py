"""Type the top level of every configuration, and check it.

Hydra composes YAML files silently, mistyped keys included. `RunConfig` is the first entry of the defaults list, so that
a key which stands in no field below is refused; `check` refuses what `+key=` adds and `~key` removes nevertheless. The
strict constructors of the parts (`BackboneConfig`, `OptimizerConfig`, the tasks, the data modules) refuse the rest.

This module is imported by `python run.py --help`: it must not import torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, cast

from annotated_types import Interval
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from magneto.config.parts import CallbacksConfig, LoggerConfig, TrainerConfig, defaults
from magneto.config.validate import check_types, from_mapping
from magneto.errors import ConfigError, nearest

# Top-level keys that are not read in a mode.
_UNREAD: dict[str, tuple[str, ...]] = {
    "train": ("checkpoint", "input", "prompt", "output"),
    "prepare": ("checkpoint", "input", "prompt", "output"),
    "config": ("checkpoint", "input", "prompt", "output"),
    "test": ("input", "prompt", "budget"),
    "export": ("input", "prompt", "budget"),
    "predict": ("budget",),
}


_PATHS = ("runs_dir", "data_dir", "checkpoint", "input", "output", "resume", "init_from")


class Mode(Enum):
    """What a command does."""

    train = "train"  # prepare, fit, test with the best checkpoint, export
    prepare = "prepare"  # only fetch and prepare the data
    test = "test"  # evaluate `checkpoint` on the test split of `data`
    predict = "predict"  # apply `checkpoint` to `input` or `prompt`
    export = "export"  # write `checkpoint` as safetensors to `output`
    config = "config"  # print the complete configuration of mode=train


class Summary(Enum):
    """What is printed at the end of a run."""

    short = "short"  # the primary metric and the best validation
    full = "full"  # every metric


@dataclass
class RunConfig:
    """Every top-level key of a run; `conf/config.yaml` gives the values and says what each is for."""

    mode: Mode = MISSING
    # What L.seed_everything takes: the seeds of numpy, which are fewer than those of torch.
    seed: Annotated[int, Interval(ge=0, le=2**32 - 1)] = MISSING
    name: str | None = MISSING
    resume: str = MISSING
    runs_dir: str = MISSING
    data_dir: str = MISSING
    checkpoint: str | None = MISSING
    input: str | None = MISSING
    prompt: Any = None
    predict: dict[str, Any] = field(default_factory=dict)
    init_from: str | None = MISSING
    output: str | None = MISSING
    size_name: str = MISSING
    summary: Summary = Summary.short
    budget: str | None = None
    dry_run: bool = False
    sweep: dict[str, Any] = field(default_factory=dict)
    experiment_task: str | None = MISSING
    task: dict[str, Any] | None = None
    backbone: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] | None = None
    optimizer: dict[str, Any] = field(default_factory=dict)
    scheduler: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    callbacks: dict[str, Any] = field(default_factory=dict)
    logger: dict[str, Any] = field(default_factory=dict)


@dataclass
class SweepConfig:
    """What `-m` does beside running every combination."""

    prune_rates: bool = False
    """Leave a learning rate out where a lower one of the same configuration has diverged."""


PARTS = {"trainer": TrainerConfig, "callbacks": CallbacksConfig, "logger": LoggerConfig}
"""Groups whose option `default` is made of a dataclass."""


def register() -> None:
    """Register with Hydra the schema, and the default of each group whose defaults stand in a dataclass."""
    store = ConfigStore.instance()
    store.store(name="schema", node=RunConfig)
    for group, part in PARTS.items():
        store.store(group=group, name="default", node=dict(defaults(part)))


def to_dict(cfg: DictConfig) -> dict[str, Any]:
    """Return the composed configuration as plain values.

    Raises:
        ConfigError: a value that refers to one that does not exist (`${...}`), or a missing one (`???`).
    """
    try:
        config = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {str(error).splitlines()[0]}. Set it to a value.") from error
    config = cast(dict[str, Any], config)
    for key in _PATHS:
        if str(config.get(key)).startswith("~/"):  # a shell replaces it in some places only
            config[key] = str(Path(config[key]).expanduser())
    return config


def check(config: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for a top-level key that does not exist, was removed, is out of range or not read in this mode."""
    known = [one.name for one in fields(RunConfig)]
    for key in config:
        if key not in known:
            raise ConfigError(
                f"{key}: there is no such key.{nearest(key, known)} See all keys with --cfg job."
            )
    require(config, known)
    from_mapping(SweepConfig, config["sweep"], "sweep")
    check_types(RunConfig, config)
    mode = config["mode"]
    for key in _UNREAD[mode]:
        if config[key] is not None:
            instead = "Use mode=predict."
            if key == "checkpoint":
                instead = "Use init_from= to start from its weights, or resume= to continue that run."
            elif key == "output":
                instead = "Use name= and runs_dir= to choose the folder of a run."
            elif key == "budget":
                instead = "Use mode=train."
            raise ConfigError(f"{key}={config[key]} has no effect with mode={mode}. {instead}")
    if config["dry_run"] and mode != "train":
        raise ConfigError(f"dry_run=true has no effect with mode={mode}. Use mode=train.")
    if mode != "predict":
        for key, value in config["predict"].items():
            if value is not None:
                raise ConfigError(f"predict.{key}={value} has no effect with mode={mode}. Use mode=predict.")


def require(node: Mapping[str, Any], keys: Sequence[str], where: str = "") -> None:
    """Raise `ConfigError` unless `node`, the configuration under the key `where`, has all these keys."""
    for key in keys:
        if key not in node:
            name = f"{where}.{key}" if where else key
            raise ConfigError(f"{name}: this key is missing. Leave ~{name} out of the command.")
