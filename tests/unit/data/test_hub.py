"""Texts and parallel text by `datasets`, from small local files in the forms of the hub. No network."""

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from magneto.data.corpora.hub import HubData, file_fingerprint
from magneto.data.corpora.text.hub import HubReader
from magneto.data.corpora.translation.hub_pairs import HubPairsReader
from magneto.data.translation.module import TranslationDataModule
from magneto.errors import MagnetoError
from tests.toys.corpora import lines, read, write

TRAIN = {"train": "train"}


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


both_ways = pytest.mark.parametrize("streaming", [False, True])

# ------------------------------------------------------------------------------------------------ texts

ROWS = [
    "",
    " = Valkyria = \n",
    "",
    " Text of one . \n",
    " = = Plot = = \n",
    " More . \n",
    " = Second = \n",
    " End \n",
]


@pytest.fixture
def articles(tmp_path) -> dict[str, str]:
    """WikiText's form: rows are lines, with their line ends; articles open with a heading."""
    files = {split: str(tmp_path / f"{split}.parquet") for split in ("train", "validation", "test")}
    for file in files.values():
        pyarrow.parquet.write_table(pa.table({"text": ROWS}), file)
    return files


@both_ways
def test_lines_become_articles(tmp_path, articles, streaming):
    reader = HubReader("parquet", data_files=articles, start=r"^ = [^=].*[^=] = \n?$", streaming=streaming)
    documents, _ = read(reader, tmp_path)
    assert [document.text for document in documents if document.split == "test"] == [
        "".join(ROWS[1:6]),
        "".join(ROWS[6:]),
    ]
    assert Counter(document.split for document in documents) == {"train": 2, "val": 2, "test": 2}


def test_rows_of_json_lines(tmp_path):
    """With a limit, and with missing texts."""
    rows = [{"text": f"page {letter}", "url": letter} for letter in "abcd"] + [{"text": None, "url": "e"}]
    path = str(write(tmp_path / "web.jsonl", lines(*rows)))
    make = lambda **more: HubReader("json", data_files=path, splits=TRAIN, streaming=True, **more)
    documents, skipped = read(make(), tmp_path)
    assert [(document.text, document.split) for document in documents] == [
        (f"page {x}", None) for x in "abcd"
    ]
    assert skipped == {"no text under the key 'text'": 1}
    assert len(read(make(limit=2), tmp_path)[0]) == 2
    with pytest.raises(MagnetoError, match="no column 'content'; it has text, url"):
        read(make(key="content"), tmp_path)


def test_a_data_set_that_cannot_be_read(tmp_path, articles):
    """The library's own errors are explained, its StopIteration for a pattern that fits no file among them."""
    bad = str(write(tmp_path / "bad.jsonl", '{"text": "a"}\n{broken'))
    for name, splits, files, message in (
        ("parquet", {"train": "dev"}, articles, "split 'dev'"),
        ("json", TRAIN, str(tmp_path / "no.jsonl"), "no.jsonl"),
        ("json", TRAIN, bad, "cannot be read"),
        ("json", TRAIN, {"train": str(tmp_path / "x[1].jsonl")}, "cannot be read"),
    ):
        with pytest.raises(MagnetoError, match=message):
            list(HubData(name, splits=splits, data_files=files).rows("train"))
    for arguments, message in (
        ({"name": "x", "splits": {"train": "train", "dev": "dev"}}, "splits of x names train, dev"),
        ({"name": "parquet"}, "Set data_files to them"),
        ({"name": "x", "start": "("}, "not a regular expression"),
    ):
        with pytest.raises(MagnetoError, match=message):
            HubReader(**arguments)


def test_identity_of_local_files_follows_them(tmp_path, articles):
    before = HubReader("parquet", data_files=articles).fingerprint()
    assert before == HubReader("parquet", data_files=articles, streaming=True).fingerprint()
    pyarrow.parquet.write_table(pa.table({"text": ["changed"]}), articles["train"])
    assert HubReader("parquet", data_files=articles).fingerprint() != before
    for name in ("rows[1].jsonl", "deep[2]/rows.jsonl"):
        path = write(tmp_path / name, '{"text": "first"}\n')
        reader = HubReader("json", data_files={"train": str(path)}, splits=TRAIN, streaming=True)
        assert [document.text for document in read(reader, tmp_path)[0]] == ["first"], name
    pattern = str(tmp_path / "deep*" / "*.jsonl")
    before = file_fingerprint(pattern)
    write(path, '{"text": "another"}\n')
    assert file_fingerprint(pattern) != before, "a change below a folder that a pattern names"


# ------------------------------------------------------------------------------------------------ pairs

PAIRS = [{"translation": {"en": f"Row {n} of it", "fr": f"Ligne {n}"}} for n in range(4)]


def texts(pairs: list[Any]) -> list[tuple[str, str]]:
    return [(pair.source, pair.target) for pair in pairs]


@pytest.fixture
def splits(tmp_path: Path) -> dict[str, str]:
    lacking = [{"translation": {"en": "No French", "fr": None}}, {"translation": None}]
    rows = {"train": [*PAIRS, *lacking], "validation": PAIRS[:2], "test": PAIRS[:1]}
    return {name: str(write(tmp_path / f"{name}[1].jsonl", lines(*values))) for name, values in rows.items()}


