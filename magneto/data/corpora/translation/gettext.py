"""Messages of programs: gettext catalogs, .po or .mo, of any folder, wheel or known package (docs/data.md).

A catalog holds the messages of one domain in one language: `fr/LC_MESSAGES/django.po`, or `po/fr.po`. Its keys are the
messages in the language of the program's source, so that two translations join by their key.
"""

import gettext
import struct
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import regex

from magneto.data.corpora.base import Skipped, lazy
from magneto.data.corpora.download import Located, Package, locate
from magneto.data.corpora.translation.base import LANGUAGE, Pair, TranslationCorpus, parse_directions
from magneto.data.io.digest import file_digest, listing_digest
from magneto.errors import ConfigError

PATTERNS = ("**/*.po", "**/*.mo")
# `&File`, `_File`, and where letters are no keys `(&F)` or `(_F)`; no entity, no quoted name, and after `_` no small
# letter: `&amp;`, "_blank" and _id are text.
ACCELERATOR = regex.compile(
    r"\s*\([&_][A-Za-z0-9]\)|(?<![&\w\"'`])(?:&(?!#?\w+;)(?=[^\W_])|_(?=\p{L})(?!\p{Ll}))"
)
MANY = 1000  # its plural form translates the plural of English: no language has a form of its own for it

PACKAGES = {
    "django": Package(
        name="django",
        version="5.2.19",
        sha256="5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00",
        inside=".",
        patterns=("django/**/LC_MESSAGES/*.po",),
        content_sha256="39a088a4eff4035713a15c0f42675f847ae128561745eafaa6beab5aa80e0649",
        megabytes=8,
        homepage="https://www.djangoproject.com/",
        registry="pypi",
    ),
    "wagtail": Package(
        name="wagtail",
        version="8.0.1",
        sha256="1e6ad5c7891a54efce1400e168298b5a2cc343b642cee89c31bf5ec30c98b26c",
        inside=".",
        patterns=("wagtail/**/LC_MESSAGES/*.po",),
        content_sha256="7072f6f815c14736a28ae8ab30fa2f098aee645f579b269f6a83e4eb4562297d",
        megabytes=10,
        homepage="https://wagtail.org/",
        registry="pypi",
    ),
}

Key = tuple[str, str]  # context, message
Messages = dict[Key, tuple[str, str]]  # -> text, and why it is not used or ""


class GettextReader:
    """Messages in any pairs of languages. Splits are by message, whatever its languages.

    Args:
        directions: such as [en-fr, fr-en, de-fr].
        packages: names of PACKAGES.
        paths: folders, wheels or other zip archives, and single catalogs of the user.
        original: the language of the keys; a catalog of that language, where there is one, has the texts instead (keys
            such as `label_title` are not text).
    """

    def __init__(
        self,
        directions: Sequence[str] = ("en-fr", "fr-en"),
        packages: Sequence[str] = tuple(PACKAGES),
        paths: Sequence[str] = (),
        original: str = "en",
    ) -> None:
        self.directions = parse_directions(directions)
        self.packages, self.paths = tuple(packages), tuple(Path(path).expanduser() for path in paths)
        self.original = original
        for name in self.packages:
            if name not in PACKAGES:
                raise ConfigError(
                    f"data: packages: {name!r} is not known ({', '.join(PACKAGES)}). Name its folder in paths."
                )
        if not self.packages and not self.paths:
            raise ConfigError(
                "data: name catalogs: `packages`, or `paths` of folders, wheels or .po and .mo files."
            )

    def fingerprint(self) -> dict[str, Any]:
        """See `Reader`."""
        return {
            "corpus": "gettext",
            "recipe": 2,  # the first took the first and the last plural form, and entities for accelerators
            "directions": ["-".join(direction) for direction in self.directions],
            "packages": {name: PACKAGES[name].version for name in self.packages},
            "paths": [self._digest(path) for path in self.paths],
            "original": self.original,
        }

    @staticmethod
    def _digest(path: Path) -> str:
        if path.is_dir():
            return listing_digest(path, PATTERNS)
        if not path.is_file():
            raise ConfigError(f"data: paths: {path}: there is no such file or folder. Name an existing one.")
        return file_digest(path)

    def load(self, data_dir: Path) -> TranslationCorpus:
        """Return messages with a translation in both languages, of plurals the forms of 1 and of many; skip fuzzy ones."""
        located = {name: locate(PACKAGES[name], data_dir) for name in self.packages}
        origin = {name: found.origin() for name, found in located.items()}
        origin |= {path.name: {"digest": self._digest(path)} for path in self.paths}
        return TranslationCorpus(*lazy(partial(self._pairs, located)), origin)

    def _pairs(self, located: Mapping[str, Located]) -> Iterator[Pair | Skipped]:
        with ExitStack() as stack:
            sources = [
                (name, at.root, _find(at.root, PACKAGES[name].patterns)) for name, at in located.items()
            ]
            for path in self.paths:
                root = path
                if zipfile.is_zipfile(path):
                    root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                    with zipfile.ZipFile(path) as file:
                        file.extractall(
                            root, [name for name in file.namelist() if name.endswith((".po", ".mo"))]
                        )
                sources.append((path.name, root, _find(root, PATTERNS) if root.is_dir() else [path]))
            languages = {self.original}
            for name, root, files in sources:
                domains: dict[str, dict[str, list[Path]]] = {}
                for path in files:
                    language, domain = _language_and_domain(path, root)
                    languages.add(language)
                    if any(language in direction for direction in self.directions):
                        domains.setdefault(domain, {}).setdefault(language, []).append(path)
                for domain in sorted(domains):
                    yield from self._domain(f"{name}:{domain}", domains[domain])
            # Last, so that all catalogs are read once; raises for a language that no catalog has.
            parse_directions(["-".join(direction) for direction in self.directions], languages - {""})

    def _domain(self, name: str, catalogs: dict[str, list[Path]]) -> Iterator[Pair | Skipped]:
        messages: dict[str, Messages] = {}
        for language, files in catalogs.items():
            # .po first: it says what is fuzzy.
            for file in sorted(files, key=lambda path: path.suffix == ".mo"):
                found = _read(file)
                if isinstance(found, str):
                    yield Skipped(f"{name}:{language}", file.name, found)
                else:
                    for key, message in found.items():
                        messages.setdefault(language, {}).setdefault(key, message)
        keys = {key: (key[1], "") for texts in messages.values() for key in texts}
        own = {key: message for key, message in messages.get(self.original, {}).items() if not message[1]}
        messages[self.original] = keys | own
        for source, target in self.directions:
            if source not in messages or target not in messages:
                continue
            for key, (text, reason) in messages[source].items():
                translation, other = messages[target].get(key, ("", "not translated"))
                own_id = f"{name}:{source}-{target}:{key[0]}:{key[1]}"
                if reason or other:
                    yield Skipped(own_id, name, reason or other)
                    continue
                yield Pair(
                    id=own_id,
                    source=_plain(text),
                    target=_plain(translation),
                    source_language=source,
                    target_language=target,
                    group=key[1].casefold(),
                    split=None,
                )


