"""Corpora of images with captions: their files, good and broken."""

import json
import tarfile
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from magneto.data.corpora.image.caption_file import CaptionFileReader
from magneto.data.corpora.image.coco_captions import CocoCaptionsReader
from magneto.data.corpora.image.emoji import LANGUAGES, EmojiReader
from magneto.data.corpora.image.hub_images import HubImagesReader
from magneto.data.corpora.image.webdataset import WebDatasetReader
from magneto.errors import MagnetoError


def save(path: Path, number: int) -> Path:
    """Write an image of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_lines(file: Path, *rows: Any) -> Path:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def test_a_file_of_captions(tmp_path: Path) -> None:
    file = write_lines(
        tmp_path / "a.jsonl",
        {"image": "x/1.png", "caption": " one "},
        {"image": "2.png", "caption": "deux", "language": "fr", "split": "val"},
        {"image": "x/1.png", "caption": "another"},
    )
    corpus = CaptionFileReader(str(file)).load(tmp_path)
    first, second = corpus.examples
    assert (first.id, first.image, first.split) == ("x/1.png", tmp_path / "x/1.png", None)
    assert first.captions == {"en": ["one", "another"]}
    assert (second.captions, second.split) == ({"fr": ["deux"]}, "val") and not corpus.skipped
    table = tmp_path / "a.tsv"
    table.write_text(
        "caption\timage\tcredit\r\none\tx/1.png\tme\r\n\r\nanother\tx/1.png\n", encoding="utf-8-sig"
    )
    (only,) = CaptionFileReader(str(table), language="de", folder=str(tmp_path / "p")).load(tmp_path).examples
    assert only.captions == {"de": ["one", "another"]} and only.image == tmp_path / "p/x/1.png"


def test_bad_lines_of_a_caption_file(tmp_path: Path) -> None:
    """They are listed."""
    good = json.dumps({"image": "1.png", "caption": "fine", "split": "train"}).encode()
    lines = [
        good, b"{broken", b"[1]", b'{"image": "2.png", "caption": "caf\xe9"}', b'{"image": "3.png"}', b'{"caption": "a"}',
        b'{"image": "4.png", "caption": "  "}', b'{"image": "5.png", "caption": "a", "split": "dev"}',
        b'{"image": "1.png", "caption": "a", "split": "test"}', b'{"image": "6.png", "caption": ["a", "b"]}',
    ]  # fmt: skip
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    corpus = CaptionFileReader(str(tmp_path / "a.jsonl")).load(tmp_path)
    assert [image.id for image in corpus.examples] == ["1.png"]
    assert [(item.id, item.reason) for item in corpus.skipped] == [
        ("line 2", "not valid JSON"), ("line 3", "no JSON object"), ("line 4", "not UTF-8"), ("line 5", "no caption"),
        ("line 6", "no image"), ("line 7", "no caption"), ("line 8", "split 'dev' is none of train, val, test"),
        ("line 9", "another split than the image's first line"), ("line 10", "caption is no text"),
    ]  # fmt: skip


def test_caption_files_that_cannot_be_used(tmp_path: Path) -> None:
    """They are errors that say why."""
    for reader, message in (
        ({}, "name the file"),
        ({"file": "a.csv"}, "must be .jsonl or .tsv"),
        ({"file": str(tmp_path / "none.jsonl")}, "cannot be read"),
    ):
        with pytest.raises(MagnetoError, match=message):
            CaptionFileReader(**reader).load(tmp_path)
    (tmp_path / "a.tsv").write_text("image\tcaptions\n1.png\ta\n")
    with pytest.raises(MagnetoError, match="no column 'caption'. Did you mean 'captions'"):
        CaptionFileReader(str(tmp_path / "a.tsv")).load(tmp_path)
    (tmp_path / "a.jsonl").write_text("{}\n")
    with pytest.raises(
        MagnetoError, match=r"no line can be used, the first for this reason: no image. Each needs image and"
    ):
        CaptionFileReader(str(tmp_path / "a.jsonl")).load(tmp_path)


def coco(tmp_path: Path) -> dict[str, str]:
    """COCO's own files, with two images to train on and one to validate."""
    for split, numbers in {"train": (1, 2), "val": (3,)}.items():
        content = {
            "info": {},
            "images": [{"id": n, "file_name": f"{n:012d}.jpg", "width": 8, "height": 8} for n in numbers],
            "annotations": [
                {"id": 10 * n + k, "image_id": n, "caption": f"Number {n}, {k}."} for n in numbers if n != 2 for k in (0, 1)
            ] + [{"id": 99, "image_id": 77, "caption": "Of an image that is not listed."}],
        }  # fmt: skip
        (tmp_path / f"captions_{split}2017.json").write_text(json.dumps(content))
    return {split: str(tmp_path / f"captions_{split}2017.json") for split in ("train", "val")}


