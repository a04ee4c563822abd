"""Images from corpora to batches: what is prepared, what is left out, what a batch holds, and that it is repeatable."""

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from magneto.data.corpora.base import LazyExamples
from magneto.data.corpora.image.base import ImageCorpus, ImageExample
from magneto.data.corpora.image.image_folder import ImageFolderReader
from magneto.data.image import build
from magneto.data.image.dataset import ImageInfo, user_images
from magneto.data.image.module import ImageDataModule
from magneto.data.io.image import read_image
from magneto.errors import MagnetoError

SIZE = 8
COLOURS = {"blue": (20, 40, 220), "red": (220, 30, 10)}


def example(label: str, number: int, width: int = 12, height: int = 10) -> Image.Image:
    """An image of its class's colour with noise, different for each number."""
    noise = np.random.default_rng(number).integers(-20, 20, (height, width, 3))
    return Image.fromarray((np.array(COLOURS[label]) + noise).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path) -> Path:
    """Class-per-folder, 20 training images, 6 to validate, 6 to test."""
    root = tmp_path / "images"
    for start, (side, count) in enumerate({"train": 10, "val": 3, "test": 3}.items()):
        for label in COLOURS:
            for number in range(count):
                path = place(root / side / label / f"{number}.png")
                example(label, 100 * start + number + 50 * (label == "red")).save(path)
    return root


@pytest.fixture
def module(folder, tmp_path):
    """`module(store="files", ...)`: prepared images of that folder."""

    def make(root: Path = folder, setup: bool = True, source: dict[str, Any] | None = None, **options: Any):
        values = {
            "image_size": SIZE,
            "batch_size": 4,
            "data_dir": str(tmp_path / "data"),
            "seed": 1,
            **options,
        }
        data = ImageDataModule({"own": ImageFolderReader(str(root), **(source or {}))}, **values)
        data.prepare()
        if setup:
            data.setup()
        return data

    return make


def batches(data: ImageDataModule, epochs: int = 1) -> list[dict[str, Any]]:
    data.configure_run(epochs * data.batches_per_epoch())
    return list(data.train_dataloader())


