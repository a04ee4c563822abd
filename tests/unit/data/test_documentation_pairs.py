"""Manual pages in two languages: roff to blocks, blocks to pairs; real forms, good and broken."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from magneto.data.corpora.base import hash_split
from magneto.data.corpora.translation.base import Pair
from magneto.data.corpora.translation.documentation_pairs import ManPagesReader
from magneto.data.corpora.translation.roff import Unreadable, blocks
from magneto.errors import MagnetoError

HEAD = '.\\" Copyright (C) 1992\n.TH dup 2 2023-02-05 "Linux man-pages 6.03"\n'

ENGLISH = (
    HEAD
    + r"""
.SH NAME
dup, dup2 \- duplicate a file descriptor
.SH SYNOPSIS
.nf
.B #include <unistd.h>
.PP
.BI "int dup(int " oldfd );
.fi
.PP
Needs a test macro:
.SH DESCRIPTION
The
.BR dup ()
system call allocates a file
.\" a note of the author
descriptor that refers to
.IR oldfd .
(See
.BR open (2).)
.PP
Sizes are as follows:
.TS
l l.
name	bytes
.TE
.SS dup2()
.TP
.BR O_CLOEXEC " (since Linux 2.6)"
Sets the flag.
.TP
.B EBADF
.I oldfd
isn't \[lq]open\[rq].
.IP \[bu] 3
Closed \(em or not.
.IP "the \fIsecond\fP item"
See
.UR https://example.org
the manual
.UE .
.EX
fd = dup(1);
.EE
.SH SEE ALSO
.BR close (2)
"""
)
FRENCH = (
    HEAD
    + r"""
.SH NOM
dup, dup2 \- Dupliquer un descripteur de fichier
.SH SYNOPSIS
.nf
\fB#include <unistd.h>\fP
.PP
\fBint dup(int \fP\fIoldfd\fP\fB);\fP
.fi
.PP
Exige une macro de test\ :
.SH DESCRIPTION
L'appel système \fBdup\fP() affecte un descripteur de
fichier qui se rapporte à \fIoldfd\fP. (Voir \fBopen\fP(2)\ ;)
.PP
Voici les tailles\ :
.TS
l l.
nom	octets
.TE
.SS dup2()
.TP
\fBO_CLOEXEC\fP (depuis Linux 2.6)
Positionne l'attribut.
.TP
\fBEBADF\fP
\fIoldfd\fP n'est pas «\ ouvert\ ».
.IP \[bu] 3
Fermé \[em] ou non.
.IP "le \fIsecond\fP élément"
Voir
.UR https://example.org
le manuel
.UE .
.EX
fd = dup(1);
.EE
.SH "VOIR AUSSI"
\fBclose\fP(2)
.PP
.SH TRADUCTION
La traduction française de cette page a été créée par
X.
"""
)
GERMAN = FRENCH.replace("TRADUCTION", "ÜBERSETZUNG").replace("Positionne l'attribut.", "Setzt den Schalter.")
PAIRS = [
    ("dup, dup2 - duplicate a file descriptor", "dup, dup2 - Dupliquer un descripteur de fichier"),
    (
        "The dup() system call allocates a file descriptor that refers to oldfd. (See open(2).)",
        "L'appel système dup() affecte un descripteur de fichier qui se rapporte à oldfd. (Voir open(2) ;)",
    ),
    ("Sizes are as follows:", "Voici les tailles :"),
    ("O_CLOEXEC (since Linux 2.6)", "O_CLOEXEC (depuis Linux 2.6)"),
    ("Sets the flag.", "Positionne l'attribut."),
    ("oldfd isn't “open”.", "oldfd n'est pas « ouvert »."),
    ("Closed — or not.", "Fermé — ou non."),
    ("the second item", "le second élément"),
    ("See the manual.", "Voir le manuel."),
    ("SEE ALSO", "VOIR AUSSI"),
]

Write = Callable[[str, str | bytes], Path]


@pytest.fixture
def manual(tmp_path: Path) -> Path:
    return tmp_path / "man"


@pytest.fixture
def write(manual: Path) -> Write:
    def make(name: str, page: str | bytes) -> Path:
        path = manual / f"{name}.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(page.encode() if isinstance(page, str) else page))
        return path

    make("man2/dup.2", ENGLISH)
    make("fr/man2/dup.2", FRENCH)
    make("de/man2/dup.2", GERMAN)
    return make


def read(source: ManPagesReader, tmp_path: Path) -> tuple[list[Pair], list[tuple[str, str]]]:
    """Its pairs, and what it skipped of whole pages with the reasons."""
    corpus = source.load(tmp_path / "data")
    pairs = list(corpus.pairs)
    assert len({pair.id for pair in pairs}) == len(pairs)
    json.dumps([corpus.origin, source.fingerprint()])
    return pairs, [(item.id, item.reason) for item in corpus.skipped if "#" not in item.id]


def texts(pairs: list[Pair]) -> list[tuple[str, str]]:
    return [(" ".join(pair.source.split()), " ".join(pair.target.split())) for pair in pairs]


# ------------------------------------------------------------------------------------------------ roff


def kinds(body: str) -> list[tuple[str, str]]:
    return [(block.kind, block.text) for block in blocks(f"{HEAD}.SH NAME\n{body}")][1:]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ('.RB ( CONFIG_X ,\n.I "a b"\nc', "(CONFIG_X, a b c"),
        (r"\f(CWx\fR\fBy\f[R]\s-1z\s0\m[red]!\m[]", "xyz!"),
        (r"a\-b \(em c\~d\0e\ f \[u2014] \(co\&. \\(em \e0", "a-b — c d e f — ©. \\(em \\0"),
        (r"don\(aqt \(dqx\(dq \[aq]y\[aq] \*(lqz\*(rq \N'65'", "don't \"x\" 'y' “z” A"),
        ('one \\\ntwo\n.\\" gone\n.\n\'\\" gone too\nthree\\" and this', "one two three"),
        ('say "" \\(dq\n.B "quoted ""word"""', 'say "" " quoted "word"'),
        (".BR setjmp (3)/\\c\n.BR sigsetjmp (3)", "setjmp(3)/sigsetjmp(3)"),
        ("see\n.UR http://a.org/x\n.UE ,\n.MT a@b.org\nme\n.ME .", "see http://a.org/x, me."),
        ("\\&'quoted at the start", "'quoted at the start"),
        (".if t \\{\\\n.ft CW\nin print\n\\}\n.if t print\n.if n .B terminal\n.if n and", "terminal and"),
        (".de q\n\\\\$1\n.SH no\n..\n.ig\nnothing\n..\nsome text", "some text"),
    ],
)
def test_text_is_what_a_reader_sees(body: str, text: str) -> None:
    assert kinds(body) == [("paragraph", text)]


