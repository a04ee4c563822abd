"""task=vl_classification, end to end: questions, statements, start from a vision-language model, resume, predict."""

import json
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
from tests.toys.questions import (
    TOY_IMAGES,
    nlvr2_files,
    overrides_of,
    vqa_files,
    write_captions,
    write_nlvr2,
    write_vqa,
)
from tests.toys.runs import SHORT, SMALL, drive, folders

Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def vqa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vqa(tmp_path_factory.mktemp("vqa"))


@pytest.fixture(scope="session")
def nlvr2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nlvr2(tmp_path_factory.mktemp("nlvr2"))


@pytest.fixture
def shared(prepared_dir: Path, tmp_path: Path) -> list[str]:
    return [*TOY_IMAGES, *folders(prepared_dir, tmp_path), *SHORT, "backbone.drop_path=0"]


@pytest.fixture
def questions(vqa: Path, shared: list[str]) -> list[str]:
    return [
        "task=vl_classification",
        "data=vqa",
        f"data.corpora.vqa.folder={vqa}",
        *overrides_of("vqa", vqa_files(vqa)),
        *shared,
    ]


@pytest.fixture
def statements(nlvr2: Path, shared: list[str]) -> list[str]:
    files = overrides_of("nlvr2", nlvr2_files(nlvr2))
    return ["task=vl_classification", "data=nlvr2", *files, *shared]


@pytest.fixture
def run(questions: list[str]) -> Run:
    """`run("seed=2", ...)`: a small, deterministic run on questions."""
    return partial(drive, [*questions, *SMALL])


LONGER = ("trainer.max_steps=60", "trainer.val_check_interval=60", "optimizer.lr=4e-3")


def test_questions_are_answered(run: Run, vqa: Path) -> None:
    """It learns to answer and predicts from checkpoint and export."""
    result = run("name=long", *LONGER)
    folder = Path(result["folder"])
    assert result["monitor"]["metric"] == "val/accuracy" and result["monitor"]["mode"] == "max"
    assert (
        result["metrics"]["test/accuracy"]
        > 0.8
        > result["data_facts"]["evaluation"]["test"]["majority_accuracy"]
    )
    image = vqa / "val2014/COCO_val2014_000000000001.jpg"
    asked = ["mode=predict", f"input={image}", "predict.question='What colour is it?'", "predict.top_k=2"]
    found = [
        run(*asked, f"checkpoint={source}")["results"]
        for source in (folder / "checkpoints/best.ckpt", folder / "export")
    ]
    assert found[0] == found[1] and len(found[0]) == 1
    answer = found[0][0]
    assert answer["answer"] == "green" and answer["probability"] > 0.5 and len(answer["top"]) == 2
    assert answer["question"] == "What colour is it?" and answer["input"] == str(image)
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert {sample["kind"] for sample in samples} == {"answered"}
    assert all(np.asarray(Image.open(folder / sample["image"])).ndim == 3 for sample in samples)
    tested = run("mode=test", f"checkpoint={folder / 'export'}")["metrics"]
    assert tested == pytest.approx({k: v for k, v in result["metrics"].items() if k.startswith("test/")})


def test_it_judges_statements_about_two_images(statements: list[str], nlvr2: Path) -> None:
    judge = partial(drive, [*statements, *SMALL])
    result = judge("name=long", *LONGER)
    metrics = result["metrics"]
    assert 0 <= metrics["test/consistency"] <= metrics["test/accuracy"] <= 1
    left, right = (nlvr2 / f"dev/dev-0-1-img{side}.png" for side in (0, 1))
    asked = [
        "mode=predict",
        f"checkpoint={result['folder']}/export",
        "predict.question='Both images are red.'",
    ]
    (found,) = judge(*asked, f"input={left}", f"predict.second={right}")["results"]
    assert {one["answer"] for one in found["top"]} == {"true", "false"}
    assert sum(one["probability"] for one in found["top"]) == pytest.approx(1, abs=1e-3)
    with pytest.raises(MagnetoError, match=r"predict.second: this model judges statements about two images"):
        judge(*asked, f"input={left}")
    with pytest.raises(MagnetoError, match=r"predict.second=.*must be one image"):
        judge(*asked, f"input={left}", f"predict.second={left.parent}")
    broken = nlvr2.parent / "broken.png"
    broken.write_bytes(b"hello")
    for second, reason in ((broken, "not an image"), ("2024", "no such file")):
        with pytest.raises(MagnetoError, match=rf"^predict.second={second}: .*{reason}"):
            judge(*asked, f"input={left}", f"predict.second={second}")


def test_start_from_another_image_size(questions: list[str], shared: list[str], vqa: Path) -> None:
    """It starts from a vision language model whatever the size of the images."""
    captions = [f"data.corpora.captions.file={write_captions(vqa)}", f"data.corpora.captions.folder={vqa}"]
    pretrained = drive(
        ["task=vl", "data=caption_file", *captions, *shared, *SMALL, "task.losses={masked: 0, contrastive: 1}"],
        "name=pretrained", "backbone.multiway=full",
    )  # fmt: skip
    source = Path(pretrained["folder"]) / "export"
    before = load_task(source).state_dict()
    settings = [*questions, f"init_from={source}", "optimizer.lr=1e-9"]
    for size, same in ((16, True), (24, False)):
        run = drive(settings, f"name=size{size}", f"data.image_size={size}", "trainer.max_steps=2")
        after = load_task(Path(run["folder"]) / "export").state_dict()
        # The map of patches takes up another mean and deviation of the images.
        body = [
            name
            for name in after
            if name.startswith(("stem.", "backbone.")) and not name.startswith("stem.vision.projection")
        ]
        assert len(body) > 20
        for name in body:
            if name == "stem.vision_position" and not same:
                assert after[name].shape == (1 + 6 * 6, 32)
                assert torch.allclose(after[name][0], before[name][0], atol=1e-6)
                # A smooth enlargement keeps the mean of the grid, more or less.
                assert torch.allclose(after[name][1:].mean(0), before[name][1:].mean(0), atol=0.05)
            else:
                assert torch.allclose(after[name], before[name], atol=1e-6), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["task.targets=third"], "task.targets=third: must be one of thirds, left_out.*'thirds'"),
        (["backbone.max_positions=8"], "max_positions=8"),
        (["data.num_answers=1"], "data.num_answers=1"),
        (["+data.max_token=9"], "max_token"),
    ],
)
def test_senseless_options_are_refused(run: Run, options: list[str], message: str) -> None:
    with pytest.raises(MagnetoError, match=message):
        run(*options)


def test_a_senseless_prediction_is_refused(run: Run, vqa: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = run("name=one", "trainer.max_steps=2")["folder"]
    predict = partial(run, "mode=predict", f"checkpoint={folder}/export", f"input={vqa / 'val2014'}")
    with pytest.raises(MagnetoError, match="predict.question is missing"):
        predict()
    with pytest.raises(MagnetoError, match="predict.top_k=0"):
        predict("predict.question=why", "predict.top_k=0")
    with pytest.raises(MagnetoError, match="this model answers questions about one image"):
        predict("predict.question=why", "predict.second=a.png")
    assert len(predict("predict.question=why")["results"]) == 12
    assert "longer than" not in caplog.text
    predict(f"predict.question='{'why ' * 40}'")
    assert "predict.question: 1 were longer than" in caplog.text
