"""Images in folders of classes and in tar shards: good ones, and all that is irregular or broken."""

import bz2
import gzip
import json
import lzma
import unicodedata
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from magneto.data.corpora.image.image_folder import ImageFolderReader
from magneto.data.corpora.image.webdataset import WebDatasetReader
from magneto.data.io.image import read_image
from magneto.data.io.tar import Slice
from magneto.errors import MagnetoError
from tests.toys.corpora import noise, png, read, shard, write

# ------------------------------------------------------------------------------------------------ folders


def tree(root: Path, **sides: dict[str, int]) -> Path:
    """root/SIDE/CLASS/n.png; side "_" for none."""
    root.mkdir(exist_ok=True)
    for side, classes in sides.items():
        for name, count in classes.items():
            for number in range(count):
                content = png(zlib.crc32(f"{side}{name}{number}".encode()))
                write(root / side.strip("_") / name / f"{number}.png", content)
    return root


def test_split_folders_are_the_splits(tmp_path):
    root = tree(
        tmp_path / "x", train={"cat": 4, "dog": 3}, val={"cat": 2, "dog": 1}, test={"dog": 2}, more={"a": 1}
    )
    images, skipped = read(ImageFolderReader(str(root)), tmp_path)
    assert Counter(f"{image.split} {image.label}" for image in images) == {
        "train cat": 4, "train dog": 3, "val cat": 2, "val dog": 1, "test dog": 2
    }  # fmt: skip
    assert "train/cat/0.png" in {image.id for image in images}
    assert skipped == {"folder beside those of the splits": 1}


def test_val_is_the_test_as_in_imagenet(tmp_path):
    """A share of train is the validation."""
    root = tree(tmp_path / "x", train={"n01": 30, "n02": 30}, val={"n01": 4, "n02": 4})
    images, _ = read(ImageFolderReader(str(root), validation=0.1), tmp_path)
    assert Counter(image.split for image in images) == {"train": 54, "val": 6, "test": 8}
    assert all(image.id.startswith("val/") == (image.split == "test") for image in images)


def test_every_file_is_read_or_counted(tmp_path):
    """Classes may be deep; an image is left out for its name alone only with a word."""
    root = tree(tmp_path / "x", _={"cat": 1, "dog/young": 1})
    good = ("a.JFIF", "b.jpe", "c.pbm", "d.pnm", "e.jif")
    for number, name in enumerate((*good, "f.avif", "g.HEIC", "h.svgz", "plain", ".hidden")):
        write(root / "cat" / name, png(number))
    (root / "empty").mkdir()
    write(root / "stray.png", png(1))
    images, skipped = read(ImageFolderReader(str(root)), tmp_path)
    assert {image.id for image in images} == {
        "cat/0.png",
        "dog/young/0.png",
        *(f"cat/{name}" for name in good),
    }
    assert {(image.label, image.split) for image in images} == {("cat", None), ("dog", None)}
    endings = {f"names that end in {ending} are not read": 1 for ending in (".avif", ".heic", ".svgz")}
    assert skipped == {
        **endings, "names without an ending are not read": 1, "class folder without images": 1, "in no folder of a class": 1
    }  # fmt: skip


@pytest.mark.parametrize(
    ("sides", "options", "message"),
    [
        ({"val": {"cat": 1}}, {}, "no folder `train`"),
        ({"train": {"cat": 1}}, {}, "no folder `val`"),
        ({"train": {"cat": 1}, "val": {"dog": 1}}, {}, "val has classes that train has not: dog"),
        ({"_": {}}, {}, "no folder with images"),
        ({"_": {"cat": 1}}, {"validation": 1.5}, "between 0 and 1"),
        ({"_": {"cat": 1}}, {"validation": 0.1}, "share of the folder `train`, and there is none"),
        (
            {"train": {"a": 9}, "val": {"a": 1}, "test": {"a": 1}},
            {"validation": 0.1},
            "leave out `validation`",
        ),
        (
            {"train": {"a": 1}, "val": {"a": 1}, "validation": {"a": 1}},
            {},
            "val and validation are both the val split",
        ),
        (
            {"_": {"bus": 2, "train": 3, "test": 1}},
            {},
            r"no folder `val`.*set data.corpora...classes_only=true",
        ),
        ({"_": {"cat": 1}}, {"names": "none.tsv"}, "cannot be read"),
        ({"_": {"n01": 1, "n02": 1}}, {"names": "one.tsv"}, "no line for the folder n02"),
        ({"_": {"n01": 1}}, {"names": "bad.tsv"}, "line 1: 'n01 goldfish'"),
        ({}, {"folder": None}, "name the folder"),
        ({}, {"folder": "none"}, "no such folder"),
    ],
)
def test_trees_that_cannot_be_used(tmp_path, monkeypatch, sides, options, message):
    monkeypatch.chdir(tmp_path)
    tree(tmp_path / "x", **sides)
    write(tmp_path / "one.tsv", "n01\tgoldfish\n")
    write(tmp_path / "bad.tsv", "n01 goldfish\n")
    with pytest.raises(MagnetoError, match=message):
        ImageFolderReader(**{"folder": "x", **options}).load(tmp_path)


