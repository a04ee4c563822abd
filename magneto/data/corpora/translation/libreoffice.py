"""LibreOffice's help pages, translated by volunteers and paid translators (see docs/data.md).

Each language has the same HTML files, and a paragraph or heading the same `id` in all of them. Pairs are joined by
(file, id).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from magneto.data.corpora.base import Skipped, lazy
from magneto.data.corpora.download import Package, locate
from magneto.data.corpora.translation.base import Pair, TranslationCorpus, parse_directions
from magneto.data.io.digest import listing_digest

VERSION = "4:7.4.7-1+deb12u14"
PARAGRAPHS = ("p", "h1", "h2", "h3", "h4", "h5", "h6")
NOT_PROSE = frozenset(
    {"code", "codeintable", "smathcode", "related", "youtube_consent"}
)  # classes of paragraphs
LEAST_WORDS = 2  # a single word is a label, whose translation depends on where it is
LEAST_LETTERS = 0.5  # of the characters between spaces; with fewer it is a formula
WITHOUT_SPACES = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]")  # Japanese and Chinese

# language -> end of the package's name, folder, SHA-256 of the package, of the needed files
LANGUAGES = {
    "en": ("en-us", "en-US", "8faa840285734d6cfe1ed25537b48f07e74bd6412e3917bf8e5f8a653f7b3712",
           "58af3ddd733586a82dd42e28b703a274b761812754bfc15fbd66bcb34a10c2d8"),
    "cs": ("cs", "cs", "9fcbf9b3cbbc1370d827d5bc59df0227fa95bdf3b5628b907ef5fb4d8d55be6a",
           "d486fcc8e47c727434bb5dbfa31684ad9349dd9fb0c6a363acb8053b906ff476"),
    "de": ("de", "de", "00490b63c509ac96f7f212d6a6e40452d3e0d1f97ccf4b824dd5ec4c01e8277f",
           "1d9b4b78bb0c2a6266426ef1afaec2f2dd3d8ddf842c22c46644c2d22fceef1d"),
    "es": ("es", "es", "9128a84d83d92c8b1c618d90469d16affddb7d1290b09d42a0c5109cb16f0480",
           "0afd95f37e236e4cc5cc7a630bdd3521b11712402a42158637fd12e1bebcdbdb"),
    "fr": ("fr", "fr", "c796530d3e95af1ea4d054076682efc8aad2b569ae9513f3d4a776b2df3fd206",
           "5d67a9efcd7369f21d867ff70efeda755b56918494ab4dee98c9270c7384a23f"),
    "hu": ("hu", "hu", "d4ae75812fdeb6f2b03fac6bc0f95d3f6824b75706930e806d41c751e68ffe27",
           "a8682a7b959d60713d7806cd80d8a4aede7bf975682ab6787e6eaf37a7fdcead"),
    "it": ("it", "it", "7fa29342a302bb495981fdabf98f3a9c3628123f3f191b2a5c95cb583c9ff212",
           "25b15a0e760d7ae02868ca9fb27444e28086d10b6a1f2b8dbb34406dc733a34f"),
    "ja": ("ja", "ja", "7799ace9bfe0845771ed2499913e7f7e521318cf3727c007672e3b020f8eb7b9",
           "ca9d199d008080e20640081a19c6d0716b63f147aad6a3ab44f21f6a75e6ccf5"),
    "nl": ("nl", "nl", "8b4b49a7d1bd0df3aa4693eeebe3f6886655427eaf736d9289c5ff6fbf489591",
           "97287aa18da2e4ffa83cd55e4f8198a8bd2315b83eb324efd286148273a1d8f7"),
    "pl": ("pl", "pl", "27441ce6d1303524b223aa94a17356bf7195f388d9b05a9e5e346866d7983694",
           "82b63fe3d6a6ae4ed301c456c235632fa99ce1c13126bc4a0d83152cc00b233d"),
    "pt_BR": ("pt-br", "pt-BR", "600d4294e52a6534be923521aff7b1b9eb7e6ddb7e30b2598ad04b2fe9cf8278",
              "b86252389d6a10cfdcbc1ded4691a2fca115ca55991062fc9459e771aee3f939"),
    "ru": ("ru", "ru", "5a2f75d5b0dfcf660275070647af528a81be28b5d3e9c3ec2d419ef5518db7a2",
           "88acaf6d55d363563223a4f6366e9ae08746f044918793352c7f97d296346f9c"),
    "zh_CN": ("zh-cn", "zh-CN", "db867cdece4c2f9c7eebe65e519c6cf386fdcf49d6e061db3dffec893b3e1dee",
              "ceb8b5ae4ae467e1f518da8d69652017089584064220a60167fea00656945e27"),
}  # fmt: skip


def package(language: str) -> Package:
    """Return the package with a language's pages."""
    name, folder, sha256, content = LANGUAGES[language]
    return Package(
        name=f"libreoffice-help-{name}",
        version=VERSION,
        sha256=sha256,
        inside="usr/share/libreoffice/help",
        patterns=(f"{folder}/text/**/*.html",),
        content_sha256=content,
        megabytes=3,
        homepage="https://packages.debian.org/bookworm/libreoffice-help-" + name,
    )


