"""Read a pretrained model and use it at once, as tests of its shape and its weights need it."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from magneto.pretrained import init_from, resolve
from magneto.tasks.base import Task


def initialize_from(task: Task, source: str | Path) -> init_from.Report:
    """`magneto.pretrained.init_from.initialize_from` of what lies at `source`."""
    return init_from.initialize_from(task, init_from.read_pretrained(str(source)))


def adopt(config: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`magneto.pretrained.resolve.adopt` of what `config["init_from"]` names."""
    return resolve.adopt(config, overrides, init_from.read_pretrained(config["init_from"]))


def info_of(task: type[Task], **values: Any) -> dict[str, Any]:
    """The info of prepared data with these values, and None for everything else that the class of the data has."""
    return {field.name: None for field in fields(task.Data.Info)} | values