def test_classes_that_are_called_as_splits(tmp_path):
    root = tree(tmp_path / "x", _={"bus": 2, "train": 3, "test": 1})
    images, _ = read(ImageFolderReader(str(root), classes_only=True), tmp_path)
    assert Counter((image.split, image.label) for image in images) == {
        (None, "bus"): 2, (None, "train"): 3, (None, "test"): 1
    }  # fmt: skip


def test_names_of_the_models_classes(tmp_path):
    """An evaluation set translates its folders into them; accents may be written apart; a line ends with a line feed."""
    apart, joined = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFD", "NFC"))
    root = tree(tmp_path / "x", _={"n01": 2, "n02": 1, apart: 1, joined: 1})
    names = write(
        tmp_path / "names.tsv", f"n01\ta\u2028b\u0085c\nn02\twhite shark\nn03\tray\n{joined}\tcoffee\n"
    )
    corpus = ImageFolderReader(str(root), evaluation=True, names=str(names)).load(tmp_path)
    assert corpus.evaluation_only and set(corpus.labels) == {"a\u2028b\u0085c", "white shark", "coffee"}
    assert {image.split for image in corpus.examples} == {"test"}


def test_linked_folders_hold_images_too(tmp_path):
    """As torchvision's ImageFolder reads them; a link back to where it is ends nothing and doubles nothing."""
    elsewhere = tree(tmp_path / "elsewhere", _={"more": 3, "more/deep": 2})
    root = tree(tmp_path / "x", train={"cat": 2, "cat/real": 1}, val={"cat": 1})
    (root / "train/cat/a_link").symlink_to(elsewhere / "more")
    ids = {image.id for image in read(ImageFolderReader(str(root)), tmp_path)[0]}
    assert len(ids) == 2 + 1 + 5 + 1 and {"train/cat/a_link/0.png", "train/cat/a_link/deep/1.png"} <= ids
    for name, target in {"self": ".", "up": "..", "root": root, "again": elsewhere, "twice": "real"}.items():
        (root / "train/cat" / name).symlink_to(target)
        (elsewhere / "more/deep" / name).symlink_to(root / "train/cat")
    (tmp_path / "linked").symlink_to(root)
    for folder in (root, tmp_path / "linked"):
        assert {image.id for image in read(ImageFolderReader(str(folder)), tmp_path)[0]} == ids


@pytest.mark.parametrize("linked", ["", "class", "split", "root", "file"])
def test_any_change_below_a_folder_is_noticed(tmp_path, linked):
    """An image added, replaced or removed, or a class added, is other data, behind links too."""
    real, root = tree(tmp_path / "real", train={"cat": 2}, val={"cat": 2}), tmp_path / "x"
    parts = {"split": [""], "class": ["cat"], "file": ["cat/0.png", "cat/1.png"]}.get(linked, [])
    for name in [f"{side}/{part}" for side in ("train", "val") for part in parts]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(real / name)
    if linked == "root":
        root.symlink_to(real)
    reader = ImageFolderReader(str(root if linked else real))
    seen = [reader.fingerprint()]
    image, other = real / "train/cat/0.png", tmp_path / "d"
    changes = [lambda: write(image, png(7, 20))]
    if linked != "file":
        changes += [lambda: write(real / "train/cat/new.png", png(8)), image.unlink]
    changes += [
        lambda: (reader.folder / "train/dog").symlink_to(write(other / "a.png", png(3)).parent),
        lambda: write(other / "b.png", png(4)),
    ]
    for change in changes:
        assert reader.fingerprint() == seen[-1]
        change()
        assert reader.fingerprint() not in seen
        seen.append(reader.fingerprint())


