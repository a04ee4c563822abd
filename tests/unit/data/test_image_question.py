"""Questions about images: the official file formats, good and broken, and the batches that come of them."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from magneto.data.corpora.base import SPLITS
from magneto.data.corpora.vqa.base import QuestionReader
from magneto.data.corpora.vqa.colours import main_colour
from magneto.data.corpora.vqa.nlvr2 import Nlvr2Reader
from magneto.data.corpora.vqa.stamp_questions import StampQuestionsReader, StampStatementsReader, shown
from magneto.data.corpora.vqa.vqa import VqaReader
from magneto.data.vqa.answers import vqa_accuracy
from magneto.data.vqa.module import VqaDataModule
from magneto.errors import MagnetoError
from tests.toys.questions import (
    COLOURS,
    NAMES,
    SIZE,
    nlvr2_files,
    vqa_files,
    write_image,
    write_nlvr2,
    write_vqa,
)


@pytest.fixture
def vqa(tmp_path: Path) -> Path:
    return write_vqa(tmp_path / "vqa")


@pytest.fixture
def nlvr2(tmp_path: Path) -> Path:
    return write_nlvr2(tmp_path / "nlvr2")


def module(reader: QuestionReader, tmp_path: Path, **settings: Any) -> VqaDataModule:
    data = VqaDataModule(
        {"toy": reader},
        data_dir=str(tmp_path / "data"),
        tokenizer={"kind": "byte_bpe", "vocab_size": 270},
        **{"image_size": SIZE, "patch_size": 4, "lowercase": True, "prepare_workers": 1, **settings},
    )
    data.prepare()
    data.setup()
    return data


def vqa_source(folder: Path) -> VqaReader:
    return VqaReader(**vqa_files(folder), folder=str(folder))


def report(data: VqaDataModule) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((data.folder / "prepare_report.json").read_text())
    return found


def rows_of(data: VqaDataModule) -> list[dict[str, Any]]:
    return [row for split in SPLITS for row in data.table(split).arrow.to_pylist()]


def edit(file: Path, key: str, change: Callable[[list[Any]], None]) -> None:
    """Change the list `key` of a JSON file."""
    content = json.loads(file.read_text())
    change(content[key])
    file.write_text(json.dumps(content))


def test_a_batch_of_vqa(vqa: Path, tmp_path: Path) -> None:
    """Questions with the answers of ten people; without a test split those of validation serve as the test."""
    data = module(vqa_source(vqa), tmp_path)
    info = data.info
    assert info.images == 1 and info.kinds == ["other", "yes/no"]
    assert info.questions == {"train": 80, "val": 24, "test": 0}
    assert set(info.labels) == {*NAMES, "yes", "no"} and info.labels[0] == "no"
    assert [info.labels[answer] for answer in info.majority_answers][1] == "no"
    batch = data.val_set.__getitems__([(0, 0), (0, 1)])
    assert batch["image"].shape == (2, 1, 3, SIZE, SIZE) and batch["people"].tolist() == [10, 10]
    assert batch["text"] == ["what colour is it?", "is it red?"]
    counts = [dict(zip(info.labels, row, strict=True)) for row in batch["counts"].tolist()]
    # Green, green and 7 times more; "dark" is not among the most frequent answers.
    assert {k: v for k, v in counts[0].items() if v} == {"green": 8}
    assert {k: v for k, v in counts[1].items() if v} == {"no": 10}
    shown_colour = info.pixels(batch["image"][:, 0]).float().mean((2, 3))[0]
    assert torch.allclose(shown_colour, torch.tensor(COLOURS["green"]).float(), atol=12)
    ids = [
        [n for b in loader for n in b["id"].tolist()]
        for loader in (data.val_dataloader(), data.test_dataloader())
    ]
    assert ids[0] == ids[1] and len(ids[0]) == 24


def test_rare_answers(vqa: Path, tmp_path: Path) -> None:
    """They cannot be chosen; training skips their questions, and they are counted."""
    data = module(vqa_source(vqa), tmp_path, num_answers=2)
    assert data.info.labels[0] == "no" and len(data.info.labels) == 2
    assert data.info.unanswerable["train"] > 0
    assert len(data.train_set) == 80 - data.info.unanswerable["train"]
    assert len(data.val_set) == 24


def test_broken_parts_of_vqa(vqa: Path, tmp_path: Path) -> None:
    """They are counted, listed and skipped."""
    (vqa / "train2014/COCO_train2014_000000000001.jpg").unlink()
    (vqa / "train2014/COCO_train2014_000000000002.jpg").write_bytes(b"")

    def break_questions(entries: list[Any]) -> None:
        entries[4]["question"] = "  "
        del entries[5]["question"]
        entries[6]["question_id"] = 99
        entries[10]["question"] = None
        entries[11]["question_id"] = [1]
        entries[12]["image_id"] = float("inf")
        entries.append("nonsense")

    def break_annotations(entries: list[Any]) -> None:
        entries[8]["answers"] = []
        del entries[9]["answers"]
        for place, value in ((13, None), (14, "caf\ud83d")):
            entries[place]["answers"] = [{"answer": value}] * 10

    edit(vqa / "v2_train_questions.json", "questions", break_questions)
    edit(vqa / "v2_train_annotations.json", "annotations", break_annotations)
    data = module(vqa_source(vqa), tmp_path)
    assert report(data)["skipped_by_reason"] == {
        "its image is missing or was left out": 4,
        "question: empty": 2,
        "question without question_id, image_id or question": 4,
        # One of another number, one whose annotation is broken.
        "question without annotation": 2,
        "annotation without question": 4,
        "annotation without question_id or answers": 1,
        "no answer": 3,
    }
    assert data.info.questions["train"] == 80 - 4 - 1 - 1 - 2 - 1 - 5
    images = json.loads((data.images.folder / "prepare_report.json").read_text())
    assert images["skipped_by_reason"] == {"file cannot be read": 1, "empty file": 1}


def official(answers: list[str], given: str) -> float:
    """Accuracy by VQA's own tool (vqaEval.py), for answers without digits, contractions and inner punctuation."""

    def plain(answer: str) -> str:
        return " ".join(
            word for word in answer.strip(" .?").lower().split() if word not in ("a", "an", "the")
        )

    if len(set(answers)) > 1:  # the tool leaves unanimous answers as they are
        answers, given = [plain(answer) for answer in answers], plain(given)
    scores = []
    for place in range(len(answers)):
        others = answers[:place] + answers[place + 1 :]
        scores.append(min(1, others.count(given) / 3))
    return float(np.mean(scores))