def test_the_files_of_coco(tmp_path: Path) -> None:
    annotations = coco(tmp_path)
    corpus = CocoCaptionsReader(annotations, str(tmp_path)).load(tmp_path)
    images = list(corpus.examples)
    assert [image.split for image in images] == ["train", "train", "val"]
    assert images[0].image == tmp_path / "train2017/000000000001.jpg"
    assert images[0].captions == {"en": ("Number 1, 0.", "Number 1, 1.")} and images[1].captions == {}
    assert [item.reason for item in corpus.skipped] == ["caption without its image"] * 2
    beside = tmp_path / "000000000001.jpg"
    beside.touch()
    assert next(iter(CocoCaptionsReader(annotations, str(tmp_path)).load(tmp_path).examples)).image == beside


def changes_of(reader: Any, present: Path, missing: Path, bad: Path) -> None:
    """Check that an image that arrives, is replaced or vanishes is noticed, and another file is not."""
    seen = [reader.fingerprint()]
    save(bad, 0)
    assert reader.fingerprint() == seen[0] == json.loads(json.dumps(seen[0]))
    for change in (lambda: save(missing, 4), lambda: save(present, 5), missing.unlink):
        change()
        assert reader.fingerprint() not in seen[-1:]
        seen.append(reader.fingerprint())


def test_a_listed_image_that_changes_is_noticed(tmp_path: Path) -> None:
    """The prepared folder must not stay as it is when a missing image arrives."""
    lines = [
        {"image": name, "caption": "a thing"} for name in ("here.png", "gone.png", "odd\0.png", "\ud800.png")
    ]
    file = tmp_path / "captions.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    save(tmp_path / "here.png", 1)
    changes_of(
        CaptionFileReader(str(file)), tmp_path / "here.png", tmp_path / "gone.png", tmp_path / "other.png"
    )


def test_an_image_of_coco_that_changes_is_noticed(tmp_path: Path) -> None:
    """Of both forms of the annotations."""
    images = [{"id": number, "file_name": f"{number}.jpg"} for number in (1, 2)]
    notes = [{"image_id": number, "caption": "a thing"} for number in (1, 2)]
    own = tmp_path / "captions_train2017.json"
    own.write_text(json.dumps({"images": images, "annotations": notes}))
    lines = [
        {"filename": f"{n}.jpg", "filepath": "train2017", "split": "train", "sentences": []} for n in (1, 2)
    ]
    karpathy = tmp_path / "dataset_coco.json"
    karpathy.write_text(json.dumps({"images": lines}))
    present, missing = (tmp_path / f"train2017/{number}.jpg" for number in (1, 2))
    for annotations in ({"train": str(own)}, str(karpathy)):
        save(present, 1)
        changes_of(CocoCaptionsReader(annotations, str(tmp_path)), present, missing, tmp_path / "other.jpg")


def test_names_with_decomposed_accents(tmp_path: Path) -> None:
    """A list that was written on one machine finds the files of another, whose names are spelt in the other form."""
    apart, joined = (unicodedata.normalize(form, "caf\u00e9.png") for form in ("NFD", "NFC"))
    for listed, there in ((apart, joined), (joined, apart)):
        folder = tmp_path / f"{len(listed)}"
        save(folder / there, 1)
        file = write_lines(folder / "captions.jsonl", {"image": listed, "caption": "a thing"})
        (image,) = CaptionFileReader(str(file)).load(tmp_path).examples
        assert image.image == folder / there and image.id == listed


