"""task=segmentation, end to end: learn, start from BEiT, windows, masks of a user's images."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import magneto
from magneto.errors import MagnetoError
from tests.toys.images import image_settings, write_patterns
from tests.toys.runs import SHORT, SMALL, drive, folders
from tests.toys.segmentation import CLASSES, scene, scene_settings, write_scenes

Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes") / "toy")


@pytest.fixture
def run(scenes: Path, prepared_dir: Path, tmp_path: Path) -> Run:
    """`run("seed=2", ...)`: a small, deterministic run."""
    settings = [*scene_settings(scenes), *folders(prepared_dir, tmp_path), *SHORT, "task.head_width=16"]
    return partial(drive, ["task=segmentation", *settings])


@pytest.mark.slow
def test_it_learns_squares_and_discs(run: Run, tmp_path: Path) -> None:
    """And finds them in a larger image of a user, in windows; the mask has ids, and the drawing their colours."""
    result = run(
        *SMALL, "name=long", "trainer.max_steps=120", "trainer.val_check_interval=120",
        "optimizer.lr=1e-2", "task.head_dropout=0",
        "backbone.drop_path=0",
    )  # fmt: skip
    assert result["metrics"]["test/miou"] > 0.8, result["metrics"]
    assert result["monitor"]["metric"] == "val/miou" and result["primary_metric"] == "test/miou"
    assert {f"test/iou/{name}" for name in CLASSES} <= result["metrics"].keys()
    image, mask = scene(np.random.default_rng(7), 40, 25)
    Image.fromarray(image).save(tmp_path / "large.png")
    output = tmp_path / "masks.jsonl"
    run(
        "mode=predict",
        f"checkpoint={result['folder']}/export",
        f"input={tmp_path / 'large.png'}",
        f"output={output}",
    )
    row = json.loads(output.read_text())
    ids = np.asarray(Image.open(tmp_path / row["mask"]))
    assert ids.shape == mask.shape and np.asarray(Image.open(tmp_path / row["image"])).shape == image.shape
    assert (ids == mask.astype(int) - 1)[mask > 0].mean() > 0.9
    counts = np.bincount(ids.ravel(), minlength=3)
    assert {one["label"]: one["share"] for one in row["classes"]} == {
        CLASSES[index]: pytest.approx(count / ids.size, abs=1e-4)
        for index, count in enumerate(counts)
        if count
    }


def test_samples_show_masks(run: Run) -> None:
    folder = Path(run(*SMALL, "trainer.max_steps=2")["folder"])
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert {sample["kind"] for sample in samples} == {"segmented", "confusion matrix"}
    for sample in samples:
        pixels = np.asarray(Image.open(folder / sample["image"]))
        assert pixels.ndim == 3
        if sample["kind"] == "segmented":  # the image, its mask, and the model's
            assert pixels.shape[1] > 3 * pixels.shape[0] and 0 <= sample["pixel_accuracy"] <= 1
            assert set(sample["reference"].split(", ")) <= set(CLASSES)


def test_it_starts_from_beit(run: Run, prepared_dir: Path, tmp_path: Path) -> None:
    """Shape, patches and weights come with it, and positions are resized to more patches."""
    patterns = [
        *image_settings(write_patterns(tmp_path / "patterns")),
        "data.channels=3",
        "data.image_size=12",
    ]
    beit = ["task=beit", "task.target=pixels", *patterns, *folders(prepared_dir, tmp_path), *SHORT, *SMALL]
    source = Path(drive(beit, "trainer.max_steps=2", "name=beit")["folder"]) / "export"
    result = run(
        f"init_from={source}",
        "optimizer.layer_decay=0.8",
        "optimizer.lr=1e-30",
        "trainer.max_steps=2",
        "name=fine",
    )
    found, before = (magneto.load(path) for path in (result["folder"], source))
    assert found.config.num_layers == 2 and found.info.patch_size == 4 and found.stem.grid == 4
    own, given = found.state_dict(), before.state_dict()
    same = [name for name in own if name.startswith("backbone.layers")]
    assert same and all(torch.equal(own[name], given[name]) for name in same)
    assert len(own["backbone.relative.table"]) > len(given["backbone.relative.table"])


@pytest.mark.parametrize("layers", ["[0,1]", "[1,0,0,1]", "[0,0,0,0]", "[-1,0,0,1]"])
def test_impossible_layers_are_refused(run: Run, layers: str) -> None:
    with pytest.raises(MagnetoError, match="name 4 layers in their order, the last of them 1, or null"):
        run(*SMALL, f"task.layers={layers}")


def test_baselines_print_a_table(
    script: Callable[..., Any], scenes: Path, prepared_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Colours alone tell these classes apart."""
    settings = [*scene_settings(scenes), f"data_dir={prepared_dir}"]
    script("segmentation_baselines", *settings, "--pixels", 2000).main()
    rows = {line.split("|")[1].strip(): line for line in capsys.readouterr().out.splitlines() if "%" in line}
    assert len(rows) == 4
    shares = {name: float(line.split("|")[2].strip(" %")) for name, line in rows.items()}
    assert shares["15 nearest colours"] > 95 > 50 > shares["most frequent class"]
