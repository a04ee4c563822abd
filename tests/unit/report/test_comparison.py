"""Sections, rows and labels of a comparison, and its statistics."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from magneto.errors import MagnetoError
from magneto.report import write_report
from magneto.report.comparison import compare
from magneto.report.loading import load_runs
from magneto.report.statistics import difference, summarise
from magneto.report.tables import runs_table, seeds_text, unfinished, verdict
from tests.unit.report.runs import column, make_run, section_of


@pytest.mark.parametrize(
    ("runs", "labels"),
    [
        # What changes the numbers is another row; twice the devices is twice the batch.
        ([{}, {"optimizer.lr": 0.01}], ["optimizer.lr=0.001", "optimizer.lr=0.01"]),
        ([{}, {"trainer.devices": 2}], ["trainer.devices=1", "trainer.devices=2"]),
        ([{}, {"trainer.precision": "bf16"}], ["trainer.precision=bf16", "trainer.precision=unset"]),
        ([{}, {"data.split_seed": 5}], ["data.split_seed=5", "data.split_seed=unset"]),
        # Numbers are sorted as numbers.
        (
            [{"optimizer.lr": 1e-2}, {"optimizer.lr": 1e-5}, {"optimizer.lr": 3e-4}],
            ["optimizer.lr=1e-05", "optimizer.lr=0.0003", "optimizer.lr=0.01"],
        ),
        # A key set by hand is in the label, even if it follows from the backbone.
        (
            [("post_ln", {"optimizer.lr": 5e-4}, "backbone=post_ln optimizer.lr=5e-4"), {}],
            ["post_ln · optimizer.lr=0.0005", "magneto · optimizer.lr=0.001"],
        ),
        # A group, or an experiment, stands for its keys.
        (
            [{}, ("magneto", {"optimizer.name": "lion", "optimizer.lr": 1e-4}, "optimizer=lion")],
            ["optimizer=lion", "optimizer=unset"],
        ),
        (
            [{}, ("magneto", {"optimizer.lr": 1e-4, "data.batch": 7}, "experiment=asr/long")],
            ["experiment=asr/long", "experiment=unset"],
        ),
        # A choice that one command makes and the other leaves at its default is no difference.
        (
            [
                ("magneto", {"optimizer.lr": 0.1}, "trainer=default optimizer.lr=0.1"),
                ("magneto", {"optimizer.lr": 0.2}, "optimizer.lr=0.2"),
            ],
            ["optimizer.lr=0.1", "optimizer.lr=0.2"],
        ),
    ],
)
def test_row_labels(tmp_path: Path, runs: list[Any], labels: list[str]) -> None:
    """Rows are named by what differs; a run is its configuration, or (backbone, configuration, overrides)."""
    for number, run in enumerate(runs):
        backbone, config, overrides = ("magneto", run, "") if isinstance(run, dict) else run
        make_run(tmp_path, backbone, config=config, overrides=tuple(overrides.split()), name=str(number))
    assert [row.label for row in section_of(tmp_path).rows] == labels


def test_rows_are_sorted_by_size_and_backbone(tmp_path: Path) -> None:
    for backbone in ("magneto", "pre_ln", "post_ln"):
        for layers, size in ((12, "base"), (6, "tiny")):
            overrides = (f"backbone={backbone}", f"size={size}")
            make_run(
                tmp_path, backbone, size=size, config={"backbone.num_layers": layers}, overrides=overrides
            )
    assert [row.label for row in section_of(tmp_path).rows] == [
        f"{backbone} · {size}" for size in ("tiny", "base") for backbone in ("post_ln", "pre_ln", "magneto")
    ]


def test_labels_of_many_keys_are_short(tmp_path: Path) -> None:
    """A row names in what it differs from most others; `(2)` or `8 more keys` alone tell nothing."""
    keys = [f"optimizer.key{number}" for number in range(8)]
    common = dict.fromkeys(keys, 0)
    make_run(tmp_path, config=common, name="plain")
    make_run(tmp_path, config=common | {"optimizer.key7": 1}, name="one")
    for last in (2, 3):  # these differ from each other in the last of five keys alone
        changed = dict.fromkeys(keys[:4], 1) | {"optimizer.key6": last}
        make_run(tmp_path, config=common | changed, name=f"five{last}")
    make_run(tmp_path, config=common | {"optimizer.file": "/data/" + "x" * 90 + "/a.txt"}, name="path")
    labels = {run.name: row.label for row in section_of(tmp_path).rows for run in row.runs}
    assert labels["plain"] == "magneto · tiny" and labels["one"] == "optimizer.key7=1"
    assert labels["path"] == "optimizer.file=…/a.txt"
    assert labels["five2"].endswith("optimizer.key6=2") and labels["five3"].endswith("optimizer.key6=3")
    assert len(set(labels.values())) == 5 and not any("(" in label for label in labels.values())


def test_repeated_seed_counts_once(tmp_path: Path) -> None:
    make_run(tmp_path, metrics={"test/cer": 0.4})
    make_run(tmp_path, metrics={}, status="failed", name="again")
    comparison = compare(*load_runs([tmp_path]))
    (row,) = comparison.sections[0].rows
    assert [run.status for run in row.runs] == ["finished"]
    assert any(
        "again" in problem and "same configuration and seed" in problem for problem in comparison.problems
    )


def test_keys_of_a_newer_version(tmp_path: Path) -> None:
    """What one run switches off and an older one does not know is no difference; any other value is one."""
    options: dict[str, Any] = {"trainer.precision_of_products": None, "data.corpora.stamps.limit": None}
    make_run(tmp_path, seed=1)
    make_run(tmp_path, seed=2, config=options)
    make_run(tmp_path, seed=3, name="other", config=options | {"trainer.precision_of_products": "high"})
    (section,) = compare(*load_runs([tmp_path])).sections
    assert [(row.label, [run.seed for run in row.runs]) for row in section.rows] == [
        ("trainer.precision_of_products=high", [3]),
        ("trainer.precision_of_products=null", [1, 2]),
    ]


def test_only_equal_budgets_compete(tmp_path: Path) -> None:
    """Steps, corpora of data and part of the test split are not told apart by the name of the corpus."""
    make_run(tmp_path, "pre_ln")
    make_run(tmp_path)
    source = {"data.corpora.manifest.manifest": "/home/me/other.jsonl"}
    make_run(tmp_path, name="short", config={"trainer.max_steps": 3}, steps=3, metrics={"test/cer": 0.1})
    make_run(tmp_path, name="part", config={"trainer.limit_test_batches": 2}, metrics={"test/cer": 0.1})
    make_run(tmp_path, name="stopped", config={"trainer.max_steps": 900}, steps=2, metrics={"test/cer": 0.1})
    make_run(tmp_path, name="other", config=source, metrics={"test/cer": 0.1})
    sections = compare(*load_runs([tmp_path])).sections
    assert {section.title: [run.name for run in section.runs] for section in sections} == {
        "asr on stamps, 2 steps": ["stopped"],
        "asr on stamps, 3 steps": ["short"],
        "asr on stamps, 300 steps": ["pre_ln-tiny-seed1", "magneto-tiny-seed1"],
        "asr on stamps, 300 steps, tested on 2 batches": ["part"],
        "asr on stamps, manifest=/home/me/other.jsonl, 300 steps": ["other"],
    }
    assert [verdict(section) for section in sections if len(section.rows) > 1] == [
        "Lowest test/cer: pre_ln and magneto, equal in the digits shown."
    ]


def test_untrained_runs_do_not_count(tmp_path: Path) -> None:
    """A refused command's folder is one line and a row of the last table: nothing is compared with it."""
    make_run(tmp_path, "pre_ln")
    make_run(tmp_path)
    for number, error in enumerate(("optimizer.name=muon", "no GPU")):
        options: dict[str, Any] = {"status": "failed", "message": f"MagnetoError: {error}", "metrics": {}}
        make_run(tmp_path, name=f"refused{number}", **options, steps=None)
    crashed = make_run(
        tmp_path, seed=2, status="failed", metrics={}, steps=None, curves={"train/loss": [(40, 1.0)]}
    )
    comparison = compare(*load_runs([tmp_path]))
    assert comparison.problems == ("2 runs that never trained",)
    (section,) = comparison.sections
    assert [row.label for row in section.rows] == ["pre_ln", "magneto"]
    assert [run.name for run in section.runs if run.status == "failed"] == [crashed.name]
    assert unfinished(section) == ["magneto-tiny-seed2: failed at step 40 of 300"]
    table = runs_table(comparison, tmp_path)
    assert column(table, "status")[-2:] == ["**failed (never trained)**"] * 2
    assert column(table, "steps") == ["300", "300", "40 of 300", "–", "–"]
    with pytest.raises(
        MagnetoError, match="no run to compare.*\n.*refused0: MagnetoError: optimizer.name=muon"
    ):
        compare(*load_runs([tmp_path / "asr" / "refused0"]))


