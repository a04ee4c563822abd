"""Sweeps over the learning rate: measures against numbers worked out by hand, endings of runs, and their figures."""

import csv
from pathlib import Path
from typing import Any

import pytest

from magneto.errors import ConfigError
from magneto.report import write_report
from magneto.report.comparison import Section
from magneto.report.rate_figures import rate_figures
from magneto.report.rates import Line, lines_of, noise, rates_table, verdict_at_best
from magneto.report.statistics import exceeds_noise, pooled_deviation
from tests.unit.report.runs import make_run, section_of

BITS = "val/bits_per_byte"


def make_grid(root: Path, results: dict[str, dict[float, list[float]]], **more: Any) -> None:
    """Runs of `backbone [layers]` -> rate -> value of each seed; NaN: that seed diverged."""
    for label, rates in results.items():
        backbone, _, layers = label.partition(" ")
        for rate, values in rates.items():
            for seed, value in enumerate(values, start=1):
                diverged = value != value
                make_run(
                    root, backbone, seed, task="causal_lm", name=f"{label}-{rate}-{seed}".replace(" ", "-"),
                    monitor=BITS, config={"optimizer.lr": rate, "backbone.num_layers": int(layers or 6)},
                    metrics={} if diverged else {BITS: value, "val/loss": 2 * value, "test/bits_per_byte": value + 1},
                    status="diverged" if diverged else "finished", probe={"first_loss": 7.0}, **more,
                )  # fmt: skip


def lines(root: Path) -> dict[str, Line]:
    return {line.label: line for line in lines_of(section_of(root))}


def test_measures_of_a_line(tmp_path: Path) -> None:
    """The start is 7 nats, of which each bit is two here: 3.5 bits."""
    nan = float("nan")
    make_grid(
        tmp_path, {"magneto": {1e-3: [2.1, 2.3], 2e-3: [2.0, 2.0], 4e-3: [2.04, 2.04], 8e-3: [2.1, nan]}}
    )
    (line,) = lines(tmp_path).values()
    assert line.start == pytest.approx(3.5)
    assert line.means == pytest.approx({1e-3: 2.2, 2e-3: 2.0, 4e-3: 2.04, 8e-3: 2.8})
    assert (line.best, line.best_rate, line.best_at_edge) == (2.0, 2e-3, False)
    assert line.sensitivity == pytest.approx((0.2 + 0.0 + 0.04 + 0.8) / 4)
    # Down: 0.05 of the 0.2 to the next rate; up: an octave, and 0.01 of the 0.76 to the one after it.
    octaves, edge = line.basin
    assert octaves == pytest.approx(0.25 + 1 + 0.01 / 0.76) and not edge
    assert line.largest_stable == 4e-3  # at 8e-3 a seed diverged
    assert [line.status(rate, [line]) for rate in line.rows] == ["ok", "ok", "ok", "diverged"]


def test_basin_at_the_edge_and_accuracy(tmp_path: Path) -> None:
    """An accuracy rises; 3 % of the best are good enough, and a basin that reaches the last rate may be wider."""
    for rate, value in ((1e-3, 0.2), (2e-3, 0.39), (4e-3, 0.4)):
        metrics = {"val/accuracy": value, "test/accuracy": value}
        config = {"optimizer.lr": rate}
        make_run(
            tmp_path, monitor="val/accuracy", mode="max", metrics=metrics, name=f"r{rate}", config=config
        )
    (line,) = lines(tmp_path).values()
    assert line.higher and line.best == 0.4 and line.best_at_edge and line.start == 0
    octaves, edge = line.basin
    assert edge and octaves == pytest.approx(1 + (0.012 - 0.01) / (0.2 - 0.01))
    assert line.largest_stable == 4e-3


def test_only_the_rate_makes_a_line(tmp_path: Path) -> None:
    """Depths are lines of their own, and two rates alone are no sweep."""
    make_grid(tmp_path, {"pre_ln 6": {1e-3: [2.0], 2e-3: [2.1]}, "pre_ln 12": {1e-3: [2.0], 2e-3: [2.1]}})
    assert lines_of(section_of(tmp_path)) == [] and rates_table(section_of(tmp_path)) is None
    make_grid(tmp_path, {"pre_ln 6": {4e-3: [2.2]}, "magneto 6": {4e-3: [2.2]}})
    found = lines(tmp_path)
    assert set(found) == {"pre_ln num_layers=6", "pre_ln num_layers=12"}
    assert found["pre_ln num_layers=12"].depth == 12 and found["pre_ln num_layers=12"].sensitivity is None