# ------------------------------------------------------------------------------------------------ WebDataset


def test_shards_are_read_in_place(tmp_path):
    members = {"x/001.jpg": png(1), "x/001.cls": b"10\n", "x/002.json": b'{"label": 2, "caption": "A cat."}',
               "x/002.png": png(2), "x/003.png": png(3), "x/003.txt": b"Ein Hund."}  # fmt: skip
    shard(tmp_path / "a-0.tar", members)
    reader = WebDatasetReader(str(tmp_path / "*.tar"), language="de")
    images, _ = read(reader, tmp_path)
    assert [(image.id, image.label, image.captions) for image in images] == [
        ("a-0.tar/x/001", "10", {}), ("a-0.tar/x/002", "2", {"de": "A cat."}), ("a-0.tar/x/003", None, {"de": "Ein Hund."})
    ]  # fmt: skip
    assert reader.load(tmp_path).labels == ("2", "10")  # as numbers
    for number, image in enumerate(images, 1):
        assert isinstance(image.image, Slice)
        assert np.array_equal(np.asarray(read_image(image.image)), noise(number))


def test_splits_and_names_of_classes(tmp_path):
    for side, count in (("train", 3), ("val", 2), ("test", 1)):
        members = {
            f"{n}.{kind}": data for n in range(count) for kind, data in (("png", png(n)), ("cls", b"1"))
        }
        shard(tmp_path / f"{side}-0.tar", members)
    names = write(tmp_path / "names.txt", "cat\ndog\n")
    shards = {side: str(tmp_path / f"{side}-*.tar") for side in ("train", "val", "test")}
    corpus = WebDatasetReader(shards, labels=str(names)).load(tmp_path)
    assert Counter(image.split for image in corpus.examples) == {"train": 3, "val": 2, "test": 1}
    assert corpus.labels == ("cat", "dog") and {image.label for image in corpus.examples} == {"dog"}
    alone, _ = read(WebDatasetReader({"train": shards["train"]}), tmp_path)
    assert {image.split for image in alone} == {None}


def test_broken_samples_of_a_shard(tmp_path):
    """They are listed, and the others are used."""
    names = write(tmp_path / "names.txt", "cat\ndog\n")
    members = {"1.png": png(1), "1.cls": b"7", "2.cls": b"1", "3.png": png(3), "3.json": b"{", "4.png": png(4),
               "4.cls": b"\xff\xfe", "5.png": png(5), "5.cls": b"dog", "6.png": png(6, 40)}  # fmt: skip
    path = shard(tmp_path / "a.tar", members)
    content = path.read_bytes()
    write(path, content[: content.index(png(6, 40)[:60]) + 100])  # cut within the last image
    images, skipped = read(WebDatasetReader(str(path), labels=str(names)), tmp_path)
    assert [image.label for image in images if image.id == "a.tar/5"] == ["dog"]
    assert skipped["unknown class '7'"] == skipped["sample without an image"] == 1
    assert skipped["damaged .json, .cls or .txt"] == 2
    broken = write(tmp_path / "b.tar", b"no tar file at all")
    assert read(WebDatasetReader(str(broken)), tmp_path) == ([], {"shard breaks off": 1})


def test_a_key_ends_at_its_first_dot(tmp_path):
    """Of several images of a sample the one that is called KEY.jpg is taken, and the others are listed."""
    depth = {f"{n}.{kind}": png(10 * n + len(kind)) for n in (1, 2) for kind in ("depth.png", "jpg")}
    shard(tmp_path / "depth.tar", {name: depth[name] for name in sorted(depth)})
    corpus = WebDatasetReader(str(tmp_path / "depth.tar")).load(tmp_path)
    for number, image in enumerate(corpus.examples, 1):
        assert np.array_equal(np.asarray(read_image(image.image)), noise(10 * number + 3))
    assert [item.id for item in corpus.skipped] == ["depth.tar/1.depth.png", "depth.tar/2.depth.png"]
    shard(tmp_path / "dots.tar", {f"img.v2.{n}.{kind}": png(n) for n in range(3) for kind in ("jpg", "cls")})
    dots, skipped = read(WebDatasetReader(str(tmp_path / "dots.tar")), tmp_path)
    assert len(dots) == 1 and skipped == {"further image of a sample (a key ends at its first dot)": 2}