def test_debug_runs_need_their_own_path(tmp_path: Path) -> None:
    make_run(tmp_path)
    config = {"trainer.max_steps": 3}
    options: dict[str, Any] = {"config": config, "steps": 3, "overrides": ("task=asr", "debug=default")}
    debug = make_run(tmp_path, name="debug", **options)
    make_run(tmp_path, name="no debug", seed=2, overrides=("debug=null",))
    comparison = compare(*load_runs([tmp_path]))
    assert {run.name for run in comparison.runs} == {"magneto-tiny-seed1", "no debug"}
    assert comparison.problems == ("1 debug run (--include-debug compares them)",)
    assert column(runs_table(comparison, tmp_path), "status")[-1] == "**finished (debug)**"
    for named in (
        compare(*load_runs([tmp_path, debug])),
        compare(*load_runs([tmp_path]), include_debug=True),
    ):
        assert "debug" in {run.name for run in named.runs} and not named.problems
    with pytest.raises(MagnetoError, match="Use --include-debug"):
        compare([run for run in load_runs([tmp_path])[0] if run.debug])


def test_killed_run_has_its_last_step(tmp_path: Path) -> None:
    """It has no result.json: its configuration says what it is, metrics.csv where it ended."""
    make_run(tmp_path, "pre_ln", overrides=("optimizer=lion",), config={"optimizer.name": "lion"})
    killed = make_run(tmp_path, curves={"train/loss": [(10, 3.0), (45, 2.0)]}, metrics={})
    (killed / "result.json").unlink()
    (killed / "metrics.csv").open("a").write("46,train/lo")
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/config.yaml").write_text("task: null\n")  # a configuration is no run
    (section,) = compare(*load_runs([tmp_path])).sections
    (run,) = section.rows[1].runs
    assert (run.status, run.steps, run.seed, run.task, run.size) == ("unfinished", 45, 1, "asr", "tiny")
    assert [row.label for row in section.rows] == ["pre_ln · optimizer=lion", "magneto · optimizer=unknown"]
    assert unfinished(section)[0].startswith(
        "magneto-tiny-seed1: unfinished at step 45 of 300 (no result.json"
    )
    assert seeds_text(section.rows[1]) == "0 of 1 (1 unfinished)"


