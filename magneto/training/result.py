"""The result of a run, which result.json holds. Without torch: a report reads hundreds of them in seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Self

from magneto.errors import ConfigError
from magneto.training import migrate
from magneto.training.provenance import git_revision, versions

SCHEMA = 1
"""The version of result.json that this code writes and reads."""
STATUSES = ("finished", "diverged", "failed", "interrupted", "unfinished")
"""`unfinished`: there is no result.json, as the run was killed or is still running."""
ENDED = ("finished", "diverged")
"""Statuses of runs that the same command does not run again."""


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run was, how it ended and what it measured.

    A value that the run did not reach is None, or not in `metrics`. A metric that is not finite is NaN.
    """

    task: str
    name: str
    backbone: str = ""
    size: str = ""
    data: str = ""
    seed: int
    overrides: tuple[str, ...] = ()
    git: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any]
    status: str = "unfinished"
    message: str | None = None
    monitor: str | None = None
    mode: str | None = None
    best: float | None = None
    best_step: int | None = None
    primary_metric: str | None = None
    example_input: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    steps: int | None = None
    parameters: int | None = None
    gain: float | None = None
    world_size: int | None = None
    wall_s: float | None = None
    fit_s: float | None = None
    data_wait_fraction: float | None = None
    throughput: dict[str, float] = field(default_factory=dict)
    probe: dict[str, Any] = field(default_factory=dict)
    data_facts: dict[str, Any] = field(default_factory=dict)
    peak_memory_bytes: int | None = None
    run_peak_memory_bytes: int | None = None

    @classmethod
    def of_config(
        cls, config: Mapping[str, Any], name: str, *, overrides: Sequence[str] = (), **more: Any
    ) -> Self:
        """Return the result of a run that has none yet.

        Args:
            config: its complete configuration.
            name: of its folder.
            overrides: of its command.
            more: further fields.
        """
        return cls(
            task=config["task"]["name"], name=name, backbone=config["backbone"]["placement"], size=config["size_name"],
            data=config["data"]["name"], seed=config["seed"], overrides=tuple(overrides), config=dict(config),
            git=git_revision(), versions=versions(), **more,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return the content of result.json."""
        values = {"schema": SCHEMA, **{key: getattr(self, key) for key in RunResult.__dataclass_fields__}}
        best = {"metric": values.pop("monitor")} | {key: values.pop(key) for key in _MONITOR}
        time = {key: values.pop(key) for key in _TIME}
        return {**values, "overrides": list(self.overrides), "monitor": best, "time": time}

    @classmethod
    def from_dict(cls, raw: Any, **more: Any) -> Self:
        """Read the content of result.json, also of earlier versions.

        Args:
            raw: the content.
            more: fields of a subclass.

        Raises:
            ConfigError: a value is missing or of another type; the message names it, and not the file.
        """
        if not isinstance(raw, dict):
            raise ConfigError(f"holds a {type(raw).__name__}, not an object")
        if raw.get("schema") != SCHEMA:
            raise ConfigError(
                f"schema is {raw.get('schema')!r}, this version reads {SCHEMA}; repeat the run with this version"
            )
        status = _get(raw, "status", str, required=True)
        if status not in STATUSES:
            raise ConfigError(f"status is {status!r}, not one of {', '.join(STATUSES)}")
        nested = {key: _get(raw, key, dict) or {} for key in ("monitor", "time")}
        values: dict[str, Any] = {"primary_metric": _get(raw, "headline", str)}  # of earlier versions
        for one in fields(RunResult):
            where = "monitor" if one.name in ("monitor", *_MONITOR) else "time" if one.name in _TIME else ""
            source, key = nested.get(where, raw), "metric" if one.name == "monitor" else one.name
            needed = one.default is one.default_factory or (key == "metrics" and status in ENDED)
            value = _get(
                source, key, _KINDS[str(one.type).split("[")[0].split(" ")[0]], where, required=needed
            )
            if value is not None:
                values[one.name] = value
        for key in ("metrics", "throughput"):
            values[key] = _numbers(values.get(key, {}), key)
        values["overrides"] = tuple(map(str, values.get("overrides", ())))
        return cls(**values, **more)


_MONITOR = ("mode", "best", "best_step")
_TIME = ("wall_s", "fit_s", "data_wait_fraction")
_KINDS = {"str": str, "int": int, "float": float, "dict": dict, "tuple": list}
"""Types in result.json by those of the fields above."""


def _get(raw: dict[str, Any], key: str, kind: type, where: str = "", *, required: bool = False) -> Any:
    """`raw[key]` checked to be of `kind`; a whole number passes for either kind of number; null is None."""
    value, name = raw.get(key), f"{where}.{key}" if where else key
    if value is None:
        if required:
            raise ConfigError(f"{name} is missing")
        return None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ConfigError(f"{name} is {value!r}, not a {kind.__name__}")
    return value


def _numbers(raw: dict[str, Any], where: str) -> dict[str, float]:
    """Return a name -> number object with NaN for null, which JSON has in its place."""
    values = {migrate.metric(str(key)): _get(raw, key, float, where) for key in raw}
    return {key: math.nan if value is None else value for key, value in values.items()}
