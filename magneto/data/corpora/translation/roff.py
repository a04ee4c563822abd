r"""Manual pages: roff with the `man` macros, as blocks of plain text (see groff_man(7) and groff_char(7)).

A block is a heading, a term (`.TP`), a mark (the label of `.IP`), a paragraph or a display. Displays, that is tables, code
and whatever else is set without filling, keep their place but no text. What is not understood (macros that a page defines
for itself, conditions, numbers and strings of roff) raises `Unreadable`: half a sentence is worse than none.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

SECTION, SUBSECTION, TERM, MARK, PARAGRAPH, DISPLAY = (
    "section",
    "subsection",
    "term",
    "mark",
    "paragraph",
    "display",
)

FONTS = {"B", "I", "SM", "SB"}  # arguments stand apart
ALTERNATING = {"BI", "BR", "IB", "IR", "RB", "RI"}  # arguments are glued
BREAKS = {"PP", "P", "LP", "HP", "RS", "RE", "sp", "br", "ti", "in", "ta", "ne", "bp"}
IGNORED = {"", "ad", "na", "nh", "hy", "PD", "UC", "AT", "DT", "ft", "ps", "fi", "TH", "lf"}
DISPLAYS = {"nf": "fi", "EX": "EE", "TS": "TE", "SY": "YS", "EQ": "EN", "PS": "PE", "ig": ".", "de": "."}
NO_TEXT = {"ig", "de"}  # not even an empty place

REQUEST = re.compile(r"[.'][ \t]*([A-Za-z.]*)[ \t]*(.*)")
IN_TERMINAL = re.compile(
    r"(?!.*\\\{)(?:[.'][ \t]*if n[ \t]+)+"
)  # conditions: n, on a terminal, holds; t, in print, does not
COMMENT = re.compile(r'(?<!\\)((?:\\\\)*)\\["#].*')
ARGUMENT = re.compile(r'"((?:[^"]|"")*)"?|((?:\\.|[^\s\\])+|\\)')
ESCAPE = re.compile(
    r"\\(?:(?P<silent>[fF](?:\[[^\]]*\]|\(..|.)|s(?:[+-]?\d|\(\d\d|[+-]?\[\d+\])|[mM]\[[^\]]*\]|[hv]'[^']*'"
    r"|[&%:/,|^)cpda])"
    r"|\[(?P<long>[^\]]*)\]|\((?P<two>..)|\*(?P<string>\[[^\]]*\]|\(..|.)|N'(?P<code>\d{1,5})'|(?P<one>.?))"
)
CHARACTERS = {
    "-": "-", "hy": "-", "en": "–", "em": "—", "mi": "−", "pl": "+", "eq": "=", "+-": "±", "mu": "×", "di": "÷", "aq": "'",
    "dq": '"', "oq": "‘", "cq": "’", "lq": "“", "rq": "”", "Bq": "„", "Fo": "«", "Fc": "»", "ga": "`", "aa": "´", "ha": "^",
    "ti": "~", "rs": "\\", "sl": "/", "ul": "_", "ru": "_", "ba": "|", "at": "@", "sh": "#", "Do": "$", "bu": "•",
    "sc": "§", "co": "©", "rg": "®", "tm": "™", "de": "°", "mc": "µ", "fm": "′", "sd": "″", "la": "⟨", "ra": "⟩",
    "lB": "[", "rB": "]", "lC": "{", "rC": "}", "12": "½", "14": "¼", "34": "¾", "<=": "≤", ">=": "≥", "!=": "≠",
    "->": "→", "<-": "←", "oe": "œ", "OE": "Œ", "ae": "æ", "AE": "Æ", "ss": "ß", ":a": "ä", ":o": "ö", ":u": "ü",
    ":A": "Ä", ":O": "Ö", ":U": "Ü", "'e": "é", "`e": "è", "`a": "à", "^e": "ê", ",c": "ç", "*m": "μ",
}  # fmt: skip
STRINGS = {"lq": "“", "rq": "”", "R": "®", "Tm": "™"}
SINGLE = {"-": "-", "e": "\\", "\\": "\\", " ": " ", "~": " ", "0": " ", "t": " ", "'": "´", "`": "`", "_": "_",
          ".": ".", '"': '"'}  # fmt: skip


class Unreadable(ValueError):
    """A page that is no manual page, or holds what is not understood; the message says which, without numbers."""


@dataclass(frozen=True)
class Block:
    """kind: SECTION, SUBSECTION, TERM, MARK, PARAGRAPH or DISPLAY; text: on one line, "" for a display."""

    kind: str
    text: str


def blocks(page: str) -> list[Block]:
    """The blocks of a page from its first section on. Raises `Unreadable`."""
    if not page.strip():
        raise Unreadable("empty page")
    if re.match(r"(?:\s|[.']\\\".*\n)*\.so\s", page):
        raise Unreadable("only names another page (.so)")
    if not re.search(r"^\.TH\b", page, re.MULTILINE):
        mdoc = re.search(r"^\.Dd\b", page, re.MULTILINE)
        raise Unreadable("written with the mdoc macros" if mdoc else "no manual page (without .TH)")
    reader = _Reader()
    for line in _lines(page):
        reader.read(line)
    return reader.finish()


def _lines(page: str) -> Iterator[str]:
    """Lines without comments, joined where they go on after a backslash; a line that is all comment is gone."""
    waiting = ""
    for raw in page.split("\n"):
        line = COMMENT.sub(r"\1", raw.rstrip("\r"))
        if line != raw and not line.strip(" \t.'"):
            continue
        line = waiting + line
        waiting = ""
        if (len(line) - len(line.rstrip("\\"))) % 2:
            waiting = line[:-1]
        else:
            yield line
    if waiting:
        yield waiting


def plain(text: str) -> str:
    """Text with roff's escapes resolved."""
    return ESCAPE.sub(_character, text)


