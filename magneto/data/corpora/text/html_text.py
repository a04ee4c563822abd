"""The text of an HTML page, as the manuals of PostgreSQL and LibreOffice write them."""

import re
from html.parser import HTMLParser

UNREAD = {"head", "script", "style", "header", "footer", "aside", "nav", "button", "svg"}
UNREAD_CLASSES = {
    "navheader",
    "navfooter",
    "toc",
    "MAC",
}  # MAC: LibreOffice's other reading for another system
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr"}
BLOCKS = {"p", "div", "br", "hr", "li", "ul", "ol", "dl", "dt", "dd", "table", "tr", "td", "th", "pre", "blockquote",
          "h1", "h2", "h3", "h4", "h5", "h6", "section", "article"}  # fmt: skip
PARAGRAPHS = BLOCKS - {"br", "li", "dt", "dd", "tr", "td", "th"}


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._unread, self._depth = "", 0  # the tag that is skipped, and how often it is open
        self._pre = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._depth:
            self._depth += tag == self._unread
            return
        classes = next((value or "" for name, value in attrs if name == "class"), "").split()
        if tag not in VOID and (tag in UNREAD or not UNREAD_CLASSES.isdisjoint(classes)):
            self._unread, self._depth = tag, 1
        else:
            self._break(tag)
            self._pre += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:  # of <br/>, which its start has handled
            return
        if self._depth:
            self._depth -= tag == self._unread
            return
        self._break(tag)
        self._pre = max(0, self._pre - (tag == "pre"))

    def handle_data(self, data: str) -> None:
        if self._depth:
            return
        if not self._pre:
            data = re.sub(r"\s+", " ", data)
            if self.parts and self.parts[-1].endswith((" ", "\n")):
                data = data.removeprefix(" ")
        if data:
            self.parts.append(data)

    def _break(self, tag: str) -> None:
        if tag in BLOCKS:
            self.parts.append("\n\n" if tag in PARAGRAPHS else "\n")
        elif tag == "img":
            self.parts.append(" ")  # an icon between two words


def html_text(page: str) -> str:
    """Return the visible text of a page: paragraphs apart by an empty line, no navigation, no markup."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", "".join(reader.parts))).strip()
