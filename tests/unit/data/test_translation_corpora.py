"""Each parallel corpus on small files of its real format, good and broken."""

import gzip
import logging
import zipfile
from pathlib import Path
from typing import Any

import polib
import pytest
import zstandard

from magneto.data.corpora.translation.base import Pair
from magneto.data.corpora.translation.gettext import GettextReader
from magneto.data.corpora.translation.libreoffice import LibreOfficeReader
from magneto.data.corpora.translation.translation_files import TranslationFilesReader
from magneto.data.translation.module import TranslationDataModule
from magneto.errors import MagnetoError
from tests.toys.corpora import read, write


def texts(pairs: list[Pair]) -> list[tuple[str, str]]:
    return [(pair.source, pair.target) for pair in pairs]


# ------------------------------------------------------------------------------------------------ LibreOffice

PAGE = """<!DOCTYPE html><html lang="{language}"><head><title>x</title></head><body>
<div id="DisplayArea"><p id="bm_HID1">bookmark text here</p>{body}</div></body></html>"""


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    folder = tmp_path / "help"
    english = """
<h1 id="hd_id1"><a name="x"></a>Turning off AutoCorrect</h1>
<p id="par_id2" class="paragraph">Press <span class="switchinline"><span hidden="true" id="MACtext" class="MAC">Cmd</span>
<span hidden="true" id="defaulttext">Ctrl</span></span>+Z to undo.</p>
<p id="par_id3">Click<img src="a.svg" alt="Icon">Slide<br>View.</p>
<p id="par_id4" class="code">Sub Main End Sub</p>
<p id="par_id5">Functions</p>
<p id="par_id6">=ABS(-56.78) returns 56.78.</p>
<p id="par_id7">This stands in English only.</p>
<p id="par_id8">  </p>
<ul><li><p id="par_id9" class="listitem">A <b>bold</b>er item &amp; more</p></li></ul>"""
    french = """
<h1 id="hd_id1"><a name="x"></a>Désactivation de l'AutoCorrection</h1>
<p id="par_id2" class="paragraph">Appuyez sur <span class="switchinline"><span hidden="true" id="MACtext">Commande</span>
<span hidden="true" id="defaulttext">Ctrl</span></span>+Z pour annuler.</p>
<p id="par_id3">Cliquez<img src="a.svg" alt="Icône">Diapo<br>Affichage.</p>
<p id="par_id4" class="code">Sub Main End Sub</p>
<p id="par_id5">Fonctions</p>
<p id="par_id6">=ABS(-56,78) renvoie 56,78.</p>
<ul><li><p id="par_id9" class="listitem">Un élément plus <b>gras</b> &amp; plus</p></li></ul>"""
    for language, body in (("en-US", english), ("fr", french)):
        file = folder / language / "text/swriter/guide/auto_off.html"
        file.parent.mkdir(parents=True)
        file.write_text(PAGE.format(language=language, body=body), encoding="utf-8")
    return folder


def test_help_pages_join_by_paragraph(pages: Path, tmp_path: Path) -> None:
    """Of the same file."""
    pairs, skipped = read(LibreOfficeReader(["en-fr"], folder=str(pages)), tmp_path)
    assert texts(pairs) == [
        ("Turning off AutoCorrect", "Désactivation de l'AutoCorrection"),
        ("Press Ctrl+Z to undo.", "Appuyez sur Ctrl+Z pour annuler."),
        ("Click Slide View.", "Cliquez Diapo Affichage."),
        ("A bolder item & more", "Un élément plus gras & plus"),
    ]
    assert {pair.group for pair in pairs} == {"swriter/guide/auto_off.html"} and pairs[0].split is None
    assert sorted(skipped) == ["code or link", "formula or table of numbers", "not translated", "single word"]


