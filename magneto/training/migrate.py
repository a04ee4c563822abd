"""Read what earlier versions wrote: class paths, keys and weights by their present names."""

from collections.abc import Mapping
from typing import Any

TASKS = {
    "magneto.tasks.vl.VisionLanguage": "magneto.tasks.vision_language.VisionLanguage",
    "magneto.tasks.vl_classification.VisionLanguageClassification": "magneto.tasks.vqa.VisionLanguageClassification",
}
"""Classes of tasks."""
INFO = {"pictures": "images", "usual": "majority_answers"}
"""Fields of the info of the data."""
OPTIONS = {"cells": "pool_grid"}
"""Options of tasks."""
WEIGHTS = {"picture_head.": "image_head."}
"""Beginnings of the names of weights."""


def hyper_parameters(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hyper-parameters of a checkpoint or an export with the names that this version gives them."""
    now = {OPTIONS.get(key, key): value for key, value in stored.items()}
    if "spec" in now:
        now["info"] = now.pop("spec")
    if isinstance(now.get("info"), Mapping):
        now["info"] = {INFO.get(key, key): value for key, value in now["info"].items()}
    if "task" in now:
        now["task"] = TASKS.get(now["task"], now["task"])
    return now


def weights(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state dict with the names that this version gives the weights."""
    now = {}
    for name, tensor in state_dict.items():
        old = next((start for start in WEIGHTS if name.startswith(start)), "")
        now[WEIGHTS.get(old, "") + name.removeprefix(old)] = tensor
    return now


def metric(name: str) -> str:
    """Return the name that this version gives a metric of an earlier one."""
    return name.removesuffix("pictures") + "images" if name.endswith(("/pictures", "_pictures")) else name