def _find(root: Path, patterns: Sequence[str]) -> list[Path]:
    found = sorted({path for pattern in patterns for path in root.glob(pattern) if path.name[0] != "."})
    if not found:
        raise ConfigError(f"data: {root} holds no gettext catalog ({', '.join(patterns)}).")
    return found


def _language_and_domain(file: Path, root: Path) -> tuple[str, str]:
    """Return language and domain, from the path; "" for a path that names no language.

    app/locale/fr/LC_MESSAGES/django.po: fr, app/locale/django; app/po/fr.po: fr, app/po.
    """
    relative = file.relative_to(root) if file != root else Path(file.name)
    for index, (folder, following) in enumerate(pairwise(relative.parts)):
        if following == "LC_MESSAGES":
            return folder.replace("-", "_"), "/".join((*relative.parts[:index], file.stem))
    language = file.stem.replace("-", "_")
    return (language if LANGUAGE.fullmatch(language) else ""), relative.parent.as_posix()


def _read(file: Path) -> Messages | str:
    """Return the messages of a catalog, or why it cannot be read."""
    import polib

    try:
        catalog = polib.mofile(str(file)) if file.suffix == ".mo" else polib.pofile(str(file))
    except (OSError, ValueError, LookupError, EOFError, struct.error) as error:
        # UnicodeDecodeError is a ValueError; struct.error is raised for a compiled catalog that breaks off.
        return f"unreadable catalog ({type(error).__name__})"
    messages: Messages = {}
    stated = _plural_forms(catalog.metadata.get("Plural-Forms", ""))
    for entry in catalog:
        if entry.obsolete:
            continue
        fuzzy = file.suffix == ".po" and entry.fuzzy  # compiled catalogs have no fuzzy messages
        texts = {entry.msgid: entry.msgstr}
        if entry.msgid_plural:
            forms = entry.msgstr_plural
            one, many = stated or (0, max(forms, default=0))
            texts = {entry.msgid: forms.get(one, ""), entry.msgid_plural: forms.get(many, "")}
        for message, text in texts.items():
            reason = "fuzzy" if fuzzy else "" if text else "not translated"
            messages[entry.msgctxt or "", message] = (text, reason)
    return messages


def _plural_forms(header: str) -> tuple[int, int] | None:
    """Return the forms of 1 and of many by a catalog's `nplurals=2; plural=(n != 1);`; None without a usable rule."""
    rule = header.partition("plural=")[2].partition(";")[0]
    try:
        form = gettext.c2py(rule)
        return form(1), form(MANY)
    except (ValueError, ArithmeticError, RecursionError):
        return None


def _plain(text: str) -> str:
    """Return a text without the mark of the accelerator key (`&File`, `_File`), if there is exactly one."""
    return ACCELERATOR.sub("", text) if len(ACCELERATOR.findall(text)) == 1 else text