def test_broken_help_pages(pages: Path, tmp_path: Path) -> None:
    """They cost only their own pairs; a wrong language or folder is refused."""
    (pages / "en-US/text/swriter/guide/more.html").write_text('<p id="par_id1">A page of its own.</p>')
    (pages / "fr/text/empty.html").write_bytes(b"")
    (pages / "en-US/text/empty.html").write_bytes(b"\0\xff<p id=")
    pairs, _ = read(LibreOfficeReader(["fr-en"], folder=str(pages)), tmp_path)
    assert len(pairs) == 4 and pairs[0].source_language == "fr"
    with pytest.raises(MagnetoError, match="has no language 'xx'"):
        LibreOfficeReader(["en-xx"])
    with pytest.raises(MagnetoError, match="no such folder"):
        read(LibreOfficeReader(folder=str(tmp_path / "missing")), tmp_path)
    with pytest.raises(MagnetoError, match="holds none of the files of libreoffice-help-de"):
        read(LibreOfficeReader(["en-de"], folder=str(pages)), tmp_path)


# ------------------------------------------------------------------------------------------------ gettext

PO = r"""
msgid ""
msgstr "Content-Type: text/plain; charset=UTF-8\nPlural-Forms: nplurals=3; plural=n==1 ? 0 : n%10>=2 && n%10<=4 ? 1 : 2;\n"

msgid "&Open file"
msgstr "{open}"

msgctxt "menu"
msgid "Save as"
msgstr "{save}"

#, fuzzy
msgid "Close now"
msgstr "{open} ?"

msgid "Not yet"
msgstr ""

msgid "%d page"
msgid_plural "%d pages"
msgstr[0] "{one}"
msgstr[1] "{few}"
msgstr[2] "{many}"

#~ msgid "Gone"
#~ msgstr "{open}"
"""
POLISH = {
    "open": "&Otwórz plik",
    "save": "Zapisz jako",
    "one": "%d strona",
    "few": "%d strony",
    "many": "%d stron",
}
FRENCH = {
    "open": "_Ouvrir le fichier",
    "save": "Enregistrer sous",
    "one": "%d page",
    "few": "-",
    "many": "%d pages",
}


@pytest.fixture
def catalogs(tmp_path: Path) -> Path:
    folder = tmp_path / "app"
    for language, values in (("pl", POLISH), ("fr", FRENCH)):
        file = folder / "locale" / language / "LC_MESSAGES" / "app.po"
        file.parent.mkdir(parents=True)
        text = PO
        for name, value in values.items():
            text = text.replace(f"{{{name}}}", value)
        file.write_text(text, encoding="utf-8")
    return folder


FRENCH_PAIRS = [
    ("Open file", "Ouvrir le fichier"),
    ("Save as", "Enregistrer sous"),
    ("%d page", "%d page"),
    ("%d pages", "%d pages"),
]


def test_messages_of_catalogs_in_all_directions(catalogs: Path, tmp_path: Path) -> None:
    pairs, skipped = read(GettextReader(["en-fr", "pl-fr", "fr-en"], [], [str(catalogs)]), tmp_path)
    found = {direction: [] for direction in ("en-fr", "pl-fr", "fr-en")}
    for pair in pairs:
        found[f"{pair.source_language}-{pair.target_language}"].append((pair.source, pair.target))
    assert found["en-fr"] == FRENCH_PAIRS
    assert found["fr-en"] == [(target, source) for source, target in FRENCH_PAIRS]
    assert found["pl-fr"] == [
        ("Otwórz plik", "Ouvrir le fichier"),
        ("Zapisz jako", "Enregistrer sous"),
        ("%d strona", "%d page"),
        ("%d stron", "%d pages"),
    ]
    assert skipped.count("fuzzy") == 3 and skipped.count("not translated") == 3
    groups = {(pair.group, pair.target_language) for pair in pairs if "ave" in pair.group}
    assert {group for group, _ in groups} == {"save as"}, "a message is on one side in all languages"


