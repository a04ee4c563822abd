"""The report: grouping of runs, means and spreads, what it says about runs that are broken, and its files."""

import base64
import csv
import io
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from matplotlib.figure import Figure
from PIL import Image

from magneto.errors import MagnetoError
from magneto.report import figures as report_figures
from magneto.report import folder_name, write_report
from magneto.report.__main__ import main
from magneto.report.comparison import Section, compare, difference, summarise
from magneto.report.figures import COLOURS, aggregate, draw, row_styles, thin
from magneto.report.loading import Curve, Run, load_runs, read_curves, read_samples
from magneto.report.markup import latex_text, markdown_text, to_markdown
from magneto.report.tables import (
    Table,
    cost_table,
    diagnostics_table,
    duration,
    main_table,
    runs_table,
    seeds_text,
    unfinished,
    verdict,
)


def make_run(
    root: Path,
    backbone: str = "magneto",
    seed: int = 1,
    *,
    task: str = "asr",
    data: str = "stamps",
    size: str = "tiny",
    status: str = "finished",
    metrics: dict[str, float] | None = None,
    monitor: str | dict[str, Any] | None = "val/cer",
    mode: str = "min",
    config: dict[str, Any] | None = None,
    overrides: tuple[str, ...] = (),
    message: str | None = None,
    steps: int | None = 300,
    samples: list[dict[str, Any]] | None = None,
    curves: dict[str, list[tuple[int, float]]] | None = None,
    name: str | None = None,
    **extra: Any,
) -> Path:
    """A run folder as the engine leaves it."""
    name = name or f"{backbone}-{size}-seed{seed}"
    folder = root / task / name
    folder.mkdir(parents=True)
    resolved = {
        "seed": seed,
        "name": name,
        "runs_dir": str(root),
        "task": {"name": task},
        "backbone": {"placement": backbone, "num_layers": 6, "d_model": 256},
        "data": {"name": data, "seed": seed, "data_dir": str(root / f"data{seed}"), "num_workers": seed},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "size_name": size,
        "trainer": {"max_steps": 300, "accelerator": f"kind{seed}", "devices": 1},
        "logger": {"tags": [name]},
    }
    for key, value in (config or {}).items():
        node = resolved
        *parents, leaf = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    result = {
        "schema": 1,
        "status": status,
        "message": message,
        "task": task,
        "name": name,
        "backbone": backbone,
        "size": size,
        "data": data,
        "seed": seed,
        "overrides": list(overrides),
        "monitor": monitor
        if isinstance(monitor, dict)
        else {"metric": monitor, "mode": mode, "best": 0.5, "best_step": 200},
        "metrics": {"test/cer": 0.5, "test/wer": 0.9, "test/loss": 1.5} if metrics is None else metrics,
        "steps": steps,
        "parameters": 5_200_000,
        "time": {"wall_s": 120.0 * seed, "fit_s": 100.0, "data_wait_fraction": 0.012},
        "throughput": {"examples_per_s": 40.0, "audio_seconds_per_s": 200.0},
        "peak_memory_bytes": 2**30 * seed,
        "git": "abc1234",
        "versions": {"torch": "2.11.0"},
        "config": resolved,
        **extra,
    }
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "config.yaml").write_text(yaml.safe_dump(resolved))
    (folder / "checkpoints").mkdir()
    lines = ["step,metric,value"]
    for metric, points in (curves or {}).items():
        lines += [f"{step},{metric},{value}" for step, value in points]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    if samples is not None:
        (folder / "samples.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return folder


def falling(
    seed: int, steps: int = 300, every: int = 10, start: float = 4.0, end: float = 1.0
) -> list[tuple[int, float]]:
    """A plausible learning curve."""
    noise = np.random.default_rng(seed)
    return [
        (step, end + (start - end) * float(np.exp(-4 * step / steps)) + 0.03 * float(noise.normal()))
        for step in range(every, steps + 1, every)
    ]


def section_of(root: Path, metric: str | None = None) -> Section:
    """The only section of the runs below `root`."""
    (section,) = compare(*load_runs([root]), metric=metric).sections
    return section


def column(table: Table, start: str) -> list[str]:
    """The texts of the column whose name starts with `start`; bold ones in asterisks."""
    (index,) = [i for i, name in enumerate(table.header) if name.startswith(start)]
    return [f"**{row[index].text}**" if row[index].bold else row[index].text for row in table.rows]


def run_with(tmp_path: Path, **options: Any) -> Run:
    """The run that `make_run` with these options leaves, read back."""
    (run,), _ = load_runs([make_run(tmp_path, **options)])
    return run


# Reading


def test_a_run_is_read_back(tmp_path: Path) -> None:
    run = run_with(tmp_path, metrics={"test/cer": 0.4, "test/wer": 1}, status="diverged", message="why")
    assert (run.task, run.data, run.backbone, run.seed, run.status, run.message) == (
        "asr", "stamps", "magneto", 1, "diverged", "why",
    )  # fmt: skip
    assert run.metrics == {"test/cer": 0.4, "test/wer": 1.0}
    assert (run.best, run.best_step, run.wall_s) == (0.5, 200, 120.0)


def test_values_that_are_no_numbers_are_no_metrics(tmp_path: Path) -> None:
    run = run_with(tmp_path, metrics={"test/cer": float("nan"), "test/wer": None, "test/loss": 2.0})
    assert run.metrics == {"test/loss": 2.0}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"schema": 1, "sta', "cannot be read"),
        ("[1]", "not an object"),
        ('{"schema": 9}', "schema is 9"),
        ('{"schema": 1}', "status is missing"),
        ('{"schema": 1, "status": "great"}', "status is 'great'"),
        ('{"schema": 1, "status": "finished", "task": "asr", "name": "x", "seed": "one"}', "seed is 'one'"),
        (
            '{"schema": 1, "status": "finished", "metrics": {"a": "b"}, "task": "a", "name": "x", "seed": 1}',
            "metrics.a",
        ),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_a_broken_result_is_named_and_the_rest_compared(
    tmp_path: Path, text: str | bytes, reason: str
) -> None:
    make_run(tmp_path)
    broken = tmp_path / "asr" / "broken"
    broken.mkdir()
    (broken / "result.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    runs, problems = load_runs([tmp_path])
    assert [run.name for run in runs] == ["magneto-tiny-seed1"]
    (problem,) = problems
    assert "broken" in problem and reason in problem


def test_a_run_without_result_is_named(tmp_path: Path) -> None:
    make_run(tmp_path)
    folder = make_run(tmp_path, seed=2)
    for name in ("result.json", "config.yaml"):
        (folder / name).unlink()
    _, (problem,) = load_runs([tmp_path])
    assert "magneto-tiny-seed2: config.yaml: is not there" in problem


def test_runs_are_found_once_and_not_inside_runs(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    nested = folder / "wandb" / "files"
    nested.mkdir(parents=True)
    (nested / "result.json").write_text("{}")
    make_run(tmp_path, name="magneto-tiny-seed1.old2")  # what resume=never set aside
    runs, (problem,) = load_runs([tmp_path, folder, tmp_path / "asr" / "."])
    assert [run.name for run in runs] == ["magneto-tiny-seed1"]
    assert "magneto-tiny-seed1.old2" in problem and "resume=never" in problem
    assert len(load_runs([tmp_path, tmp_path / "asr" / "magneto-tiny-seed1.old2"])[0]) == 2


def test_no_runs_is_one_clear_message(tmp_path: Path) -> None:
    with pytest.raises(MagnetoError, match="no run to report on"):
        load_runs([tmp_path])
    with pytest.raises(MagnetoError, match="no such folder"):
        load_runs([tmp_path / "nowhere"])


def test_links_lead_to_runs_once(tmp_path: Path) -> None:
    make_run(tmp_path / "elsewhere")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "linked").symlink_to(tmp_path / "elsewhere" / "asr")
    (tmp_path / "runs" / "circle").symlink_to(tmp_path / "runs")
    (run,), problems = load_runs([tmp_path / "runs"])
    assert run.folder == tmp_path / "runs/linked/magneto-tiny-seed1" and not problems


def test_a_result_above_does_not_hide_runs_below(tmp_path: Path) -> None:
    """`name=..` once wrote a run into the folder of all runs."""
    folder = make_run(tmp_path)
    for name in ("result.json", "metrics.csv", "config.yaml"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (folder / "checkpoints" / "result.json").write_text("{}")
    runs, problems = load_runs([tmp_path])
    assert [run.folder for run in runs] == [tmp_path, folder] and not problems


def test_what_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root reads everything, so that a refusing system is played."""
    make_run(tmp_path)
    folder = make_run(tmp_path, seed=2)
    for name in ("metrics.csv", "samples.jsonl"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()
    closed = tmp_path / "closed"
    closed.mkdir()
    scandir = os.scandir

    def refusing(path: Any) -> Any:
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    runs, problems = load_runs([tmp_path])
    assert len(runs) == 2 and not runs[1].curves and not runs[1].samples
    assert [problem.split(": ")[0] for problem in problems] == [
        str(closed), str(folder / "metrics.csv"), str(folder / "samples.jsonl")
    ]  # fmt: skip
    assert write_report([tmp_path], tmp_path / "out").html.is_file()


def test_damaged_values_end_no_report(tmp_path: Path) -> None:
    """Steps and values beyond all numbers, a stray quotation mark, half a character, an image that cannot be."""
    folder = make_run(
        tmp_path / "runs",
        overrides=("name=caf\udce9",),
        metrics={"test/cer": 0.5, "test/wer": 1e300},
        curves={"train/loss": [(1, 2.0), (2, 1e300)]},
        samples=[{"id": "\ud800", "kind": ["x"], "image": "a\0b", "hypothesis": "\udcff"}],
    )
    with (folder / "metrics.csv").open("a") as file:
        file.write(
            '3,"train/loss,1.0\n4,train/loss,1.0\n99999999999999999999,train/loss,1.0\n-1,train/loss,1\n'
        )
        file.write("5,train/loss,1.0\n" + "x" * 200_000 + '"\n')
    (run,), _ = load_runs([tmp_path / "runs"])
    assert run.curves["train/loss"].steps.tolist() == [1, 2, 4, 5] and "test/wer" not in run.metrics
    assert write_report([tmp_path / "runs"], tmp_path / "out").html.stat().st_size > 10_000


def test_an_unwritable_folder_is_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)
    (tmp_path / "file").write_text("")
    assert main([str(run), "--out", str(tmp_path / "file")]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "file") in error and "--out" in error and "Traceback" not in error


def test_metrics_of_a_killed_and_resumed_run(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    file.write_text(
        "step,metric,value\n10,train/loss,3.0\n20,train/loss,2.0\n30,tra10,val/cer,0.5\n20,train/loss,2.5\n"
        "30,train/loss,nan\n\0\0\nstep,metric,value\n40,train/loss,0.4"
    )
    curves = read_curves(file)
    assert set(curves) == {"train/loss"}
    assert curves["train/loss"].steps.tolist() == [
        10,
        20,
        30,
    ]  # the last line lacks its line feed: 0.4 or 0.4123?
    assert curves["train/loss"].values[:2].tolist() == [3.0, 2.5]  # the repeated step after the resume counts
    assert np.isnan(curves["train/loss"].values[2])
    assert read_curves(tmp_path / "missing.csv") == {}


def test_samples_keep_the_last_of_each_id(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    file.write_text(
        '{"id": "a", "step": 1, "hypothesis": "x"}\n{"id": 7}\n{"id": "a", "step": 2}\n[1]\n{"id": "b", "st'
    )
    assert read_samples(file) == {"a": {"id": "a", "step": 2}, "7": {"id": 7}}
    file.write_text(
        '{"id": "a", "split": "val"}\n{"id": "a", "split": "test"}\n{"id": "b", "split": "val"}\n'
    )
    assert read_samples(file) == {"a": {"id": "a", "split": "test"}}


# Grouping


def test_seeds_are_grouped_whatever_else_is_volatile(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        make_run(tmp_path, seed=seed)
    (row,) = section_of(tmp_path).rows
    assert [run.seed for run in row.runs] == [1, 2, 3]


@pytest.mark.parametrize(
    ("key", "value", "label"),
    [
        ("optimizer.lr", 0.01, "optimizer.lr=0.01"),
        ("trainer.devices", 2, "trainer.devices=2"),  # twice the devices is twice the batch
        ("trainer.precision", "bf16-mixed", "trainer.precision=bf16-mixed"),
        ("data.split_seed", 5, "data.split_seed=5"),
    ],
)
def test_what_changes_the_numbers_is_another_row(tmp_path: Path, key: str, value: Any, label: str) -> None:
    make_run(tmp_path)
    make_run(tmp_path, config={key: value}, name="other")
    assert label in [row.label for row in section_of(tmp_path).rows]


def test_rows_are_labelled_by_what_differs_in_a_stable_order(tmp_path: Path) -> None:
    for backbone in ("magneto", "pre_ln", "post_ln"):
        for layers, size in ((12, "base"), (6, "tiny")):
            config = {"backbone.num_layers": layers}
            make_run(
                tmp_path,
                backbone,
                size=size,
                config=config,
                overrides=(f"backbone={backbone}", f"size={size}"),
            )
    assert [row.label for row in section_of(tmp_path).rows] == [
        f"{backbone} · {size}" for size in ("tiny", "base") for backbone in ("post_ln", "pre_ln", "magneto")
    ]


def test_a_key_set_by_hand_is_told_even_if_the_backbone_explains_it(tmp_path: Path) -> None:
    make_run(
        tmp_path,
        "post_ln",
        config={"optimizer.lr": 5e-4},
        overrides=("backbone=post_ln", "optimizer.lr=5e-4"),
    )
    make_run(tmp_path, "magneto")
    assert [row.label for row in section_of(tmp_path).rows] == [
        "post_ln · optimizer.lr=0.0005",
        "magneto · optimizer.lr=0.001",
    ]


def test_a_group_override_stands_for_its_keys(tmp_path: Path) -> None:
    make_run(tmp_path)
    config = {"optimizer.name": "lion", "optimizer.betas": [0.9, 0.99], "optimizer.lr": 1e-4}
    make_run(tmp_path, config=config, overrides=("optimizer=lion",), name="lion")
    assert sorted(row.label for row in section_of(tmp_path).rows) == ["optimizer=lion", "optimizer=unset"]


def test_an_experiment_stands_for_its_keys(tmp_path: Path) -> None:
    config = {"optimizer.lr": 1e-4, "optimizer.betas": [0.9, 0.98], "data.batch": 7}
    make_run(tmp_path)
    make_run(tmp_path, config=config, overrides=("experiment=asr/long",), name="long")
    assert sorted(row.label for row in section_of(tmp_path).rows) == [
        "experiment=asr/long",
        "experiment=unset",
    ]


def test_learning_rates_sort_as_numbers_and_labels_are_unique(tmp_path: Path) -> None:
    for rate in (1e-2, 1e-5, 3e-4):
        make_run(tmp_path, config={"optimizer.lr": rate}, name=f"lr{rate}")
    labels = [row.label for row in section_of(tmp_path).rows]
    assert labels == ["optimizer.lr=1e-05", "optimizer.lr=0.0003", "optimizer.lr=0.01"]


def test_a_repeated_seed_is_not_a_second_measurement(tmp_path: Path) -> None:
    make_run(tmp_path, metrics={"test/cer": 0.4})
    make_run(tmp_path, metrics={}, status="failed", name="again")
    comparison = compare(*load_runs([tmp_path]))
    (row,) = comparison.sections[0].rows
    assert [run.status for run in row.runs] == ["finished"]
    assert any(
        "again" in problem and "same configuration and seed" in problem for problem in comparison.problems
    )


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


def test_runs_that_never_trained_do_not_count(tmp_path: Path) -> None:
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


def test_debug_runs_compete_only_if_named(tmp_path: Path) -> None:
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


def test_a_killed_run_shows_how_far_it_came(tmp_path: Path) -> None:
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


def test_labels_claim_no_choice_that_was_not_made(tmp_path: Path) -> None:
    """`trainer=default` typed out is not a difference to a command that leaves it out."""
    make_run(
        tmp_path, overrides=("trainer=default", "optimizer.lr=0.1"), config={"optimizer.lr": 0.1}, name="a"
    )
    make_run(tmp_path, overrides=("optimizer.lr=0.2",), config={"optimizer.lr": 0.2}, name="b")
    assert [row.label for row in section_of(tmp_path).rows] == ["optimizer.lr=0.1", "optimizer.lr=0.2"]


def test_labels_of_many_keys_differ_and_are_short(tmp_path: Path) -> None:
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


def test_memory_of_two_meanings_is_not_one_column(tmp_path: Path) -> None:
    make_run(tmp_path, "pre_ln", run_peak_memory_bytes=None)
    make_run(tmp_path, peak_memory_bytes=None, run_peak_memory_bytes=2**29)
    table = cost_table(section_of(tmp_path))
    assert column(table, "peak memory of the run") == ["–", "0.50 GiB"]
    (index,) = [i for i, name in enumerate(table.header) if name == "peak memory"]
    assert [row[index].text for row in table.rows] == ["1.00 GiB", "–"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.21, "0.2 s"), (12.4, "12 s"), (59.6, "1.0 min"), (5399, "90.0 min"), (7200, "2.0 h"), (None, "–")],
)
def test_durations_have_a_unit_that_fits(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_tasks_and_corpora_are_not_mixed(tmp_path: Path) -> None:
    make_run(tmp_path)
    make_run(tmp_path, task="mt", data="help", monitor="val/bleu", mode="max", metrics={"test/bleu": 14.0})
    make_run(tmp_path, data="librispeech", name="libri")
    sections = compare(*load_runs([tmp_path])).sections
    assert [section.title for section in sections] == ["asr on librispeech", "asr on stamps", "mt on help"]
    assert [section.primary_metric for section in sections] == ["test/cer", "test/cer", "test/bleu"]


# Statistics


def test_mean_and_sample_deviation() -> None:
    stat = summarise([0.40, 0.44, 0.45])
    assert stat is not None
    assert (stat.mean, stat.sd, stat.n) == (pytest.approx(0.43), pytest.approx(0.0264575, abs=1e-6), 3)
    alone = summarise([0.4])
    assert alone is not None and alone.sd is None
    assert summarise([]) is None


def test_paired_interval_is_students() -> None:
    # Differences 0.1, 0.2, 0.3: mean 0.2, sd 0.1, t(2) = 4.302653.
    gap = difference({1: 1.1, 2: 1.2, 3: 1.3, 9: 5.0}, {1: 1.0, 2: 1.0, 3: 1.0})
    assert gap is not None and gap.paired
    half = 4.302653 * 0.1 / np.sqrt(3)
    assert (gap.mean, gap.low, gap.high) == (
        pytest.approx(0.2), pytest.approx(0.2 - half, abs=1e-5), pytest.approx(0.2 + half, abs=1e-5),
    )  # fmt: skip


def test_unpaired_interval_is_welchs() -> None:
    # Equal variances and sizes: 2 (n - 1) = 4 degrees of freedom, t = 2.776445.
    gap = difference({1: 1.0, 2: 2.0, 3: 3.0}, {4: 0.0, 5: 1.0, 6: 2.0})
    assert gap is not None and not gap.paired
    assert gap.high - gap.mean == pytest.approx(2.776445 * np.sqrt(2 / 3), abs=1e-4)
    assert difference({1: 1.0}, {1: 2.0}) is None
    assert difference({1: 1.0, 2: 1.0}, {3: 2.0}) is None


def test_students_quantiles_above_the_table() -> None:
    ours = {seed: float(seed % 2) for seed in range(21)}  # 20 degrees of freedom: t = 2.085963
    gap = difference(ours, dict.fromkeys(ours, 0.0))
    assert gap is not None
    error = np.std(list(ours.values()), ddof=1) / np.sqrt(21)
    assert (gap.high - gap.mean) / error == pytest.approx(2.085963, abs=1e-3)


# The table


def three_by_two(root: Path, **diverged: Any) -> None:
    """Three backbones, two seeds; the second Post-LN seed diverged."""
    values = {"post_ln": (0.38, None), "pre_ln": (0.47, 0.45), "magneto": (0.40, 0.42)}
    for backbone, pair in values.items():
        for seed, value in enumerate(pair, start=1):
            curves = {
                "train/loss": falling(seed),
                "val/cer": falling(seed, every=50),
                "probe/grad_norm": falling(seed),
            }
            for layer in range(1, 4):
                curves[f"probe/activation_rms/layer_{layer:02d}"] = falling(layer, every=50)
            if value is None:
                curves = {name: [(s, v) for s, v in points if s <= 120] for name, points in curves.items()}
                curves["train/loss"].append((130, float("nan")))
                make_run(
                    root, backbone, seed, status="diverged", metrics={}, curves=curves, steps=130, **diverged
                )
            else:
                metrics = {
                    "test/cer": value,
                    "test/wer": value + 0.4,
                    "test/cer/es": value,
                    "test/cer/fr": value + 0.1,
                }
                make_run(root, backbone, seed, metrics=metrics, curves=curves)


def test_table_means_spread_bold_and_diverged(tmp_path: Path) -> None:
    three_by_two(tmp_path, message="loss is nan")
    section = section_of(tmp_path)
    table = main_table(section)
    assert column(table, "configuration") == ["post_ln", "pre_ln", "magneto"]
    assert column(table, "seeds") == ["1 of 2 (1 diverged) †", "2", "2"]
    # Post-LN's survivor is better than both, but a mean over survivors does not win.
    assert column(table, "test/cer ↓") == ["0.380 †", "0.460 ± 0.014", "**0.410 ± 0.014**"]
    assert column(table, "Δ to pre_ln") == ["–", "reference", "−0.050 [−0.304, 0.204]"]
    assert column(table, "test/wer ↓") == ["0.780 †", "0.860 ± 0.014", "**0.810 ± 0.014**"]
    assert unfinished(section) == ["post_ln-tiny-seed2: diverged at step 130 of 300 (loss is nan)"]
    sentence = verdict(section)
    assert sentence is not None
    assert sentence.startswith(
        "Lowest test/cer among rows without a diverged seed: magneto, 0.410 ± 0.014 (2 seeds)."
    )
    assert "includes zero" in sentence
    assert section.breakdowns == {"test/cer": ("es", "fr")}


def test_higher_is_better_when_the_monitor_says_so(tmp_path: Path) -> None:
    for backbone, value in (("pre_ln", 14.0), ("magneto", 15.0)):
        metrics = {"test/bleu": value, "test/chrf": -value, "test/loss": value, "test/oddity": value}
        make_run(tmp_path, backbone, task="mt", monitor="val/bleu", mode="max", metrics=metrics)
    section = section_of(tmp_path)
    table = main_table(section)
    assert column(table, "test/bleu ↑") == ["14.00", "**15.00**"]
    assert column(table, "test/chrf ↑") == ["**−14.00**", "−15.00"]
    assert column(table, "test/loss ↓") == ["**14.00**", "15.00"]
    further = diagnostics_table(section)
    assert further is not None and "test/oddity" not in table.header
    assert column(further, "test/oddity") == ["14.00", "15.00"]  # neither direction is known: nothing is best


def test_one_seed_has_no_spread_and_no_interval(tmp_path: Path) -> None:
    make_run(tmp_path, "pre_ln", metrics={"test/cer": 0.5})
    make_run(tmp_path, "magneto", metrics={"test/cer": 0.4})
    section = section_of(tmp_path)
    text = to_markdown(main_table(section))
    assert "±" not in text and "Δ" not in text and "single finished seed" in text
    assert verdict(section) == "Lowest test/cer: magneto, 0.400 (1 seed)."


def test_ties_are_all_bold_and_nobody_wins(tmp_path: Path) -> None:
    make_run(tmp_path, "pre_ln", metrics={"test/cer": 0.4001})
    make_run(tmp_path, "magneto", metrics={"test/cer": 0.4})
    section = section_of(tmp_path)
    assert column(main_table(section), "test/cer") == ["**0.400**", "**0.400**"]
    assert verdict(section) == "Lowest test/cer: pre_ln and magneto, equal in the digits shown."


def test_unfinished_rows_are_shown_and_never_averaged(tmp_path: Path) -> None:
    make_run(tmp_path, "pre_ln", 1, status="diverged", metrics={"test/cer": 0.1})
    make_run(tmp_path, "magneto", 1, metrics={"test/cer": 0.4})
    make_run(tmp_path, "magneto", 2, status="interrupted", metrics={"test/cer": 9.0})
    make_run(tmp_path, "magneto", 3, status="failed", metrics={})
    section = section_of(tmp_path)
    assert column(main_table(section), "test/cer") == ["diverged", "**0.400 †**"]
    assert seeds_text(section.rows[1]) == "1 of 3 (1 failed, 1 interrupted) †"


def test_a_finished_run_without_the_metric_is_marked(tmp_path: Path) -> None:
    make_run(tmp_path, seed=1, metrics={"test/cer": 0.4})
    make_run(tmp_path, seed=2, metrics={"test/cer": float("nan")})
    table = main_table(section_of(tmp_path))
    assert column(table, "test/cer") == ["0.400 †"]
    assert any("finished seeds only" in note for note in table.notes)


def test_headline_can_be_chosen(tmp_path: Path) -> None:
    make_run(tmp_path)
    assert section_of(tmp_path, "test/wer").primary_metric == "test/wer"
    with pytest.raises(MagnetoError, match=r"--metric test/bleu: no run has it; known metrics: .*test/cer"):
        section_of(tmp_path, "test/bleu")


# Curves and figures


def curve(steps: list[int], values: list[float]) -> Curve:
    """A curve from lists."""
    return Curve(np.array(steps), np.array(values))


def test_seeds_on_different_steps_are_interpolated_and_never_extrapolated() -> None:
    band = aggregate([curve([0, 10, 20], [0.0, 1.0, 2.0]), curve([5, 15, 25], [10.0, 20.0, 30.0])])
    assert band is not None
    assert band.steps.tolist() == [5, 10, 15, 20]
    assert band.mean.tolist() == [5.25, 8.0, 10.75, 13.5]
    assert band.low.tolist() == [0.5, 1.0, 1.5, 2.0] and band.high.tolist() == [10.0, 15.0, 20.0, 25.0]
    assert aggregate([curve([0, 1], [1.0, 1.0]), curve([5, 6], [1.0, 1.0])]) is None
    assert aggregate([curve([0], [float("nan")])]) is None


def test_long_curves_are_averaged_not_sampled() -> None:
    thinned = thin(curve(list(range(1, 302)), [1.0, 3.0] * 150 + [2.0]), points=150)
    assert thinned.steps.size <= 150 and thinned.steps[-1] == 301
    assert thinned.values[1:].min() > 1.2 and thinned.values[1:].max() < 2.8
    short = curve([1, 2], [1.0, 2.0])
    assert thin(short) is short


def test_a_backbone_has_its_colour_and_rows_can_be_told_apart(tmp_path: Path) -> None:
    for backbone in ("pre_ln", "magneto"):
        for rate in (1e-3, 1e-4):
            make_run(tmp_path, backbone, config={"optimizer.lr": rate}, name=f"{backbone}{rate}")
    section = section_of(tmp_path)
    styles = row_styles(section.rows)
    assert {styles[row.label].colour for row in section.rows if row.backbone == "magneto"} == {
        COLOURS["magneto"]
    }
    assert len({(style.colour, style.dash) for style in styles.values()}) == 4
    same = row_styles([row for row in section.rows if row.backbone == "magneto"])
    assert len({style.colour for style in same.values()}) == 2


def test_every_figure_is_drawn(tmp_path: Path) -> None:
    three_by_two(tmp_path)
    images = draw(section_of(tmp_path), tmp_path)
    assert [image.path.name for image in images] == [
        "asr-stamps_result.png",
        "asr-stamps_learning_curves.png",
        "asr-stamps_stability.png",
        "asr-stamps_activation_rms.png",
    ]
    for image in images:
        header = image.path.read_bytes()[:24]
        assert header.startswith(b"\x89PNG") and int.from_bytes(header[16:20], "big") == 1440
        assert "magneto" in image.alt


def test_a_swept_number_has_a_figure_of_its_own(tmp_path: Path) -> None:
    """A line a backbone; what diverged has no value there. Two values, or a second key, are no sweep."""

    def made(backbone: str, rate: float, **options: Any) -> None:
        make_run(
            tmp_path,
            backbone,
            config={"optimizer.lr": rate},
            name=f"{backbone}{rate}{len(options)}",
            **options,
        )

    for rate in (1e-3, 2e-3):
        made("magneto", rate, metrics={"test/cer": rate * 100})
        made("pre_ln", rate, metrics={"test/cer": rate * 200})
    assert section_of(tmp_path).sweep is None
    made("magneto", 4e-3, metrics={"test/cer": 0.3})
    made("pre_ln", 4e-3, metrics={}, status="diverged")
    section = section_of(tmp_path)
    assert section.sweep is not None
    key, rows = section.sweep
    assert key == "optimizer.lr" and list(rows) == ["pre_ln", "magneto"]
    assert {rate: row.values("test/cer") for rate, row in rows["magneto"].items()} == {
        1e-3: {1: 0.1}, 2e-3: {1: 0.2}, 4e-3: {1: 0.3}
    }  # fmt: skip
    image = next(p for p in draw(section, tmp_path) if p.path.name == "asr-stamps_by_optimizer_lr.png")
    assert image.title == "test/cer by optimizer.lr" and "pre_ln, magneto" in image.alt
    make_run(tmp_path, config={"optimizer.lr": 8e-3, "optimizer.eps": 9}, name="another key")
    assert section_of(tmp_path).sweep is None


def test_figures_of_many_long_rows_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """Panels keep their size, no title runs into its neighbour or out of the figure, and matplotlib does not warn."""
    figures: list[Figure] = []
    save = report_figures._save
    monkeypatch.setattr(
        report_figures, "_save", lambda figure, path: (figures.append(figure), save(figure, path))
    )
    for number in range(30):
        curves = {"train/loss": falling(number), "val/cer": falling(number, every=50)}
        curves |= {f"probe/activation_rms/layer_{layer:02d}": falling(layer, every=50) for layer in (1, 2)}
        changed = {f"optimizer.a_long_name_of_a_key{key}": (number >> key) % 2 for key in range(5)}
        make_run(
            tmp_path, ("pre_ln", "magneto")[number % 2], name=str(number), config=changed, curves=curves,
            metrics={"test/cer": 0.5 + number / 100},
        )  # fmt: skip
    for number in range(7):
        task = f"a_task_with_quite_a_long_name_{number}"
        make_run(tmp_path, "pre_ln", task=task, data="日本語", status="diverged", metrics={})
        make_run(tmp_path, "magneto", task=task, data="日本語", metrics={"test/cer": number})
    write_report([tmp_path], tmp_path / "out")
    assert not [str(warning.message) for warning in recwarn.list]
    assert len(figures) > 10
    for figure in figures:
        figure.draw_without_rendering()
        width = figure.get_figwidth() * figure.dpi
        panels = [ax.get_window_extent() for ax in figure.axes]
        assert min(panel.width for panel in panels) > 1.2 * figure.dpi
        assert min(panel.height for panel in panels) > 0.4 * figure.dpi
        titles = [ax._left_title.get_window_extent() for ax in figure.axes]  # type: ignore[attr-defined]
        assert max(title.x1 for title in titles) <= width
        for index, title in enumerate(titles):
            assert not any(title.overlaps(other) for other in (*titles[index + 1 :], *panels) if other.width)


def test_hopeless_curves_are_drawn_too(tmp_path: Path) -> None:
    everything = {
        "train/loss": [(10, float("inf"))],
        "val/cer": [(10, float("nan")), (20, float("nan"))],
        "val/wer": [(10, 0.0), (20, 0.0)],
        "probe/grad_norm": [(10, 1.0), (20, 1e30)],
        "probe/rms/encoder/layer_01": [(10, float("nan"))],
    }
    make_run(tmp_path, "pre_ln", status="diverged", metrics={}, curves=everything, monitor=None, mode=None)
    make_run(
        tmp_path, "a$_{b}", status="failed", metrics={}, curves={"val/wer": [(10, -1.0)]}
    )  # no mathematics
    assert len(draw(section_of(tmp_path), tmp_path)) == 3


# The files


class _Page(HTMLParser):
    """Collects what a page would load and whether its tags nest."""

    void = frozenset(("meta", "img", "br", "link", "input"))

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.images_without_text = 0
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self.attributes |= set(values)
        self.loads += [str(values[name]) for name in ("src", "srcset", "data", "poster") if name in values]
        self.loads += [str(values["href"])] if tag == "link" else []
        self.links += [str(values["href"])] if tag == "a" else []
        self.images_without_text += tag == "img" and not values.get("alt")
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parse(html: str) -> _Page:
    page = _Page()
    page.feed(html)
    assert not page.open
    return page


def test_report_files(tmp_path: Path) -> None:
    three_by_two(tmp_path / "runs", message="loss is nan")
    files = write_report(
        [tmp_path / "runs"], tmp_path / "out", title="Placements", command="python run.py -m seed=1,2"
    )
    page = parse(files.html.read_text())
    assert len(page.loads) == len(files.images) == 4
    assert all(source.startswith("data:image/png;base64,") for source in page.loads)
    assert not page.images_without_text and "script" not in page.tags
    assert "../runs/asr/post_ln-tiny-seed2" in page.links
    assert all((tmp_path / "out" / link).is_dir() for link in page.links)
    text = files.html.read_text()
    assert not re.search(r"https?://|url\(|@import", text)
    markdown = files.markdown.read_text()
    for said in (
        "Placements",
        "python run.py -m seed=1,2",
        "post_ln-tiny-seed2: diverged at step 130 of 300 (loss is nan)",
    ):
        assert said in markdown and said in text
    assert "| magneto | 5.2 M | 2 | **0.410 ± 0.014** |" in markdown
    for name in re.findall(r"!\[[^]]*\]\(([^)]*)\)", markdown):
        assert (tmp_path / "out" / name).is_file()

    rows = list(csv.DictReader(files.csv.open()))
    assert [row["configuration"] for row in rows] == ["post_ln", "pre_ln", "magneto"]
    assert float(rows[2]["test/cer mean"]) == pytest.approx(0.41)
    assert float(rows[2]["test/cer sd"]) == pytest.approx(np.std([0.40, 0.42], ddof=1))
    assert float(rows[2]["test/cer/fr mean"]) == pytest.approx(0.51)
    assert (rows[0]["diverged"], rows[0]["test/cer sd"]) == ("1", "")

    latex = files.latex.read_text()
    assert latex.count(r"\begin{tabular}") == latex.count(r"\bottomrule") == 3
    assert r"post\_ln" in latex and r"\textbf{0.410 $\pm$ 0.014}" in latex
    for line in latex.splitlines():
        if line.endswith(r"\\"):
            assert line.count("&") in (5, 4, 2)


def test_same_runs_same_bytes(tmp_path: Path) -> None:
    for backbone in ("pre_ln", "magneto"):
        make_run(
            tmp_path / "runs",
            backbone,
            curves={"train/loss": falling(1)},
            samples=[{"id": 1, "hypothesis": "x"}],
        )
    first = write_report([tmp_path / "runs"], tmp_path / "a")
    second = write_report([tmp_path / "runs"], tmp_path / "b")
    for one in first.folder.iterdir():
        assert one.read_bytes() == (second.folder / one.name).read_bytes()


EVIL = "<script>alert(1)</script> | `x` **b** [l](http://e) \\ & % $ # _ {\"'"


def test_every_text_is_escaped(tmp_path: Path) -> None:
    sample = {
        "id": EVIL,
        "kind": "transcript",
        "reference": EVIL,
        "hypothesis": EVIL + "<b>",
        "language": '"><i>',
    }
    for backbone in ("pre_ln", EVIL):
        make_run(
            tmp_path / "runs",
            backbone,
            name=f"run <i>{backbone[:3]}",
            data=EVIL,
            size=EVIL,
            status="failed",
            message=EVIL,
            monitor=EVIL,
            config={f"data.{EVIL}": EVIL, "optimizer.lr": EVIL + backbone},
            overrides=(EVIL,),
            samples=[sample | {EVIL: EVIL}],
            curves={"train/loss": falling(1), f"val/{EVIL}": falling(2)},
            git=EVIL,
            versions={EVIL: EVIL},
        )
    files = write_report([tmp_path / "runs"], tmp_path / "out", title=EVIL, command=EVIL)
    page = parse(files.html.read_text())
    assert not {"script", "i"} & set(page.tags)
    # A quote that got out of an attribute would leave attributes of its own behind.
    known = [
        "alt",
        "aria-label",
        "charset",
        "class",
        "content",
        "dir",
        "href",
        "http-equiv",
        "lang",
        "name",
        "role",
    ]
    assert page.attributes == {*known, "scope", "src", "style", "tabindex"}
    assert not any(link.startswith("http") for link in page.links)
    assert "&lt;script&gt;" in files.html.read_text()
    body = files.markdown.read_text().replace(f"```\n{EVIL}\n```", "")
    assert not re.search(r"(?<!\\)<script|(?<!\\)\[l(?<!\\)\]", body)
    assert (
        len({line.count("|") - line.count(r"\|") for line in body.splitlines() if line.startswith("| run")})
        <= 1
    )


def test_escapes_one_by_one() -> None:
    assert markdown_text("pre_ln _x_ a|b\nc <i>") == r"pre_ln \_x\_ a\|b c \<i\>"
    assert (
        latex_text(r"50% of a_b & {c} \d ~ −1")
        == r"50\% of a\_b \& \{c\} \textbackslash{}d \textasciitilde{} $-$1"
    )


def page_of(tmp_path: Path) -> str:
    return write_report([tmp_path / "runs"], tmp_path / "out").html.read_text()


def test_samples_stand_side_by_side_with_their_errors_marked(tmp_path: Path) -> None:
    def said(text: str) -> list[dict[str, Any]]:
        rest = [
            {"id": f"es{i}", "kind": "transcript", "reference": "a", "hypothesis": "a", "language": "es"}
            for i in range(9)
        ]
        mine = {
            "id": "fr1",
            "kind": "transcript",
            "reference": "le chat",
            "hypothesis": text,
            "language": "fr",
        }
        return [*rest, mine]

    make_run(tmp_path / "runs", "pre_ln", samples=said("la cht"))
    make_run(tmp_path / "runs", "magneto", samples=said("le chats"))
    html = page_of(tmp_path)
    assert html.count('<article class="sample">') == 8
    (card,) = re.findall(
        r"<article class=\"sample\"><header>fr1.*?</article>", html
    )  # shown although it came last
    assert (
        'l<mark title="instead of: e">a</mark> ch<del>a</del>t' in card and "2 errors in 7 characters" in card
    )
    assert "le chat<ins>s</ins>" in card and "1 error in 7 characters" in card
    assert card.index("reference") < card.index("pre_ln") < card.index("magneto") and 'lang="fr"' in card


def test_other_samples_are_compared_by_words_or_not_at_all(tmp_path: Path) -> None:
    translation = {
        "id": "1",
        "kind": "translation",
        "source": "the cat",
        "reference": "le chat",
        "hypothesis": "un chat",
    }
    continuation = {"id": "2", "kind": "continuation", "prompt": "Once", "hypothesis": "upon a time"}
    silent = {"id": "3", "kind": "transcript", "reference": "oui", "hypothesis": ""}
    make_run(tmp_path / "runs", samples=[translation, continuation, silent])
    html = page_of(tmp_path)
    assert '<mark title="instead of: le">un</mark> chat' in html and "1 difference in 2 words" in html
    assert "the cat" in html and "Once" in html and ">upon a time<" in html
    assert "<del>oui</del>" in html and "3 errors in 3 characters" in html


def test_every_kind_of_sample_shows_what_went_in_and_what_came_out(tmp_path: Path) -> None:
    samples = [
        {"id": "1", "kind": "translation", "direction": "en-fr", "source": "the cat", "reference": "le chat",
         "hypothesis": "le chien"},
        {"id": "2", "kind": "translation", "direction": "en-de", "source": "a dog", "reference": "ein Hund",
         "hypothesis": "ein Hund"},
        {"id": "3", "kind": "continuation", "prompt": "Fellow citizens", "reference": None,
         "continuation": "of the Senate"},
        {"id": "4", "kind": "continuation", "prompt": "We the", "reference": "people of", "continuation": "men in"},
        {"id": "5", "kind": "filled", "text": "The [MASK] of peace", "filled": "The end of peace",
         "reference": "The love of peace"},
    ]  # fmt: skip
    make_run(tmp_path / "runs", "magneto", samples=samples)
    files = write_report([tmp_path / "runs"], tmp_path / "out")
    html, markdown = files.html.read_text(), files.markdown.read_text()
    cards = dict(re.findall(r'<article class="sample"><header>(\d).*?</header>(.*?)</article>', html))
    assert set(cards) == {"1", "2", "3", "4", "5"}
    assert "the cat" in cards["1"] and '<mark title="instead of: chat">chien</mark>' in cards["1"]
    assert 'lang="fr"' in cards["1"] and "as the reference" in cards["2"]
    assert "Fellow citizens" in cards["3"] and "of the Senate" in cards["3"] and "reference" not in cards["3"]
    # A continuation need not be the text's own: both are shown, nothing is marked.
    assert "people of" in cards["4"] and "men in" in cards["4"] and "<mark" not in cards["4"]
    assert "[MASK]" in cards["5"] and '<mark title="instead of: love">end</mark>' in cards["5"]
    assert "- source: the cat" in markdown and "- reference: le chat" in markdown
    assert re.search(r"^- magneto.*: le chien$", markdown, re.MULTILINE)
    # Three examples are enough there, one of each direction among them.
    assert markdown.count("· translation") == 2 and markdown.count("· continuation") == 1


def test_every_kind_of_sample_is_seen(tmp_path: Path) -> None:
    """The image of a whole evaluation comes last, after as many examples as a page shows."""
    samples = [{"id": f"{i:08d}", "kind": "classified", "predicted": "a", "reference": "b"} for i in range(8)]
    confusion = {"id": "confusion", "kind": "confusion matrix", "image": "samples/test-confusion.png"}
    folder = make_run(tmp_path / "runs", samples=[*samples, confusion])
    (folder / "samples").mkdir()
    Image.fromarray(np.full((2, 3), 200, np.uint8)).save(folder / "samples/test-confusion.png")
    html = page_of(tmp_path)
    assert html.count('<article class="sample">') == 8
    assert re.search(r"<article class=\"sample\"><header>confusion.*?<img .*?</article>", html)


def test_images_stand_side_by_side(tmp_path: Path) -> None:
    """Within the page, which opens alone; as links in the text, which lies beside the runs."""
    for backbone in ("pre_ln", "magneto"):
        folder = make_run(
            tmp_path / "runs",
            backbone,
            samples=[{"id": "7", "kind": "reconstruction", "image": "samples/test-7.png"}],
        )
        if backbone == "magneto":  # the other one's was deleted: it is left out
            (folder / "samples").mkdir()
            Image.fromarray(np.full((2, 3), 200, np.uint8)).save(folder / "samples/test-7.png")
    files = write_report([tmp_path / "runs"], tmp_path / "out")
    html, markdown = files.html.read_text(), files.markdown.read_text()
    (card,) = re.findall(r'<article class="sample"><header>7.*?</header>(.*?)</article>', html)
    (data,) = re.findall(r'<img alt="magneto: 7 · reconstruction" src="data:image/png;base64,([^"]*)">', card)
    assert np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).tolist() == [[200] * 3] * 2
    (link,) = re.findall(r"!\[magneto\]\((.*samples/.*)\)", markdown)
    assert (tmp_path / "out" / link).is_file() and "pre_ln" not in card


def test_runs_are_compared_by_what_their_task_says(tmp_path: Path) -> None:
    metrics = {"test/loss": 2.0, "test/bleu": 14.26, "test/chrf": 40.0, "test/ter": 70.0}
    options: dict[str, Any] = {"monitor": "val/loss", "primary_metric": "test/bleu"}
    make_run(tmp_path / "runs", "pre_ln", metrics=metrics, **options)
    make_run(tmp_path / "runs", "magneto", metrics=metrics | {"test/loss": 2.1, "test/bleu": 15.0}, **options)
    text = write_report([tmp_path / "runs"], tmp_path / "out").markdown.read_text()
    assert "Highest test/bleu: magneto, 15.00" in text and "| 14.26 |" in text
    assert "test/bleu ↑" in text and "test/chrf ↑" in text and "test/ter ↓" in text and "test/loss ↓" in text
    # A run that has no such metric (pixels have no accuracy) is compared by what was monitored.
    make_run(
        tmp_path / "other", metrics={"test/loss": 2.0}, monitor="val/loss", primary_metric="test/accuracy"
    )
    assert section_of(tmp_path / "other").primary_metric == "test/loss"


# The command line


def overview_rows(report: Path) -> list[list[str]]:
    """The cells of the table of all tasks, header first, without the line below it."""
    lines = report.read_text().split("## Overview")[1].split("\n## ")[0].splitlines()
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    return [table[0], *table[2:]]


def test_tasks_stand_in_one_table(tmp_path: Path) -> None:
    three_by_two(tmp_path)
    options: dict[str, Any] = {
        "task": "mt",
        "data": "help",
        "monitor": "val/loss",
        "primary_metric": "test/bleu",
    }
    for backbone, scores in (("pre_ln", (20.0, 22.0)), ("magneto", (24.0, 25.0))):
        for seed, bleu in enumerate(scores, 1):
            make_run(tmp_path, backbone, seed, metrics={"test/bleu": bleu}, **options)
    make_run(tmp_path, "post_ln", 1, status="diverged", metrics={}, **options)
    files = write_report([tmp_path], tmp_path / "report")
    header, asr, mt = overview_rows(files.markdown)
    assert header == ["task", "corpus", "metric", "post_ln", "pre_ln", "magneto", "seeds", "time a run"]
    assert asr[2:6] == ["test/cer ↓", "0.380 †", "0.460 ± 0.014", "**0.410 ± 0.014**"]
    # Means and deviations by hand; minutes are those of the finished runs, 2 for seed 1 and 4 for seed 2.
    assert mt == [
        "mt", "help", "test/bleu ↑", "diverged", "21.00 ± 1.41", "**24.50 ± 0.71**", "0 to 2", "3.0 min"
    ]  # fmt: skip
    assert "<h2>Overview</h2>" in files.html.read_text()
    assert files.latex.read_text().count(r"\caption{Overview.") == 1
    assert files.images[0].path.name == "overview.png"
    assert "asr on stamps, mt on help" in files.images[0].alt
    assert "](overview.png)" in files.markdown.read_text() and files.images[0].alt in files.html.read_text()


def test_corpora_of_one_task_are_told_apart(tmp_path: Path) -> None:
    for data, cer in (("stamps", 0.4), ("librispeech", 0.1)):
        make_run(tmp_path, name=data, data=data, metrics={"test/cer": cer})
    _, *rows = overview_rows(write_report([tmp_path], tmp_path / "report").markdown)
    assert [row[:4] for row in rows] == [
        ["asr", "librispeech", "test/cer ↓", "0.100"],
        ["asr", "stamps", "test/cer ↓", "0.400"],
    ]


def test_a_backbone_that_was_not_run_has_a_dash(tmp_path: Path) -> None:
    make_run(tmp_path, "pre_ln", task="mlm")
    for backbone in ("pre_ln", "magneto"):
        make_run(tmp_path, backbone)
    _, asr, mlm = overview_rows(write_report([tmp_path], tmp_path / "report").markdown)
    assert asr[3:5] == ["**0.500**", "**0.500**"]
    assert mlm[3:] == ["0.500", "–", "1", "2.0 min"]


def test_budgets_have_rows_of_their_own(tmp_path: Path) -> None:
    """Bold is the best of a row; where a backbone has several configurations, the best in validation stands there."""
    make_run(tmp_path, task="mlm")
    for steps, cer in ((300, 0.3), (20, 0.9)):
        for number, backbone in enumerate(("pre_ln", "magneto")):
            make_run(
                tmp_path,
                backbone,
                name=f"{backbone}-{steps}",
                metrics={"test/cer": cer + 0.01 * number},
                config={"trainer.max_steps": steps},
                steps=steps,
            )
    files = write_report([tmp_path], tmp_path / "report")
    _, *rows = overview_rows(files.markdown)
    assert {row[0]: row[3:5] for row in rows} == {
        "asr, 20 steps": ["**0.900**", "0.910"],
        "asr, 300 steps": ["**0.300**", "0.310"],
        "mlm": ["–", "0.500"],
    }
    # The best in the test, but not in validation.
    monitor = {"metric": "val/cer", "mode": "min", "best": 0.6, "best_step": 200}
    make_run(tmp_path, name="other", config={"optimizer.lr": 1.0}, metrics={"test/cer": 0.1}, monitor=monitor)
    _, *rows = overview_rows(write_report([tmp_path], tmp_path / "report").markdown)
    assert rows[1][0] == "asr, 300 steps ‡" and rows[1][3:5] == ["**0.300**", "0.310"]


def test_an_overview_needs_two_tasks(tmp_path: Path) -> None:
    three_by_two(tmp_path / "runs")
    files = write_report([tmp_path / "runs"], tmp_path / "report")
    assert "## Overview" not in files.markdown.read_text()
    assert not (tmp_path / "report" / "overview.png").exists()


def test_an_overview_without_any_number_has_no_figure(tmp_path: Path) -> None:
    for task in ("asr", "mlm"):
        make_run(tmp_path, task=task, status="diverged", metrics={})
    files = write_report([tmp_path], tmp_path / "report")
    _, *rows = overview_rows(files.markdown)
    assert [row[3] for row in rows] == ["diverged", "diverged"]
    assert not (tmp_path / "report" / "overview.png").exists()


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    three_by_two(tmp_path / "runs")
    broken = tmp_path / "runs" / "asr" / "broken"
    broken.mkdir()
    (broken / "result.json").write_text("{")
    assert main([str(tmp_path / "runs"), "--metric", "test/wer"]) == 0
    output = capsys.readouterr()
    assert f"report: {tmp_path / 'runs' / 'report' / 'report.html'}" in output.out.splitlines()
    assert re.search(r"magneto +│ +2 │ 0\.810 ± 0\.014 │ 0\.410 ± 0\.014 │ +3\.0 min", output.out), output.out
    assert "Lowest test/wer among rows without a diverged seed: magneto" in " ".join(output.out.split())
    assert "warning: left out" in output.err and "broken" in output.err
    assert "Lowest test/wer" in (tmp_path / "runs" / "report" / "report.md").read_text()
    assert main([str(tmp_path / "runs")]) == 0  # its own files do not disturb it


def test_the_default_folder_of_one_run_is_beside_it(tmp_path: Path) -> None:
    assert main([str(make_run(tmp_path))]) == 0
    assert (tmp_path / "asr" / "report" / "report.md").is_file()


@pytest.mark.parametrize("arguments", [["nowhere"], ["."], [".", "--metric", "test/cer"]])
def test_mistakes_exit_with_2(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_the_module_runs_without_torch(tmp_path: Path) -> None:
    make_run(tmp_path)
    code = "import sys, magneto.report.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    done = subprocess.run(
        [sys.executable, "-m", "magneto.report", str(tmp_path), "--out", str(tmp_path / "out")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "report.html").is_file()


def test_a_sweeps_folder_has_a_short_name() -> None:
    overrides = ["task=asr", "backbone=post_ln,pre_ln,magneto", "seed=1,2"]
    name = folder_name(overrides)
    assert re.fullmatch(r"post_ln-pre_ln-magneto-[0-9a-f]{8}", name)
    assert folder_name([*overrides, "optimizer.lr=1"]) not in (name, "")
    assert re.fullmatch(r"[\w.-]{1,50}", folder_name(["data.x={a: 1, b: 'ü'}", "y=" + "1," * 99 + "/"]))


def test_wandb_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))  # no netrc: no key, so offline without being told
    three_by_two(tmp_path / "runs")
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--wandb", "placements"]) == 0
    run = Path(capsys.readouterr().out.splitlines()[-1])
    assert run.is_relative_to(tmp_path / "out") and run.name.startswith("offline-run-")
    assert list(run.glob("run-*.wandb"))
    (table,) = (json.loads(file.read_text()) for file in run.rglob("*.table.json"))
    cells = {row[table["columns"].index("configuration")]: row for row in table["data"]}
    assert cells["magneto"][table["columns"].index("test/cer mean")] == pytest.approx(0.41)
    assert len(list(run.rglob("*.png"))) == 4