def test_noise_rule(tmp_path: Path) -> None:
    """Sigma is pooled over the seeds at the best rates: here 0.01 with four degrees of freedom."""
    rates = {
        "pre_ln": {1e-3: [2.5], 2e-3: [2.00, 2.01, 2.02], 4e-3: [2.5]},
        "magneto": {1e-3: [2.5], 2e-3: [1.90, 1.91, 1.92], 4e-3: [2.5]},
        "peri_ln": {1e-3: [2.5], 2e-3: [2.5], 4e-3: [2.0]},
    }
    make_grid(tmp_path, rates)
    found = lines(tmp_path)
    sigma, freedom = noise(list(found.values()))
    assert sigma == pytest.approx(0.01) and freedom == 4
    gap, shows = verdict_at_best(found["magneto"], found["pre_ln"], sigma)
    assert gap == pytest.approx(0.1) and shows == "better"
    assert verdict_at_best(found["pre_ln"], found["magneto"], sigma)[1] == "worse"
    assert verdict_at_best(found["magneto"], found["pre_ln"], 0.05)[1] == "no difference shown"
    assert verdict_at_best(found["peri_ln"], found["pre_ln"], sigma)[1] == "one seed: nothing shown"
    assert verdict_at_best(found["magneto"], found["pre_ln"], None)[1] == "one seed: nothing shown"


def test_pooled_deviation_and_rule() -> None:
    assert pooled_deviation([[1.0], [2.0]]) is None
    assert pooled_deviation([[1.0, 3.0], [5.0], [2.0, 2.0, 2.0]]) == (pytest.approx((2 / 3) ** 0.5), 3)
    assert exceeds_noise(0.03, 2, 0.01) and not exceeds_noise(0.0299, 2, 0.01)
    assert exceeds_noise(-0.0174, 6, 0.01)  # 0.0174 * sqrt(3) = 0.0301


def curve_run(root: Path, name: str, losses: list[float], rate: float) -> None:
    points = list(enumerate(losses, start=1))
    metrics = {BITS: losses[-1], "val/loss": losses[-1], "test/bits_per_byte": losses[-1]}
    config = {"optimizer.lr": rate}
    make_run(root, monitor=BITS, metrics=metrics, name=name, curves={"train/loss": points}, config=config)


def test_endings(tmp_path: Path) -> None:
    """A plateau, and a spike of ten in a loss that falls slowly."""
    falling = [3 - step / 200 for step in range(300)]
    flat = [3.0 if step > 30 else 6 - step / 10 for step in range(300)]
    spiked = [loss + 10 * (step == 250) + 0.01 * (step % 3) for step, loss in enumerate(falling)]
    for index, losses in enumerate((falling, flat, spiked), start=1):
        curve_run(tmp_path, f"run{index}", losses, index * 1e-3)
    section = section_of(tmp_path)
    (line,) = lines_of(section)
    assert [line.status(rate, [line]) for rate in line.rows] == ["ok", "plateau", "spiked"]
    good, bad, hit = section.runs
    assert good.ending.spike_score == 0 and hit.ending.spike_score == pytest.approx(1 / (300 - 128))
    assert bad.ending.at_plateau(1.5)
    assert not good.ending.at_plateau(1.5) and not bad.ending.at_plateau(2.9)


def grid_with_depths(root: Path) -> Section:
    values = {
        rate: [2 + abs(index - 1) * 0.1, 2.02 + abs(index - 1) * 0.1]
        for index, rate in enumerate((1e-3, 2e-3, 4e-3))
    }
    for backbone, gain in (("pre_ln", 1.0), ("magneto", 1.5)):
        make_grid(root, {f"{backbone} {depth}": values for depth in (6, 12)}, gain=gain)
    return section_of(root)


