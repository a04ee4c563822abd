"""Models written by an earlier version load and predict the same: exports of every task, a checkpoint and its run folder.

`RECORD_OLD=1 pytest tests/integration/test_old_exports.py` wrote `tests/golden/old` with version 0.2 (63d79d1). It is not
to be recorded again: it is what users have on their disks. A task that came later was recorded when it came.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

import magneto
from magneto.errors import MagnetoError
from magneto.report import write_report
from tests.integration.test_golden_curves import CASES
from tests.toys.runs import drive

OLD = Path(__file__).parents[1] / "golden" / "old"
INPUTS = OLD / "inputs"
RENAMED = {"picture": "image"}
"""Keys of the answers since then."""
TINY = (
    "backbone.d_model=16", "backbone.ffn_dim=32", "trainer.max_steps=4", "trainer.val_check_interval=4",
    "trainer.log_every_n_steps=2",
)  # fmt: skip
ASKED: dict[str, tuple[str | Path, dict[str, Any]]] = {
    "asr": (INPUTS / "tones.wav", {}),
    "asr_transducer": (INPUTS / "tones.wav", {"decoder": "beam"}),
    "causal_lm": ("baku cedo", {"temperature": 0, "max_new_tokens": 6}),
    "mlm": ("baku [MASK] difa", {"top_k": 2}),
    "mt": ("the cat", {"beam": 2}),
    "text_classification": ("the old apple", {}),
    "visual_tokenizer": (INPUTS / "across.png", {}),
    "beit": (INPUTS / "across.png", {}),
    "image_classification": (INPUTS / "across.png", {}),
    "segmentation": (INPUTS / "red.png", {}),
    "vl": (INPUTS / "squares", {"query": "red top left"}),
    "vl_masked": (INPUTS / "squares", {"query": "red top left"}),
    "vl_classification": (INPUTS / "red.png", {"question": "What colour is it?"}),
}
"""A text or a file for each model, and options of its prediction."""


def answers(case: str, model: Path) -> list[dict[str, Any]]:
    """Return what the command line answers."""
    given, options = ASKED[case]
    settings = ("trainer.accelerator=cpu", "trainer.precision=32-true")
    asked = [f"input={given}" if isinstance(given, Path) else f"prompt='{given}'"]
    asked += [
        f"predict.{key}='{value}'" if isinstance(value, str) else f"predict.{key}={value}"
        for key, value in options.items()
    ]
    return _plain(drive([], "mode=predict", f"checkpoint={model}", *asked, *settings)["results"])


def _plain(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    text = json.dumps(results, default=_pixels)
    return list(json.loads(text.replace(str(INPUTS), "INPUTS")))


def _pixels(image: np.ndarray) -> dict[str, Any]:
    return {"shape": list(image.shape), "mean": float(image.mean())}


def _record(case: str, request: pytest.FixtureRequest, folder: Path) -> None:
    INPUTS.joinpath("squares").mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    soundfile.write(INPUTS / "tones.wav", random.normal(0, 0.1, 8000), 16_000)
    stripes = np.repeat(np.arange(16) // 2 % 2 * 200, 16).reshape(16, 16).astype(np.uint8)
    Image.fromarray(stripes).save(INPUTS / "across.png")
    for name, colour in (
        ("red", (200, 30, 30)),
        ("squares/red", (220, 30, 20)),
        ("squares/blue", (20, 50, 220)),
    ):
        Image.new("RGB", (16, 16), colour).save(INPUTS / f"{name}.png")
    run = Path(drive([*CASES[case](request, folder), *TINY])["folder"])
    (run / "checkpoints").rename(run / "kept")
    shutil.copytree(run / "export", OLD / case, dirs_exist_ok=True)
    if case == "asr":
        for name in ("result.json", "config.yaml", "metrics.csv"):
            (OLD / "run").mkdir(exist_ok=True)
            text = (run / name).read_text().replace(str(folder), "folder")
            (OLD / "run" / name).write_text(text)
        shutil.copy(run / "kept/last.ckpt", OLD / "run/last.ckpt")
    (OLD / case / "expected.json").write_text(json.dumps(answers(case, OLD / case), indent=1) + "\n")


def _same(found: Any, expected: Any, where: str) -> None:
    """Compare plain values; numbers within rounding."""
    assert type(found) is type(expected), where
    if isinstance(expected, dict):
        for key in expected:  # a newer version may add one
            _same(found[RENAMED.get(key, key)], expected[key], f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            _same(one, other, f"{where}[{index}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-4), where
    else:
        assert found == expected, where


@pytest.mark.parametrize("case", CASES)
def test_an_old_export_predicts_the_same(case: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Its class may have moved and its keys may have new names since."""
    if os.environ.get("RECORD_OLD"):
        _record(case, request, tmp_path)
    expected = json.loads((OLD / case / "expected.json").read_text())
    assert expected
    _same(answers(case, OLD / case), expected, case)


