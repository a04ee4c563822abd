"""task=visual_tokenizer and task=beit, end to end: learn, resume, complete images, take a tokenizer or train one."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from magneto.errors import MagnetoError
from magneto.tasks.beit import BEiT
from magneto.tasks.registry import load_task
from magneto.tasks.visual_tokenizer import VisualTokenization, _of_patches
from tests.toys.images import image_settings, write_patterns
from tests.toys.runs import SHORT, SMALL, drive, folders, training_losses, values

Run = Callable[..., dict[str, Any]]
CODEBOOK = ("task.codes=32", "task.code_width=8", "task.width=16", "task.blocks=1")
DEFAULT_CODEBOOK = (
    "task.default_tokenizer={codes: 32, code_width: 8, width: 16, blocks: 1, steps: 30, batch_size: 16}"
)


@pytest.fixture(scope="session")
def patterns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_patterns(tmp_path_factory.mktemp("patterns"))


@pytest.fixture
def tokenize(patterns: Path, prepared_dir: Path, tmp_path: Path) -> Run:
    """`tokenize("seed=2", ...)`: a small, deterministic run of task=visual_tokenizer."""
    return partial(
        drive,
        ["task=visual_tokenizer", *image_settings(patterns), *folders(prepared_dir, tmp_path), *SMALL, *SHORT, *CODEBOOK],
    )  # fmt: skip


@pytest.fixture
def run(patterns: Path, prepared_dir: Path, tmp_path: Path) -> Run:
    """`run("seed=2", ...)`: the same of task=beit."""
    return partial(
        drive,
        ["task=beit", *image_settings(patterns), *folders(prepared_dir, tmp_path), *SMALL, *SHORT, DEFAULT_CODEBOOK],
    )  # fmt: skip


def samples_of(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(result["folder"]) / "samples.jsonl").read_text().splitlines()]


# ------------------------------------------------------------------ the tokenizer


@pytest.mark.slow
def test_tokenizer_learns_to_draw(tokenize: Run) -> None:
    """A tokenizer learns to draw with its codes."""
    result = tokenize("trainer.max_steps=250", "trainer.val_check_interval=250", "optimizer.lr=5e-3")
    metrics = result["metrics"]
    # Pixels have variance 1: the mean image would leave about that.
    assert metrics["test/reconstruction"] < 0.1
    assert metrics["test/usage"] > 0.3 and 4 < metrics["test/perplexity"] <= 32
    for sample in samples_of(result):
        panel = np.asarray(Image.open(Path(result["folder"]) / sample["image"]))
        assert panel.ndim == 3 and panel.shape[1] > 3 * panel.shape[0]  # image, reconstruction, codes


def write_teacher(file: Path, name: str = "test_vit") -> tuple[str, ...]:
    """A timm model of random weights with its classifier, as such files are published, and the overrides that name it."""
    torch.save(timm.create_model(name, num_classes=1000).state_dict(), file)
    return (f"task.teacher={name}", f"task.teacher_file={file}", "data.image_size=20")


def test_codes_of_a_teacher(tokenize: Run, run: Run, patterns: Path, tmp_path: Path) -> None:
    """VQ-KD: our Transformer learns what a timm model says of each patch, and BEiT the codes of that."""
    chosen = write_teacher(tmp_path / "teacher.pth")  # 10 x 10 patches
    result = tokenize(*chosen, "data.patch_size=2", "name=codebook")
    losses = training_losses(result["folder"])
    assert losses[-1] < losses[0] and 0 < result["metrics"]["test/reconstruction"] < 1
    export = Path(result["folder"]) / "export"
    task = load_task(export)
    assert isinstance(task, VisualTokenization) and task.tokenizer.config.teacher_width == 64
    assert not any("patch_embed" in name for name in task.state_dict()), "the teacher is not ours to keep"
    probed = {name for _, name, _ in values(result["folder"]) if name.startswith("probe/activation_rms")}
    layers = ("encoder/layer_00", "encoder/layer_01", "decoder/layer_00")
    assert probed == {f"probe/activation_rms/{layer}" for layer in layers}
    with pytest.raises(MagnetoError, match="sees 100 patches in an image, and data.patch_size=4 makes 25"):
        tokenize(*chosen, "data.patch_size=4")

    trained = run(
        f"task.tokenizer={export}", "data.image_size=20", "data.patch_size=2", "trainer.max_steps=2", "name=beit"
    )  # fmt: skip
    assert np.isfinite(trained["metrics"]["test/loss"])
    beit = load_task(Path(trained["folder"]) / "export")
    assert isinstance(beit, BEiT)
    for name, weight in task.tokenizer.state_dict().items():
        assert torch.equal(beit.state_dict()[f"target.{name}"], weight), name
    found = run("mode=predict", f"checkpoint={trained['folder']}", f"input={patterns / 'test/down'}")[
        "results"
    ]
    assert len(found) == 10
    for row in found:
        assert row["hidden"] == 40 and 0 <= row["right"] <= 40
        height, width = row["image"].shape[:2]
        assert width == 2 * height + 4, "codes of a teacher draw no third image"


def test_features_of_a_teacher_go_by_rows() -> None:
    """Whether their channels come first, last, or behind a prefix."""
    rows = torch.arange(2 * 6 * 3.0).view(2, 6, 3)  # (B, N, C) of 2 x 3 places
    first = rows.mT.view(2, 3, 2, 3)
    assert torch.equal(_of_patches(SimpleNamespace(), first), rows)
    assert torch.equal(_of_patches(SimpleNamespace(output_fmt="NHWC"), first.permute(0, 2, 3, 1)), rows)
    behind = torch.cat((torch.zeros(2, 1, 3), rows), dim=1)
    assert torch.equal(_of_patches(SimpleNamespace(num_prefix_tokens=1), behind), rows)
    with pytest.raises(MagnetoError, match="task.teacher=odd: its features do not stand for patches"):
        _of_patches(SimpleNamespace(pretrained_cfg={"architecture": "odd"}), torch.zeros(2, 3))


def test_a_file_of_another_teacher_is_refused(tokenize: Run, tmp_path: Path) -> None:
    file = tmp_path / "teacher.pth"
    chosen = write_teacher(file)
    weights = torch.load(file, weights_only=True)
    torch.save({name: weight for name, weight in weights.items() if not name.startswith("blocks.1.")}, file)
    with pytest.raises(
        MagnetoError, match=r"teacher_file=.*: lacks \d+ tensors of task.teacher=test_vit, such as blocks.1"
    ):
        tokenize(*chosen, "data.patch_size=2")
    with pytest.raises(MagnetoError, match="task.teacher=test_vit: cannot be made"):
        tokenize("task.teacher=test_vit", f"task.teacher_file={tmp_path / 'nowhere.pth'}")


# ------------------------------------------------------------------ masked images


@pytest.mark.parametrize("target", ["codes", "pixels", "random_projection"])
def test_a_run_leaves_its_facts_and_panels(run: Run, target: str, tmp_path: Path) -> None:
    result = run(f"task.target={target}", "callbacks.samples=3")
    assert result["throughput"]["tokens_per_s"] > 0
    samples = samples_of(result)
    images = 2 if target == "random_projection" else 3
    for sample in samples:
        panel = np.asarray(Image.open(Path(result["folder"]) / sample["image"]))
        side = panel.shape[0]
        assert panel.shape == (side, images * side + (images - 1) * 4, 3)
        # What is shown of the hidden image is the image; what is hidden is grey.
        whole, seen = panel[:, :side], panel[:, side + 4 : 2 * side + 4]
        hidden = (seen == 127).all(-1)
        assert 0.3 < hidden.mean() < 0.5 and (whole[~hidden] == seen[~hidden]).all()
        if target == "pixels":
            assert (panel[:, 2 * side + 8 :][~hidden] == whole[~hidden]).all()


def test_average_keeps_position_indices(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """An average of integers in fp32 falls below them now and then, and is cut off to the one before."""
    seen: list[torch.Tensor] = []
    step = BEiT.validation_step

    def noted(self: BEiT, batch: dict[str, Any], batch_idx: int) -> Any:
        relative: Any = self.backbone.relative
        seen.append((relative.index == relative._index()).all())
        return step(self, batch, batch_idx)

    monkeypatch.setattr(BEiT, "validation_step", noted)
    run("callbacks.ema_decay=0.9", "backbone.position=relative_2d")
    assert seen and all(seen)


def test_export_holds_its_tokenizer(run: Run, patterns: Path, tmp_path: Path) -> None:
    """Also where the tokenizer that the run was trained with is gone."""
    folder = Path(run("name=one")["folder"])
    for tokenizer in folder.parents[2].glob("**/visual-tokenizer-*/model.safetensors"):
        raise AssertionError(f"{tokenizer} lies beside the runs")
    task = load_task(folder / "export")
    assert isinstance(task, BEiT)
    given = load_task(task.options.tokenizer)  # type: ignore[arg-type]
    for name, weight in given.state_dict().items():
        assert torch.equal(task.state_dict()[name.replace("tokenizer.", "target.", 1)], weight), name
    found = run("mode=predict", f"checkpoint={folder}", f"input={patterns / 'test'}")["results"]
    assert len(found) == 30
    assert all(one["hidden"] == 6 and 0 <= one["right"] <= 6 for one in found)  # of 16 patches


@pytest.mark.parametrize("task", ["beit", "visual_tokenizer"])
def test_other_classes_without_labels(
    task: str, run: Run, tokenize: Run, patterns: Path, tmp_path: Path
) -> None:
    """And without task=, which the checkpoint knows; of BEiT the masks come with the task."""
    folder = {"beit": run, "visual_tokenizer": tokenize}[task]("name=one", "trainer.max_steps=2")["folder"]
    settings = [*image_settings(patterns), *folders(tmp_path / "data", tmp_path), *SHORT]
    test = ("mode=test", f"checkpoint={folder}")
    own = drive(settings, *test)["metrics"]
    assert own == pytest.approx(
        {
            key: value
            for key, value in json.loads((Path(folder) / "result.json").read_text())["metrics"].items()
            if key.startswith("test/")
        }
    )
    for split in ("train", "val", "test"):
        for name, other in (("across", "plaid"), ("down", "dots"), ("checks", "checks")):
            shutil.copytree(patterns / split / name, tmp_path / "others" / split / other)
    others = f"data.corpora.image_folder.folder={tmp_path / 'others'}"
    assert drive(settings, *test, others)["metrics"].keys() == own.keys()
    if task == "beit":
        with pytest.raises(MagnetoError, match="data.masking is missing: task=beit hides patches"):
            drive(["task=beit", *settings], *test, "data.masking=null")


def test_predict_writes_images_beside_its_output(run: Run, patterns: Path, tmp_path: Path) -> None:
    folder = Path(run("name=one", "trainer.max_steps=2")["folder"])
    output = tmp_path / "out" / "seen.jsonl"
    output.parent.mkdir()
    run(
        "mode=predict",
        f"checkpoint={folder / 'export'}",
        f"input={patterns / 'test/down'}",
        f"output={output}",
    )
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(rows) == 10 and len({row["image"] for row in rows}) == 10
    assert all((output.parent / row["image"]).is_file() for row in rows)


def test_a_finished_run_is_not_made_longer(run: Run) -> None:
    last = Path(run("name=one", "trainer.max_steps=4")["folder"]) / "checkpoints/last.ckpt"
    with pytest.raises(MagnetoError, match="has made all of its 4 steps.*init_from="):
        run("name=two", "trainer.max_steps=8", f"resume={last}")


def test_a_given_tokenizer_is_used(tokenize: Run, run: Run) -> None:
    source = Path(tokenize("name=codebook")["folder"]) / "export"
    task = load_task(Path(run(f"task.tokenizer={source}", "trainer.max_steps=4")["folder"]) / "export")
    assert isinstance(task, BEiT)
    theirs = load_task(source).state_dict()
    assert torch.equal(task.state_dict()["target.quantizer.codebook"], theirs["tokenizer.quantizer.codebook"])
    with pytest.raises(MagnetoError, match=r"task.tokenizer=.*: is for patch_size=4, and the data has 8"):
        run(f"task.tokenizer={source}", "data.patch_size=8")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.target=words", "task.target=words: must be one of codes"),
        ("task.tokenizer=nowhere", "task.tokenizer=nowhere: there is no such"),
        ("data.masking=null", "data.masking is missing"),
        ("data.patch_size=null", "data.patch_size"),
        (
            "task.default_tokenizer.step=3",
            "task.default_tokenizer.step: there is no such key. Did you mean 'task.default_tokenizer.steps'",
        ),
    ],
)
def test_mistakes_are_told(run: Run, override: str, message: str) -> None:
    with pytest.raises(MagnetoError, match=message):
        run(f"+{override}" if "default_tokenizer" in override else override)


@pytest.mark.parametrize("target", ["pixels", "random_projection"])
def test_a_single_pixel_is_no_target(run: Run, target: str) -> None:
    with pytest.raises(
        MagnetoError, match=f"task.target={target}: nothing is left of a patch of one grey pixel"
    ):
        run(f"task.target={target}", "data.channels=1", "data.patch_size=1")


def test_prediction_without_samples(tokenize: Run, patterns: Path) -> None:
    """`callbacks.samples` is of the run's log, not of what it predicts."""
    folder = tokenize("name=silent", "callbacks.samples=0", "trainer.max_steps=2")["folder"]
    found = tokenize("mode=predict", f"checkpoint={folder}", f"input={patterns / 'test/down'}")["results"]
    assert len(found) == 10 and all(len(row["codes"]) == 16 and row["image"].ndim == 3 for row in found)