def _character(match: re.Match[str]) -> str:
    if match["silent"]:
        return ""
    if match["code"]:
        return chr(int(match["code"]))
    name = match["long"] or match["two"] or ""
    if re.fullmatch(r"u[0-9A-F]{4,5}", name):
        return chr(int(name[1:], 16))
    found = SINGLE.get(match["one"] or "") or CHARACTERS.get(name)
    if match["string"]:
        found = STRINGS.get(match["string"].strip("[]("))
    if found is None:
        raise Unreadable(f"roff's {match[0][:12]} is not understood")
    return found


def arguments(text: str) -> list[str]:
    """The arguments of a macro, escapes resolved."""
    found = []
    for match in ARGUMENT.finditer(text):
        quoted = match[0].startswith('"')
        found.append(plain(match[1].replace('""', '"') if quoted else match[2]))
    return found


class _Reader:
    """Collects blocks, line by line."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self._parts: list[str] = []  # of the block that is open
        self._glue = False  # whether the next part belongs to the last word
        self._awaits = ""  # SECTION, SUBSECTION or TERM: the next line is its text
        self._end = ""  # the request that ends a display
        self._link: tuple[str, int] | None = None  # an address, and the number of parts before its text

    def finish(self) -> list[Block]:
        """What was collected. Raises `Unreadable` for a display without end."""
        if self._end:
            raise Unreadable(f"a table or code without its end (.{self._end})")
        self._close()
        if not any(block.kind == SECTION for block in self.blocks):
            raise Unreadable("no section")
        return self.blocks

    def read(self, line: str) -> None:
        """A line without comments."""
        request = REQUEST.fullmatch(line)
        if self._end == "\\}":
            self._end = "" if "\\}" in line else self._end
            return
        if self._end:
            name = request[1] if request is not None else ""
            if name == self._end or (
                self._end == "fi" and name in ("SH", "SS")
            ):  # a heading ends what .nf began
                self._end = ""
            if name not in ("SH", "SS") or self._end:
                return
        if condition := IN_TERMINAL.match(line):
            line = line[condition.end() :]
            request = REQUEST.fullmatch(line)
        if request is not None:
            self._request(request[1], request[2])
        elif self.blocks or self._awaits:  # before the first section nothing is said
            if not line.strip() or (line[0] in " \t" and not self._awaits):
                self._close()
            self._text(plain(line), glued=line.endswith("\\c"))

    def _request(self, name: str, rest: str) -> None:
        if name in DISPLAYS:
            if self.blocks and name not in NO_TEXT:
                self._close()
                self.blocks.append(Block(DISPLAY, ""))
            self._end = DISPLAYS[name]
        elif name in ("SH", "SS"):
            self._close()
            self._awaits = SECTION if name == "SH" else SUBSECTION
            if rest.strip():
                self._text(" ".join(arguments(rest)), glued=False)
        elif name == "if" and rest.startswith("t"):
            self._end = "" if "\\{" not in rest else "\\}"
        elif not self.blocks and not self._awaits:
            return  # settings before the first section
        elif name in FONTS:
            if words := " ".join(arguments(rest)):
                self._text(words, glued=rest.endswith("\\c"))
        elif name in ALTERNATING:
            self._text("".join(arguments(rest)), glued=rest.endswith("\\c"))
        elif name in ("TP", "TQ"):
            self._close()
            self._awaits = TERM
        elif name == "IP":
            self._close()
            if label := arguments(rest)[:1]:
                self.blocks.append(Block(MARK, label[0].strip()))
        elif name in ("UR", "MT"):
            self._link = ("".join(arguments(rest)[:1]), len(self._parts))
        elif name in ("UE", "ME") and self._link is not None:
            address, before = self._link
            if len(self._parts) == before:
                self._text(address, glued=False)
            self._link, self._glue = None, True
            self._text("".join(arguments(rest)[:1]), glued=False)
        elif name in BREAKS:
            self._close()
        elif name not in IGNORED:
            raise Unreadable(f"roff's .{name[:12]} is not understood")

    def _text(self, text: str, glued: bool) -> None:
        if self._glue and self._parts:
            self._parts[-1] += text
        elif text:
            self._parts.append(text)
        self._glue = glued
        if self._awaits and self._parts and not glued:
            self._close()

    def _close(self) -> None:
        """End the open block."""
        text = " ".join(" ".join(self._parts).split())
        if text:
            self.blocks.append(Block(self._awaits or PARAGRAPH, text))
        self._parts, self._glue, self._awaits, self._link = [], False, "", None
