"""The user's own parallel text: two line-aligned files, a TSV or a TMX file (see docs/data.md)."""

import html
import re
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from magneto.data.corpora.base import Skipped, lazy, stated_splits
from magneto.data.corpora.text.base import LINES
from magneto.data.corpora.translation.base import Pair, TranslationCorpus, parse_directions
from magneto.data.io.digest import file_digest
from magneto.data.io.text import DAMAGES, BadText, decode_text, open_text
from magneto.errors import ConfigError, DataError

LANGUAGE_ATTRIBUTES = ("{http://www.w3.org/XML/1998/namespace}lang", "lang")
INLINE = ("bpt", "ept", "it", "ph", "ut")  # TMX: codes of the format that the text came from


class TranslationFilesReader:
    """Pairs of `source` and `target`, or of `tsv`, or of `tmx`; each file may be compressed, .gz or .zst.

    Without stated splits, lines and units of a TMX are divided in blocks of LINES neighbours.

    Args:
        direction: such as en-fr.
        source: a file whose line n is translated by line n of `target`.
        target: that file.
        tsv: a file with the source and the target in its first two columns.
        tmx: a translation memory.
        train: in place of the four above, a mapping with the same keys for each split.
        val: likewise.
        test: likewise; alone for the evaluation of a trained model.
    """

    def __init__(
        self,
        direction: str,
        source: str | None = None,
        target: str | None = None,
        tsv: str | None = None,
        tmx: str | None = None,
        train: dict[str, str] | None = None,
        val: dict[str, str] | None = None,
        test: dict[str, str] | None = None,
    ) -> None:
        self.direction = parse_directions([direction])[0]
        whole = {"source": source, "target": target, "tsv": tsv, "tmx": tmx}
        given = {name: value for name, value in whole.items() if value is not None}
        splits = {"train": train or None, "val": val or None, "test": test or None}
        self.parts: dict[str | None, dict[str, Path]] = {}
        for split, files in stated_splits(
            "files (source and target, tsv or tmx)", given or None, splits
        ).items():
            if sorted(files) not in (["source", "target"], ["tmx"], ["tsv"]):
                raise ConfigError(
                    f"data: {f'the files of {split}' if split else 'the files'}: set `source` and `target` (line by "
                    "line), or `tsv`, or `tmx`."
                )
            self.parts[split] = {name: Path(path).expanduser() for name, path in files.items()}

    def fingerprint(self) -> dict[str, Any]:
        """See `Reader`; of the files their contents."""
        files = {
            f"{split or 'all'}/{kind}": path
            for split, part in self.parts.items()
            for kind, path in part.items()
        }
        digests = {}
        for name, path in files.items():
            try:
                digests[name] = file_digest(path)
            except OSError as error:
                raise DataError(
                    f"data: {name}: {path}: cannot be read ({error.strerror}). Set it to a readable file."
                ) from error
        return {
            "corpus": "translation_files",
            "recipe": 2,  # the first divided a TMX unit by unit
            "direction": "-".join(self.direction),
            "files": digests,
        }

    def load(self, data_dir: Path) -> TranslationCorpus:
        """Return all pairs. Raises `DataError`, also while they are read, for files that do not fit together."""
        return TranslationCorpus(*lazy(self._pairs), self.fingerprint())

    def _pairs(self) -> Iterator[Pair | Skipped]:
        for split, part in self.parts.items():
            if "tmx" in part:
                found = _tmx(part["tmx"], self.direction)
            else:
                found = _tsv(part["tsv"]) if "tsv" in part else _lines(part["source"], part["target"])
            try:
                for one in found:
                    if isinstance(one, Skipped):
                        yield one
                        continue
                    name, group, source, target = one
                    yield Pair(
                        id=f"{split}:{name}" if split else name,
                        source=source,
                        target=target,
                        source_language=self.direction[0],
                        target_language=self.direction[1],
                        group=group,
                        split=split,
                    )
            except DAMAGES as error:
                raise DataError(
                    f"{' or '.join(map(str, part.values()))}: damaged ({error or type(error).__name__}). Fetch or "
                    "compress the file again."
                ) from error


Row = tuple[str, str, str, str] | Skipped
"""Id, group, source, target."""


