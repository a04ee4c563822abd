"""task=image_classification, end to end: learn, probe, start from BEiT, resume, label images."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from magneto.errors import MagnetoError
from magneto.tasks.registry import load_task
from tests.toys.images import CLASSES, image_settings, write_patterns
from tests.toys.runs import SHORT, SMALL, drive, folders, training_losses

Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def patterns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_patterns(tmp_path_factory.mktemp("patterns"))


@pytest.fixture
def settings(patterns: Path, prepared_dir: Path, tmp_path: Path) -> list[str]:
    return [*image_settings(patterns), *folders(prepared_dir, tmp_path), *SHORT]


@pytest.fixture
def run(settings: list[str]) -> Run:
    """`run("seed=2", ...)`: a small, deterministic run."""
    return partial(drive, ["task=image_classification", *settings, *SMALL])


@pytest.mark.slow
def test_it_learns_to_tell_patterns_apart(run: Run, patterns: Path) -> None:
    result = run(
        "name=long",
        "trainer.max_steps=150",
        "trainer.val_check_interval=150",
        "optimizer.lr=4e-3",
        "backbone.drop_path=0",
    )
    assert result["metrics"]["test/top1"] > 0.95  # of three classes
    assert result["monitor"]["metric"] == "val/top1" and result["monitor"]["mode"] == "max"
    found = run("mode=predict", f"checkpoint={result['folder']}/export", f"input={patterns / 'test/down'}")[
        "results"
    ]
    assert [row["label"] for row in found].count("down") >= 9
    assert {answer["label"] for answer in found[0]["top"]} == set(CLASSES)


def test_samples_and_confusion_matrix(run: Run) -> None:
    """A run leaves images and the confusion matrix."""
    folder = Path(run("name=one")["folder"])
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    kinds = {sample["kind"] for sample in samples}
    assert kinds == {"classified", "confusion matrix"}
    for sample in samples:
        assert np.asarray(Image.open(folder / sample["image"])).ndim == 3
        if sample["kind"] == "classified":
            assert sample["reference"] in CLASSES and sample["predicted"] in CLASSES


def test_samples_and_overview_are_logged_apart(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under one name W&B would keep the later of the two."""
    logged: dict[str, list[str]] = {}
    monkeypatch.setattr(
        "magneto.training.module.log_samples",
        lambda logger, key, rows, step: logged.setdefault(key, []).extend(row["kind"] for row in rows),
    )
    run("trainer.max_steps=2")
    assert {key: set(kinds) for key, kinds in logged.items()} == {
        "val/samples": {"classified"},
        "val/overview": {"confusion matrix"},
        "test/samples": {"classified"},
        "test/overview": {"confusion matrix"},
    }


def test_evaluation_set_of_some_classes(run: Run, patterns: Path, tmp_path: Path) -> None:
    """The layout of ImageNet-A and -R: a folder for each of some of the model's classes, under other names."""
    root, names = tmp_path / "robust", tmp_path / "names.tsv"
    for folder, label in (("n01", "down"), ("n02", "across")):
        shutil.copytree(patterns / "test" / label, root / folder)
    names.write_text("n01\tdown\nn02\tacross\n")
    source = Path(run("name=one")["folder"]) / "export"
    tested = run(
        "mode=test", f"checkpoint={source}", f"data.corpora.image_folder.folder={root}",
        "data.corpora.image_folder.evaluation=true", f"data.corpora.image_folder.names={names}",
    )["metrics"]  # fmt: skip
    task = load_task(source)
    assert set(task.labels) == set(CLASSES)
    right = {}
    for label in ("across", "down"):
        answers = run("mode=predict", f"checkpoint={source}", f"input={patterns / 'test' / label}")["results"]
        shares = [{answer["label"]: answer["probability"] for answer in row["top"]} for row in answers]
        other = {"across": "down", "down": "across"}[label]
        right[label] = float(np.mean([row[label] > row[other] for row in shares]))
    assert tested["test/top1"] == pytest.approx((right["across"] + right["down"]) / 2)
    assert {key for key in tested if key.startswith("test/top1/")} == {"test/top1/across", "test/top1/down"}
    assert tested["test/top1/down"] == pytest.approx(right["down"]) and tested["test/top5"] == 1
    names.write_text("n01\tdown\nn02\tplaid\n")
    with pytest.raises(MagnetoError, match="classes that the checkpoint's model does not know: plaid"):
        run(
            "mode=test", f"checkpoint={source}", f"data.corpora.image_folder.folder={root}",
            "data.corpora.image_folder.evaluation=true", f"data.corpora.image_folder.names={names}",
        )  # fmt: skip


