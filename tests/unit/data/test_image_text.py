"""Images with captions: from files in their formats, good and broken, to batches; and that these are repeatable."""

import json
import pickle
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from magneto.data.collate import IGNORE, pad_texts
from magneto.data.corpora.base import SPLITS
from magneto.data.corpora.image.base import ImageCorpus, ImageExample
from magneto.data.corpora.image.caption_file import CaptionFileReader
from magneto.data.corpora.image.coco_captions import CocoCaptionsReader
from magneto.data.corpora.image.emoji import LANGUAGES, EmojiReader
from magneto.data.corpora.image.hub_images import HubImagesReader
from magneto.data.corpora.image.webdataset import WebDatasetReader
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


def write_lines(file: Path, *rows: Any) -> Path:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


# ------------------------------------------------------------------ a file of captions


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


# ------------------------------------------------------------------ COCO


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


# ------------------------------------------------------------------ the hub, shards, emoji


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
    import tarfile

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


def test_batches_repeat(module: Any) -> None:
    """They follow from the seed and their index in the run alone."""
    more = {"masking": MASKING, "augment": {"crop_scale": [0.5, 1.0]}, "languages": ["en", "fr"]}
    whole = train_batches(module(**more), 12)
    assert all(map(same, whole, train_batches(module(**more), 12)))
    assert not same(whole[0], train_batches(module(**more, seed=1), 1)[0])
    data = module(**more)
    clone = pickle.loads(pickle.dumps(data.train_set))  # as a worker gets it
    places = [(3, 0), (3, 5), (3, 2)]
    assert same(data.train_set.__getitems__(places), clone.__getitems__(places))
    alone = data.train_set[(3, 5)]
    assert torch.equal(alone["image"][0], clone.__getitems__(places)["image"][1])


def test_info_and_its_folders(module: Any, tmp_path: Path) -> None:
    """Languages and lengths make other folders of captions; images are decoded once."""
    data = module(languages=None, lowercase=True)
    info = data.info
    assert info.languages == ["en", "fr"] and info.vocab_size == 270 and info.lowercase
    assert type(info).from_dict(json.loads(json.dumps(info.to_dict()))) == info
    assert module(languages=None, lowercase=True).folder == data.folder
    others = [
        module(languages=["en"], lowercase=True),
        module(languages=None),
        module(languages=None, max_tokens=9),
    ]
    assert len({data.folder, *(other.folder for other in others)}) == 4
    assert others[2].images.folder == others[1].images.folder, "decoded once"
    assert others[2].info.truncated > 0
    assert all(batch["tokens"].shape[1] <= 9 for batch in others[2].val_dataloader())


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
    assert data.tokenizer == model.tokenizer and data.lowercase and data.max_tokens == 20
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
    data = module(CaptionFileReader(str(write_lines(tmp_path / "a.jsonl", *rows))))
    assert data.info.captions == {"train": 5, "val": 4, "test": 0}
    report = json.loads((data.images.folder / "prepare_report.json").read_text())
    assert {item["id"] for item in report["skipped"]} == {
        f"captions/{n}.png".replace("captions", "toy") for n in (0, 1, 3, 12)
    }
    assert sum(report["skipped_by_reason"].values()) == 4
    assert len(data.test_set) == 4, "validation serves as the test"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"languages": []}, "must be a list"),
        ({"languages": ["nl"]}, "No usable image is left for the train and val splits.*60 no caption in nl"),
        ({"max_tokens": 2}, "max_tokens=2"),
        ({"imagesize": 9}, "imagesize"),
        ({"masking": {"words": {}}}, "data.masking.words"),
        ({"masking": {"texts": {"probability": 2}}}, "probability=2"),
        ({"tokenizer": {"kind": "bpe"}}, "data.tokenizer"),
    ],
)
def test_invalid_settings(module: Any, settings: dict[str, Any], message: str) -> None:
    """The message names the setting."""
    with pytest.raises(MagnetoError, match=message):
        module(**settings)


def test_padding_stops_at_max_tokens() -> None:
    """A multiple is not rounded up beyond the longest text that is allowed."""
    tokens, mask = pad_texts([np.arange(5), np.arange(9)], 7, 12)
    assert tokens.shape == (2, 12) and mask.sum(1).tolist() == [5, 9] and (tokens[~mask] == 7).all()
    assert pad_texts([np.arange(5)], 0, 100)[0].shape == (1, 8)
