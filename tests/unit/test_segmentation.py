"""Segmentation piece by piece: decoder, windows, scores, augmentation, masks of a user's files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index

from magneto.data.collate import IGNORE
from magneto.data.corpora.segmentation.ade20k import Ade20kReader
from magneto.data.corpora.segmentation.stamp_scenes import BACKGROUND, StampScenesReader
from magneto.data.io.image import BadImage, read_bytes, read_class_ids
from magneto.data.segmentation.module import SegmentationDataModule
from magneto.data.transforms.segmentation import SegmentationAugment
from magneto.errors import MagnetoError
from magneto.inference.segmentation import overlay, shares
from magneto.inference.sliding import sliding_logits, window_starts
from magneto.metrics.segmentation import SegmentationScores
from magneto.nn.vision.upernet import FCNHead, Rescale, UperHead
from tests.toys.corpora import outlined, png, write
from tests.toys.segmentation import CLASSES, scene, write_scenes

# ------------------------------------------------------------------------------------------------ decoder, windows


@pytest.mark.parametrize("grid", [2, 7, 8])
def test_head_shapes(grid: int) -> None:
    """Maps of four resolutions, and logits of the finest; an odd number of patches is halved upwards."""
    features = [torch.randn(2, 12, grid, grid) for _ in range(4)]
    maps = Rescale(12)(features)
    assert [x.shape[2] for x in maps] == [4 * grid, 2 * grid, grid, -(-grid // 2)]
    head = UperHead(12, 8, 5, dropout=0.5)
    assert head(maps).shape == (2, 5, 4 * grid, 4 * grid)
    assert FCNHead(12, 8, 5, dropout=0.5)(features[2]).shape == (2, 5, grid, grid)


def test_every_map_reaches_each_logit() -> None:
    """All four layers are read, and the norms do not mix the images of a batch."""
    torch.manual_seed(0)
    features = [torch.randn(2, 12, 4, 4, requires_grad=True) for _ in range(4)]
    rescale, head = Rescale(12), UperHead(12, 8, 5, dropout=0.0)
    logits = head(rescale(features))
    logits[0, 0, 3, 3].backward()
    for x in features:
        assert x.grad is not None and x.grad[0].abs().sum() > 0 and not x.grad[1].any()
    alone = head(rescale([x[:1] for x in features]))
    torch.testing.assert_close(alone, logits[:1])


def test_windows_cover_an_image() -> None:
    assert window_starts(8, 8, 5) == window_starts(5, 8, 5) == [0]
    assert window_starts(20, 8, 5) == [0, 5, 10, 12]
    assert window_starts(18, 8, 5) == [0, 5, 10]


def test_one_window_is_the_whole_image() -> None:
    model = torch.nn.Conv2d(3, 4, 3, padding=1)
    images = torch.randn(5, 3, 8, 8)
    found = sliding_logits(model, list(images), 8, 5, batch=2)
    torch.testing.assert_close(torch.stack(found), model(images))


def test_windows_are_averaged_by_pixel() -> None:
    """Of images of several sizes at once; what a model says of a pixel alone does not depend on its window."""
    images = [torch.randn(3, height, width) for height, width in ((8, 8), (20, 13), (5, 9))]
    found = sliding_logits(lambda x: 2 * x, images, 8, 5, batch=3)
    for image, logits in zip(images, found, strict=True):
        torch.testing.assert_close(logits, 2 * image)
    position = torch.arange(8.0).expand(1, 1, 8, 8)  # the column within the window
    (row,) = sliding_logits(
        lambda x: position.expand(len(x), 1, 8, 8), [torch.zeros(3, 8, 12)], 8, 4, batch=8
    )
    assert row[0, 0].tolist() == [0, 1, 2, 3, 2, 3, 4, 5, 4, 5, 6, 7]


# ------------------------------------------------------------------------------------------------ scores


def test_scores_by_hand() -> None:
    """Ignored pixels do not count, and a class that is nowhere is not in the means."""
    scores = SegmentationScores(["a", "b", "c", "nowhere"])
    scores.update(torch.tensor([[[0, 0, 1]]]), torch.tensor([[[0, 1, 1]]]))
    scores.update(torch.tensor([[[2, 0, 3]]]), torch.tensor([[[2, 2, IGNORE]]]))
    found = scores.compute()
    assert found["pixel_accuracy"] == pytest.approx(3 / 5)
    assert found["mean_class_accuracy"] == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    assert found["iou/a"] == pytest.approx(1 / 3) and found["iou/b"] == found["iou/c"] == pytest.approx(1 / 2)
    assert found["miou"] == pytest.approx((1 / 3 + 1 / 2 + 1 / 2) / 3) and "iou/nowhere" not in found
    assert scores.confusion is not None and scores.confusion.sum() == 5


def test_scores_are_those_of_torchmetrics() -> None:
    random = torch.Generator().manual_seed(0)
    answers, masks = (torch.randint(0, 6, (3, 9, 9), generator=random) for _ in range(2))
    masks[torch.rand(3, 9, 9, generator=random) < 0.2] = IGNORE
    scores = SegmentationScores([str(n) for n in range(6)])
    for answer, mask in zip(answers, masks, strict=True):
        scores.update(answer[None], mask[None])
    found, given = scores.compute(), {"num_classes": 6, "ignore_index": IGNORE}
    assert found["miou"] == pytest.approx(float(multiclass_jaccard_index(answers, masks, **given)))
    for name, average in (("pixel_accuracy", "micro"), ("mean_class_accuracy", "macro")):
        assert found[name] == pytest.approx(
            float(multiclass_accuracy(answers, masks, average=average, **given))
        )


def test_nothing_to_score_is_an_error() -> None:
    scores = SegmentationScores(["a", "b"])
    scores.update(torch.zeros(1, 2, 2, dtype=torch.long), torch.full((1, 2, 2), IGNORE))
    with pytest.raises(MagnetoError, match="Every pixel"):
        scores.compute()


# ------------------------------------------------------------------------------------------------ augmentation


@pytest.mark.parametrize("scale", [None, (1.0, 1.0), (0.5, 2.0)])
def test_mask_and_image_stay_aligned(scale: tuple[float, float] | None) -> None:
    """Every pixel of the crop has the class of its colour, but beyond the image and where two colours are mixed."""
    augment = SegmentationAugment(scale=scale, flip=True)
    random = np.random.default_rng(0)
    flat = np.array([[200, 200, 190], [200, 40, 30], [30, 60, 200]])
    for example in range(20):
        ids = np.maximum(scene(random, 20, 18)[1], 1).astype(np.int64) - 1
        image = torch.tensor(flat[ids].astype(np.uint8)).permute(2, 0, 1)
        given = {"seed": 1, "epoch": 2, "example": example}
        pixels, mask = augment(image, torch.tensor(ids), 16, [9.0, 9.0, 9.0], **given)
        assert pixels.shape == (3, 16, 16) and mask.shape == (16, 16) and mask.dtype == torch.int64
        beyond = mask == IGNORE
        assert (pixels[:, beyond] == 9).all()
        distance = (
            (pixels[None].int() - torch.tensor(flat)[:, :, None, None]).abs().sum(1)
        )  # (classes, 16, 16)
        agree = (distance.argmin(0) == mask)[~beyond].float().mean()
        assert agree == 1 if scale != (0.5, 2.0) else agree > 0.85
        again = augment(image, torch.tensor(ids), 16, [9.0, 9.0, 9.0], **given)
        assert torch.equal(again[0], pixels) and torch.equal(again[1], mask)


def test_augmentation_leaves_the_generator() -> None:
    """It draws from its own seed: the state of torch's generator is that of the model's dropout."""
    torch.manual_seed(5)
    before = torch.get_rng_state()
    augment = SegmentationAugment(scale=(0.5, 2.0), flip=True, color_jitter=0.4)
    given: dict[str, Any] = {"seed": 1, "epoch": 0}
    image, mask = torch.randint(0, 256, (3, 24, 24), dtype=torch.uint8), torch.zeros(24, 24, dtype=torch.long)
    torch.set_rng_state(before)
    found = [augment(image, mask, 16, [0.0] * 3, example=number, **given)[0] for number in range(4)]
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(found[0], found[1])


# ------------------------------------------------------------------------------------------------ files


def test_ids_of_masks(tmp_path: Path) -> None:
    """Grey, palettes and 16 bits are ids; colours and JPEG are not."""
    ids = np.arange(12, dtype=np.uint8).reshape(3, 4)
    palette = Image.fromarray(ids, "P")
    palette.putpalette([value for index in range(12) for value in (index * 20, 0, 255 - index)])
    images = {
        "grey": Image.fromarray(ids), "palette": palette, "deep": Image.fromarray(ids.astype(np.uint16) + 300),
        "bits": Image.fromarray(ids > 5),
    }  # fmt: skip
    for name, image in images.items():
        image.save(tmp_path / f"{name}.png")
    read = {name: read_class_ids(tmp_path / f"{name}.png") for name in images}
    assert (
        (read["grey"] == ids).all()
        and (read["palette"] == ids).all()
        and (read["deep"] == ids.astype(int) + 300).all()
    )
    assert (read["bits"] == (ids > 5)).all() and read["bits"].dtype == np.uint8
    images["grey"].convert("RGB").save(tmp_path / "colours.png")
    images["grey"].save(tmp_path / "grey.jpg")
    for bad in ("colours.png", "grey.jpg"):
        with pytest.raises(BadImage, match="not class ids"):
            read_class_ids(tmp_path / bad)


def prepared(folder: Path, **settings: Any) -> SegmentationDataModule:
    reader = Ade20kReader(str(folder), classes=3, **settings)
    data = SegmentationDataModule(
        {"ade20k": reader}, data_dir=str(folder / "data"), image_size=16, batch_size=4, prepare_workers=1
    )
    data.prepare()
    return data


def test_bad_masks_are_skipped_by_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_scenes(tmp_path / "scenes")
    masks = folder / "annotations/training"
    good = np.asarray(Image.open(masks / "000.png"))
    Image.fromarray(good[:8]).save(masks / "000.png")
    Image.fromarray(good + 9).save(masks / "001.png")
    Image.fromarray(good).convert("RGB").save(masks / "002.png")
    Image.fromarray(np.zeros_like(good)).save(masks / "003.png")
    (masks / "004.png").write_bytes(b"no image")
    (masks / "005.png").unlink()
    (folder / "images/training/006.png").write_bytes(b"")
    (folder / "images/training/007.png").unlink()
    (folder / "images/training/008.png").write_bytes((folder / "images/validation/000.png").read_bytes())
    Image.fromarray(good.astype(np.uint16)).save(masks / "009.png")
    data = prepared(folder)
    assert data.info.examples == {"train": 60 - 9, "val": 12, "test": 0}
    report = (data.folder / "prepare_report.json").read_text()
    for reason in (
        "mask: another size than its image", "mask: an id that is neither of a class nor ignored",
        "mask: not class ids: neither grey nor of a palette, or a JPEG", "mask: every pixel is ignored",
        "mask: not an image", "image without a mask", "empty file", "mask without an image",
        "copy of an image on another side of the split",
    ):  # fmt: skip
        assert f'"{reason}": 1' in report, reason
    assert "9 skipped" in caplog.text


def test_pixels_and_classes_are_kept(tmp_path: Path) -> None:
    """Id 0 is ignored, and the others are the classes in their order."""
    folder = write_scenes(tmp_path / "scenes", sizes=((16, 16), (20, 18)))
    data = prepared(folder, validation=0.2)
    assert data.info.labels == list(CLASSES) and data.info.examples == {"train": 48, "val": 12, "test": 12}
    batch = next(iter(data.test_dataloader()))
    assert batch["image"].shape[2:] == (18, 20) and batch["size"].tolist() == [[16, 16], [18, 20]] * 2
    ids = np.asarray(Image.open(folder / "annotations/validation/000.png")).astype(int)
    mask = np.where(ids == 0, IGNORE, ids - 1)
    assert (batch["mask"][0, :16, :16].numpy() == mask).all() and (batch["mask"][0, 16:] == IGNORE).all()
    pixels = data.info.pixels(batch["image"][:1, :, :16, :16])[0].permute(1, 2, 0).numpy()
    assert (pixels == np.asarray(Image.open(folder / "images/validation/000.png"))).all()


def test_many_classes_have_16_bits(tmp_path: Path) -> None:
    folder = write_scenes(tmp_path / "scenes")
    (folder / "objectInfo150.txt").unlink()
    for file in sorted((folder / "annotations").rglob("*.png")):
        Image.fromarray(np.asarray(Image.open(file)).astype(np.uint16) * 100).save(file)
    data = SegmentationDataModule(
        {"ade20k": Ade20kReader(str(folder), classes=300)},
        data_dir=str(tmp_path),
        image_size=16,
        prepare_workers=1,
    )
    data.prepare()
    assert set(data.val_set.pair(0)[1].unique().tolist()) <= {IGNORE, 99, 199, 299}
    assert data.info.labels[99] == "class 100" and "uint16" in str(data.table("val").arrow.schema)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"folder": None}, "name the folder"), ({"validation": 1.0}, "between 0 and 1"), ({"classes": 1}, "2 or more"),
     ({"ignored": (0, 2)}, "2 is the id of a class")],
)  # fmt: skip
def test_impossible_readers_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(MagnetoError, match=message):
        Ade20kReader(**{"folder": "scenes", "classes": 3, **settings})


def test_names_must_fit_the_classes(tmp_path: Path) -> None:
    folder = write_scenes(tmp_path / "scenes")
    with pytest.raises(MagnetoError, match="it names 3 classes"):
        Ade20kReader(str(folder)).load(tmp_path)


# ------------------------------------------------------------------------------------------------ scenes of stamps


def test_no_stamp_is_in_two_splits(tmp_path: Path) -> None:
    """Nor a copy of its bytes; masks are exact, and what no stamp covers is the background."""
    for number in range(60):
        write(tmp_path / f"stamps/{('animals', 'food')[number % 2]}/{number}.png", outlined(number % 50))
    write(tmp_path / "stamps/rare/a.png", outlined(99))
    write(tmp_path / "stamps/animals/opaque.png", png(98))
    reader = StampScenesReader(
        folder=str(tmp_path / "stamps"), size=24, min_stamps=5, scenes={"train": 6, "val": 3, "test": 3}
    )
    splits, labels, skipped, _ = reader.split_stamps(tmp_path)
    assert labels == (BACKGROUND, "animals", "food") and len(skipped) == 1
    contents = [{read_bytes(stamp.image) for stamp, _ in stamps} for stamps in splits.values()]
    assert all(contents) and sum(map(len, contents)) == 50 == len(set.union(*contents))
    corpus = reader.load(tmp_path)
    found = list(corpus.examples)
    assert [example.split for example in found] == ["train"] * 6 + ["val"] * 3 + ["test"] * 3
    for example in found:
        assert isinstance(example.mask, np.ndarray) and set(np.unique(example.mask)) <= {0, 1, 2}
        assert 0 < (example.mask > 0).mean() < 1


# ------------------------------------------------------------------------------------------------ pictures


def test_shares_and_overlay() -> None:
    mask = torch.tensor([[0, 0, 2], [2, 2, IGNORE]])
    found = shares(mask, ["a", "b", "c"])
    assert [(one["id"], one["label"], one["share"]) for one in found] == [(2, "c", 0.6), (0, "a", 0.4)]
    pixels = torch.full((1, 2, 3), 100, dtype=torch.uint8)
    drawn = overlay(pixels, mask, 3)
    assert drawn.shape == (3, 2, 3) and (drawn[:, 1, 2] == 100).all()
    assert (drawn[:, 0, 0] == drawn[:, 0, 1]).all() and (drawn[:, 0, 0] != drawn[:, 0, 2]).any()
    assert (overlay(pixels, torch.full((2, 3), IGNORE), 3) == 100).all()
