"""Chains of runs: every file of conf/paper composes, and a small chain trains, goes on and tabulates."""

import csv
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from magneto.cli import _mistake
from magneto.commands import chain
from magneto.commands.chain import ChainRun, Outcome, table_of
from magneto.commands.chain_plan import print_plan
from magneto.commands.chain_spec import load_chain
from magneto.config.groups import CONF, options
from magneto.errors import ConfigError
from magneto.report.chain_page import write_table
from tests.toys.runs import SHORT, SMALL, folders

TABLES = pytest.mark.parametrize("table", options("paper"))
SCALES = pytest.mark.parametrize("scale", ["mini", "full"])


@TABLES
@SCALES
def test_every_chain_composes(table: str, scale: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each run of it is checked as on the command line; the plan has a line for each row and step, and a sum."""
    whole = load_chain(CONF / "paper" / f"{table}.yaml")
    part = whole.scale(scale)
    run = ChainRun(scale=part, folder=Path("runs"), overrides=(), mistake=_mistake)
    run.check()
    print_plan(run, "h100")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(part.rows) * len(part.steps)
    hours = [float(line.split("|")[-2].replace(",", "")) for line in lines[2:]]
    assert scale == "mini" or min(hours) > 0.05
    assert {len(row) for row in whole.paper.rows.values() if not isinstance(row, str)} <= {
        len(whole.paper.columns)
    }


@pytest.fixture
def content(text_overrides: list[str], tmp_path: Path) -> dict[str, Any]:
    """A chain of pre-training and fine-tuning on toy texts; one of its rows diverges."""
    for split in ("train", "val", "test"):
        rows = [f"the old {word}\t{label}" for word, label in (("apple", "fruit"), ("saw", "tool"))]
        (tmp_path / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *rows * 8]) + "\n")
    short = [*SMALL, *(one for one in SHORT if "max_steps" not in one), "trainer.max_steps=8"]
    texts = [one for one in text_overrides if not one.startswith("runs_dir")]
    files = [f"data.corpus.{split}={tmp_path / split}.tsv" for split in ("train", "val", "test")]
    scale = {
        "note": "Toys.",
        "seeds": [1, 2],
        "steps": {
            "pretrain": {
                "run": ["task=mlm", "optimizer=adamw", *texts, "data.tokenizer={kind: bpe, vocab_size: 60}", *short],
                "seeds": [1],
            },
            "classify": {
                "run": ["task=text_classification", "data=tsv", *files, *folders(tmp_path / "data", tmp_path)[:1],
                        "data.max_tokens=32", "data.batch_size=4", *short[len(SMALL):]],
                "init_from": "pretrain",
                "grid": {"optimizer.lr": ["1e-9", "2e-2"]},
                "tests": {"short": ["trainer.limit_test_batches=1", "data.eval_batch_size=1"]},
            },
        },
        "rows": {
            "Pre-LN": {"pretrain": ["backbone=pre_ln"]},
            "High rate": {"pretrain": ["optimizer.lr=1e6", "optimizer.gradient_clip=null", "scheduler=constant",
                                       "scheduler.warmup=0"]},
        },
        "columns": {
            "accuracy": {"step": "classify", "metrics": ["test/accuracy"], "factor": 100},
            "loss": {"step": "classify", "metrics": ["short:test/loss"]},
        },
        "mean": "both",
    }  # fmt: skip
    paper = {"columns": ["a"], "rows": {"Pre-LN": [3.5], "Post-LN": "diverged"}}
    return {"title": "A toy", "paper": paper, "mini": scale, "full": scale}


@pytest.fixture
def file(content: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_a_chain_trains_and_goes_on(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that diverged is a cell; the best of a grid counts; the same command again trains nothing."""
    whole = load_chain(file)
    make = partial(ChainRun, scale=whole.mini, folder=tmp_path / "runs", overrides=())
    first = make()
    assert first.run()
    assert [outcome.status for outcome in first.outcomes.values()] == ["finished"] * 5 + ["diverged"] * 5
    started = [
        outcome for job, outcome in first.outcomes.items() if job.step == "classify" and outcome.folder
    ]
    assert len({str(outcome.folder) for outcome in started}) == 4
    chosen = first.chosen("Pre-LN", "classify")
    assert [outcome.result.config["optimizer"]["lr"] for outcome in chosen if outcome.result] == [2e-2, 2e-2]
    files = write_table(tmp_path / "runs", table_of(whole, first, "mini"))
    with files[1].open() as lines:
        rows = {row["row"]: row for row in csv.DictReader(lines)}
    assert rows["High rate"] == {
        "row": "High rate",
        **dict.fromkeys(("accuracy", "loss", "both"), "diverged"),
    }
    expected = [100 * outcome.result.metrics["test/accuracy"] for outcome in chosen if outcome.result]
    assert float(rows["Pre-LN"]["accuracy"]) == pytest.approx(sum(expected) / 2)
    assert float(rows["Pre-LN"]["both"]) == pytest.approx(
        (float(rows["Pre-LN"]["accuracy"]) + float(rows["Pre-LN"]["loss"])) / 2
    )
    assert all(
        outcome.result.metrics["short:test/loss"] != outcome.result.metrics["test/loss"]
        for outcome in chosen
        if outcome.result
    )
    text = files[0].read_text()
    assert "| Post-LN | diverged |" in text and "Toys." in text and "classify-Pre-LN-lr=2e-2-seed2" in text
    assert "<script" not in files[2].read_text()
    monkeypatch.setattr("magneto.training.module.TrainingModule.training_step", None)
    second = make()
    assert second.run()
    assert [one.folder for one in second.outcomes.values()] == [one.folder for one in first.outcomes.values()]
    assert table_of(whole, second, "mini").rows == table_of(whole, first, "mini").rows


def test_a_chain_can_be_stopped(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes after the run that was stopped is not begun, and its cells say so; a failed step stops its row alone."""
    whole = load_chain(file)
    endings = iter(["failed", "interrupted"])
    monkeypatch.setattr(chain, "trained", lambda arguments: Outcome(status=next(endings), message="why"))
    run = ChainRun(scale=whole.mini, folder=tmp_path, overrides=())
    assert not run.run()
    statuses = [(job.row, job.step, outcome.status) for job, outcome in run.outcomes.items()]
    assert statuses == [
        ("Pre-LN", "pretrain", "failed"), *[("Pre-LN", "classify", "failed")] * 4, ("High rate", "pretrain", "interrupted"),
    ]  # fmt: skip
    table = table_of(whole, run, "mini")
    assert [value for value, _ in table.rows["Pre-LN"]] == ["failed"] * 3
    assert [value for value, _ in table.rows["High rate"]] == ["not run"] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"steps": {"a": {"run": ["task=mlm"], "harness": {"shot": [1]}}}},
            r"harness\.shot: there is no such key",
        ),
        ({"steps": {"a": {"run": ["task=mlm"], "init_from": "b"}}}, "init_from=b: no step before it"),
        ({"steps": {"a": {"run": ["task=mlm"], "start": "b"}}}, r"steps\.a\.start: there is no such key"),
        (
            {"columns": {"x": {"step": "clasify", "metrics": []}}},
            "no step 'clasify'. Did you mean 'classify'",
        ),
        ({"rows": {"x": {"pretrian": []}}}, "no step 'pretrian'. Did you mean 'pretrain'"),
        ({"seeds": "one"}, "seeds=one"),
    ],
)
def test_wrong_chains_are_refused(
    content: dict[str, Any], change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    """The message names the file, the place and the remedy."""
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(content | {"mini": content["mini"] | change}, sort_keys=False))
    with pytest.raises(ConfigError, match=message) as caught:
        load_chain(path)
    assert str(path) in str(caught.value)
    path.write_text("title: [")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_chain(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["paper=tabel7"], "paper=tabel7: must be one of .* Did you mean 'table7'"),
        (["paper=table7", "scale=tiny"], "scale=tiny: must be one of mini, full"),
        (["paper=table7", "device=h100"], "device= names the device of an estimate"),
        (["paper=table7", "dry_run=true", "device=v100"], "device=v100: must be one of cpu, a100"),
        (["paper=table7", "-m"], "-m: paper= takes overrides alone"),
        (
            ["paper=table8", "pretrian:seed=2"],
            "pretrian:seed=2: there is no step 'pretrian'. Choose from pretrain, questions",
        ),
        (
            ["paper=table8", "statements:optimizer.lrr=1"],
            "step statements of row .*there is no key 'optimizer.lrr'",
        ),
        (["paper=table7", "optimizer.lrr=1"], "step recognise of row .*there is no key 'optimizer.lrr'"),
    ],
)
def test_wrong_commands_are_refused(arguments: list[str], message: str) -> None:
    """Before anything is fetched or trained."""
    with pytest.raises(ConfigError, match=message):
        chain.main(arguments, _mistake)
