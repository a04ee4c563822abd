"""How a result depends on the learning rate: for each configuration its best rate, and how much it minds another.

A line is the configurations that differ in `optimizer.lr` alone, three rates or more. Its values are those of the monitored
validation metric, averaged over seeds; the measures are

    best            the best value over the rates
    sensitivity     mean over the rates of the distance to it, where no value counts as worse than the start
                    (Wortsman et al., arXiv 2309.14322, section 2.2)
    basin           octaves of the rate around the best within a tolerance of it, between rates by a straight line
    largest stable  the largest rate at which every seed is within twice this tolerance

The tolerance is 0.05 bits per byte, and 3 % of the best value of another metric. A model that does not learn is at a
plateau: the second half of its training brings less than a tenth of what its loss is behind the best of its depth.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from magneto.report.comparison import Row, Section, differing_keys
from magneto.report.statistics import exceeds_noise, pooled_deviation
from magneto.report.tables import ARROWS, NONE, Cell, Table, decimals, number

RATE, DEPTH = "optimizer.lr", "backbone.num_layers"
BITS, SHARE = 0.05, 0.03
"""Tolerances: of bits per byte, and as a share of the best value of any other metric."""
FEWEST = 3
"""Rates of a line at least."""


@dataclass(frozen=True)
class Line:
    """Rows that differ in their learning rate alone."""

    label: str
    depth: int | None
    rows: Mapping[float, Row]
    """By rate, rising."""
    metric: str
    higher: bool
    start: float
    """What a value is at worst: that of a model before training."""

    @property
    def backbone(self) -> str:
        """Placement of all rows."""
        return next(iter(self.rows.values())).backbone

    @property
    def gain(self) -> float:
        """Xavier gain of the first layer's output weights; 1 where the runs do not say."""
        gains = [run.gain for row in self.rows.values() for run in row.runs if run.gain]
        return gains[0] if gains else 1.0

    @cached_property
    def means(self) -> dict[float, float]:
        """Rate -> mean over seeds; a seed that diverged counts as the start."""
        found = {}
        for rate, row in self.rows.items():
            values = list(row.values(self.metric).values()) + [self.start] * row.count("diverged")
            if values:
                found[rate] = float(np.mean([self._capped(value) for value in values]))
        return found

    @cached_property
    def best_rate(self) -> float | None:
        """Rate of the best mean; None without a result."""
        if not self.means:
            return None
        return (max if self.higher else min)(self.means, key=lambda rate: self.means[rate])

    @property
    def best(self) -> float | None:
        """The best mean."""
        return None if self.best_rate is None else self.means[self.best_rate]

    @property
    def best_at_edge(self) -> bool:
        """Whether the best rate is the lowest or the highest of the line, so that a better one may be outside."""
        return self.best_rate is not None and self.best_rate in (min(self.means), max(self.means))

    @property
    def sensitivity(self) -> float | None:
        """Mean over the rates of the distance to the best."""
        if self.best is None or len(self.means) < FEWEST:
            return None
        return float(np.mean([self.behind(value) for value in self.means.values()]))

    @property
    def basin(self) -> tuple[float, bool] | None:
        """Octaves around the best rate within the tolerance, and whether they reach the edge of the grid."""
        if self.best_rate is None or len(self.means) < FEWEST:
            return None
        rates = sorted(self.means)
        place, octaves, edge = rates.index(self.best_rate), 0.0, False
        for way in (rates[place:], rates[place::-1]):
            for here, there in pairwise(way):
                width = abs(math.log2(there / here))
                behind = [self.behind(self.means[rate]) for rate in (here, there)]
                if behind[1] > self.tolerance:
                    octaves += width * (self.tolerance - behind[0]) / (behind[1] - behind[0])
                    break
                octaves += width
            else:
                edge = True
        return octaves, edge

    @property
    def largest_stable(self) -> float | None:
        """Largest rate at which each seed is within twice the tolerance of the best; None without a result."""
        stable = [
            rate
            for rate, row in self.rows.items()
            if row.complete
            and (values := row.values(self.metric).values())
            and all(self.behind(value) <= 2 * self.tolerance for value in values)
        ]
        return max(stable, default=None)

    @property
    def tolerance(self) -> float:
        """Distance to the best that is still good."""
        assert self.best is not None
        return BITS if self.metric.endswith("bits_per_byte") else SHARE * abs(self.best)

    def behind(self, value: float) -> float:
        """Return how much worse than the best a value is."""
        assert self.best is not None
        value = self._capped(value)
        return self.best - value if self.higher else value - self.best

    def status(self, rate: float, rivals: Sequence["Line"]) -> str:
        """Return ok, plateau, spiked or diverged, the worst of its seeds, or another status of a run.

        Args:
            rate: one of the line's.
            rivals: lines of the same depth, this one too, whose best training loss a plateau is measured by.
        """
        runs = self.rows[rate].runs
        for run in runs:
            if not run.finished:
                return run.status
        every = [run for line in rivals for row in line.rows.values() for run in row.finished]
        lowest = min((run.ending.loss_end for run in every if run.ending.loss_end is not None), default=None)
        if lowest is not None and any(run.ending.at_plateau(lowest) for run in runs):
            return "plateau"
        return "spiked" if any(run.ending.spike_score for run in runs) else "ok"

    def _capped(self, value: float) -> float:
        return max(value, self.start) if self.higher else min(value, self.start)


