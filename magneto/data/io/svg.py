"""Check SVG files before they are drawn, since the renderer trusts them.

Drawings that nest too deep are refused: they would overflow the renderer's stack and end the process. References to other
files are removed, so that a drawing is the same on every machine.
"""

import codecs
import re
from typing import Any

from lxml import etree

DEPTH_LIMIT = (
    128  # elements, each inside of the other or its reference; the renderer's stack overflows at about 220
)
VISITS = 10  # of each element on average: elements that refer to themselves in many ways would take for ever
TOO_DEEP = "SVG is nested too deep"
_RASTER = re.compile(r"\s*data:image/(png|jpe?g|gif|webp)[;,]", re.IGNORECASE)
_URL = re.compile(r"url\(\s*[\"']?\s*#([^\"')]+?)\s*[\"']?\s*\)")
_RULE = re.compile(r"([^{}]*)\{([^{}]*)\}")
_NAME = re.compile(r"[.#]?[\w-]+")
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_ENCODING = re.compile(rb"""[^>]{0,200}\bencoding=["']([\w.-]+)["']""")


def svg_text(data: bytes) -> str | None:
    """Return the text of an SVG file, or None for another kind of file.

    Raises:
        ValueError: the bytes are not in the stated encoding.
        LookupError: the stated encoding is unknown.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif data.startswith((b"<\0", b"\0<")):
        encoding = "utf-16-le" if data.startswith(b"<") else "utf-16-be"
    else:
        declared = _ENCODING.match(data)
        encoding = declared[1].decode("ascii") if declared else "utf-8"
    start = data[:65_536]
    if encoding.startswith("utf-16"):
        start = start.decode(encoding, "ignore").encode()
    plain = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    if not plain.startswith(b"<") or re.search(rb"<(\w+:)?svg[\s>]", plain) is None:
        return None
    return data.decode(encoding)


def self_contained(text: str) -> str:
    """Return the drawing without references to other files; if it has none, the same text.

    Raises:
        ValueError: it is not well-formed, or nests too deep.
    """
    # Entities inside the file are resolved, as the renderer does; libxml2 bounds their size, and the depth.
    parser = etree.XMLParser(
        encoding="utf-8", resolve_entities="internal", no_network=True, load_dtd=False, huge_tree=False
    )
    try:
        root = etree.fromstring(text.encode(), parser)
    except etree.XMLSyntaxError as error:
        raise ValueError(TOO_DEEP if "depth" in str(error) else "damaged SVG") from error
    _check_depth(root)
    outside = [
        (element, name)
        for element in root.iter(etree.Element)
        if _local(element.tag) != "a"  # a link is not drawn
        for name, value in element.attrib.items()
        if _local(name) == "href" and not (value.lstrip().startswith("#") or _RASTER.match(value))
    ]
    if not outside:
        return text
    for element, name in outside:
        del element.attrib[name]
    return str(etree.tostring(root, encoding="unicode"))


def _check_depth(root: Any) -> None:
    """Raise ValueError if elements nest too deep, including those that references put inside of others."""
    targets: dict[str, list[Any]] = {}
    for element in root.iter(etree.Element):
        targets.setdefault(element.get("id", ""), []).append(element)
    styled = _styled(root)
    heights: dict[Any, int] = {}
    entered: set[Any] = set()
    visits, most = 0, 1000 + VISITS * sum(map(len, targets.values()))

    def height(element: Any, depth: int) -> tuple[int, bool]:
        """Return the levels below and with `element`, and whether no loop of references was cut."""
        nonlocal visits
        visits += 1
        if depth > DEPTH_LIMIT or visits > most:
            raise ValueError(TOO_DEEP)
        entered.add(element)
        tallest, whole = 0, True
        inside = (part for name in _references(element, styled) for part in targets.get(name, ()))
        for part in (*element.iterchildren(etree.Element), *inside):
            if part in entered:  # the renderer ignores a reference to an element that is being drawn
                whole = False
                continue
            if part in heights:
                below = heights[part]
            else:
                below, sound = height(part, depth + 1)
                whole = whole and sound
            tallest = max(tallest, below)
        entered.remove(element)
        if whole:  # otherwise it is higher when it is reached from outside of the loop
            heights[element] = tallest + 1
        return tallest + 1, whole

    if height(root, 1)[0] > DEPTH_LIMIT:
        raise ValueError(TOO_DEEP)


def _references(element: Any, styled: dict[str, set[str]]) -> set[str]:
    """Return ids of the elements that an element refers to."""
    found: set[str] = set()
    for name, value in element.attrib.items():
        if _local(name) == "href" and value.lstrip().startswith("#"):
            found.add(value.strip()[1:])
        elif "url(" in value:
            found.update(_URL.findall(value))
    if styled:
        names = [f".{name}" for name in (element.get("class") or "").split()]
        for name in (*names, f"#{element.get('id')}", _local(element.tag), ""):
            found |= styled.get(name, set())
    return found


def _styled(root: Any) -> dict[str, set[str]]:
    """Return class (`.name`), id (`#name`) or tag -> ids in style sheets for such elements; "" is any element."""
    found: dict[str, set[str]] = {}
    for sheet in root.iter("{*}style"):
        for selectors, body in _RULE.findall(_COMMENT.sub("", "".join(sheet.itertext()))):
            if ids := _URL.findall(body):
                for selector in selectors.split(","):
                    for name in _NAME.findall(selector.split()[-1] if selector.strip() else "") or [""]:
                        found.setdefault(name, set()).update(ids)
    return found


def _local(name: str) -> str:
    return name.rpartition("}")[2]