@both_ways
def test_rows_with_translations(splits: dict[str, str], streaming: bool, tmp_path: Path) -> None:
    """A row without a language is skipped: it says nothing of the others."""
    make = lambda *directions, **more: HubPairsReader(
        "json", directions=directions, data_files=splits, streaming=streaming, **more
    )
    pairs, skipped = read(make("en-fr", "fr-en"), tmp_path)
    assert [pair.split for pair in pairs[:7]] == ["train"] * 4 + ["val"] * 2 + ["test"]
    assert texts(pairs[:1] + pairs[7:8]) == [("Row 0 of it", "Ligne 0"), ("Ligne 0", "Row 0 of it")]
    assert skipped == {"a language is missing in the row": 4}
    assert len(read(make("en-fr", limit=1), tmp_path)[0]) == 3
    alone, _ = read(make("en-fr", splits={"test": "test"}), tmp_path)
    assert [pair.split for pair in alone] == ["test"]


@pytest.fixture
def published(tmp_path: Path) -> str:
    """A data set in the hub's own form: a configuration a direction, of which one has nothing but a train split."""
    root, card = tmp_path / "opus", ["---", "configs:"]
    for config, sides in {"en-fr": ("train", "validation", "test"), "en-yo": ("train",)}.items():
        card += [f"- config_name: {config}", "  data_files:"]
        for side in sides:
            rows = [
                {"translation": {language: f"{side} {language} {n}" for language in config.split("-")}}
                for n in range(3)
            ]
            write(root / config / f"{side}-0.jsonl", lines(*rows))
            card += [f"  - split: {side}", f"    path: {config}/{side}-*"]
    write(root / "README.md", "\n".join([*card, "---", ""]))
    return str(root)


@both_ways
def test_a_direction_with_train_alone(published: str, streaming: bool, tmp_path: Path) -> None:
    """Its other splits are listed as skipped."""
    reader = HubPairsReader(published, directions=["en-fr", "yo-en"], streaming=streaming)
    pairs, skipped = read(reader, tmp_path)
    found = Counter((pair.source_language, pair.split) for pair in pairs)
    assert found == {("en", "train"): 3, ("en", "val"): 3, ("en", "test"): 3, ("yo", "train"): 3}
    assert skipped == {"no validation split in the direction": 1, "no test split in the direction": 1}


@both_ways
def test_a_split_of_no_direction(published: str, streaming: bool, tmp_path: Path) -> None:
    """It is an error, as is a missing train split."""
    for directions, splits, message in (
        (["en-yo"], {"train": "train", "val": "validation", "test": "test"}, "split 'validation' of"),
        (["en-fr", "en-yo"], {"train": "train", "val": "dev", "test": "test"}, "split 'dev' of"),
        (["en-fr", "en-yo"], {"train": "test", "val": "train", "test": "train"}, "split 'test' of"),
        (["en-xx"], TRAIN, "en-xx"),
    ):
        reader = HubPairsReader(published, directions=directions, splits=splits, streaming=streaming)
        with pytest.raises(MagnetoError, match=message):
            read(reader, tmp_path)


def test_missing_splits_are_counted_in_the_report(published, tmp_path, caplog) -> None:
    data = TranslationDataModule(
        {"opus": HubPairsReader(published, directions=["en-fr", "en-yo"])}, data_dir=str(tmp_path / "data"), tag=True,
        tokenizer={"kind": "bpe", "vocab_size": 45}, clean={"templates": False},
    )  # fmt: skip
    with caplog.at_level(logging.WARNING):
        data.prepare()
    assert "no validation split in the direction: 1; no test split in the direction: 1" in caplog.text
    assert data.info.per_direction["en-yo"] == {"train": 3, "val": 0, "test": 0}
    report = json.loads((data.folder / "prepare_report.json").read_text())
    assert "opus/en-yo:test" in [item["id"] for item in report["skipped"]]


def test_parquet_as_opus_100_is_published(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pa.Table.from_pylist(PAIRS), tmp_path / "train-00000-of-00001.parquet")
    files = {"train": str(tmp_path / "*.parquet")}
    pairs, _ = read(HubPairsReader("parquet", directions=["en-fr"], data_files=files, splits=TRAIN), tmp_path)
    assert len(pairs) == 4 and pairs[3].split is None


def test_wrong_pairs_are_explained(splits: dict[str, str], tmp_path: Path) -> None:
    """Other languages, other forms and wrong arguments."""
    other = str(write(tmp_path / "o.jsonl", '{"en": "a", "fr": "b"}\n'))
    for name, direction, more, message in (
        ("json", "en-de", {"data_files": splits}, r"no pairs en-de.*the first has the languages en, fr"),
        ("json", "en-fr", {"data_files": other, "splits": TRAIN}, r"a row is to hold .*the first has en, fr"),
        ("json", "en-fr", {"data_files": {"train": splits["train"]}}, "cannot be read"),
        ("json", "en-fr", {}, "Set data_files to them"),
        ("wmt/wmt14", "en-de", {"configs": {"en-fr": "fr-en"}}, "none of the directions"),
        (
            "wmt/wmt14",
            "en-de",
            {"splits": {**TRAIN, "test": "test"}},
            "Name train, or test, or train and val and test",
        ),
    ):
        with pytest.raises(MagnetoError, match=message):
            read(HubPairsReader(name, directions=[direction], **more), tmp_path)


def test_configurations_of_directions() -> None:
    """They are called by both languages, unless they are named."""
    for direction, configs, expected in (("fr-en", None, "en-fr"), ("en-de", {"en-de": "de-en"}, "de-en")):
        reader = HubPairsReader("wmt/wmt14", directions=[direction], configs=configs)
        assert list(reader.config_of.values()) == [expected]