def lines_of(section: Section) -> list[Line]:
    """Return the lines of a section, of more than one rate each, in the order of its rows; none of a sweep without rates."""
    keys = [key for key in differing_keys(section.rows) if key not in (RATE, "backbone.placement")]
    groups: dict[tuple[str, ...], dict[float, Row]] = {}
    for row in section.rows:
        try:
            rate = float(row.config[RATE])
        except (KeyError, ValueError):
            continue
        groups.setdefault((row.backbone, *(row.config.get(key, "") for key in keys)), {})[rate] = row
    metric = _metric(section)
    higher = section.better(metric) == "max"
    start = _start(section, metric, higher)
    lines = []
    for (backbone, *values), rows in groups.items():
        if len(rows) < 2 or start is None:
            continue
        further = [f"{key.rpartition('.')[2]}={value}" for key, value in zip(keys, values, strict=True)]
        depth = next(iter(rows.values())).config.get(DEPTH)
        lines.append(
            Line(
                label=" ".join([backbone, *further]),
                depth=int(depth) if DEPTH in keys and depth is not None else None,
                rows=dict(sorted(rows.items())),
                metric=metric,
                higher=higher,
                start=start,
            )
        )
    return lines if any(len(line.rows) >= FEWEST for line in lines) else []


def rivals_of(line: Line, lines: Sequence[Line]) -> list[Line]:
    """Return the lines of the same depth, this one among them."""
    return [other for other in lines if other.depth == line.depth]


def noise(lines: Sequence[Line]) -> tuple[float, int] | None:
    """Return the standard deviation over seeds at the best rates, pooled over lines, and its degrees of freedom.

    None if no line has two seeds there.
    """
    values = [
        [*line.rows[line.best_rate].values(line.metric).values()]
        for line in lines
        if line.best_rate is not None and line.rows[line.best_rate].complete
    ]
    return pooled_deviation(values)


def verdict_at_best(line: Line, other: Line, sigma: float | None) -> tuple[float | None, str]:
    """Return the difference of two lines at their best rates, positive if the first is better, and what it shows.

    The rule: a difference of means over n seeds counts if |difference| * sqrt(n / 2) >= 3 sigma.
    """
    if line.best_rate is None or other.best_rate is None or line.best is None or other.best is None:
        return None, "no result"
    gap = line.best - other.best if line.higher else other.best - line.best
    seeds = min(
        len(line.rows[line.best_rate].values(line.metric)),
        len(other.rows[other.best_rate].values(line.metric)),
    )
    if sigma is None or seeds < 2:
        return gap, "one seed: nothing shown"
    if not exceeds_noise(gap, seeds, sigma):
        return gap, "no difference shown"
    return gap, "better" if gap > 0 else "worse"


def _metric(section: Section) -> str:
    """Return the monitored metric if finished runs have it, else the primary one."""
    monitor = section.monitor
    return monitor if monitor and any(row.values(monitor) for row in section.rows) else section.primary_metric