def test_primary_metric_of_the_task(tmp_path: Path) -> None:
    metrics = {"test/loss": 2.0, "test/bleu": 14.26, "test/chrf": 40.0, "test/ter": 70.0}
    options: dict[str, Any] = {"monitor": "val/loss", "primary_metric": "test/bleu"}
    make_run(tmp_path / "runs", "pre_ln", metrics=metrics, **options)
    make_run(tmp_path / "runs", "magneto", metrics=metrics | {"test/loss": 2.1, "test/bleu": 15.0}, **options)
    text = write_report([tmp_path / "runs"], tmp_path / "out").markdown.read_text()
    assert "Highest test/bleu: magneto, 15.00" in text and "| 14.26 |" in text
    assert "test/bleu ↑" in text and "test/chrf ↑" in text and "test/ter ↓" in text and "test/loss ↓" in text
    assert section_of(tmp_path / "runs", "test/ter").primary_metric == "test/ter"
    with pytest.raises(MagnetoError, match=r"--metric test/x: no run has it; known metrics: .*test/bleu"):
        section_of(tmp_path / "runs", "test/x")
    # A run that has no such metric (pixels have no accuracy) is compared by what was monitored.
    make_run(
        tmp_path / "other", metrics={"test/loss": 2.0}, monitor="val/loss", primary_metric="test/accuracy"
    )
    assert section_of(tmp_path / "other").primary_metric == "test/loss"


def test_means_and_spreads() -> None:
    stat = summarise([0.40, 0.44, 0.45])
    assert stat is not None
    assert (stat.mean, stat.sd, stat.n) == (pytest.approx(0.43), pytest.approx(0.0264575, abs=1e-6), 3)
    alone = summarise([0.4])
    assert alone is not None and alone.sd is None
    assert summarise([]) is None


TWENTY = {seed: float(seed % 2) for seed in range(21)}


@pytest.mark.parametrize(
    ("ours", "theirs", "paired", "mean", "half"),
    [
        # Differences 0.1, 0.2, 0.3: sd 0.1, t(2) = 4.302653.
        ({1: 1.1, 2: 1.2, 3: 1.3, 9: 5.0}, {1: 1.0, 2: 1.0, 3: 1.0}, True, 0.2, 4.302653 * 0.1 / 3**0.5),
        # Equal variances and sizes: 2 (n - 1) = 4 degrees of freedom, t = 2.776445.
        ({1: 1.0, 2: 2.0, 3: 3.0}, {4: 0.0, 5: 1.0, 6: 2.0}, False, 1.0, 2.776445 * (2 / 3) ** 0.5),
        # 20 degrees of freedom: t = 2.085963.
        (TWENTY, dict.fromkeys(TWENTY, 0.0), True, 10 / 21, 2.085963 * np.std([*TWENTY.values()], ddof=1) / 21**0.5),
    ],
)  # fmt: skip
def test_intervals_of_differences(
    ours: dict[int, float], theirs: dict[int, float], paired: bool, mean: float, half: float
) -> None:
    gap = difference(ours, theirs)
    assert gap is not None and gap.paired == paired
    assert (gap.mean, gap.high - gap.mean) == (pytest.approx(mean), pytest.approx(half, abs=2e-4))
    assert gap.mean - gap.low == pytest.approx(gap.high - gap.mean)


@pytest.mark.parametrize("theirs", [{1: 2.0}, {3: 2.0}])
def test_one_seed_has_no_interval(theirs: dict[int, float]) -> None:
    assert difference({1: 1.0}, theirs) is None
