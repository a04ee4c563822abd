"""The typed top level of every configuration.

Hydra composes YAML files silently, mistyped keys included. `RunConfig` is the first entry of the defaults list, so that
a key which stands in no field below is refused; the strict constructors of the parts (`BackboneConfig`,
`OptimizerConfig`, the tasks, the data modules) refuse the rest.

This module is imported by `python run.py --help`: it must not import torch.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


class Mode(Enum):
    """What a command does."""

    train = "train"  # prepare, fit, test with the best checkpoint, export
    prepare = "prepare"  # only fetch and prepare the data
    test = "test"  # evaluate `checkpoint` on the test split of `data`
    predict = "predict"  # apply `checkpoint` to `input` or `prompt`
    export = "export"  # write `checkpoint` as safetensors to `output`


@dataclass
class RunConfig:
    """Every top-level key of a run; `conf/config.yaml` gives the values and says what each is for."""

    mode: Mode = MISSING
    seed: int = MISSING
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
    summary: str = "short"
    experiment_task: str | None = MISSING
    task: dict[str, Any] | None = None
    backbone: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] | None = None
    optimizer: dict[str, Any] = field(default_factory=dict)
    scheduler: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    callbacks: dict[str, Any] = field(default_factory=dict)
    logger: dict[str, Any] = field(default_factory=dict)


def register() -> None:
    """Make the schema known to Hydra under the name that conf/config.yaml lists first."""
    ConfigStore.instance().store(name="schema", node=RunConfig)