def test_blocks_end_where_a_reader_sees_them_end() -> None:
    assert kinds("a\nb\n.sp\nc\n\nd\n.RS\ne\n.RE\n.br\nf\n g\n.PP\n.PP\nh") == [
        ("paragraph", text) for text in ("a b", "c", "d", "e", "f", "g", "h")
    ]
    assert kinds(".TP 4\n.B a\n.TQ\n.BI b\\c\nc\nbody\n.IP\nmore\n.IP (1) 3\nlast\n.SS\nTitle\n.SS \"Other title\"\nx") == [
        ("term", "a"), ("term", "bc"), ("paragraph", "body"), ("paragraph", "more"), ("mark", "(1)"), ("paragraph", "last"),
        ("subsection", "Title"), ("subsection", "Other title"), ("paragraph", "x")]  # fmt: skip


def test_tables_and_code_keep_their_place_and_no_text() -> None:
    tables = "a\n.nf\ncode\n.PP\ncode\n.fi\nb\n.TS\n.SH no\nl l.\nx\\T\ty\n.TE\n"
    body = tables + ".EX\n.if x\n.EE\n.SY cmd\n.OP x\n.YS\n.nf\nopen\n.SS S\nc"
    assert kinds(body) == [
        ("paragraph", "a"), ("display", ""), ("paragraph", "b"), ("display", ""), ("display", ""), ("display", ""),
        ("display", ""), ("subsection", "S"), ("paragraph", "c")]  # fmt: skip


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        ("", "empty page"),
        (" \n\n", "empty page"),
        ("Just some text.\nNo macros.", r"no manual page \(without .TH\)"),
        ("<html><body>.TH is not here</body></html>", "no manual page"),
        ('.\\" comment\n.so man2/dup.2\n', r"only names another page \(.so\)"),
        (".Dd January 1\n.Dt LS 1\n.Sh NAME\n", "mdoc"),
        (HEAD, "no section"),
        (HEAD + ".SS A\ntext\n", "no section"),
        (HEAD + ".SH A\n\\N'99999999'\n", r"roff's \\N is not understood"),
        (HEAD + ".SH A\n.EX\ncode\n", r"without its end \(.EE\)"),
        (HEAD + ".SH A\n.ie x y\n", r"roff's .ie is not understood"),
        (HEAD + ".SH A\n.XX y\n", r"roff's .XX is not understood"),
        (HEAD + ".SH A\nx\\(zz", r"roff's \\\(zz is not understood"),
        (HEAD + ".SH A\n\\*(zz\\w'a'", r"roff's \\\*\(zz is not understood"),
    ],
)
def test_pages_that_cannot_be_read_say_why(page: str, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        blocks(page)


@pytest.mark.timeout(10)
def test_odd_bytes_and_long_lines_end_in_blocks_or_a_reason() -> None:
    for page in (
        "\\" * 50_001,
        '"' * 50_000,
        ".B " + '"a' * 50_000,
        ".BR \\\\\\",
        "\0" * 99,
        ".TP",
        ".IP",
        "'",
        ".",
        "\\[",
    ):
        try:
            assert blocks(f"{HEAD}.SH A\n{page}")
        except Unreadable as reason:
            assert "understood" in str(reason)


# ------------------------------------------------------------------------------------------------ pairs


def test_blocks_are_joined_by_their_place_and_the_last_section_is_cut(
    write: Write, manual: Path, tmp_path: Path
) -> None:
    source = ManPagesReader(["en-fr"], str(manual))
    corpus = source.load(tmp_path / "data")
    pairs = list(corpus.pairs)
    assert texts(pairs) == PAIRS
    assert {pair.group for pair in pairs} == {"man2/dup.2"} and pairs[0].split is None
    reasons = [item.reason for item in corpus.skipped]
    assert reasons.count("single word") == 1, "NAME, NOM"
    assert reasons.count("synopsis") == 1 and "Needs a test macro" not in str(pairs)
    assert reasons.count("the same in two languages: a name, code, or not translated") == 6
    assert texts(read(ManPagesReader(["fr-en"], str(manual)), tmp_path)[0]) == [(b, a) for a, b in PAIRS]


def test_other_directions_keep_to_what_is_translated_and_a_page_keeps_its_side(
    write: Write, manual: Path, tmp_path: Path
) -> None:
    pairs, skipped = read(ManPagesReader(["en-de", "fr-de"], str(manual)), tmp_path)
    assert len([pair for pair in pairs if pair.source_language == "en"]) == len(PAIRS)
    between = [pair for pair in pairs if pair.source_language == "fr"]
    assert texts(between) == [("Positionne l'attribut.", "Setzt den Schalter.")], "the rest is no German"
    assert {pair.group for pair in pairs} == {"man2/dup.2"} and not skipped
    with pytest.raises(MagnetoError, match="has no language 'es'; it has de, en, fr"):
        ManPagesReader(["en-es"])


def test_pages_that_do_not_match_or_cannot_be_read_cost_only_themselves(
    write: Write, manual: Path, tmp_path: Path
) -> None:
    for name in ("more", "kinds", "latin", "cut", "damaged", "nogzip", "plain", "empty", "english"):
        write(f"man3/{name}.3", ENGLISH.replace("dup", name))
    write("fr/man3/more.3", FRENCH.replace("Positionne", ".PP\nEncore ceci.\n.PP\nPositionne"))
    write("fr/man3/kinds.3", FRENCH.replace(".TP\n", ".PP\n"))
    write("fr/man3/latin.3", FRENCH.encode("latin-1", "replace"))
    cut, damaged = write("fr/man3/cut.3", FRENCH), write("fr/man3/damaged.3", FRENCH)
    cut.write_bytes(cut.read_bytes()[:-40])
    damaged.write_bytes(damaged.read_bytes()[:60] + bytes(40) + damaged.read_bytes()[100:])
    write("fr/man3/nogzip.3", FRENCH).write_text(FRENCH)
    write("fr/man3/plain.3", "Ceci n'est pas du roff.")
    write("fr/man3/empty.3", "")
    write("fr/man3/orphan.3", FRENCH)
    (manual / "man3/alias.3.gz").symlink_to("more.3.gz")
    (manual / "fr/man3/alias.3.gz").symlink_to("more.3.gz")
    (manual / "man3/dangling.3.gz").symlink_to("nowhere.3.gz")
    (manual / "man3/folder.3").mkdir()
    pairs, skipped = read(ManPagesReader(["en-fr"], str(manual)), tmp_path)
    assert texts(pairs) == PAIRS
    unlike = "blocks of other kinds than its original's"
    assert dict(skipped) == {
        "en-fr:man3/more.3": unlike,
        "en-fr:man3/kinds.3": unlike,
        "en-fr:man3/latin.3": "not UTF-8 (fr)",
        "en-fr:man3/cut.3": "damaged .gz file (fr)",
        "en-fr:man3/damaged.3": "damaged .gz file (fr)",
        "en-fr:man3/nogzip.3": "damaged .gz file (fr)",
        "en-fr:man3/plain.3": "no manual page (without .TH) (fr)",
        "en-fr:man3/empty.3": "empty page (fr)",
        "en-fr:man3/orphan.3": "its original is in none of the packages",
        "en-fr:man3/alias.3": "another name of a page (en)",
        "en-fr:man3/english.3": "not translated",
    }


def test_pages_that_share_their_paragraphs_stand_on_one_side(
    write: Write, manual: Path, tmp_path: Path
) -> None:
    for name in ("dup3", "other"):
        write(f"fr/man2/{name}.2", FRENCH)
    write("man2/dup3.2", ENGLISH.replace("Sets the flag.", "Sets another flag than the first one."))
    other = "The\n.BR other ()\nfunction computes something that is wholly different."
    start, end = ENGLISH.index("The\n"), ENGLISH.index(".PP\nSizes")
    write("man2/other.2", ENGLISH[:start] + other + "\n" + ENGLISH[end:])
    pairs, _ = read(ManPagesReader(["en-fr"], str(manual)), tmp_path)
    groups = {pair.id.split(":")[1].split("#")[0]: pair.group for pair in pairs}
    assert groups == {"man2/dup.2": "man2/dup.2", "man2/dup3.2": "man2/dup.2", "man2/other.2": "man2/other.2"}
    sides = {hash_split(pair.group, val=0.3, test=0.3) for pair in pairs if pair.group == "man2/dup.2"}
    assert len(sides) == 1


def test_the_folder_may_be_a_manual_or_hold_unpacked_packages(
    write: Write, manual: Path, tmp_path: Path
) -> None:
    before = ManPagesReader(["en-fr"], str(manual)).fingerprint()
    (tmp_path / "usr/share").mkdir(parents=True)
    manual.rename(tmp_path / "usr/share/man")
    for folder in (tmp_path, tmp_path / "usr/share", tmp_path / "usr/share/man"):
        source = ManPagesReader(["en-fr"], str(folder))
        assert len(read(source, tmp_path)[0]) == len(PAIRS)
        unchanged = source.fingerprint()
        assert unchanged["files"] != before["files"] or folder.name == "man"
    page = tmp_path / "usr/share/man/fr/man2/dup.2.gz"
    page.write_bytes(page.read_bytes() + b"\0")
    assert source.fingerprint() != unchanged, "a changed page is prepared anew"
    with pytest.raises(MagnetoError, match="no such folder"):
        read(ManPagesReader(folder=str(tmp_path / "missing")), tmp_path)
    (tmp_path / "usr/share/man/fr").rename(tmp_path / "gone")
    with pytest.raises(MagnetoError, match="holds none of the files of manpages-fr"):
        read(ManPagesReader(folder=str(tmp_path)), tmp_path)