FORMS = {
    # Form of 1, form of a large number: by the rules of the headers, as GNU gettext's manual and CLDR have them.
    "ar": ("nplurals=6; plural=n==0 ? 0 : n==1 ? 1 : n==2 ? 2 : n%100>=3 && n%100<=10 ? 3 : n%100>=11 ? 4 : 5;", 1, 5),
    "lv": ("nplurals=3; plural=(n%10==1 && n%100!=11 ? 0 : n != 0 ? 1 : 2);", 0, 1),
    "es": ("nplurals=3; plural=n == 1 ? 0 : n != 0 && n % 1000000 == 0 ? 1 : 2;", 0, 2),
    "ja": ("nplurals=1; plural=0;", 0, 0),
    "sl": ("nplurals=4; plural=(n%100==1 ? 0 : n%100==2 ? 1 : n%100==3 || n%100==4 ? 2 : 3);", 0, 3),
    "xx": ("nplurals=INTEGER; plural=EXPRESSION;", 0, 1),
    "yy": ("nplurals=2; plural=n%0;", 0, 1),
}  # fmt: skip


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("language", FORMS)
def test_plural_forms_are_those_of_the_header(language: str, compiled: bool, tmp_path: Path) -> None:
    """The singular is the form of 1, the plural that of many, not the first and the last."""
    header, one, many = FORMS[language]
    count = int(header[9]) if header[9].isdigit() else 2
    catalog = polib.POFile()
    catalog.metadata = {"Content-Type": "text/plain; charset=UTF-8", "Plural-Forms": header}
    forms = {number: f"form {number}" for number in range(count)}
    catalog.append(polib.POEntry(msgid="One file", msgid_plural="%d files", msgstr_plural=forms))
    (catalog.save_as_mofile if compiled else catalog.save)(
        str(tmp_path / f"{language}.{'mo' if compiled else 'po'}")
    )
    pairs, skipped = read(
        GettextReader([f"en-{language}"], [], [str(next(tmp_path.glob(f"{language}.*")))]), tmp_path
    )
    assert texts(pairs) == [("One file", f"form {one}"), ("%d files", f"form {many}")] and not skipped


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("&File", "File"),
        ("_Save", "Save"),
        ("Save &as", "Save as"),
        ("_Файл", "Файл"),
        ("ファイル(&F)", "ファイル"),
        ("ファイル(_F)...", "ファイル..."),
        ("文件 (&F)", "文件"),
        ("Terms &amp; Conditions", "Terms &amp; Conditions"),
        ("a &lt; b", "a &lt; b"),
        ("a&nbsp;b &#160; c", "a&nbsp;b &#160; c"),
        ('target="_blank"', 'target="_blank"'),
        ("Set the _id field", "Set the _id field"),
        ("AT&T, Q & A", "AT&T, Q & A"),
        ("&One &two", "&One &two"),
    ],
)
def test_accelerators_go_and_entities_stay(text: str, plain: str, tmp_path: Path) -> None:
    """Only the mark of an accelerator key goes."""
    catalog = polib.POFile()
    catalog.metadata = {"Content-Type": "text/plain; charset=UTF-8"}
    catalog.append(polib.POEntry(msgid="Something", msgstr=text))
    catalog.save(str(tmp_path / "fr.po"))
    pairs, _ = read(GettextReader(["en-fr"], [], [str(tmp_path / "fr.po")]), tmp_path)
    assert [pair.target for pair in pairs] == [plain]


def test_wheels_and_compiled_catalogs(catalogs: Path, tmp_path: Path) -> None:
    """And single files."""
    file = catalogs / "locale/fr/LC_MESSAGES/app.po"
    polib.pofile(str(file)).save_as_mofile(str(file.with_suffix(".mo")))
    file.unlink()
    wheel = tmp_path / "app-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(file.with_suffix(".mo"), "app/locale/fr/LC_MESSAGES/app.mo")
        archive.writestr("app/code.py", "")
    flat = tmp_path / "po" / "fr.mo"
    flat.parent.mkdir()
    flat.write_bytes(file.with_suffix(".mo").read_bytes())
    for path in (wheel, flat, catalogs):
        pairs, _ = read(GettextReader(["en-fr"], [], [str(path)]), tmp_path)
        assert sorted(texts(pairs)) == sorted(FRENCH_PAIRS), path


def test_the_catalog_of_the_original(tmp_path: Path) -> None:
    """Its texts replace keys that are not text."""
    for language, text in (("en", "A title"), ("fr", "Un titre")):
        file = tmp_path / "k" / language / "LC_MESSAGES" / "k.po"
        file.parent.mkdir(parents=True)
        file.write_text(
            f'msgid ""\nmsgstr "Content-Type: text/plain; charset=UTF-8\\n"\n\nmsgid "label_t"\nmsgstr "{text}"\n'
        )
    pairs, _ = read(GettextReader(["en-fr"], [], [str(tmp_path / "k")]), tmp_path)
    assert texts(pairs) == [("A title", "Un titre")]