def _lines(source: Path, target: Path) -> Iterator[Row]:
    with open_text(source) as left, open_text(target) as right:
        for number, (one, other) in enumerate(zip_longest(left, right), start=1):
            if one is None or other is None:
                short, long, file = (source, target, right) if one is None else (target, source, left)
                more = 1 + sum(1 for _ in file)
                raise DataError(
                    f"{short} has {number - 1} lines, {long} has {number - 1 + more}: line n of one must be the "
                    "translation of line n of the other. Find the missing line, or align them again."
                )
            yield _decoded(number, f"{source.name}+{target.name}", (one, other))


def _tsv(path: Path) -> Iterator[Row]:
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            columns = line.rstrip(b"\r\n").split(b"\t")
            if len(columns) > 1:
                yield _decoded(number, path.name, columns[:2])
            elif line.strip():
                yield Skipped(str(number), path.name, "no tab in the line")


def _decoded(number: int, file: str, sides: Sequence[bytes]) -> Row:
    try:
        source, target = map(decode_text, sides)
    except BadText as bad:
        return Skipped(str(number), file, str(bad))
    return str(number), _block(file, number), source, target


def _block(file: str, number: int) -> str:
    """Return the group of line or unit `number`, from 1: neighbours belong together."""
    return f"{file}:{(number - 1) // LINES}"


def _tmx(path: Path, direction: tuple[str, str]) -> Iterator[Row]:
    """Yield units of a TMX file, read as a stream. Entities are not expanded, no other file is loaded."""
    from lxml import etree

    languages: set[str] = set()
    usable = False
    with open_text(path) as file:
        units = etree.iterparse(
            file,
            events=("end",),
            tag="{*}tu",
            resolve_entities=False,
            load_dtd=False,
            no_network=True,
            recover=False,
        )
        try:
            for number, (_, unit) in enumerate(units, start=1):
                if number == 1 and _declares_entities(unit.getroottree()):
                    raise DataError(
                        f"{path}: the file declares XML entities, which are not read. Save it without a DTD."
                    )
                texts = _variants(unit)
                languages.update(texts)
                unit.clear()
                while unit.getprevious() is not None:
                    del unit.getparent()[0]
                sides = [_choose(texts, language) for language in direction]
                if None in sides:
                    yield Skipped(str(number), path.name, "a language is missing in the unit")
                    continue
                usable = True
                yield str(number), _block(path.name, number), str(sides[0]), str(sides[1])
        except etree.XMLSyntaxError as error:
            known = units.error_log.last_error  # lxml's own is "no element found" for an unknown entity
            raise DataError(
                f"{path}: not well-formed XML ({known.message.strip() if known else error.msg}). Export the translation "
                "memory again; characters such as &nbsp; are written as themselves or as numbers (&#160;)."
            ) from error
    if not usable:
        named = ", ".join(sorted(languages)) or "none"
        raise DataError(
            f"{path}: no unit has both {' and '.join(direction)}; its languages: {named}. Set direction to two of them."
        )


def _declares_entities(tree: Any) -> bool:
    declared = tree.docinfo.internalDTD
    return declared is not None and any(True for _ in declared.iterentities())


def _variants(unit: Any) -> dict[str, str]:
    """Return language as written -> text, without codes of the original format."""
    texts: dict[str, str] = {}
    for variant in unit.iterfind("{*}tuv"):
        language = next((variant.get(name) for name in LANGUAGE_ATTRIBUTES if variant.get(name)), "")
        segment = variant.find("{*}seg")
        if segment is not None:
            texts.setdefault(language, "".join(_text(segment)))
    return texts


def _text(element: Any) -> Iterator[str]:
    yield element.text or ""
    for child in element:
        if isinstance(child.tag, str) and child.tag.rpartition("}")[2] not in INLINE:
            yield from _text(child)
        elif (child.text or "").startswith("&"):  # an entity of a DTD that is not loaded: &nbsp;
            yield html.unescape(child.text)
        yield child.tail or ""


def _choose(texts: dict[str, str], language: str) -> str | None:
    """Return the text in a language: en is also EN, en-US or en_GB."""
    folded = language.casefold()
    for name, text in texts.items():
        plain = name.replace("-", "_").casefold()
        if plain == folded or re.match(rf"{re.escape(folded)}_", plain):
            return text
    return None
