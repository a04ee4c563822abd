"""Images with captions: from files in their formats, good and broken, to batches; and that these are repeatable."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from magneto.data.collate import IGNORE
from magneto.data.corpora.base import SPLITS
from magneto.data.corpora.image.base import ImageCorpus, ImageExample
from magneto.data.corpora.image.caption_file import CaptionFileReader
from magneto.data.image_text.build import CaptionedReader
from magneto.data.image_text.module import ImageTextDataModule
from magneto.data.transforms.text import clean_caption
from magneto.errors import MagnetoError

SIZE = 8


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


def save(path: Path, number: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(number)).save(path)
    return path


# ------------------------------------------------------------------ a file of captions


# ------------------------------------------------------------------ COCO


# ------------------------------------------------------------------ the hub, shards, emoji


# ------------------------------------------------------------------ from captions to batches


class Corpus:
    """A source of given captions."""

    def __init__(self, *captions: dict[str, Any], splits: list[str | None] | None = None) -> None:
        self.captions, self.splits = captions, splits or [None] * len(captions)

    def fingerprint(self) -> dict[str, Any]:
        return {"captions": self.captions, "splits": self.splits}

    def load(self, data_dir: Path) -> ImageCorpus:
        images = [
            ImageExample(id=str(n), image=pixels(n), captions=captions, split=split, label="x")
            for n, (captions, split) in enumerate(zip(self.captions, self.splits, strict=True))
        ]
        return ImageCorpus(examples=images, labels=("x",))


def test_captions_are_cleaned(tmp_path: Path) -> None:
    """What is left out is listed."""
    corpus = CaptionedReader(
        Corpus(
            {"en": " A\u0301  Dog\n"}, {"en": ["a dog", "A Dog", "\0", "half \ud800"]}, {"fr": "un chien"}, {"en": ""}, {}
        ),
        ("en",),
        lowercase=True,
    ).load(tmp_path)  # fmt: skip
    for _ in range(2):  # gone through a second time, it is the same
        images = list(corpus.examples)
        assert [image.captions for image in images] == [{"en": ["\u00e1 dog"]}, {"en": ["a dog"]}]
        assert [image.label for image in images] == [None, None]
        assert [(item.id, item.reason) for item in corpus.skipped] == [
            ("1", "caption: NUL characters: binary, or text of another encoding"),
            ("1", "caption: half a character (an unpaired surrogate)"),
            ("2", "no caption in en"),
            ("3", "caption: empty"),
            ("3", "no caption in en"),
            ("4", "no caption in en"),
        ]
    nameless = CaptionedReader(Corpus({"\udce9": "a dog"}), None, lowercase=True).load(tmp_path)
    assert not list(nameless.examples) and "half a character" in nameless.skipped[0].reason
    assert corpus.labels == () and clean_caption("A  B", lowercase=False) == "A B"


COLOURS = ("red", "green", "blue")


def captions(count: int) -> list[dict[str, Any]]:
    """Each image with an English and two French captions, of which every third image has the same."""
    return [
        {"en": f"number {n} {COLOURS[n % 3]}", "fr": [f"nombre {n // 3 * 3}", f"le {n} {COLOURS[n % 3]}"]}
        for n in range(count)
    ]


@pytest.fixture
def module(tmp_path: Path) -> Any:
    """`module(languages=["en"], ...)`: prepared images with captions."""

    def make(reader: Any = None, **more: Any) -> ImageTextDataModule:
        settings: dict[str, Any] = {
            "tokenizer": {"kind": "byte_bpe", "vocab_size": 270}, "image_size": SIZE, "patch_size": 4, "batch_size": 8,
            "max_tokens": 24, "data_dir": str(tmp_path / "data"), "val_fraction": 0.2, "test_fraction": 0.2,
            "prepare_workers": 1,
        }  # fmt: skip
        data = ImageTextDataModule({"toy": reader or Corpus(*captions(60))}, **{**settings, **more})
        data.prepare()
        data.setup()
        return data

    return make


def train_batches(data: ImageTextDataModule, count: int, start: int = 0) -> list[dict[str, Any]]:
    data.configure_run(start + count)
    loader = data.train_dataloader()
    return [batch for place, batch in enumerate(loader) if place >= start]


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    assert one.keys() == other.keys()
    return all(
        torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]
        for key, value in one.items()
    )


def test_a_batch(module: Any) -> None:
    data = module(languages=["en", "fr"])
    (batch,) = train_batches(data, 1)
    count = len(batch["id"])
    assert batch["image"].shape == (count, 3, SIZE, SIZE) and batch["image"].dtype == torch.float32
    assert batch["tokens"].shape == batch["mask"].shape and batch["tokens"].shape[1] in (16, 24)
    assert batch.keys() == {"id", "image", "image_id", "caption", "language", "tokens", "mask"}
    known = {
        n: {t for v in c.values() for t in ([v] if isinstance(v, str) else v)}
        for n, c in enumerate(captions(60))
    }
    table = data.images.table("train")
    ids = dict(zip(table.numbers("row").tolist(), table.arrow["id"].to_pylist(), strict=True))
    for row in range(count):
        tokens, real = batch["tokens"][row], batch["mask"][row]
        assert tokens[0] == data.tokenizer.id("<s>") and tokens[real][-1] == data.tokenizer.id("</s>")
        text = data.tokenizer.decode(tokens[real].tolist())
        number = int(ids[int(batch["id"][row])].removeprefix("toy/"))
        assert text in known[number]
        assert data.info.languages[int(batch["language"][row])] == (
            "en" if text.startswith("number") else "fr"
        )
        shown = data.info.pixels(batch["image"][row : row + 1])[0].permute(1, 2, 0).numpy()
        assert np.array_equal(shown, pixels(number))


def test_captions_of_an_epoch(module: Any) -> None:
    """Evaluation sees all captions, training one of each image, another one in another epoch."""
    data = module(languages=["en", "fr"])
    assert len(data.val_set) == data.info.captions["val"] == 3 * data.info.examples["val"]
    assert len(data.train_set) == data.info.examples["train"]
    texts = [text for batch in data.val_dataloader() for text in batch["text"]]
    assert len(texts) == len(data.val_set)
    per_epoch = data.batches_per_epoch()
    drawn = [
        {int(n): int(c) for batch in part for n, c in zip(batch["id"], batch["caption"], strict=True)}
        for part in (train_batches(data, per_epoch), train_batches(data, per_epoch, start=per_epoch))
    ]
    assert drawn[0].keys() == drawn[1].keys() and len(drawn[0]) == len(data.train_set)
    assert drawn[0] != drawn[1], "another caption in another epoch"


def test_equal_captions_share_split_and_key(module: Any) -> None:
    """In any of the languages: "nombre 6" is a caption of images 6, 7 and 8."""
    data = module(languages=["fr"], val_fraction=0.3, test_fraction=0.3)
    sides: dict[str, set[str]] = {}
    for split in SPLITS:
        for text in data.table(split).arrow["caption"].to_pylist():
            sides.setdefault(text, set()).add(split)
    assert all(len(side) == 1 for side in sides.values()) and len(set.union(*sides.values())) == 3
    keys: dict[str, set[int]] = {}
    for batch in data.test_dataloader():
        for text, key in zip(batch["text"], batch["caption"].tolist(), strict=True):
            keys.setdefault(text, set()).add(key)
    assert all(len(key) == 1 for key in keys.values()) and len(set.union(*keys.values())) == len(keys)


MASKING = {
    "images": {"ratio": 0.5, "min_patches": 1},
    "texts": {"probability": 0.2},
    "pairs": {"probability": 0.6},
}


def test_copies_of_an_image_share_their_key(module: Any) -> None:
    """So that each is right for the captions of the other, in training and in the gallery."""
    texts = captions(40)
    reader = Corpus(*texts, splits=["train"] * 20 + ["val"] * 10 + ["test"] * 10)
    apart = module(reader)
    for batch in [*train_batches(apart, 3), *apart.val_dataloader(), *apart.test_dataloader()]:
        assert torch.equal(batch["image_id"], batch["id"])

    class Copies(Corpus):
        """Every second image is the one before it."""

        def load(self, data_dir: Path) -> ImageCorpus:
            corpus = super().load(data_dir)
            pairs = [replace(p, image=pixels(n // 2)) for n, p in enumerate(corpus.examples)]
            return replace(corpus, examples=pairs)

        def fingerprint(self) -> dict[str, Any]:
            return {**super().fingerprint(), "copies": True}

    alike = module(Copies(*texts, splits=reader.splits))
    for batch in [*train_batches(alike, 3), *alike.val_dataloader(), *alike.test_dataloader()]:
        assert torch.equal(batch["image_id"], batch["id"] // 2 * 2)


def test_what_is_hidden(module: Any) -> None:
    data = module(masking=MASKING)
    (batch,) = train_batches(data, 1)
    assert (batch["masked"].sum(1) == 2).all(), "of four patches"
    shares = []
    for tokens, targets in (("masked_tokens", "targets"), ("pair_tokens", "pair_targets")):
        chosen = batch[targets] != IGNORE
        assert torch.equal(batch[targets][chosen], batch["tokens"][chosen])
        assert torch.equal(batch[tokens][~chosen], batch["tokens"][~chosen])
        assert not (chosen & ~batch["mask"]).any() and chosen.any(1).all()
        special = torch.isin(batch["tokens"], torch.tensor(sorted(data.tokenizer.special_ids)))
        assert not (chosen & special).any()
        shares.append(float(chosen.sum() / (batch["mask"] & ~special).sum()))
    assert shares == pytest.approx([0.2, 0.6], abs=0.06)
    first, again = (list(module(masking=MASKING, seed=seed).val_dataloader()) for seed in (0, 1))
    assert all(map(same, first, again)), "in evaluation, the same for all runs"


def test_an_example_whatever_its_batch(module: Any) -> None:
    data = module(masking=MASKING, augment={"crop_scale": [0.5, 1.0]}, languages=["en", "fr"])
    alone, among = data.train_set[(3, 5)], data.train_set.__getitems__([(3, 0), (3, 5), (3, 2)])
    assert all(
        torch.equal(alone[key][0, :9], among[key][1, :9]) for key in ("image", "pair_tokens", "targets")
    )


def test_no_caption_in_the_languages(module: Any) -> None:
    with pytest.raises(MagnetoError, match="left for the train and val splits.*60 no caption in nl"):
        module(languages=["nl"])


def test_info_and_its_folders(module: Any, tmp_path: Path) -> None:
    """Languages and lengths make other folders of captions; images are decoded once."""
    data = module(languages=None, lowercase=True)
    info = data.info
    assert info.languages == ["en", "fr"] and info.vocab_size == 270 and info.lowercase
    assert module(languages=["en"], lowercase=True).folder != data.folder
    short = module(languages=None, lowercase=True, max_tokens=9)
    assert short.folder != data.folder and short.images.folder == data.images.folder, "decoded once"
    assert short.info.truncated > 0
    assert all(batch["tokens"].shape[1] <= 9 for batch in short.val_dataloader())


def test_for_model(module: Any) -> None:
    """Tokenizer, sizes, letters and language indices are those of the checkpoint's model."""
    model = module(
        languages=["en", "fr"],
        tokenizer={"kind": "byte_bpe", "vocab_size": 280},
        max_tokens=20,
        lowercase=True,
    )
    data = module(languages=["fr"], image_size=16, max_tokens=10)
    data = data.for_model(model.info.to_dict())
    assert data.tokenizer == model.tokenizer and data.config.lowercase and data.config.max_tokens == 20
    batch = next(iter(data.test_dataloader()))
    assert batch["image"].shape[2:] == (SIZE, SIZE)
    assert (batch["language"] == 1).all(), "French is the model's second language"
    other = module(Corpus(*({"de": f"nummer {n}"} for n in range(30))), languages=["de"])
    other = other.for_model(model.info.to_dict())
    assert (next(iter(other.test_dataloader()))["language"] == -1).all()


def test_bad_images_lose_their_captions(module: Any, tmp_path: Path) -> None:
    """They are skipped, counted and listed."""
    for number in range(12):
        save(tmp_path / f"{number}.png", number)
    (tmp_path / "0.png").write_bytes(b"")
    (tmp_path / "1.png").write_bytes((tmp_path / "2.png").read_bytes()[:60])
    Image.new("RGB", (1, 1)).save(tmp_path / "3.png")
    rows = [
        {"image": f"{n}.png", "caption": f"number {n}", "split": ("train", "val")[n % 2]} for n in range(13)
    ]
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    data = module(CaptionFileReader(str(file)))
    assert data.info.captions == {"train": 5, "val": 4, "test": 0}
    report = json.loads((data.images.folder / "prepare_report.json").read_text())
    assert {item["id"] for item in report["skipped"]} == {
        f"captions/{n}.png".replace("captions", "toy") for n in (0, 1, 3, 12)
    }
    assert sum(report["skipped_by_reason"].values()) == 4
    assert len(data.test_set) == 4, "validation serves as the test"