def test_broken_catalogs(catalogs: Path, tmp_path: Path) -> None:
    """They are skipped; unknown languages and empty folders are refused."""
    for name, content in (
        ("bad", b'msgid "x\nmsgstr'),
        ("latin", b'msgid "x y"\nmsgstr "\xe9"\n'),
        ("nul", b"\0" * 99),
    ):
        for suffix in (".po", ".mo"):
            (catalogs / "locale/fr/LC_MESSAGES" / (name + suffix)).write_bytes(content)
    compiled = catalogs / "locale/fr/LC_MESSAGES/cut.mo"
    polib.pofile(str(compiled.with_name("app.po"))).save_as_mofile(str(compiled))
    compiled.write_bytes(compiled.read_bytes()[:60])
    (compiled.with_name("empty.mo")).write_bytes(b"")
    pairs, skipped = read(GettextReader(["en-fr"], [], [str(catalogs)]), tmp_path)
    assert texts(pairs) == FRENCH_PAIRS and sum("unreadable catalog" in reason for reason in skipped) >= 6
    with pytest.raises(MagnetoError, match="no language 'de'; it has en, fr, pl"):
        read(GettextReader(["en-de"], [], [str(catalogs)]), tmp_path)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(MagnetoError, match="holds no gettext catalog"):
        read(GettextReader(["en-fr"], [], [str(tmp_path / "nothing")]), tmp_path)
    with pytest.raises(MagnetoError, match="no such file or folder"):
        GettextReader(["en-fr"], [], [str(tmp_path / "missing")]).fingerprint()
    with pytest.raises(MagnetoError, match="'flask' is not known"):
        GettextReader(["en-fr"], ["flask"])
    with pytest.raises(MagnetoError, match="name catalogs"):
        GettextReader(["en-fr"], [])


# ------------------------------------------------------------------------------------------------ own files


def test_line_aligned_files(tmp_path: Path) -> None:
    source = write(tmp_path / "a.en", b"\xef\xbb\xbfone\ntwo\x0btwo\r\n\nfour\n\xff\xfe\n")
    target = write(tmp_path / "a.fr", "un\ndeux\u2028deux\ntrois\nquatre\ncinq")
    pairs, skipped = read(TranslationFilesReader("en-fr", source=source, target=target), tmp_path)
    found = [(one.strip(), other.strip()) for one, other in texts(pairs)]
    assert found == [("one", "un"), ("two\x0btwo", "deux\u2028deux"), ("", "trois"), ("four", "quatre")]
    assert skipped == ["not UTF-8"]


def test_unequal_numbers_of_lines(tmp_path: Path) -> None:
    """The message has both."""
    source, target = (
        write(tmp_path / "a.en", "one\ntwo\nthree\nfour\n"),
        write(tmp_path / "a.fr", "un\ndeux\n"),
    )
    with pytest.raises(MagnetoError, match=r"a\.fr has 2 lines, .*a\.en has 4:"):
        read(TranslationFilesReader("en-fr", source=source, target=target), tmp_path)


