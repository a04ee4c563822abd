"""From runs to sections and rows: runs that may be compared, and runs that are seeds of one configuration."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from magneto.errors import ConfigError
from magneto.report.labels import (
    choices_of,
    leaves,
    overridden_keys,
    row_labels,
    shorten,
    with_neutral_keys,
)
from magneto.report.loading import Run, setting, shown
from magneto.report.statistics import Difference, Stat, difference, summarise

BACKBONES = ("post_ln", "pre_ln", "deepnorm", "normformer", "magneto")
"""Order of rows: baselines first, the paper's backbone last."""

SIZES = ("tiny", "small", "base", "large")

_LOWER = frozenset(("loss", "nll", "cer", "wer", "ter", "error", "perplexity", "ppl", "bits", "mse", "mae"))

_HIGHER = frozenset(
    ("accuracy", "acc", "bleu", "chrf", "f1", "auc", "r", "recall", "precision", "top1", "top5", "map", "iou")
) | {"matthews", "pearson", "spearman"}


@dataclass(frozen=True)
class Row:
    """Runs of one configuration, ordered by seed; each seed once."""

    label: str
    backbone: str
    size: str
    config: dict[str, str]
    runs: tuple[Run, ...]

    @cached_property
    def finished(self) -> tuple[Run, ...]:
        """Runs that means are taken over."""
        return tuple(run for run in self.runs if run.finished)

    @property
    def complete(self) -> bool:
        """Whether every run of the row finished."""
        return len(self.finished) == len(self.runs)

    def count(self, status: str) -> int:
        """Return the number of runs of the row with this status."""
        return sum(run.status == status for run in self.runs)

    def values(self, metric: str) -> dict[int, float]:
        """Return seed -> value of the finished runs with a finite value of `metric`."""
        return {run.seed: run.metrics[metric] for run in self.finished if metric in run.metrics}

    def stat(self, metric: str) -> Stat | None:
        """Return mean and spread of `metric`; None if no finished run has it."""
        return summarise(self.values(metric).values())


@dataclass(frozen=True)
class Section:
    """Rows that may be compared with each other: the same task on the same data, trained for as many steps.

    `conditions` distinguishes it from other sections of the same task and data (`300 steps`); empty if there are none.
    """

    task: str
    data: str
    conditions: tuple[str, ...]
    rows: tuple[Row, ...]
    primary_metric: str
    monitor: str | None
    monitor_mode: str | None

    @property
    def title(self) -> str:
        """`asr on stamps`, and `, 300 steps` if there are others."""
        return ", ".join([f"{self.task} on {self.data}" if self.data else self.task, *self.conditions])

    @property
    def slug(self) -> str:
        """Title as part of a file name."""
        text = "-".join([self.task, self.data, *self.conditions])
        return re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-").lower()[:80] or "runs"

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """All runs, row by row."""
        return tuple(run for row in self.rows for run in row.runs)

    @cached_property
    def reference(self) -> Row | None:
        """Row that the others are compared with: the only Pre-LN, else the first with a result; None if there is one row."""
        measured = [row for row in self.rows if row.values(self.primary_metric)]
        if len(measured) < 2:
            return None
        pre_ln = [row for row in measured if row.backbone == "pre_ln"]
        return pre_ln[0] if len(pre_ln) == 1 else measured[0]

    @cached_property
    def metrics(self) -> tuple[str, ...]:
        """Primary metric, then the other metrics of the whole split, losses last."""
        split = self.primary_metric.split("/")[0]
        names = dict.fromkeys([self.primary_metric, *(name for run in self.runs for name in run.metrics)])
        whole = [name for name in names if re.fullmatch(rf"{re.escape(split)}/[^/]+", name)]
        others = [name for name in whole if name != self.primary_metric]
        return (self.primary_metric, *sorted(others, key=lambda name: name.endswith("loss")))

    @cached_property
    def breakdowns(self) -> dict[str, tuple[str, ...]]:
        """Metric -> its parts that a finished run has (`test/cer` -> `es`, `fr`)."""
        measured = {name for row in self.rows for run in row.finished for name in run.metrics}
        parts = {
            metric: sorted(
                name.removeprefix(f"{metric}/") for name in measured if name.startswith(f"{metric}/")
            )
            for metric in self.metrics
        }
        return {metric: tuple(names) for metric, names in parts.items() if names}

    @cached_property
    def sweep(self) -> tuple[str, dict[str, dict[float, Row]]] | None:
        """Single key that differs between rows of a backbone, and backbone -> value -> row; None if there is no such key.

        Its values are numbers, three or more: `-m backbone=pre_ln,magneto optimizer.lr=1e-3,2e-3,4e-3`.
        """
        groups: dict[str, list[Row]] = {}
        for row in self.rows:
            groups.setdefault(row.backbone, []).append(row)
        keys = {key for rows in groups.values() for key in differing_keys(rows)}
        if len(keys) != 1:
            return None
        (key,) = keys
        try:
            swept = {name: {float(row.config[key]): row for row in rows} for name, rows in groups.items()}
        except (KeyError, ValueError):
            return None
        return (key, swept) if len({value for rows in swept.values() for value in rows}) >= 3 else None

    def better(self, metric: str) -> str | None:
        """Return `min` or `max`, whichever is better; None if neither the monitor nor the name says so."""
        base = metric.split("/")[1] if "/" in metric else metric
        if self.monitor and self.monitor_mode and base == self.monitor.split("/")[-1]:
            return self.monitor_mode
        words = set(re.split(r"[^a-z0-9]+", base.lower()))
        lower, higher = bool(words & _LOWER), bool(words & _HIGHER)
        return None if lower == higher else "min" if lower else "max"

    def best(self, metric: str) -> float | None:
        """Return the best mean of the rows without a diverged seed, since a mean over the other seeds is not fair."""
        stats = [row.stat(metric) for row in self.rows if not row.count("diverged")]
        means = [stat.mean for stat in stats if stat]
        better = self.better(metric)
        if len(self.rows) < 2 or not means or better is None:
            return None
        return min(means) if better == "min" else max(means)

    def difference(self, row: Row, metric: str) -> Difference | None:
        """Return the difference of `row` to the reference; None without two seeds each, and for the reference itself."""
        if self.reference is None or row is self.reference:
            return None
        return difference(row.values(metric), self.reference.values(metric))


