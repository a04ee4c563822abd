"""What a chain of runs is made of: the files of `conf/paper/`, read and checked."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from magneto.config.validate import from_mapping
from magneto.errors import ConfigError, nearest

ScaleName = Literal["mini", "full"]


@dataclass(frozen=True, kw_only=True)
class Harness:
    """Questions of the lm-evaluation-harness. Accuracies are called TASK:SHOTS.

    Attributes:
        tasks: the harness's own, by name; none: those of `lm_tasks`, which are made of held-out speeches.
        shots: numbers of solved examples before a question.
    """

    tasks: list[str] = field(default_factory=list)
    shots: list[int] = field(default_factory=lambda: [0, 1, 4])


@dataclass(frozen=True, kw_only=True)
class Step:
    """Runs that all rows make.

    Attributes:
        run: overrides of the command line.
        init_from: the earlier step whose weights it starts from.
        grid: values of keys, or lists of overrides, that are all tried with each other; the best by the monitored metric on
            validation data counts.
        seeds: None: those of the scale.
        harness: tasks of the lm-evaluation-harness that its models are asked.
        tests: further tests of its runs by name, each with the overrides that it needs, such as those of other data. Their
            metrics are called NAME:METRIC.
    """

    run: list[str]
    init_from: str | None = None
    grid: dict[str, list[Any]] = field(default_factory=dict)
    seeds: list[int] | None = None
    tests: dict[str, list[str]] = field(default_factory=dict)
    harness: Harness | None = None


@dataclass(frozen=True, kw_only=True)
class Column:
    """What is shown of a step: the mean of these metrics, multiplied by `factor`, over the seeds."""

    step: str
    metrics: list[str]
    factor: float = 1.0


@dataclass(frozen=True, kw_only=True)
class PaperTable:
    """Numbers of the paper: a list for each row, or one word."""

    columns: list[str]
    rows: dict[str, list[float] | str]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A chain with its table.

    Attributes:
        note: what it is and what it is not.
        seeds: of steps that have none of their own.
        steps: in their order.
        rows: overrides of each row for each step, those of `all` for every one.
        columns: of the table.
        mean: heading of the mean over the columns; None: there is none.
        lower: whether lower is better.
    """

    note: str
    seeds: list[int]
    steps: dict[str, Step]
    rows: dict[str, dict[str, list[str]]]
    columns: dict[str, Column]
    mean: str | None = None
    lower: bool = False


@dataclass(frozen=True, kw_only=True)
class Chain:
    """One of the paper's tables, at both scales; `like`: the table whose runs it shares."""

    title: str
    paper: PaperTable
    mini: Scale
    full: Scale
    like: str | None = None

    def scale(self, name: str) -> Scale:
        """Return the chain of this scale."""
        found: Scale = getattr(self, name)
        return found


def load_chain(file: Path) -> Chain:
    """Read and check a chain; one that is `like` another shows other columns of the same runs.

    Raises:
        ConfigError: it cannot be read, a key is unknown, or a step or row is named that there is not.
    """
    content = _read(file)
    if other := content.get("like"):
        base = _read(file.with_name(f"{other}.yaml"))
        scales = {name: {**base.get(name, {}), **content.get(name, {})} for name in get_args(ScaleName)}
        content = {**base, **content, **scales}
    try:
        chain = from_mapping(Chain, content, file.stem)
        for name in get_args(ScaleName):
            _check(chain.scale(name), name)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error
    return chain


def _read(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: cannot be read ({error}).") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: must hold keys and values.")
    return content


def _check(scale: Scale, name: str) -> None:
    """Raise `ConfigError` for a step that is named before it is there."""
    seen: list[str] = []
    for key, step in scale.steps.items():
        if step.init_from is not None and step.init_from not in seen:
            raise ConfigError(
                f"{name}.steps.{key}.init_from={step.init_from}: no step before it has this name."
                f"{nearest(step.init_from, seen)}"
            )
        seen.append(key)
    named = [("columns", column.step) for column in scale.columns.values()]
    named += [("rows", step) for row in scale.rows.values() for step in row if step != "all"]
    for where, step_name in named:
        if step_name not in seen:
            raise ConfigError(f"{name}.{where}: there is no step {step_name!r}.{nearest(step_name, seen)}")


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run of a chain."""

    row: str
    step: str
    choice: tuple[tuple[str, str], ...]
    """Of the step's grid: names and overrides."""
    seed: int

    @property
    def name(self) -> str:
        """Name of the run's folder, without what it started from."""
        words = [self.step, *self.row.split(), *(name for name, _ in self.choice)]
        return "-".join([*words, f"seed{self.seed}"]).replace("/", "_")


def jobs_of(scale: Scale, row: str, name: str) -> Iterator[Job]:
    """Yield the runs of a row's step."""
    step = scale.steps[name]
    tried = [[_choice(key, value) for value in values] for key, values in step.grid.items()]
    for choice in itertools.product(*tried):
        for seed in step.seeds or scale.seeds:
            yield Job(row=row, step=name, choice=choice, seed=seed)


def _choice(key: str, value: Any) -> tuple[str, str]:
    """Return a value of a grid as a name and as overrides; a list is of overrides already."""
    if isinstance(value, list):
        return "-".join(one.rpartition(".")[2] for one in value), " ".join(value)
    return f"{key.rpartition('.')[2]}={value}", f"{key}={value}"
