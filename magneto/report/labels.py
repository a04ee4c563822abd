"""Labels of rows: the configuration keys and choices that differ between the rows of a comparison."""

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from magneto.report.loading import Run
from magneto.training.run_config import NEUTRAL, flatten, shared_keys

_NOT_A_DIFFERENCE = re.compile(
    # Keys whose value says where, how loudly or on what a run computed, not what it computed. The number of
    # devices is not among them: the batch budget is per device.
    r"""(seed|name|resume|runs_dir|mode|checkpoint|input|output|logger|experiment_task)(\..*)?
    |trainer\.(accelerator|strategy|enable_progress_bar|log_every_n_steps|num_sanity_val_steps|threads|deterministic)
    |callbacks\.(probe_every|save_every|save_minutes|save_async|samples)
    |(.*\.)?(seed|data_dir|num_workers|pin_memory)""",
    re.VERBOSE,
)


def leaves(config: dict[str, Any]) -> dict[str, str]:
    """Return dotted key -> value as text, of every leaf of a configuration that can make a difference."""
    flat = flatten(config)
    shared = shared_keys(flat)
    return {key: _text(value) for key, value in flat.items() if is_difference(key) and key not in shared}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)


_SWITCHED_OFF = {*map(_text, NEUTRAL), "0.0"}


def with_neutral_keys(tables: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Return `leaves` of several runs; a key that one lacks and another switches off has that value in both.

    The run that lacks it is of a version without this key (`run_config.difference` has the same rule).
    """
    off: dict[str, str] = {}
    for table in tables:
        for key, value in table.items():
            if value in _SWITCHED_OFF:
                off.setdefault(key, value)
    return [off | table for table in tables]


def is_difference(key: str) -> bool:
    """Return whether a configuration key can change what a run computes."""
    return not _NOT_A_DIFFERENCE.fullmatch(key)


def choices_of(run: Run) -> dict[str, str]:
    """Return the choices by name: backbone, size and every group override such as `optimizer=lion`."""
    chosen = {"backbone": run.backbone, "size": run.size}
    for override in run.overrides:
        key, _, value = override.lstrip("+~").partition("=")
        # `experiment` leaves no key behind.
        is_group = "." not in key and isinstance(run.config.get(key, {}), dict)
        if is_group and is_difference(key) and key not in chosen:
            chosen[key] = value
    return {key: value for key, value in chosen.items() if key not in ("task", "data")}


def overridden_keys(runs: Sequence[Run]) -> set[str] | None:
    """Return the keys that were set on the command line; None if that is not known."""
    if all(run.status == "unfinished" for run in runs):
        return None
    return {override.lstrip("+~").partition("=")[0] for run in runs for override in run.overrides}


UNSET = "unset"
"""Value in a label of a choice that the command did not make; the table of differences has its value."""

_FIELDS = 3  # of a label, as far as they tell all rows apart


def row_labels(
    choices: list[dict[str, str]], configs: list[dict[str, str]], overridden: list[set[str] | None]
) -> list[str]:
    """Name each row by what differs from the other rows.

    A key that follows from the named choices (`backbone.placement` from `backbone=`) is not repeated; a key
    that varies among rows of equal choices, or that somebody set by hand, is. Where many vary, a row names those in
    which it differs from most other rows.
    """
    keys = [key for key in sorted({key for config in configs for key in config}) if _varies(key, configs)]
    by_hand: set[str] = set().union(*filter(None, overridden))
    groups = sorted({name for chosen in choices for name in chosen} - {"backbone", "size"})
    groups = [
        name
        for name in groups
        if _varies(name, choices) and _explains(name, [key for key in keys if key not in by_hand], configs)
    ]
    names = [name for name in ("backbone", "size") if _varies(name, choices)]
    by_choice: dict[tuple[Any, ...], dict[str, set[str | None]]] = {}
    for chosen, config in zip(choices, configs, strict=True):
        seen = by_choice.setdefault(tuple(chosen.get(name) for name in (*names, *groups)), {})
        for key in keys:
            seen.setdefault(key, set()).add(config.get(key))
    shown = [key for key in keys if key in by_hand or any(len(seen[key]) > 1 for seen in by_choice.values())]
    shown.sort(key=lambda key: key not in by_hand)
    fields = [
        {name: chosen.get(name, UNSET if known is not None else "unknown") for name in groups}
        | {key: config.get(key, UNSET) for key in shown}
        for chosen, config, known in zip(choices, configs, overridden, strict=True)
    ]
    heads = [[chosen[name] for name in names if chosen[name]] for chosen in choices]
    whole = [" · ".join(filter(None, (chosen["backbone"], chosen["size"]))) or "run" for chosen in choices]
    for count in range(min(_FIELDS, len(shown) + len(groups)), len(shown) + len(groups) + 1):
        for short in (shorten, str):
            labels = [
                " · ".join([*head, *_fields_of(own, fields, count, short)]) or alone
                for head, own, alone in zip(heads, fields, whole, strict=True)
            ]
            if len(set(labels)) == len(labels):
                return labels
    return [f"{label} ({labels[:index].count(label) + 1})" for index, label in enumerate(labels)]


def _varies(key: str, tables: Sequence[dict[str, str]]) -> bool:
    return len({table.get(key) for table in tables}) > 1


def _explains(group: str, keys: Sequence[str], configs: Sequence[dict[str, str]]) -> bool:
    """Return whether a choice such as `optimizer=` can explain some of the varying `keys`: all, if it has none itself."""
    has_keys = any(key.startswith(f"{group}.") for config in configs for key in config)
    return not has_keys or any(key.startswith(f"{group}.") for key in keys)


def _fields_of(
    own: dict[str, str], every: Sequence[dict[str, str]], count: int, short: Callable[[str], str]
) -> list[str]:
    """Return at most `count` of a row's fields: all, or those that most other rows do not share."""
    names = list(own)
    if len(names) > _FIELDS:
        common = {name: Counter(fields[name] for fields in every).most_common(1)[0] for name in own}
        names = [name for name in own if own[name] != common[name][0] or 2 * common[name][1] <= len(every)]
    hidden = len(names) - count
    return [f"{name}={short(own[name])}" for name in names[:count]] + (
        [f"{hidden} more"] if hidden > 0 else []
    )


def shorten(value: str) -> str:
    """Return a value for a label: the name of a file without its folder, the beginning of a long text."""
    if "/" in value and len(value) > 24:
        value = "…/" + value.rstrip("/").rpartition("/")[2]
    return value if len(value) <= 40 else value[:39] + "…"