@dataclass(frozen=True)
class Comparison:
    """Content of a report, before it is drawn or written.

    `left_out` are the runs that are in no section, each with the reason; `problems` are sentences on what was left out.
    """

    sections: tuple[Section, ...]
    problems: tuple[str, ...]
    left_out: tuple[tuple[Run, str], ...] = ()

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs of all sections."""
        return tuple(run for section in self.sections for run in section.runs)


def compare(
    runs: Sequence[Run],
    problems: Sequence[str] = (),
    metric: str | None = None,
    include_debug: bool = False,
) -> Comparison:
    """Group runs into sections (task, data and budget) and rows (configuration without the seed).

    Args:
        runs: at least one.
        problems: sentences on what was left out while reading, for the report.
        metric: the primary metric; None takes the task's own, or else the monitored one on the test split.
        include_debug: compare all debug runs, not only those whose own folder was given.

    Raises:
        ConfigError: no run is left to compare, or none has `metric`.
    """
    problems = list(problems)
    left_out: list[tuple[Run, str]] = []
    kept: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        if not run.trained:
            left_out.append((run, "never trained"))
        elif run.debug and not (include_debug or run.named):
            left_out.append((run, "debug"))
        else:
            kept.setdefault((run.task, run.data), []).append(run)
    counts = Counter(reason for _, reason in left_out)
    if count := counts["never trained"]:
        problems.append(f"{count} run{'s' if count > 1 else ''} that never trained")
    if count := counts["debug"]:
        problems.append(f"{count} debug run{'s' if count > 1 else ''} (--include-debug compares them)")
    if not kept:
        remedy = " Use --include-debug to compare debug runs." if counts["debug"] else ""
        reasons = [
            f"\n  {shown(run.folder)}: {why if why == 'debug' else run.message or run.status}"
            for run, why in left_out
        ]
        raise ConfigError(f"there is no run to compare.{remedy} Left out:{''.join(reasons)}")
    compared = [run for members in kept.values() for run in members]
    if metric is not None and not any(metric in run.metrics for run in compared):
        known = ", ".join(sorted({name for run in compared for name in run.metrics})) or "none"
        raise ConfigError(f"--metric {metric}: no run has it; known metrics: {known}")
    grouped: dict[tuple[str, str, Conditions], list[tuple[Run, dict[str, str]]]] = {}
    for (task, data), members in kept.items():
        configs = with_neutral_keys([leaves(run.config) for run in members])
        for run, config in zip(members, configs, strict=True):
            grouped.setdefault((task, data, _conditions(run, config)), []).append((run, config))
    sections = []
    for (task, data, conditions), configured in sorted(grouped.items(), key=_section_order):
        members = [run for run, _ in configured]
        others = [key[2] for key in grouped if key[:2] == (task, data)]
        # A killed run does not say what it monitored; others of its task do.
        monitored = next(
            (run for run in (*members, *compared) if run.task == task and run.monitor), members[0]
        )
        sections.append(
            Section(
                task=task,
                data=data,
                conditions=conditions.describe(others),
                rows=_rows(configured, left_out, problems),
                primary_metric=_primary_metric(members, metric, monitored),
                monitor=monitored.monitor,
                monitor_mode=monitored.mode,
            )
        )
    return Comparison(tuple(sections), tuple(problems), tuple(left_out))


@dataclass(frozen=True)
class Conditions:
    """What runs of one task must have in common, besides the name of the data, to be comparable.

    Attributes:
        sources: key and value of all that says where the data come from.
        budget: time of training, where runs are as long as that; None: they are as long as `steps`.
        steps: optimizer steps: those made by a finished run, those planned of another; None with a budget.
        test_batches: the part of the test split that was used; None: all of it.
    """

    sources: tuple[tuple[str, str], ...]
    budget: str | None
    steps: int | None
    test_batches: str | None

    def describe(self, others: Sequence["Conditions"]) -> tuple[str, ...]:
        """Return in words what differs from the conditions `others`, and what limits the test."""
        words = []
        if len({other.sources for other in others}) > 1:
            shared = set.intersection(*(set(other.sources) for other in others))
            words += [
                f"{key.rpartition('.')[2]}={shorten(value)}"
                for key, value in self.sources
                if (key, value) not in shared
            ]
        if len({(other.budget, other.steps) for other in others}) > 1:
            words.append(
                self.budget or "unknown steps"
                if self.steps is None
                else f"{self.steps:,} step{'s' if self.steps != 1 else ''}"
            )
        if self.test_batches is not None:
            words.append(f"tested on {self.test_batches}")
        return tuple(words)


def _conditions(run: Run, config: dict[str, str]) -> Conditions:
    sources = {key: value for key, value in config.items() if key.startswith("data.corpora.")}
    limit, budget = setting(run.config, "trainer.limit_test_batches"), setting(run.config, "budget")
    steps = run.steps if run.finished and run.steps is not None else run.planned_steps
    return Conditions(
        tuple(sorted(sources.items())),
        budget,
        None if budget is not None else steps,
        None
        if limit is None or (isinstance(limit, float) and limit == 1)
        else f"{limit:.2%}"
        if isinstance(limit, float)
        else f"{limit} batch{'es' if limit != 1 else ''}",
    )


def _section_order(
    item: tuple[tuple[str, str, Conditions], list[tuple[Run, dict[str, str]]]],
) -> tuple[Any, ...]:
    """Sort by task, data and conditions; sections without a result are last."""
    (task, data, conditions), configured = item
    waiting = not any(run.finished for run, _ in configured)
    return (
        waiting,
        task,
        data,
        conditions.sources,
        conditions.budget or "",
        conditions.steps or 0,
        conditions.test_batches or "",
    )


def differing_keys(rows: Sequence[Row]) -> list[str]:
    """Return the configuration keys that differ between rows, sorted."""
    keys = {key for row in rows for key in row.config}
    return sorted(key for key in keys if len({row.config.get(key) for row in rows}) > 1)


def _primary_metric(runs: Sequence[Run], metric: str | None, monitored: Run) -> str:
    """Return the first that a run has: `metric`, the task's own, the monitored one on test, as validated, any on test."""
    have = sorted({name for run in runs for name in run.metrics})
    monitor = monitored.monitor
    on_test = f"test/{monitor.split('/', 1)[-1]}" if monitor else "test/loss"
    for name in (metric, monitored.primary_metric, on_test, monitor):
        if name in have:
            return str(name)
    tested = [name for name in have if re.fullmatch(r"test/[^/]+", name)]
    return tested[0] if tested else on_test


