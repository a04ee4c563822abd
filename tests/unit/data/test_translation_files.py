"""The user's own parallel text: line-aligned files, tables and translation memories, good and broken."""

import gzip
import logging
from pathlib import Path
from typing import Any

import pytest
import zstandard

from magneto.data.corpora.translation.base import Pair
from magneto.data.corpora.translation.translation_files import TranslationFilesReader
from magneto.data.translation.module import TranslationDataModule
from magneto.errors import MagnetoError
from tests.toys.corpora import read, write


def texts(pairs: list[Pair]) -> list[tuple[str, str]]:
    return [(pair.source, pair.target) for pair in pairs]


def own(tmp_path: Path, direction: str = "en-fr", **contents: str | bytes) -> TranslationFilesReader:
    """The reader of files a.source, a.target, a.tsv or a.tmx with these contents."""
    files = {kind: str(write(tmp_path / f"a.{kind}", content)) for kind, content in contents.items()}
    return TranslationFilesReader(direction, **files)


def test_line_aligned_files(tmp_path: Path) -> None:
    """Unequal numbers of lines are an error with both."""
    source, target = (
        b"\xef\xbb\xbfone\ntwo\x0btwo\r\n\nfour\n\xff\xfe\n",
        "un\ndeux\u2028deux\ntrois\nquatre\ncinq",
    )
    pairs, skipped = read(own(tmp_path, source=source, target=target), tmp_path)
    found = [(one.strip(), other.strip()) for one, other in texts(pairs)]
    assert found == [("one", "un"), ("two\x0btwo", "deux\u2028deux"), ("", "trois"), ("four", "quatre")]
    assert skipped == {"not UTF-8": 1}
    with pytest.raises(MagnetoError, match=r"a\.target has 2 lines, .*a\.source has 4:"):
        read(own(tmp_path, source="one\ntwo\nthree\nfour\n", target="un\ndeux\n"), tmp_path)


def test_tsv(tmp_path: Path) -> None:
    content = b"one\tun\tcomment\r\ntwo\n\nthree\t\n\xff\tx\nnul\0\tnul\n"
    pairs, skipped = read(own(tmp_path, tsv=content), tmp_path)
    assert texts(pairs) == [("one", "un"), ("three", ""), ("nul\0", "nul")]
    assert skipped == {"no tab in the line": 1, "not UTF-8": 1}


TMX = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE tmx SYSTEM "tmx14.dtd">
<tmx version="1.4"><header srclang="EN-US" adminlang="en" datatype="plaintext" segtype="sentence" o-tmf="x"
 creationtool="x" creationtoolversion="1"/><body>