def place(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def evaluated(images: Iterable[Image.Image], info: ImageInfo) -> torch.Tensor:
    return info.normalise(torch.stack([torch.tensor(info.evaluation_image(image)) for image in images]))


def by_id(found: list[dict[str, Any]], key: str = "image") -> dict[int, torch.Tensor]:
    return {
        int(number): value for batch in found for number, value in zip(batch["id"], batch[key], strict=True)
    }


@pytest.mark.parametrize("store", ["shards", "files"])
def test_a_batch(module, store):
    """Normalised images with their labels, each image once in an epoch."""
    data = module(store=store)
    assert data.train_set.table.stored == (store == "shards")
    info = data.info
    assert info.examples == {"train": 20, "val": 6, "test": 6}
    assert info.label_counts["train"] == {"blue": 10, "red": 10} and info.labels == ["blue", "red"]
    first = batches(data)
    assert [len(batch["id"]) for batch in first] == [4] * 5 and len(by_id(first)) == 20
    batch = first[0]
    assert batch["image"].shape == (4, 3, SIZE, SIZE) and batch["image"].dtype == torch.float32
    assert batch["label"].dtype == batch["id"].dtype == torch.int64
    everything = torch.stack(list(by_id(first).values()))
    assert everything.mean((0, 2, 3)).abs().max() < 0.05
    if store == "shards":  # files are measured in their own size, and this noise is smoothed in a smaller one
        assert (everything.std((0, 2, 3)) - 1).abs().max() < 0.05
    reddish = (everything[:, 0].mean((1, 2)) > 0).long()
    assert torch.equal(reddish, torch.stack(list(by_id(first, "label").values())))


def test_stored_pixels(module):
    """They are those of the files, and `info.pixels` inverts `info.normalise`."""
    data = module()
    ids = dict(zip(data.table("val").numbers("row"), data.table("val").arrow["id"].to_pylist(), strict=True))
    batch = next(iter(data.val_dataloader()))
    shown = data.info.pixels(batch["image"]).numpy()
    for number, pixels in zip(batch["id"].tolist(), shown, strict=True):
        path = data.corpora["own"].folder / ids[number].removeprefix("own/")
        assert np.array_equal(pixels, data.info.evaluation_image(read_image(path)))


def test_both_stores_evaluate_alike(module):
    """Pixels are equal; mean and deviation nearly so."""
    shards, files = module(store="shards"), module(store="files")
    one, other = (next(iter(data.test_dataloader())) for data in (shards, files))
    pixels = [data.info.pixels(batch["image"]) for data, batch in ((shards, one), (files, other))]
    assert torch.equal(*pixels)
    assert np.allclose(shards.info.mean, files.info.mean, atol=0.01)


def test_grey_images(module):
    data = module(channels=1)
    batch = next(iter(data.val_dataloader()))
    assert len(data.info.mean) == 1 and batch["image"].shape[1:] == (1, SIZE, SIZE)


def test_bad_images_are_skipped(module, folder, caplog):
    """They are counted and listed, whatever the store; the others are used."""
    good = encoded(example("red", 900), "PNG")
    train = folder / "train/red"
    broken = {"truncated.png": good[:200], "zero.png": b"", "text.jpg": b"hello",
              "one.png": encoded(Image.new("RGB", (1, 1)))}  # fmt: skip
    for name, content in broken.items():
        (train / name).write_bytes(content)
    (train / "wrong_extension.jpg").write_bytes(good)
    Image.new("CMYK", (9, 9), (0, 255, 255, 0)).save(train / "cmyk.jpg")
    (folder / "train/empty").mkdir()
    (train / "nowhere.png").symlink_to(train / "gone.png")
    for store in ("shards", "files"):
        data = module(store=store)
        report = json.loads((data.folder / "prepare_report.json").read_text())
        assert data.info.examples["train"] == 22
        assert report["skipped_by_reason"] == {
            "truncated or damaged": 1,
            "empty file": 1,
            "not an image": 1,
            "a single row or column of pixels": 1,
            "file cannot be read": 1,
            "class folder without images": 1,
        }
        listed = {Path(item["file"]).name for item in report["skipped"]}
        assert listed == {*broken, "nowhere.png", "empty"}
        assert len(by_id(batches(data))) == 22
    assert "listed in" in caplog.text


def test_a_class_of_bad_images_alone(module, folder):
    """It is reported, and is no label."""
    for side in ("train", "val"):
        (folder / side / "violet").mkdir(exist_ok=True)
        (folder / side / "violet/a.png").write_bytes(b"hello")
    data = module()
    report = json.loads((data.folder / "prepare_report.json").read_text())
    assert report["skipped_by_reason"] == {"not an image": 2, "class without a usable image": 1}
    assert "violet" not in data.info.labels and "violet" not in data.info.label_counts["train"]


def test_copies_are_on_one_side(module, folder):
    """A copy of a test image in another split is left out; copies in training stay."""
    (folder / "train/red/copy.png").write_bytes((folder / "test/red/1.png").read_bytes())
    (folder / "val/red/copy.png").write_bytes((folder / "test/red/1.png").read_bytes())
    (folder / "train/red/twice.png").write_bytes((folder / "train/red/1.png").read_bytes())
    data = module()
    assert data.info.examples == {"train": 21, "val": 6, "test": 6}
    report = json.loads((data.folder / "prepare_report.json").read_text())
    assert report["skipped_by_reason"] == {"copy of an image on another side of the split": 2}
    assert len(by_id(batches(data))) == 21


def test_splits_by_hash(module, folder):
    """Where the corpus states none; a split that is left empty is an error."""
    data = module(root=folder / "train", val_fraction=0.3, test_fraction=0.3)
    counts = data.info.examples
    assert sum(counts.values()) == 20 and min(counts.values()) > 0
    with pytest.raises(MagnetoError, match="No usable image is left for the val split"):
        module(root=folder / "train", val_fraction=0.0)


def test_without_a_test_split(module, folder, caplog):
    """The validation images serve as the test, with a warning."""
    for path in sorted((folder / "test").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (folder / "test").rmdir()
    data = module()
    assert "serve as the test too" in caplog.text
    ids = [by_id(list(loader)).keys() for loader in (data.val_dataloader(), data.test_dataloader())]
    assert ids[0] == ids[1] and len(ids[0]) == 6


class InMemory:
    """A corpus that gives bytes and pixels, as data sets of the hub and fonts do; one image has no class."""

    def __init__(self, encode: bool) -> None:
        self.encode = encode

    def fingerprint(self) -> dict[str, Any]:
        return {"encode": self.encode}

    def load(self, data_dir: Path) -> ImageCorpus:
        def images():
            for number in range(30):
                image = example("red", number)
                split = "val" if number < 5 else "test" if number < 10 else "train"
                data = encoded(image) if self.encode else np.asarray(image)
                yield ImageExample(id=str(number), image=data, label="red" if number else None, split=split)

        return ImageCorpus(examples=LazyExamples(images, count=30), labels=("red",))


@pytest.mark.parametrize("encode", [True, False])
def test_images_in_memory(tmp_path, encode):
    """Encoded bytes or pixels are kept in the prepared folder; both stores read them alike."""
    shown = []
    for store in ("files", "shards"):
        data = ImageDataModule(
            {"m": InMemory(encode)}, image_size=10, data_dir=str(tmp_path / "data"), store=store, batch_size=8
        )
        data.prepare()
        data.setup()
        batch = next(iter(data.val_dataloader()))
        assert batch["label"].tolist() == [-1, 0, 0, 0, 0]
        shown.append(data.info.pixels(batch["image"]))
        names = data.table("val").arrow.column_names
        assert ("encoded" in names, "pixels" in names) == (store == "files", store == "shards")
    assert torch.equal(*shown)


def test_store_auto(module, monkeypatch):
    """Pixels are stored as long as they are below the limit."""
    assert module(store="auto").train_set.table.stored
    monkeypatch.setattr(build, "SHARD_LIMIT", 32 * 3 * SIZE**2 - 1)
    data = module(store="auto", val_fraction=0.1)  # another setting, so that it is prepared again
    assert not data.train_set.table.stored and len(by_id(batches(data))) == 20


def test_the_size_makes_another_folder(module):
    """Where pixels are stored; files have their own size."""
    for store, same in (("shards", False), ("files", True)):
        assert (module(store=store).folder == module(store=store, image_size=6).folder) == same


def test_a_file_gone_since_prepare(module, folder):
    """The error names it."""
    data = module(store="files")
    (folder / "val/red/0.png").unlink()
    with pytest.raises(MagnetoError, match=r"0\.png: file cannot be read"):
        list(data.val_dataloader())


AUGMENT = {"crop_scale": [0.3, 0.9], "flip": True, "erase": 0.5, "color_jitter": 0.4}


@pytest.mark.parametrize("store", ["shards", "files"])
def test_augmentation_repeats(module, store):
    """It follows from seed, epoch and image alone: not from batch size or workers."""
    options = {"augment": AUGMENT, "store": store, "patch_size": 2, "masking": {"ratio": 0.4}}
    data = module(**options)
    run = batches(data, epochs=2)
    first, second = by_id(run[:5]), by_id(run[5:])
    masks = by_id(run[:5], "masked")
    assert all(not torch.equal(first[number], second[number]) for number in first)
    other = module(**options, batch_size=7, num_workers=2)
    for number, image in by_id(batches(other)).items():
        assert torch.equal(image, first[number])
    assert all(torch.equal(mask, masks[n]) for n, mask in by_id(batches(other), "masked").items())
    reseeded = by_id(batches(module(**options | {"seed": 2})))
    assert all(not torch.equal(reseeded[number], first[number]) for number in first)


def test_evaluation_is_the_same_in_all_runs(module):
    """It is not augmented, and its masks do not depend on the seed."""
    plain = next(iter(module(patch_size=2, masking={}).val_dataloader()))
    batch = next(iter(module(patch_size=2, masking={}, augment=AUGMENT, seed=5).val_dataloader()))
    assert torch.equal(batch["image"], plain["image"]) and torch.equal(batch["masked"], plain["masked"])
    assert batch["masked"].shape == (3, 16) and batch["masked"].dtype == torch.bool
    assert (batch["masked"].sum(1) == 6).all()


@pytest.mark.parametrize("store", ["shards", "files"])
def test_eval_crop(tmp_path, module, store):
    """Evaluation sees the middle of an image."""
    image = Image.new("RGB", (40, 40), (200, 0, 0))
    image.paste((0, 200, 0), (8, 8, 32, 32))
    for side in ("train", "val", "test"):
        for number in range(2):
            image.putpixel((0, 0), (number, ord(side[0]), ord(side[1])))
            image.save(place(tmp_path / f"frames/{side}/x/{number}.png"))
    data = module(root=tmp_path / "frames", store=store, eval_crop=0.5, image_size=40, batch_size=2)
    shown = data.info.pixels(next(iter(data.val_dataloader()))["image"])
    assert torch.equal(shown, torch.tensor([0, 200, 0], dtype=torch.uint8).view(1, 3, 1, 1).expand_as(shown))


def test_fit_pad(module, tmp_path):
    """All of a drawing is kept, on white."""
    for side in ("train", "val"):
        for number in range(2):
            image = Image.new("RGB", (40, 20), (number, ord(side[0]), 0))
            image.save(place(tmp_path / f"wide/{side}/x/{number}.png"))
    for store in ("shards", "files"):
        data = module(root=tmp_path / "wide", store=store, fit="pad", image_size=20)
        shown = data.info.pixels(next(iter(data.val_dataloader()))["image"])
        assert (shown[:, :, 0] == 255).all() and (shown[:, :, 10] < 200).all()
        augmented = module(
            root=tmp_path / "wide", store=store, fit="pad", image_size=20, augment={"flip": True}
        )
        whole, mirrored = (d.info.pixels(batches(d)[0]["image"]).float().mean() for d in (data, augmented))
        assert abs(whole - mirrored) < 2  # of 255: nothing is cut off


def test_for_model(module, folder):
    """Sizes and label indices are those of the checkpoint's model; unknown classes are an error."""
    model = module().info.to_dict() | {
        "labels": ["green", "red", "blue"],
        "image_size": 12,
        "mean": [0.1] * 3,
    }
    data = module(setup=False)
    own = data.folder
    data = data.for_model(model)
    assert data.folder != own
    table = data.table("test")
    batch = next(iter(data.test_dataloader()))
    assert batch["image"].shape[-1] == 12
    position = dict(zip(table.numbers("row").tolist(), range(len(table)), strict=True))
    places = np.array([position[row] for row in batch["id"].tolist()])
    labels = table.numbers("label")[places]
    assert batch["label"].tolist() == [{0: 2, 1: 1}[label] for label in labels.tolist()]
    assert batch["classes"].tolist() == [1, 2]  # green is no answer here
    pixels = torch.from_numpy(table.pixels(places)).float()
    expected = (pixels / 255 - 0.1) / torch.tensor(model["std"]).view(3, 1, 1)
    assert torch.allclose(batch["image"], expected, atol=1e-5)
    with pytest.raises(MagnetoError, match="does not know: blue, red; the model has green"):
        module(setup=False).for_model(model | {"labels": ["green"]})
    unlabelled = module(setup=False)
    unlabelled = unlabelled.for_model(model | {"labels": []})  # a model without classes takes any image
    assert "classes" not in next(iter(unlabelled.val_dataloader()))


def test_evaluation_set(module, folder):
    """It has a test split alone, and training is refused."""
    data = module(root=folder / "test", source={"evaluation": True})
    assert data.info.examples == {"train": 0, "val": 0, "test": 6}
    assert len(by_id(list(data.test_dataloader()))) == 6 and list(data.val_dataloader()) == []
    data.total_batches = 4
    for use in (data.batches_per_epoch, data.train_dataloader):
        with pytest.raises(MagnetoError, match="for evaluation only"):
            use()


def test_folder_settings_without_effect(module, folder, tmp_path):
    """They are errors."""
    module()
    with pytest.raises(MagnetoError, match="none.txt: cannot be read"):
        module(source={"names": str(tmp_path / "none.txt")})
    with pytest.raises(MagnetoError, match="share of the folder `train`, and there is none"):
        module(root=folder / "train", source={"validation": 0.5})


SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="20" height="20">'
    '<path d="M2 3 L17 {} L5 18 Z" fill="{}" stroke="black" stroke-width="0.7"/></svg>'
)


@pytest.mark.parametrize("store", ["shards", "files"])
def test_user_drawings(module, tmp_path, store):
    """Thin lines look otherwise when they are drawn larger and made smaller after."""
    for side, colour in (("train", "red"), ("val", "teal")):
        for number in range(2):
            place(tmp_path / f"drawn/{side}/x/{number}.svg").write_text(SVG.format(4 + number, colour))
    settings = {"root": tmp_path / "drawn", "fit": "pad", "image_size": 20}
    data, stored = module(store=store, **settings), module(store="shards", **settings)
    info = data.info
    given = [image for _, image in user_images(tmp_path / "drawn/val", info.channels, info.svg_side)]
    pixels = info.pixels(evaluated(given, info))
    for one in (data, stored):
        (batch,) = one.val_dataloader()
        assert torch.equal(pixels, one.info.pixels(batch["image"]))