def test_people_count_whatever_they_answered(vqa: Path, tmp_path: Path) -> None:
    """Of ten people eight say "a", a letter on a sign, and two "eight": that one is 0.6 right, not 1."""
    random = np.random.default_rng(0)
    said = [
        ["a"] * 8 + ["cat"] * 2,
        ["a"] * 10,
        ["?"] * 9 + ["cat"],
        ["?"] * 10,
        ["", "A.", "?"] + ["dog"] * 7,
    ]
    said += [
        random.choice(["a", "A.", "cat", "the cat", "Dog", "dog.", "?", "..."], 10).tolist()
        for _ in range(15)
    ]

    def answer(entries: list[Any]) -> None:
        for entry, answers in zip(entries, itertools.cycle(said)):
            entry["answers"] = [{"answer": answer} for answer in answers]

    for split in ("train", "val"):
        edit(vqa / f"v2_{split}_annotations.json", "annotations", answer)
    data = module(vqa_source(vqa), tmp_path)
    assert set(data.info.labels) == {"a", "cat", "dog"} and not report(data)["skipped_by_reason"]
    seen = 0
    for batch in data.val_dataloader():
        assert batch["people"].tolist() == [10] * len(batch["id"])
        found = vqa_accuracy(batch["counts"], batch["people"][:, None])
        for row, number in enumerate(batch["id"].tolist()):
            own = said[(number - data.info.questions["train"]) % len(said)]
            for label, accuracy in zip(data.info.labels, found[row].tolist(), strict=True):
                # For the tool "a" is an empty answer, and so the same as "?".
                if label != "a" or not {"", "?", "..."} & set(own):
                    assert accuracy == pytest.approx(official(own, label), abs=1e-6)
            seen += 1
    assert seen == data.info.questions["val"] == 24
    assert data.info.unanswerable["val"] == sum(set(said[n % 20]) == {"?"} for n in range(24))