def test_probe_leaves_the_encoder_alone(settings: list[str]) -> None:
    """A probe leaves the pretrained model as it is."""
    pretrained = drive(["task=beit", *settings, *SMALL], "task.target=pixels", "name=pretrained")
    source = Path(pretrained["folder"]) / "export"
    probe = ["task=image_classification", *settings, f"init_from={source}", "task.linear_probe=true"]
    probed = load_task(Path(drive(probe, "name=probe")["folder"]) / "export").state_dict()
    before = load_task(source).state_dict()
    same = [name for name in probed if name.startswith(("stem.", "backbone."))]
    assert same and all(torch.equal(probed[name], before[name]) for name in same)


PROBE = ("task.linear_probe=true", "task.layers=[0,1]", "task.pool_grid=2", "optimizer.lr=0.02")


def test_kept_features_train_the_same_probe(run: Run) -> None:
    kept, again = (
        run(f"name=cache_{cache}", *PROBE, f"task.cache_features={cache}") for cache in ("true", "false")
    )
    losses = training_losses(kept["folder"])
    assert losses == pytest.approx(training_losses(again["folder"]), abs=1e-4)
    assert losses[-1] < losses[0] - 0.1
    assert load_task(Path(kept["folder"]) / "export").head.linear.weight.shape == (3, 2 * 32 * 2**2)


def test_grid_features_are_means_of_patches(run: Run) -> None:
    """Features of cells are the means of their patches."""
    folder = run("name=pool_grid", "task.pool_grid=2", "trainer.max_steps=2")["folder"]
    task = load_task(Path(folder) / "export").eval()
    images = torch.randn(3, 1, 16, 16)
    hidden = task.backbone(task.stem(images))[:, 1:].view(3, 4, 4, 32)
    pool_grid = hidden.view(3, 2, 2, 2, 2, 32).mean((2, 4))  # (B, cell's row, cell's column, width)
    torch.testing.assert_close(task.features(images), pool_grid.permute(0, 3, 1, 2).flatten(1))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.layers=[1]"], "for probes"),
        (["task.linear_probe=true", "task.layers=1"], "task.layers=1: input should be a valid list"),
        (["task.linear_probe=true", "data.batch_size=1"], "Take 4 or more"),
        (["task.cache_features=true"], "for probes"),
        (["task.linear_probe=true", "task.layers=[2]"], "from 0 to 1"),
        (["task.pool_grid=5"], "the image has 4 patches per side. Choose from 1 to 4"),
        (["task.pool_grid=2", "task.pooling=class_token"], "1 unless pooling=mean"),
        (["task.linear_probe=true", "task.layers=[]"], "from 0 to 1"),
        (["task.linear_probe=true", "task.cache_features=true", "task.mixup=0.8"], "set both to 0"),
        (["task.linear_probe=true", "task.cache_features=true", "data.augment={flip: true}"], "augment=null"),
    ],
)
def test_impossible_probes_are_refused(run: Run, overrides: list[str], message: str) -> None:
    with pytest.raises(MagnetoError, match=message):
        run(*overrides)


def test_classes_may_have_any_name(run: Run, tmp_path: Path) -> None:
    """A folder's name that is no UTF-8, and one with dollars, which a formula would begin with."""
    strange = tmp_path / "strange"
    for split in ("train", "val"):
        for place, name in enumerate((b"caf\xe9", b"$x_{$")):
            folder = strange / split / os.fsdecode(name)
            folder.mkdir(parents=True)
            for number in range(4):
                pixels = np.full((16, 16), 100 * place + 10 * number + (split == "val"), np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    result = run(
        "name=strange",
        f"data.corpora.image_folder.folder={strange}",
        "trainer.max_steps=2",
        "data.batch_size=4",
    )
    assert load_task(Path(result["folder"]) / "export").labels == ["$x_{$", "caf\\xe9"]
    output = tmp_path / "found.jsonl"
    done = subprocess.run(
        [sys.executable, "-m", "magneto", "mode=predict", f"checkpoint={result['folder']}", f"input={strange / 'val'}",
         f"output={output}"],
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"}, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.count("caf\\udce9") == 4, done.stderr
    assert "UserWarning" not in done.stderr
    assert len(output.read_text(encoding="utf-8").splitlines()) == 8
