"""One resolve a job: what a run used is recorded, read once, and printed by mode=config."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from magneto.commands import resolve
from magneto.data.image.module import ImageDataModule
from magneto.errors import MagnetoError
from magneto.tasks import registry
from magneto.training import checkpoint_io
from magneto.training.run_folder import RunFolder
from tests.toys.images import image_settings, write_patterns
from tests.toys.runs import SHORT, SMALL, drive, folders

Run = Callable[..., dict[str, Any]]
OLD = Path(__file__).parents[1] / "golden" / "old" / "run"
DEFAULT_CODEBOOK = (
    "task.default_tokenizer={codes: 8, code_width: 4, width: 8, blocks: 1, steps: 2, batch_size: 8}"
)


@pytest.fixture(scope="session")
def patterns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_patterns(tmp_path_factory.mktemp("patterns"))


@pytest.fixture
def images(patterns: Path, prepared_dir: Path, tmp_path: Path) -> Run:
    """`images("task=beit", ...)`: a run of six steps on small images."""
    short = [*SHORT, "trainer.max_steps=6", "trainer.val_check_interval=6"]
    return partial(drive, [*image_settings(patterns), *folders(prepared_dir, tmp_path), *SMALL, *short])


@pytest.fixture
def beit(images: Run) -> Run:
    return partial(images, "task=beit", DEFAULT_CODEBOOK, "backbone.position=relative_2d")


def recorded(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The configurations in config.yaml and in result.json."""
    folder = Path(result["folder"])
    text = (folder / "result.json").read_text()
    return [yaml.safe_load((folder / "config.yaml").read_text()), json.loads(text)["config"]]


def test_files_record_what_was_used(beit: Run, prepared_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default visual tokenizer and the grid of patches; the same command finds the run without its data."""
    result = beit("name=one")
    for config in recorded(result):
        assert Path(config["task"]["tokenizer"]).is_relative_to(prepared_dir)
        assert config["task"]["visual_tokenizer"]["codes"] == 8
        assert config["backbone"]["grid"] == 4
    given = yaml.safe_load((Path(result["folder"]) / "command.yaml").read_text())
    assert given["task"]["tokenizer"] is given["backbone"]["grid"] is None
    monkeypatch.setattr(ImageDataModule, "prepare", lambda self: pytest.fail("data were prepared"))
    assert beit("name=one")["metrics"] == result["metrics"]
    with pytest.raises(MagnetoError, match=r"task\.default_tokenizer\.codes: 8 -> 4"):
        beit("name=one", "task.default_tokenizer.codes=4")


def test_runs_of_earlier_versions_are_resumed(beit: Run, kill_after_save: Any, tmp_path: Path) -> None:
    """Their config.yaml lacks what prepared data added, and there is no command.yaml."""
    whole = beit("name=whole")
    with kill_after_save(3):
        beit("name=parts")
    folder = tmp_path / "runs/beit/parts"
    (folder / "command.yaml").replace(folder / "config.yaml")
    assert beit("name=parts")["metrics"] == whole["metrics"]


def test_results_of_earlier_versions_are_read(tmp_path: Path) -> None:
    shutil.copy(OLD / "result.json", tmp_path)
    result = RunFolder(tmp_path).read_result()
    assert result is not None and result.status == "finished" and result.primary_metric == "test/cer"
    assert result.metrics[result.primary_metric] == pytest.approx(0.8966, abs=1e-4)
    RunFolder(tmp_path).write_result(result)
    assert RunFolder(tmp_path).read_result() == result


def test_runs_without_derived_keys_have_one_file(run: Run) -> None:
    folder = Path(run("trainer.max_steps=1")["folder"])
    assert (folder / "config.yaml").exists() and not (folder / "command.yaml").exists()


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of the models that are read."""
    paths: list[str] = []
    original = checkpoint_io.read_model

    def read_model(path: str | Path) -> Any:
        paths.append(str(path))
        return original(path)

    for module in (checkpoint_io, registry, resolve.init_from):
        monkeypatch.setattr(module, "read_model", read_model)
    return paths


def test_pretrained_weights_are_read_once(run_text: Run, reads: list[str]) -> None:
    """Also by mode=test, which reads a checkpoint; the tokenizer of `init_from` is in both files."""
    first = run_text("task=causal_lm", "trainer.max_steps=2", "name=first")
    source, given = f"{first['folder']}/export", ["task=causal_lm", "trainer.max_steps=2"]
    reads.clear()
    second = run_text(*given, f"init_from={source}", "name=second")
    assert reads.count(source) == 1
    for config in recorded(second):
        tokenizer = Path(config["data"]["tokenizer"]["file"])
        assert tokenizer.read_text() == (Path(source) / "tokenizer.json").read_text()
    reads.clear()
    tested = run_text("mode=test", f"checkpoint={source}")
    assert reads == [source] and tested["config"]["backbone"]["d_model"] == 32


def test_mode_config_prints_what_runs(
    beit: Run, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what data add, and without a run. Data are prepared only where the task derives something from them."""
    beit("mode=config")
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["mode"] == "train" and config["backbone"]["grid"] == 4 and config["task"]["tokenizer"]
    run("mode=config", f"data_dir={tmp_path / 'data'}", "trainer.max_steps=7")
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["trainer"]["max_steps"] == 7 and config["callbacks"]["samples"] == 8
    assert not (tmp_path / "data").exists() and not (tmp_path / "runs").exists()
