"""What the command line says of an override, and that Hydra's own features get past it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from magneto.cli import _mistake, literal
from magneto.commands.sweeps import objective


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with a user's own files in groups."""
    for name, text in {
        "experiment/mine": "# @package _global_\nseed: 7\n",
        "experiment/nested/mine": "# @package _global_\nseed: 8\n",
        "optimizer/mine": "defaults: [adamw]\nlr: 0.5\n",
    }.items():
        file = tmp_path / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mode=lr_find"], "mode=lr_find: must be one of train, prepare, test, predict, export, config."),
        (["mode=tran"], "Did you mean 'train'?"),
        (["seed=abc"], "seed=abc: value 'abc' of type 'str' could not be converted to Integer."),
        (["-m", "seed=1,b"], "seed=b: value 'b'"),
        (["resume=null"], "resume=null: field 'resume' is not Optional."),
        (["task=asr", "optimizer.lrr=1"], "Did you mean 'optimizer.lr'?"),
        (["-m", "task=asr", "optimizer.lrr=interval(1e-4,1e-2)"], "there is no key 'optimizer.lrr'"),
        (["task=asr", "experiment=asr/placement"], "Did you mean 'asr/placements'?"),
        (["-m", "backbone=magneto,magnet0"], "backbone=magnet0: there is no backbone/magnet0.yaml."),
    ],
)
def test_mistake_has_a_hint(arguments: list[str], message: str) -> None:
    said = _mistake(arguments)
    assert said is not None and message in said
    assert "full_key" not in said and "\n" not in said, "Hydra's internals"


@pytest.mark.parametrize(
    "arguments",
    [
        ["task=asr"],
        ["-sc", "install=bash"],
        ["-sc", "query=bash"],
        ["--cfg", "job", "task=asr"],
        ["-m", "task=asr", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
        ["-m", "task=asr", "optimizer.lr=interval(1e-4,1e-2)"],
        ["-m", "task=asr", "experiment=glob(asr/*)"],
        ["task=asr", "+data.foo=2", "data.foo=3"],
        ["task=asr", "++optimizer.lr=1"],
        ["task=asr", "~experiment"],
    ],
)
def test_no_mistake_is_seen(arguments: list[str]) -> None:
    assert _mistake(arguments) is None


@pytest.mark.parametrize(
    "where", [lambda own: ["--config-dir", own], lambda own: [f"hydra.searchpath=[file://{own}]"]]
)
def test_own_files_in_groups(where: Callable[[Path], list[str]], own: Path) -> None:
    """--config-dir and hydra.searchpath add them."""
    found = list(map(str, where(own)))
    assert _mistake(["-m", *found, "task=asr", "experiment=mine,nested/mine", "optimizer=mine"]) is None
    said = _mistake([*found, "task=asr", "optimizer=min"])
    assert said is not None and "Did you mean 'mine'?" in said
    assert "there is no experiment/mine.yaml" in str(_mistake(["task=asr", "experiment=mine"]))


def test_plus_of_a_group_is_dropped() -> None:
    """All groups are in the defaults list, where Hydra would say that there are multiple values."""
    assert literal("+experiment=mine") == "experiment=mine"
    assert literal("+trainer.profiler=simple") == "+trainer.profiler=simple"
    assert literal("+foo=a (b") == "+foo='a (b'"


@pytest.mark.parametrize(
    ("result", "value"),
    [
        ({"status": "finished", "monitor": {"best": 0.25}, "metrics": {"test/cer": 0.5}}, 0.25),
        ({"status": "diverged", "monitor": {"best": 0.25}}, float("nan")),
        ({"status": "finished", "monitor": {"best": None}}, float("nan")),
        ({}, float("nan")),
    ],
)
def test_objective_is_of_the_validation(result: dict, value: float) -> None:
    assert objective(result) == pytest.approx(value, nan_ok=True)