<tu><tuv xml:lang="EN-US"><seg>Click <bpt i="1">&lt;b&gt;</bpt>OK<ept i="1">&lt;/b&gt;</ept> &amp; <hi>wait</hi>.</seg></tuv>
<tuv xml:lang="fr"><seg>Cliquez sur OK.</seg></tuv></tu>
<tu><tuv lang="en"><seg>Only English</seg></tuv></tu>
<tu><tuv xml:lang="en"><seg>Empty</seg></tuv><tuv xml:lang="fr-CA"><seg/></tuv></tu>
</body></tmx>"""


def test_tmx(tmp_path: Path) -> None:
    pairs, skipped = read(own(tmp_path, tmx=TMX), tmp_path)
    assert texts(pairs) == [("Click OK & wait.", "Cliquez sur OK."), ("Empty", "")]
    assert skipped == {"a language is missing in the unit": 1}
    with pytest.raises(
        MagnetoError, match=r"no unit has both en and de; its languages: EN-US, en, fr, fr-CA"
    ):
        read(own(tmp_path, "en-de", tmx=TMX), tmp_path)


def test_entities_of_html_in_a_tmx(tmp_path: Path) -> None:
    """Where a DTD is named that may declare them they are read; else the message names the entity."""
    unit = '<tu><tuv lang="en"><seg>a&nbsp;b</seg></tuv><tuv lang="fr"><seg>c&eacute;</seg></tuv></tu>'
    body = f"<tmx><body>{unit}</body></tmx>"
    pairs, _ = read(own(tmp_path, tmx='<!DOCTYPE tmx SYSTEM "tmx14.dtd">' + body), tmp_path)
    assert texts(pairs) == [("a\u00a0b", "cé")]
    with pytest.raises(MagnetoError, match="Entity 'nbsp' not defined"):
        read(own(tmp_path, tmx=body), tmp_path)


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".ZST", zstandard.compress)])
def test_compressed_parallel_files(suffix: str, pack: Any, tmp_path: Path) -> None:
    """As OPUS and WMT publish them; a damaged one is named with what is wrong."""
    contents = {"a.en": b"One thing\nAnother\n", "a.fr": b"Une chose\nUne autre\n"}
    contents |= {"a.tsv": b"One thing\tUne chose\nAnother\tUne autre\n", "a.tmx": TMX.encode()}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / f"{name}{suffix}").write_bytes(pack(content))
        (tmp_path / f"cut-{name}{suffix}").write_bytes(pack(content)[:-9])
    for files in ({"source": "a.en", "target": "a.fr"}, {"tsv": "a.tsv"}, {"tmx": "a.tmx"}):
        plain, _ = read(
            TranslationFilesReader("en-fr", **{k: tmp_path / n for k, n in files.items()}), tmp_path
        )
        packed = {kind: tmp_path / f"{name}{suffix}" for kind, name in files.items()}
        found, _ = read(TranslationFilesReader("en-fr", **packed), tmp_path)
        assert plain and texts(plain) == texts(found)
        cut = {kind: tmp_path / f"cut-{name}{suffix}" for kind, name in files.items()}
        with pytest.raises(MagnetoError, match=r"cut-a.*: damaged \(.+\)"):
            read(TranslationFilesReader("en-fr", **cut), tmp_path)


def test_neighbouring_units_have_one_split(tmp_path: Path) -> None:
    """Of a TMX file, in blocks."""
    unit = '<tu><tuv xml:lang="en"><seg>one {0}</seg></tuv><tuv xml:lang="fr"><seg>un {0}</seg></tuv></tu>'
    text = f"<tmx><body>{''.join(unit.format(n) for n in range(150))}</body></tmx>"
    pairs, _ = read(own(tmp_path, tmx=text), tmp_path)
    assert [pair.group for pair in pairs] == ["a.tmx:0"] * 100 + ["a.tmx:1"] * 50


@pytest.mark.parametrize("broken", ["", "no xml", TMX[:-30], TMX.replace("</tuv>", "", 1), "<tmx>\0</tmx>"])
def test_broken_tmx_is_refused(broken: str, tmp_path: Path) -> None:
    with pytest.raises(MagnetoError, match=r"a\.tmx: not well-formed XML"):
        read(own(tmp_path, tmx=broken), tmp_path)


@pytest.mark.timeout(10)
def test_entities_of_tmx_are_not_expanded(tmp_path: Path) -> None:
    """And no other file is read."""
    lines = ['<!ENTITY a0 "lol">', *(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12))]
    secret = write(tmp_path / "secret", "secret words")
    for entities in (lines, [f'<!ENTITY a11 SYSTEM "file://{secret}">']):
        bomb = TMX.replace('SYSTEM "tmx14.dtd"', "[" + "".join(entities) + "]").replace("Only", "&a11;")
        with pytest.raises(MagnetoError, match="declares XML entities"):
            read(own(tmp_path, tmx=bomb), tmp_path)


def test_files_of_stated_splits(tmp_path: Path) -> None:
    """Wrong combinations are refused."""
    parts = {
        side: {"tsv": str(write(tmp_path / f"{side}.tsv", f"{side} one\t{side} un\n"))}
        for side in ("train", "val", "test")
    }
    pairs, _ = read(TranslationFilesReader("en-fr", **parts), tmp_path)
    assert [(pair.split, pair.source) for pair in pairs] == [(side, f"{side} one") for side in parts]
    for wrong in (
        {}, {"source": "a"}, {"tsv": "a", "tmx": "b"}, {"tsv": "a", **parts}, {"train": parts["train"]},
        {**parts, "val": {"csv": "x"}},
    ):  # fmt: skip
        with pytest.raises(MagnetoError, match="set"):
            TranslationFilesReader("en-fr", **wrong)
    with pytest.raises(MagnetoError, match="is not a direction"):
        TranslationFilesReader("english-french", tsv="a.tsv")


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions do not hold root back, hence an open that fails."""
    reader = own(tmp_path, tsv="one\tun\n")

    def refuse(self: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(MagnetoError, match=r"tsv: .*a\.tsv: cannot be read \(Permission denied\)"):
        reader.fingerprint()


def test_own_files_from_the_source_to_batches(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [
        f"The {chr(97 + n % 26) * (2 + n // 26)} works well.\tLe {chr(97 + n % 26) * (2 + n // 26)} marche bien."
        for n in range(2_000)
    ]
    lines[5:8] = ["Nul \0 here\tNul ici", "Empty\t", "word " * 5_000 + "\tmot"]
    data = TranslationDataModule(
        {"files": own(tmp_path, tsv="\n".join(lines).encode() + b"\nbad \xff\tbytes\n")},
        data_dir=str(tmp_path / "data"),
        tokenizer={"kind": "bpe", "vocab_size": 150},
        val_fraction=0.2,
        test_fraction=0.2,
    )
    with caplog.at_level(logging.WARNING):
        data.prepare()
    data.setup()
    assert sum(data.info.pairs.values()) + 4 <= 2_001
    for reason in ("broken Unicode", "empty target", "longer than 10000 characters", "not UTF-8"):
        assert f"{reason}: 1" in caplog.text
    assert sum(len(batch["id"]) for batch in data.test_dataloader()) == data.info.pairs["test"]