def test_members_in_any_order_make_samples(tmp_path):
    """As `tar cf x.tar *.jpg *.cls` writes them; a second sample of one name stays one."""
    members = {f"{n}.jpg": png(n) for n in range(4)} | {f"{n}.cls": str(n % 2).encode() for n in range(4)}
    path = shard(tmp_path / "a.tar", members)
    shard(path, {"0.jpg": png(9), "0.cls": b"7"}, "a")
    images, skipped = read(WebDatasetReader(str(path)), tmp_path)
    ids = [*((f"a.tar/{n}", str(n % 2)) for n in range(4)), ("a.tar/0 (2)", "7")]
    assert [(image.id, image.label) for image in images] == ids and not skipped


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_compressed_shard_is_called_so(tmp_path, pack):
    """Single members of it cannot be read where they are."""
    path = shard(tmp_path / "a.tar", {"1.jpg": png(1)})
    write(path, pack(path.read_bytes()))
    reason = "compressed shard: unpack it, as with gunzip"
    assert read(WebDatasetReader(str(path)), tmp_path) == ([], {reason: 1})


def test_several_texts_and_classes_of_a_sample(tmp_path):
    """Each line of KEY.txt, and each text of a list in KEY.json, is a caption; several classes are none."""
    facts = {"2": {"caption": ["a cat", " ", None, "an animal"]}, "3": {"label": ["rows"]},
             "4": {"label": ["a", "b"]}, "5": {"label": [1, 2], "caption": "a dog"}}  # fmt: skip
    members: dict[str, bytes] = {"1.txt": "\ufeffa dog\r\n\nan animal\n".encode()}
    members |= {f"{key}.json": json.dumps(values).encode("utf-8-sig") for key, values in facts.items()}
    members |= {f"{n}.png": png(n) for n in range(1, 6)}
    images, skipped = read(WebDatasetReader(str(shard(tmp_path / "a.tar", members))), tmp_path)
    assert {image.id[-1]: (image.label, image.captions) for image in images} == {
        "1": (None, {"en": ["a dog", "an animal"]}), "2": (None, {"en": ["a cat", "an animal"]}), "3": ("rows", {}),
        "5": (None, {"en": "a dog"}),
    }  # fmt: skip
    assert skipped == {"several classes": 1}


def test_shards_by_range_and_with_brackets(tmp_path):
    """`{000..012}` is the usual notation; what is a name already is no glob."""
    folder = tmp_path / "set[1]"
    for number in (*range(8, 13), 100):
        shard(folder / f"a-{number:03d}.tar", {f"{number}.png": png(number)})
    odd = shard(folder / "odd[2]*.tar", {"x.png": png(1)})

    def keys(*patterns: str) -> list[str]:
        images, _ = read(WebDatasetReader([str(folder / pattern) for pattern in patterns]), tmp_path)
        return [image.id.rpartition("/")[2] for image in images]

    assert keys("a-{008..012}.tar") == ["8", "9", "10", "11", "12"]
    assert keys("a-0{09..10}.tar", "{odd[2]*,a-100}.tar") == ["9", "10", "x", "100"]
    assert keys("a-01*.tar") == ["10", "11", "12"] and keys("odd[2]*.tar") == ["x"]
    before = WebDatasetReader(str(odd)).fingerprint()
    shard(odd, {"y.png": png(2), "z.png": png(3)}, "a")
    assert WebDatasetReader(str(odd)).fingerprint() != before
    with pytest.raises(MagnetoError, match=r"no file fits shards=.*a-013.tar. Name tar files, by a glob"):
        keys("a-{012..013}.tar")


def test_shards_that_are_not_named():
    for shards, message in ((None, "name the tar files"), ({"training": "a"}, "train, val and test")):
        with pytest.raises(MagnetoError, match=message):
            WebDatasetReader(shards)