def test_tsv(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", b"one\tun\tcomment\r\ntwo\n\nthree\t\n\xff\tx\nnul\0\tnul\n")
    pairs, skipped = read(TranslationFilesReader("en-fr", tsv=path), tmp_path)
    assert texts(pairs) == [("one", "un"), ("three", ""), ("nul\0", "nul")]
    assert skipped == ["no tab in the line", "not UTF-8"]


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
    pairs, skipped = read(TranslationFilesReader("en-fr", tmx=write(tmp_path / "a.tmx", TMX)), tmp_path)
    assert texts(pairs) == [("Click OK & wait.", "Cliquez sur OK."), ("Empty", "")]
    assert skipped == ["a language is missing in the unit"]
    with pytest.raises(
        MagnetoError, match=r"no unit has both en and de; its languages: EN-US, en, fr, fr-CA"
    ):
        read(TranslationFilesReader("en-de", tmx=write(tmp_path / "a.tmx", TMX)), tmp_path)


def test_entities_of_html_in_a_tmx(tmp_path: Path) -> None:
    """Where a DTD is named that may declare them they are read; else the message names the entity."""
    unit = '<tu><tuv lang="en"><seg>a&nbsp;b</seg></tuv><tuv lang="fr"><seg>c&eacute;</seg></tuv></tu>'
    body = f"<tmx><body>{unit}</body></tmx>"
    doctype = '<!DOCTYPE tmx SYSTEM "tmx14.dtd">'
    pairs, _ = read(TranslationFilesReader("en-fr", tmx=write(tmp_path / "c.tmx", doctype + body)), tmp_path)
    assert texts(pairs) == [("a\u00a0b", "cé")]
    with pytest.raises(MagnetoError, match="Entity 'nbsp' not defined"):
        read(TranslationFilesReader("en-fr", tmx=write(tmp_path / "d.tmx", body)), tmp_path)


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
    pairs, _ = read(TranslationFilesReader("en-fr", tmx=write(tmp_path / "a.tmx", text)), tmp_path)
    assert [pair.group for pair in pairs] == ["a.tmx:0"] * 100 + ["a.tmx:1"] * 50


@pytest.mark.parametrize("broken", ["", "no xml", TMX[:-30], TMX.replace("</tuv>", "", 1), "<tmx>\0</tmx>"])
def test_broken_tmx_is_refused(broken: str, tmp_path: Path) -> None:
    with pytest.raises(MagnetoError, match=r"a\.tmx: not well-formed XML"):
        read(TranslationFilesReader("en-fr", tmx=write(tmp_path / "a.tmx", broken)), tmp_path)


@pytest.mark.timeout(10)
def test_entities_of_tmx_are_not_expanded(tmp_path: Path) -> None:
    """And no other file is read."""
    lines = ['<!ENTITY a0 "lol">', *(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12))]
    secret = write(tmp_path / "secret", "secret words")
    for entities in (lines, [f'<!ENTITY a11 SYSTEM "file://{secret}">']):
        bomb = TMX.replace('SYSTEM "tmx14.dtd"', "[" + "".join(entities) + "]").replace("Only", "&a11;")
        with pytest.raises(MagnetoError, match="declares XML entities"):
            read(TranslationFilesReader("en-fr", tmx=write(tmp_path / "a.tmx", bomb)), tmp_path)


def test_files_of_stated_splits(tmp_path: Path) -> None:
    """Wrong combinations are refused."""
    parts = {
        side: {"tsv": write(tmp_path / f"{side}.tsv", f"{side} one\t{side} un\n")}
        for side in ("train", "val", "test")
    }
    pairs, _ = read(TranslationFilesReader("en-fr", **parts), tmp_path)
    assert [(pair.split, pair.source) for pair in pairs] == [(side, f"{side} one") for side in parts]
    for wrong in (
        {},
        {"source": "a"},
        {"tsv": "a", "tmx": "b"},
        {"tsv": "a", **parts},
        {"train": parts["train"]},
        {**parts, "val": {"csv": "x"}},
    ):
        with pytest.raises(MagnetoError, match="set"):
            TranslationFilesReader("en-fr", **wrong)
    with pytest.raises(MagnetoError, match=r"missing\.tsv: cannot be read"):
        TranslationFilesReader("en-fr", tsv=str(tmp_path / "missing.tsv")).fingerprint()
    with pytest.raises(MagnetoError, match="is not a direction"):
        TranslationFilesReader("english-french", tsv="a.tsv")


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions do not hold root back, hence an open that fails."""
    file = tmp_path / "pairs.tsv"
    file.write_text("one\tun\n")

    def refuse(self: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(MagnetoError, match=r"tsv: .*pairs\.tsv: cannot be read \(Permission denied\)"):
        TranslationFilesReader("en-fr", tsv=str(file)).fingerprint()


def test_own_files_from_the_source_to_batches(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [
        f"The {chr(97 + n % 26) * (2 + n // 26)} works well.\tLe {chr(97 + n % 26) * (2 + n // 26)} marche bien."
        for n in range(2_000)
    ]
    lines[5:8] = ["Nul \0 here\tNul ici", "Empty\t", "word " * 5_000 + "\tmot"]
    path = write(tmp_path / "a.tsv", "\n".join(lines).encode() + b"\nbad \xff\tbytes\n")
    data = TranslationDataModule(
        {"files": TranslationFilesReader("en-fr", tsv=path)},
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