def test_figures_and_table(tmp_path: Path) -> None:
    section = grid_with_depths(tmp_path / "runs")
    assert [name for _, name, _, _ in rate_figures(section)] == [
        "by_rate",
        "by_rate_and_gain",
        "depth_and_rate",
    ]
    table = rates_table(section)
    assert table is not None and len(table.rows) == 4
    texts = [[cell.text for cell in row] for row in table.rows]
    assert texts[0][:5] == ["pre_ln num_layers=6", "3: 0.001 to 0.004", "2.010", "0.002", "0.002"]
    magneto = next(row for row in texts if row[0] == "magneto num_layers=6")
    assert magneto[4] == "0.00133"
    assert magneto[-2:] == ["+0.000", "no difference shown"] and texts[0][-2:] == ["–", "reference"]
    report = write_report([tmp_path / "runs"], tmp_path / "report")
    files = {figure.path.name.removeprefix(f"{section.slug}_") for figure in report.saved_figures}
    assert {"by_rate.png", "by_rate_and_gain.png", "depth_and_rate.png"} <= files
    assert "By learning rate" in report.markdown.read_text() and "By learning rate" in report.html.read_text()


def test_results_have_a_row_a_run(tmp_path: Path) -> None:
    grid_with_depths(tmp_path / "runs")
    report = write_report([tmp_path / "runs"], tmp_path / "report")
    with report.results.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 3 * 2
    row = next(
        r
        for r in rows
        if r["backbone"] == "magneto" and r["backbone.num_layers"] == "12" and r["seed"] == "2"
    )
    assert row["status"] == "finished" and float(row[BITS]) == pytest.approx(2.12) and row["gain"] == "1.5"
    assert row["optimizer.lr"] == "0.001" and row["task"] == "causal_lm"


def test_results_make_the_same_report(tmp_path: Path) -> None:
    """results.csv alone gives the tables and figures of rates again, also for runs that diverged or did not learn."""
    section = grid_with_depths(tmp_path / "runs")
    make_grid(tmp_path / "runs", {"post_ln 6": {1e-3: [2.2], 2e-3: [float("nan")], 4e-3: [2.3]}})
    flat = [3.0 if step > 30 else 6 - step / 10 for step in range(300)]
    curve_run(tmp_path / "runs", "flat", flat, 9e-3)
    first = write_report([tmp_path / "runs"], tmp_path / "report")
    again = write_report([first.results], tmp_path / "again")
    tables = [[rates_table(s) for s in report.comparison.sections] for report in (first, again)]
    assert tables[0] == tables[1] and [table is None for table in tables[0]] == [
        True,
        False,
    ]  # speech has one rate
    assert again.results.read_text() == first.results.read_text()
    name = f"{section.slug}_by_rate.png"
    assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "report" / name).read_bytes()


def test_results_are_compared_with_later_runs(tmp_path: Path) -> None:
    """Seeds of one configuration are one row, whether they come from a results.csv or from folders."""
    seeds = {"pre_ln": {1e-3: [2.0, 2.1], 2e-3: [1.9, 2.0], 4e-3: [1.8, 1.9]}}
    make_grid(tmp_path / "all", seeds)
    make_grid(tmp_path / "first", {"pre_ln": {rate: values[:1] for rate, values in seeds["pre_ln"].items()}})
    first = write_report([tmp_path / "first"], tmp_path / "report")
    for folder in sorted((tmp_path / "all" / "causal_lm").glob("*-2")):
        folder.rename(tmp_path / folder.name)
    later = [folder for folder in tmp_path.iterdir() if folder.name.endswith("-2")]
    merged = write_report([first.results, *later], tmp_path / "merged")
    (section,) = merged.comparison.sections
    (line,) = lines_of(section)
    assert line.means == pytest.approx({1e-3: 2.05, 2e-3: 1.95, 4e-3: 1.85})
    assert [len(row.runs) for row in section.rows] == [2, 2, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "line 2 has no 'configuration'"),
        ("configuration,seed,task\nx,1,asr\n", "line 2 has no 'data'"),
    ],
)
def test_other_tables_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "other.csv").write_text(text)
    with pytest.raises(ConfigError, match=message):
        write_report([tmp_path / "other.csv"], tmp_path / "report")
