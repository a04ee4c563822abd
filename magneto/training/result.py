"""The result of a run, as result.json keeps it."""

from collections.abc import Mapping, Sequence
from typing import Any

from magneto.training.provenance import git_revision, versions
from magneto.training.run_folder import RESULT_SCHEMA, RunFolder


def run_identity(config: Mapping[str, Any], folder: RunFolder, overrides: Sequence[str]) -> dict[str, Any]:
    return {
        "schema": RESULT_SCHEMA,
        "task": config["task"]["name"],
        "name": folder.path.name,
        "backbone": config["backbone"]["placement"],
        "size": config["size_name"],
        "data": config["data"]["name"],
        "seed": config["seed"],
        "overrides": list(overrides),
        "git": git_revision(),
        "versions": versions(),
        "config": dict(config),
    }