@pytest.mark.parametrize("corpus", ["vqa", "nlvr2"])
def test_an_image_that_changes(corpus: str, tmp_path: Path) -> None:
    """One that is missing and arrives, one that is replaced, one that vanishes."""
    folder = (write_vqa if corpus == "vqa" else write_nlvr2)(tmp_path / corpus)
    reader = vqa_source(folder) if corpus == "vqa" else Nlvr2Reader(**nlvr2_files(folder))
    file = sorted(folder.rglob("*.jpg" if corpus == "vqa" else "*.png"))[0]
    content, seen = file.read_bytes(), [reader.fingerprint()]
    assert reader.fingerprint() == seen[0]
    for change in (file.unlink, lambda: file.write_bytes(content + b"0")):
        change()
        assert reader.fingerprint() not in seen
        seen.append(reader.fingerprint())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "damaged"),
        ("[]", "not of VQA's form"),
        ('{"questions": {}}', "not of VQA's form"),
        ('{"questions": [{"image_id": 1}]}', "data_subtype"),
    ],
)
def test_files_of_another_form(vqa: Path, tmp_path: Path, content: str, message: str) -> None:
    """The error names the file and its fault."""
    (vqa / "v2_val_questions.json").write_text(content)
    with pytest.raises(MagnetoError, match=f"v2_val_questions.json.*{message}"):
        module(vqa_source(vqa), tmp_path)


def test_questions_without_annotations(vqa: Path) -> None:
    """Files must come in pairs, of known splits."""
    files = vqa_files(vqa)
    with pytest.raises(MagnetoError, match="split val has questions or annotations alone"):
        VqaReader(files["questions"], {"train": files["annotations"]["train"]}, str(vqa))
    with pytest.raises(MagnetoError, match="Did you mean 'val'"):
        VqaReader({"vall": "a"}, {"vall": "b"}, "c")
    with pytest.raises(MagnetoError, match="data.corpora.vqa.questions"):
        VqaReader()


def test_a_batch_of_nlvr2(nlvr2: Path, tmp_path: Path) -> None:
    """Statements have two images, and groups of those with the same sentence."""
    data = module(Nlvr2Reader(**nlvr2_files(nlvr2)), tmp_path)
    info = data.info
    assert info.images == 2 and set(info.labels) == {"true", "false"}
    assert info.questions == {"train": 160, "val": 48, "test": 0}
    batch = data.val_set.__getitems__([(0, place) for place in range(8)])
    assert batch["image"].shape == (8, 2, 3, SIZE, SIZE)
    # Set 0, of red: four pairs in the order of `write_nlvr2`, two sentences each.
    groups = batch["group"].tolist()
    assert groups[::2] == [groups[0]] * 4 and groups[1::2] == [groups[1]] * 4 and groups[0] != groups[1]
    true = batch["counts"][:, info.labels.index("true")].tolist()
    assert true == [1, 1, 0, 1, 0, 0, 0, 0]
    left = info.pixels(batch["image"][:, 0]).float().mean((2, 3))
    red = torch.tensor(COLOURS["red"]).float()
    assert [bool((row - red).abs().max() < 15) for row in left] == [True] * 4 + [False] * 4


def test_broken_lines_of_nlvr2(nlvr2: Path, tmp_path: Path) -> None:
    """They are counted, listed and skipped."""
    file = nlvr2 / "train.json"
    lines = file.read_bytes().splitlines()
    lines[0] = b"{"
    lines[1] = b'{"identifier": "train-0", "sentence": "a"}'
    lines[2] = lines[2].replace(b'"label": ', b'"labels": ')
    lines[3] = b"\xff\xfe"
    file.write_bytes(b"\n".join([*lines, b""]))
    (nlvr2 / "images/train/1/train-1-0-img1.png").write_bytes(b"no image")
    data = module(Nlvr2Reader(**nlvr2_files(nlvr2)), tmp_path)
    assert report(data)["skipped_by_reason"] == {
        "no JSON object with an identifier and a sentence": 3,
        "its image is missing or was left out": 2,
        "no label True or False": 1,
    }
    file.write_text("{}\n")
    with pytest.raises(MagnetoError, match="train.json: no line is of NLVR2's form"):
        module(Nlvr2Reader(**nlvr2_files(nlvr2)), tmp_path)