@pytest.mark.parametrize("case", CASES)
def test_old_export_in_python(case: str) -> None:
    """`magneto.load(...).predict(...)` gives what the command line gives; a list, or a folder, gives a list."""
    expected = json.loads((OLD / case / "expected.json").read_text())
    given, options = ASKED[case]
    model = magneto.load(OLD / case)
    answer = model.predict(given, **options)
    assert isinstance(answer, list) == (given == INPUTS / "squares")
    _same(_plain(answer if isinstance(answer, list) else [answer]), expected, case)
    several = model.predict([given, given], **options)
    assert isinstance(several, list) and len(several) == (1 if "query" in options else 2)
    with pytest.raises(MagnetoError, match=r"predict\.colour"):
        model.predict(given, colour="red")


@pytest.mark.parametrize("case", ["visual_tokenizer", "beit", "image_classification", "vl_classification"])
def test_images_in_memory(case: str) -> None:
    """A PIL image and its pixels are as good as its file."""
    given, options = ASKED[case]
    image = Image.open(given)
    model = magneto.load(OLD / case)
    of_file = model.predict(given, **options)
    for other in (image, np.asarray(image)):
        of_memory = model.predict(other, **options)
        assert of_memory["input"] == "[0]"
        _same(_plain([{**of_memory, "input": str(given)}]), _plain([of_file]), case)
    with pytest.raises(MagnetoError, match="image 1"):
        model.predict([image, 3.5], **options)


def test_waveform_in_memory() -> None:
    """Samples at the model's rate are as good as their file."""
    given, _ = ASKED["asr"]
    waveform, rate = soundfile.read(given, dtype="float32")
    model = magneto.load(OLD / "asr")
    assert rate == model.info.features["sample_rate"]
    assert model.predict(waveform)["transcript"] == model.predict(str(given))["transcript"]
    with pytest.raises(MagnetoError, match="recording 0"):
        model.predict(waveform.reshape(2, -1))


def test_texts_of_a_file(tmp_path: Path) -> None:
    """A `Path` is a file with a text a line, and what is no text is refused."""
    (tmp_path / "lines.txt").write_text("the cat\nthe dog\n")
    model = magneto.load(OLD / "mt")
    assert model.predict(tmp_path / "lines.txt") == model.predict(["the cat", "the dog"])
    with pytest.raises(MagnetoError, match="this model reads texts"):
        model.predict([3])


def test_an_old_checkpoint_predicts_as_its_export() -> None:
    """Lightning's file, with `weights_only=True`; the best weights are the last ones here."""
    _same(answers("asr", OLD / "run/last.ckpt"), json.loads((OLD / "asr/expected.json").read_text()), "asr")


def test_an_old_run_is_reported(tmp_path: Path) -> None:
    """Its result.json and metrics.csv are read."""
    write_report([OLD / "run"], tmp_path / "report")
    assert "magneto-tiny-seed1" in (tmp_path / "report/report.html").read_text()