def test_the_splits_of_karpathy(tmp_path: Path) -> None:
    images = [
        {"filepath": "val2014", "filename": f"{number}.jpg", "split": split, "sentences": [{"raw": "A dog."}]}
        for number, split in enumerate(("train", "restval", "val", "test"))
    ]
    images[2]["sentences"] = [{"raw": None}]
    images[3]["sentences"] = []
    file = tmp_path / "dataset_coco.json"
    file.write_text(json.dumps({"images": images, "dataset": "coco"}))
    examples = list(CocoCaptionsReader(str(file), "coco").load(tmp_path).examples)
    assert [example.split for example in examples] == ["train", "train", "val", "test"]
    assert examples[0].image == Path("coco/val2014/0.jpg") and examples[0].captions == {"en": ("A dog.",)}
    assert examples[2].captions == {"en": ("",)} and examples[3].captions == {}
    for image in images:
        del image["filepath"]  # as in Flickr30k's
    file.write_text(json.dumps({"images": images}))
    assert next(iter(CocoCaptionsReader(str(file), "f").load(tmp_path).examples)).image == Path("f/0.jpg")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged"), (b'{"images": [', "damaged"), (b"\xff\xfe", "damaged"), (b"[]", "not of the form"),
        (b'{"images": [{"filename": "a.jpg"}]}', "not of the form"), (None, "cannot be read"),
    ],
)  # fmt: skip
def test_broken_files_of_coco(tmp_path: Path, content: bytes | None, message: str) -> None:
    """The error names the file and its fault."""
    file = tmp_path / "a.json"
    if content is not None:
        file.write_bytes(content)
    for annotations in (str(file), {"train": str(file)}):
        reader = CocoCaptionsReader(annotations, "coco")
        reader.fingerprint()
        with pytest.raises(MagnetoError, match=message):
            reader.load(tmp_path)


def test_coco_needs_its_folder_and_known_splits() -> None:
    with pytest.raises(MagnetoError, match="name COCO's captions and images"):
        CocoCaptionsReader("a.json")
    with pytest.raises(MagnetoError, match="has 'dev'"):
        CocoCaptionsReader({"dev": "a.json"}, "coco")


def test_captions_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In several columns, and in lists."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    file = save(tmp_path / "1.png", 1)
    rows = {
        "image": [{"bytes": file.read_bytes(), "path": None}] * 3,
        "caption": [["a dog", "an animal"], ["a cat", " "], []],
        "de": ["ein Hund", None, "  "],
    }
    texts = datasets.Value("string")
    features = datasets.Features(
        {"image": datasets.Image(), "caption": datasets.Sequence(texts), "de": texts}
    )
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "x.parquet")
    reader = HubImagesReader(
        "parquet", data_files={"train": str(tmp_path / "x.parquet")}, splits={"train": "train"}, label=None,
        caption={"en": "caption", "de": "de"},
    )  # fmt: skip
    captions = [image.captions for image in reader.load(tmp_path).examples]
    assert captions == [{"en": ["a dog", "an animal"], "de": ["ein Hund"]}, {"en": ["a cat"]}, {}]
    with pytest.raises(MagnetoError, match="no column 'fr'"):
        HubImagesReader(
            "parquet", data_files={"train": str(tmp_path / "x.parquet")}, splits={"train": "train"}, label=None,
            caption={"fr": "fr"},
        ).load(tmp_path)  # fmt: skip


def test_captions_of_shards(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for key, kind, text in (("1", "txt", "a dog"), ("2", "json", '{"caption": "a cat"}')):
            tar.add(save(tmp_path / f"{key}.png", int(key)), f"{key}.png")
            (tmp_path / f"{key}.{kind}").write_text(text)
            tar.add(tmp_path / f"{key}.{kind}", f"{key}.{kind}")
    corpus = WebDatasetReader(str(tmp_path / "*.tar")).load(tmp_path)
    assert [image.captions for image in corpus.examples] == [{"en": "a dog"}, {"en": "a cat"}]


def test_emoji_take_all_their_languages_for_none() -> None:
    assert EmojiReader(languages=None).languages == LANGUAGES
    with pytest.raises(MagnetoError, match="has 'nl'"):
        EmojiReader(languages=["en", "nl"])
