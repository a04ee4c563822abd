"""Each parallel corpus on small files of its real format, good and broken."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import polib
import pytest

from magneto.data.corpora.translation.base import Pair
from magneto.data.corpora.translation.gettext import GettextReader
from magneto.data.corpora.translation.libreoffice import LibreOfficeReader
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
    assert skipped == dict.fromkeys(
        ("code or link", "formula or table of numbers", "not translated", "single word"), 1
    )


def test_broken_help_pages(pages: Path, tmp_path: Path) -> None:
    """They cost only their own pairs; a wrong language or folder is refused."""
    (pages / "en-US/text/swriter/guide/more.html").write_text('<p id="par_id1">A page of its own.</p>')
    (pages / "fr/text/empty.html").write_bytes(b"")
    (pages / "en-US/text/empty.html").write_bytes(b"\0\xff<p id=")
    pairs, _ = read(LibreOfficeReader(["fr-en"], folder=str(pages)), tmp_path)
    assert len(pairs) == 4 and pairs[0].source_language == "fr"
    for directions, folder, message in (
        (["en-xx"], pages, "has no language 'xx'"),
        (["en-fr"], tmp_path / "missing", "no such folder"),
        (["en-de"], pages, "holds none of the files of libreoffice-help-de"),
    ):
        with pytest.raises(MagnetoError, match=message):
            read(LibreOfficeReader(directions, folder=str(folder)), tmp_path)


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
NAMES = ("open", "save", "one", "few", "many")
WORDS = {
    "pl": ("&Otwórz plik", "Zapisz jako", "%d strona", "%d strony", "%d stron"),
    "fr": ("_Ouvrir le fichier", "Enregistrer sous", "%d page", "-", "%d pages"),
}


@pytest.fixture
def catalogs(tmp_path: Path) -> Path:
    for language, words in WORDS.items():
        text = PO
        for name, word in zip(NAMES, words, strict=True):
            text = text.replace(f"{{{name}}}", word)
        write(tmp_path / "app/locale" / language / "LC_MESSAGES/app.po", text)
    return tmp_path / "app"


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
    assert skipped == {"fuzzy": 3, "not translated": 3}
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


def save(path: Path, entry: polib.POEntry, metadata: Mapping[str, str] = MappingProxyType({})) -> str:
    catalog = polib.POFile()
    catalog.metadata = {"Content-Type": "text/plain; charset=UTF-8", **metadata}
    catalog.append(entry)
    (catalog.save_as_mofile if path.suffix == ".mo" else catalog.save)(str(path))
    return str(path)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("language", FORMS)
def test_plural_forms_are_those_of_the_header(language: str, compiled: bool, tmp_path: Path) -> None:
    """The singular is the form of 1, the plural that of many, not the first and the last."""
    header, one, many = FORMS[language]
    count = int(header[9]) if header[9].isdigit() else 2
    forms = {number: f"form {number}" for number in range(count)}
    entry = polib.POEntry(msgid="One file", msgid_plural="%d files", msgstr_plural=forms)
    path = save(tmp_path / f"{language}.{'mo' if compiled else 'po'}", entry, {"Plural-Forms": header})
    pairs, skipped = read(GettextReader([f"en-{language}"], [], [path]), tmp_path)
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
    path = save(tmp_path / "fr.po", polib.POEntry(msgid="Something", msgstr=text))
    assert texts(read(GettextReader(["en-fr"], [], [path]), tmp_path)[0]) == [("Something", plain)]


def test_wheels_and_compiled_catalogs(catalogs: Path, tmp_path: Path) -> None:
    """And single files."""
    file = catalogs / "locale/fr/LC_MESSAGES/app.po"
    polib.pofile(str(file)).save_as_mofile(str(file.with_suffix(".mo")))
    file.unlink()
    compiled = file.with_suffix(".mo").read_bytes()
    wheel = tmp_path / "app-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("app/locale/fr/LC_MESSAGES/app.mo", compiled)
        archive.writestr("app/code.py", "")
    for path in (wheel, write(tmp_path / "po/fr.mo", compiled), catalogs):
        pairs, _ = read(GettextReader(["en-fr"], [], [str(path)]), tmp_path)
        assert sorted(texts(pairs)) == sorted(FRENCH_PAIRS), path


def test_the_catalog_of_the_original(tmp_path: Path) -> None:
    """Its texts replace keys that are not text."""
    for language, text in (("en", "A title"), ("fr", "Un titre")):
        file = write(tmp_path / "k" / language / "LC_MESSAGES/k.po", "")
        save(file, polib.POEntry(msgid="label_t", msgstr=text))
    assert texts(read(GettextReader(["en-fr"], [], [str(tmp_path / "k")]), tmp_path)[0]) == [
        ("A title", "Un titre")
    ]


def test_broken_catalogs(catalogs: Path, tmp_path: Path) -> None:
    """They are skipped; unknown languages and empty folders are refused."""
    folder = catalogs / "locale/fr/LC_MESSAGES"
    for name, content in (
        ("bad", b'msgid "x\nmsgstr'),
        ("latin", b'msgid "x y"\nmsgstr "\xe9"\n'),
        ("nul", b"\0" * 99),
    ):
        for suffix in (".po", ".mo"):
            write(folder / (name + suffix), content)
    polib.pofile(str(folder / "app.po")).save_as_mofile(str(folder / "cut.mo"))
    write(folder / "cut.mo", (folder / "cut.mo").read_bytes()[:60])
    write(folder / "empty.mo", b"")
    pairs, skipped = read(GettextReader(["en-fr"], [], [str(catalogs)]), tmp_path)
    assert texts(pairs) == FRENCH_PAIRS
    assert sum(count for reason, count in skipped.items() if "unreadable catalog" in reason) >= 6
    (tmp_path / "nothing").mkdir()
    for direction, packages, paths, message in (
        ("en-de", [], [str(catalogs)], "no language 'de'; it has en, fr, pl"),
        ("en-fr", [], [str(tmp_path / "nothing")], "holds no gettext catalog"),
        ("en-fr", [], [str(tmp_path / "missing")], "no such file or folder"),
        ("en-fr", ["flask"], [], "'flask' is not known"),
        ("en-fr", [], [], "name catalogs"),
    ):
        with pytest.raises(MagnetoError, match=message):
            read(GettextReader([direction], packages, paths), tmp_path)