def test_for_model(vqa: Path, tmp_path: Path) -> None:
    """Answers, tokens and sizes are those of the checkpoint's model."""
    trained = module(vqa_source(vqa), tmp_path, num_answers=3)
    other = module(vqa_source(vqa), tmp_path, max_tokens=8, image_size=2 * SIZE)
    other = other.for_model(trained.info.to_dict())
    assert other.info.labels == trained.info.labels and other.info.max_tokens == trained.info.max_tokens
    ours, theirs = (data.val_set.__getitems__([(0, 0), (0, 1)]) for data in (other, trained))
    for key in ("image", "tokens", "counts"):
        assert torch.equal(ours[key], theirs[key]), key


def test_for_model_of_statements(vqa: Path, nlvr2: Path, tmp_path: Path) -> None:
    """A model of two images takes no questions about one."""
    statements = module(Nlvr2Reader(**nlvr2_files(nlvr2)), tmp_path)
    with pytest.raises(MagnetoError, match="This data has 1 images for each question"):
        module(vqa_source(vqa), tmp_path).for_model(statements.info.to_dict())


@pytest.fixture
def stamps(tmp_path: Path) -> Path:
    folder = tmp_path / "stamps"
    for number in range(60):
        kind = ("animals/birds", "food/fruit", "vehicles")[number % 3]
        file = folder / kind / f"{number}.png"
        write_image(file, NAMES[number % 4], number)
        file.with_suffix(".txt").write_text(f"Stamp {number}.\n")
    return folder


@pytest.mark.filterwarnings("ignore")
def test_synthetic_questions(stamps: Path, tmp_path: Path) -> None:
    """Their answers follow from folder and colour."""
    data = module(
        StampQuestionsReader(folder=str(stamps)), tmp_path, val_fraction=0.2, test_fraction=0.2, fit="pad"
    )
    lines = rows_of(data)
    assert len(lines) == 60 * 4 and data.info.kinds == ["colour", "what", "yes/no"]
    for line in lines:
        (image,), (answer,) = line["image_ids"], line["answers"]
        if line["kind"] == "colour":
            assert answer == NAMES[int(Path(image).name) % 4]
        elif line["kind"] == "what":
            assert answer in shown(image)[-1]
        else:
            assert any(thing in line["question"] for thing in shown(image)) == (answer == "yes"), line


@pytest.mark.filterwarnings("ignore")
def test_synthetic_statements(stamps: Path, tmp_path: Path) -> None:
    """Each is true of two of its four pairs."""
    data = module(
        StampStatementsReader(folder=str(stamps)), tmp_path, val_fraction=0.2, test_fraction=0.2, fit="pad"
    )
    lines = rows_of(data)
    assert all(data.info.questions.values())
    by_group: dict[int, list[str]] = {}
    for line in lines:
        by_group.setdefault(line["group"], []).append(line["answers"][0])
        left, right = ("vehicles" in image for image in line["image_ids"])
        if "vehicle" in line["question"]:
            pattern = line["question"].removesuffix(" a vehicle")
            truth = {
                "both pictures show": left and right,
                "the left picture shows": left,
                "the right picture shows": right,
                "only one of the pictures shows": left != right,
            }[pattern]
            assert line["answers"] == ["true" if truth else "false"]
    assert all(sorted(answers) == ["false"] * 2 + ["true"] * 2 for answers in by_group.values())


@pytest.mark.parametrize("colour", NAMES)
def test_the_colour_of_a_thing_on_white(colour: str) -> None:
    pixels = np.full((20, 20, 3), 255, np.uint8)
    pixels[5:12, 5:12] = COLOURS[colour]
    assert main_colour(pixels) == colour
    pixels[5:12, 5:8] = (0, 0, 0)
    pixels[12:14, 5:12] = (0, 0, 0)
    assert main_colour(pixels) is None
    assert main_colour(np.full((20, 20, 3), 255, np.uint8)) is None