def _start(section: Section, metric: str, higher: bool) -> float | None:
    """Return the value of the metric before training.

    It is not measured. Scores that rise begin at 0 and error rates at 1; a loss, and bits, at the training loss of the first
    step, in the unit that the end of the same run has; anything else at the worst value of the section.
    """
    if higher:
        return 0.0
    if metric.rpartition("/")[2] in ("cer", "wer", "ter"):
        return 1.0
    split = metric.split("/")[0]
    for run in section.runs:
        first, loss = run.probe.get("first_loss"), run.metrics.get(f"{split}/loss")
        value = run.metrics.get(metric)
        if isinstance(first, float) and loss and value is not None and run.finished:
            return first * value / loss
    values = [value for row in section.rows for value in row.values(metric).values()]
    return max(values, default=None)


def rates_table(section: Section) -> Table | None:
    """Return the measures of each line and how its runs ended; None if no learning rate was swept."""
    lines = lines_of(section)
    if not lines:
        return None
    spread = noise(lines)
    sigma = spread[0] if spread else None
    digits = decimals([value for line in lines for value in line.means.values()])
    rows = []
    references = []
    for line in lines:
        rivals = rivals_of(line, lines)
        reference = next((other for other in rivals if other.backbone == "pre_ln"), rivals[0])
        references.append(reference.backbone)
        gap, shows = verdict_at_best(line, reference, sigma)
        found, best = line.best_rate, number(line.best, digits)
        cells = [
            line.label,
            f"{len(line.rows)}: {min(line.rows):g} to {max(line.rows):g}",
            best,
            NONE if found is None else f"{found:g}{'*' if line.best_at_edge else ''}",
            NONE if found is None else f"{found / line.gain:.3g}",
            number(line.sensitivity, digits),
            _octaves(line.basin),
            NONE if line.largest_stable is None else f"{line.largest_stable:g}",
            _endings(line, rivals),
            NONE if gap is None or line is reference else f"{gap:+.{digits}f}",
            "reference" if line is reference else shows,
        ]
        rows.append(tuple(map(Cell, cells)))
    name = f"{lines[0].metric}{ARROWS['max' if lines[0].higher else 'min']}"
    header = (
        "configuration", "rates", f"best {name}", "at rate", "rate / gain", "sensitivity", "basin, octaves",
        "largest stable rate", "not ok", "better by", "at the best rates",
    )  # fmt: skip
    tolerance = f"{BITS} bits" if lines[0].metric.endswith("bits_per_byte") else f"{SHARE:.0%} of the best"
    depth = " of the same depth" if any(line.depth is not None for line in lines) else ""
    notes = [
        f"Means over seeds. Basin: octaves of the rate within {tolerance}; stable: all seeds within twice that. "
        "Sensitivity: mean distance to the best over the rates. Gain: of the output weights; it divides "
        "their relative update under Adam.",
        f"Better by: than {' or '.join(dict.fromkeys(references))}{depth}. "
        "A difference of means over n seeds counts if |difference| sqrt(n / 2) >= 3 sigma"
        + (
            f"; sigma = {spread[0]:.2g}, pooled over the seeds at the best rates ({spread[1]} degrees of freedom)."
            if spread
            else ". There is one seed at each best rate, hence no sigma."
        ),
    ]
    if any(line.best_at_edge for line in lines):
        notes.append("* at the edge of its rates: a better one may be outside.")
    return Table("By learning rate", header, tuple(rows), tuple(notes), words=(0, 1, 8, 10))


def _octaves(basin: tuple[float, bool] | None) -> str:
    return NONE if basin is None else f"{'≥ ' if basin[1] else ''}{basin[0]:.1f}"


def _endings(line: Line, rivals: Sequence[Line]) -> str:
    """Return the rates whose runs are not ok, by what became of them."""
    found: dict[str, list[str]] = {}
    for rate in line.rows:
        if (status := line.status(rate, rivals)) != "ok":
            found.setdefault(status, []).append(f"{rate:g}")
    return "; ".join(f"{status}: {', '.join(rates)}" for status, rates in found.items()) or NONE
