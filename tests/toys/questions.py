"""Images of one colour, asked about in the file formats of VQA and NLVR2, and described in captions."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 16
COLOURS = {"red": (200, 30, 30), "green": (30, 180, 40), "blue": (40, 60, 210), "yellow": (230, 220, 40)}
NAMES = tuple(COLOURS)
IMAGES = {"train": 40, "val": 12}
SUBSETS = {"train": "train2014", "val": "val2014"}


def write_image(file: Path, colour: str, seed: int) -> None:
    """SIZE x SIZE pixels of that colour, with some noise."""
    noise = np.random.default_rng(seed).normal(0, 8, (SIZE, SIZE, 3))
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.array(COLOURS[colour]) + noise).clip(0, 255).astype(np.uint8)).save(file)


def write_vqa(folder: Path) -> Path:
    """`folder`/train2014/COCO_train2014_000000000001.jpg..., v2_train_questions.json and v2_train_annotations.json..."""
    for split, subset in SUBSETS.items():
        questions, annotations = [], []
        for number in range(1, IMAGES[split] + 1):
            colour, asked = NAMES[number % 4], NAMES[number // 4 % 4]
            write_image(
                folder / subset / f"COCO_{subset}_{number:012d}.jpg", colour, number + 1000 * (split == "val")
            )
            yes_no = "yes" if colour == asked else "no"
            for place, (text, kind, answers) in enumerate(
                (
                    ("What colour is it?", "other", [f"{colour.title()}."] + [colour] * 7 + ["dark"] * 2),
                    (f"Is it {asked}?", "yes/no", [yes_no] * 10),
                )
            ):
                question = {"image_id": number, "question_id": 1000 * number + place}
                questions.append({**question, "question": text})
                given = [{"answer": answer, "answer_id": n} for n, answer in enumerate(answers, 1)]
                annotations.append({**question, "answer_type": kind, "answers": given})
        for name, entries in (("questions", questions), ("annotations", annotations)):
            content = {"data_subtype": subset, "data_type": "mscoco", name: entries}
            (folder / f"v2_{split}_{name}.json").write_text(json.dumps(content))
    return folder


def vqa_files(folder: Path) -> dict[str, dict[str, str]]:
    """The arguments of `VqaReader` but for the folder."""
    return {
        name: {split: str(folder / f"v2_{split}_{name}.json") for split in SUBSETS}
        for name in ("questions", "annotations")
    }


def write_nlvr2(folder: Path) -> Path:
    """`folder`/train.json and dev.json, images/train/DIRECTORY/train-0-0-img0.png..., dev/dev-0-0-img0.png..."""
    random = np.random.default_rng(0)
    for split, sets in (("train", 20), ("dev", 6)):
        lines = []
        for number in range(sets):
            colour = NAMES[number % 4]
            others = [name for name in NAMES if name != colour]
            for pair in range(4):
                truth = [(True, True), (True, False), (False, True), (False, False)][pair]
                directory = str(number % 3)
                place = folder / ("images/train" if split == "train" else "dev")
                for side, has in enumerate(truth):
                    file = f"{split}-{number}-{pair}-img{side}.png"
                    name = colour if has else str(random.choice(others))
                    target = place / directory / file if split == "train" else place / file
                    seed = 1000 * number + 10 * pair + side
                    write_image(target, name, seed + 500 * (split == "dev"))
                for sentence, (text, label) in enumerate(
                    (
                        (f"Both images are {colour}.", truth == (True, True)),
                        (f"The left image is {colour}.", truth[0]),
                    )
                ):
                    line = {
                        "identifier": f"{split}-{number}-{pair}-{sentence}",
                        "sentence": text,
                        "label": str(label),
                    }
                    lines.append(line | ({"directory": int(directory)} if split == "train" else {}))
        (folder / f"{split}.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def nlvr2_files(folder: Path) -> dict[str, dict[str, str]]:
    """The arguments of `Nlvr2Reader`."""
    return {
        "files": {"train": str(folder / "train.json"), "val": str(folder / "dev.json")},
        "folders": {"train": str(folder / "images/train"), "val": str(folder / "dev")},
    }


def write_captions(folder: Path) -> Path:
    """`folder`/captions.jsonl, a caption of each image of `write_vqa` with the words of its questions."""
    lines = [
        {
            "image": f"{subset}/COCO_{subset}_{number:012d}.jpg",
            "caption": f"is it {NAMES[number % 4]}? what colour is image {number}? both are left",
            "split": split,
        }
        for split, subset in SUBSETS.items()
        for number in range(1, IMAGES[split] + 1)
    ]
    file = folder / "captions.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def overrides_of(source: str, arguments: dict[str, dict[str, str]]) -> list[str]:
    """Arguments of a source as overrides: `data.corpora.vqa.questions={train: ..., val: ...}`."""
    return [
        f"data.corpora.{source}.{key}={{{', '.join(f'{split}: {file}' for split, file in files.items())}}}"
        for key, files in arguments.items()
    ]


TOY_IMAGES = (
    f"data.image_size={SIZE}",
    "data.patch_size=4",
    "data.augment=null",
    "data.batch_size=16",
    "data.prepare_workers=1",
    "data.lowercase=true",
    "data.tokenizer={kind: byte_bpe, vocab_size: 280}",
)