class LibreOfficeReader:
    """Paragraphs and headings of the help pages. Splits are by help file.

    Args:
        directions: such as [en-fr, de-fr]; the languages are those of LANGUAGES.
        folder: the folder of `en-US`, `fr` and so on; None: find or fetch them.
    """

    def __init__(self, directions: Sequence[str] = ("en-fr",), folder: str | None = None) -> None:
        self.directions = parse_directions(directions, LANGUAGES)
        self.folder = folder

    @property
    def languages(self) -> list[str]:
        """Languages of all directions."""
        return sorted({language for direction in self.directions for language in direction})

    def fingerprint(self) -> dict[str, Any]:
        """See `Reader`."""
        fingerprint: dict[str, Any] = {
            "corpus": "libreoffice-help",
            "version": VERSION,
            "recipe": 1,
            "directions": ["-".join(direction) for direction in self.directions],
        }
        if self.folder is not None:
            patterns = tuple(pattern for name in self.languages for pattern in package(name).patterns)
            fingerprint["files"] = listing_digest(Path(self.folder).expanduser(), patterns)
        return fingerprint

    def load(self, data_dir: Path) -> TranslationCorpus:
        """Return paragraphs that both languages have. Code, links and single words are skipped."""
        located = {name: locate(package(name), data_dir, self.folder) for name in self.languages}
        roots = {name: found.root / LANGUAGES[name][1] / "text" for name, found in located.items()}
        origin = {name: found.origin() for name, found in located.items()}
        return TranslationCorpus(*lazy(partial(self._pairs, roots)), origin)

    def _pairs(self, roots: Mapping[str, Path]) -> Iterator[Pair | Skipped]:
        files = {path.relative_to(root) for root in roots.values() for path in root.glob("**/[!.]*.html")}
        for file in sorted(files):
            page = file.as_posix()
            paragraphs = {name: _read(root / file) for name, root in roots.items()}
            for source, target in self.directions:
                for paragraph, (text, reason) in paragraphs[source].items():
                    name = f"{source}-{target}:{page}#{paragraph}"
                    translation, _ = paragraphs[target].get(paragraph, ("", ""))
                    if reason or not translation:
                        yield Skipped(name, page, reason or "not translated")
                        continue
                    yield Pair(
                        id=name,
                        source=text,
                        target=translation,
                        source_language=source,
                        target_language=target,
                        group=page,
                        split=None,
                    )


def _read(path: Path) -> dict[str, tuple[str, str]]:
    """Return paragraph id -> its text and why it is not used, or "". Empty for a file that is missing or no HTML."""
    from lxml import etree, html

    paragraphs: dict[str, tuple[str, str]] = {}
    try:
        root = html.fromstring(path.read_bytes(), parser=html.HTMLParser(encoding="utf-8"))
    except (OSError, etree.LxmlError):
        return paragraphs
    for element in root.iter(*PARAGRAPHS):
        name = element.get("id", "")
        if not name.startswith(("par_", "hd_")) or name in paragraphs:
            continue
        text = " ".join("".join(_text(element)).split())
        if not text:
            continue
        reason = ""
        if element.get("class") in NOT_PROSE:
            reason = "code or link"
        elif len(text.split()) < LEAST_WORDS and not WITHOUT_SPACES.search(text):
            reason = "single word"
        elif sum(map(str.isalpha, text)) < LEAST_LETTERS * len(text.replace(" ", "")):
            reason = "formula or table of numbers"
        paragraphs[name] = (text, reason)
    return paragraphs


def _text(element: Any) -> Iterator[str]:
    """Yield the parts of the text as a reader on Linux sees it.

    Icons and line breaks separate words. Of a switch between systems or programs only the default is read: the page has
    all variants and hides the others.
    """
    yield element.text or ""
    variants = element.get("class") == "switchinline"
    for child in element:
        if isinstance(child.tag, str):
            if child.tag in ("img", "br"):
                yield " "
            elif not variants or child.get("id", "").startswith("default"):
                yield from _text(child)
        yield child.tail or ""