def _rows(
    configured: Sequence[tuple[Run, dict[str, str]]], left_out: list[tuple[Run, str]], problems: list[str]
) -> tuple[Row, ...]:
    groups: dict[tuple[Any, ...], list[Run]] = {}
    configs: dict[tuple[Any, ...], dict[str, str]] = {}
    for run, config in configured:
        key = (run.backbone, run.size, *sorted(config.items()))
        configs[key] = config
        groups.setdefault(key, []).append(run)
    keys = list(groups)
    # A run that was killed does not know its overrides; another of the same configuration does.
    choices = [choices_of(max(groups[key], key=lambda run: len(run.overrides))) for key in keys]
    labels = row_labels(
        choices, [configs[key] for key in keys], [overridden_keys(groups[key]) for key in keys]
    )
    rows = [
        Row(label, key[0], key[1], configs[key], _one_per_seed(groups[key], left_out, problems))
        for key, label in zip(keys, labels, strict=True)
    ]
    return tuple(sorted(rows, key=_order))


def _one_per_seed(
    runs: Sequence[Run], left_out: list[tuple[Run, str]], problems: list[str]
) -> tuple[Run, ...]:
    """Return the runs by seed; of two runs of a seed one (finished) stays, and the other is a problem."""
    kept: dict[int, Run] = {}
    for run in sorted(runs, key=lambda run: (run.seed, not run.finished)):
        if run.seed in kept:
            problems.append(
                f"{shown(run.folder)}: same configuration and seed as {shown(kept[run.seed].folder)}"
            )
            left_out.append((run, "repeated"))
        else:
            kept[run.seed] = run
    return tuple(kept.values())


def _order(row: Row) -> tuple[Any, ...]:
    # re.split with a group alternates text and number, so that positions compare like with like.
    parts = re.split(r"(\d+(?:\.\d+)?(?:e-?\d+)?)", row.label)
    natural = [float(part) if index % 2 else part for index, part in enumerate(parts)]
    return (
        SIZES.index(row.size) if row.size in SIZES else len(SIZES),
        BACKBONES.index(row.backbone) if row.backbone in BACKBONES else len(BACKBONES),
        row.backbone,
        natural,
    )
