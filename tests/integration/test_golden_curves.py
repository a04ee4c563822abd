"""Twenty steps of every task keep the numbers that they had: the proof that a change of the code's shape changed nothing.

`RECORD_GOLDEN=1 pytest tests/integration/test_golden_curves.py` writes the file anew, where numbers are meant to change.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.toys.captions import caption_settings, write_squares
from tests.toys.images import image_settings, write_patterns
from tests.toys.questions import TOY_IMAGES, overrides_of, vqa_files, write_vqa
from tests.toys.runs import SHORT, SMALL, drive, folders, values
from tests.toys.segmentation import scene_settings, write_scenes
from tests.toys.translation import toy_translation

GOLDEN = Path(__file__).parents[1] / "golden" / "curves.json"
RELATIVE, ABSOLUTE = 2e-3, 2e-4
"""Of fp32 sums in another order on another CPU, after twenty steps."""
CODEBOOK = ("task.codes=32", "task.code_width=8", "task.width=16", "task.blocks=1")
DEFAULT_CODEBOOK = (
    "task.default_tokenizer={codes: 32, code_width: 8, width: 16, blocks: 1, steps: 30, batch_size: 16}"
)


def _speech(request: pytest.FixtureRequest, folder: Path) -> list[str]:
    return [*request.getfixturevalue("overrides")]


def _transducer(request: pytest.FixtureRequest, folder: Path) -> list[str]:
    settings = _speech(request, folder)
    return ["task=asr_transducer", *(one for one in settings if one != "task=asr")]


def _causal_lm(request: pytest.FixtureRequest, folder: Path) -> list[str]:
    recipe = ("optimizer=adamw", "optimizer.lr=4e-3")  # of the default when the curve was recorded
    texts = request.getfixturevalue("text_overrides")
    return ["task=causal_lm", *recipe, *texts, "task.sample={max_new_tokens: 4}"]


def _mlm(request: pytest.FixtureRequest, folder: Path) -> list[str]:
    return [
        "task=mlm",
        "optimizer=adamw",  # of the default when the curve was recorded
        "optimizer.lr=4e-3",
        *request.getfixturevalue("text_overrides"),
        "data.tokenizer={kind: bpe, vocab_size: 60}",
    ]


def _mt(request: pytest.FixtureRequest, folder: Path) -> list[str]:
    files = request.getfixturevalue("toy_translation_files")
    recipe = ("optimizer=adamw", "optimizer.lr=3e-3")  # of the default when the curve was recorded
    return [*recipe, *toy_translation(files, folder / "data", folder / "runs")]


def _text_classification(request: pytest.FixtureRequest, folder: Path) -> list[str]:
    random = np.random.default_rng(0)
    for split, count in (("train", 120), ("val", 24), ("test", 24)):
        rows = ["sentence\tlabel"]
        for _ in range(count):
            words, label = random.choice(["the", "old", "red", "on"], 5), random.integers(2)
            rows.append(f"{' '.join([*words, ('apple', 'saw')[label]])}\t{('fruit', 'tool')[label]}")
        (folder / f"{split}.tsv").write_text("\n".join(rows) + "\n")
    return [
        "task=text_classification", "data=tsv",
        *(f"data.corpus.{split}={folder}/{split}.tsv" for split in ("train", "val", "test")),
        "data.max_tokens=32", "data.batch_size=16",
        "data.tokenizer.kind=bpe", "data.tokenizer.vocab_size=40", *folders(folder / "data", folder), *SMALL, *SHORT,
    ]  # fmt: skip


def _images(folder: Path, *settings: str) -> list[str]:
    images = image_settings(write_patterns(folder / "images"))
    return [*settings, *images, *folders(folder / "data", folder), *SMALL, *SHORT]


def _segmentation(request: pytest.FixtureRequest, folder: Path) -> list[str]:
    scenes = scene_settings(write_scenes(folder / "scenes"))
    return [
        "task=segmentation",
        "task.head_width=16",
        *scenes,
        *folders(folder / "data", folder),
        *SMALL,
        *SHORT,
    ]


def _vl(request: pytest.FixtureRequest, folder: Path) -> list[str]:
    images = caption_settings(write_squares(folder / "images"))
    return ["task=vl", *images, *folders(folder / "data", folder), *SMALL, *SHORT]


def _vl_masked(request: pytest.FixtureRequest, folder: Path) -> list[str]:
    masked = [
        "task.losses={masked: 1, contrastive: 1}", "data.masking={}", "backbone.fusion_layers=1",
        DEFAULT_CODEBOOK,
    ]  # fmt: skip
    return [*_vl(request, folder), *masked]


def _vl_classification(request: pytest.FixtureRequest, folder: Path) -> list[str]:
    vqa = write_vqa(folder / "vqa")
    return [
        "task=vl_classification", "data=vqa", f"data.corpora.vqa.folder={vqa}", *overrides_of("vqa", vqa_files(vqa)),
        *TOY_IMAGES, *folders(folder / "data", folder), *SHORT, *SMALL,
    ]  # fmt: skip


CASES: dict[str, Callable[[pytest.FixtureRequest, Path], list[str]]] = {
    "asr": _speech,
    "asr_transducer": _transducer,
    "causal_lm": _causal_lm,
    "mlm": _mlm,
    "mt": _mt,
    "text_classification": _text_classification,
    "visual_tokenizer": lambda request, folder: _images(folder, "task=visual_tokenizer", *CODEBOOK),
    "beit": lambda request, folder: _images(folder, "task=beit", DEFAULT_CODEBOOK),
    "image_classification": lambda request, folder: _images(folder, "task=image_classification"),
    "segmentation": _segmentation,
    "vl": _vl,
    "vl_masked": _vl_masked,
    "vl_classification": _vl_classification,
}


@pytest.fixture
def torch_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    """The masks that torch draws, as the recorded runs had them."""
    for module in ("residual", "transformer", "feed_forward"):
        monkeypatch.setattr(f"magneto.nn.{module}.dropout", torch.nn.functional.dropout)


@pytest.mark.usefixtures("torch_dropout")
@pytest.mark.parametrize("case", CASES)
def test_a_task_keeps_its_curve(case: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Training loss at each logged step, and the metrics of the test."""
    result = drive(CASES[case](request, tmp_path))
    rows = values(result["folder"])
    found = {
        "train/loss": [float(value) for _, name, value in rows if name == "train/loss"],
        "probe/grad_norm": [float(value) for _, name, value in rows if name == "probe/grad_norm"],
        "test": {
            name: value for name, value in sorted(result["metrics"].items()) if name.startswith("test/")
        },
    }
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("RECORD_GOLDEN"):
        GOLDEN.write_text(json.dumps(golden | {case: found}, indent=1, sort_keys=True) + "\n")
        return
    for curve in ("train/loss", "probe/grad_norm"):
        assert found[curve] == pytest.approx(golden[case][curve], rel=RELATIVE, abs=ABSOLUTE), curve
    assert found["test"] == pytest.approx(golden[case]["test"], rel=RELATIVE, abs=ABSOLUTE)
