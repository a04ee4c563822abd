"""The manual pages of Linux and their French and German translations (see docs/data.md).

A translated page has the blocks of its original in the same order, and at its end a section about the translation. Blocks
are joined by their place, and only where all of a page's blocks are of the same kinds: a page of another edition is left
out as a whole.
"""

import gzip
import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from magneto.data.corpora.base import Skipped
from magneto.data.corpora.download import Located, Package, listing_digest, locate, needed_files
from magneto.data.corpora.text.base import BadText, content_group, decode_text
from magneto.data.corpora.text.documentation import LONG_LINE, Page, similar
from magneto.data.corpora.translation.base import Pair, TranslationCorpus, parse_directions
from magneto.data.corpora.translation.libreoffice import LEAST_LETTERS, LEAST_WORDS
from magneto.data.corpora.translation.roff import DISPLAY, SECTION, Block, Unreadable, blocks

log = logging.getLogger(__name__)

ORIGINAL = "en"
ABOUT_TRANSLATION = {"fr": "TRADUCTION", "de": "ÜBERSETZUNG"}  # title of the last section
SYNOPSIS = "SYNOPSIS"  # of the original; the section holds declarations and command lines


def _package(name: str, version: str, sha256: str, pattern: str, content: str, megabytes: int) -> Package:
    # Without a place of an installed copy: /usr/share/man holds the pages of all packages (and container images drop
    # most of them), so that nothing there tells these from others.
    return Package(
        name=name,
        version=version,
        sha256=sha256,
        inside="usr/share/man",
        patterns=(pattern,),
        content_sha256=content,
        megabytes=megabytes,
        homepage="https://packages.debian.org/bookworm/" + name,
    )


PACKAGES = {
    "en": (
        _package(
            "manpages",
            "6.03-2",
            "efa1ba4cd19ad7baeae959c9209a7eb74be2ebb858bcabb412597bfc9f588c91",
            "man[1-8]/*",
            "8d9e372305ef4f9fad6bd3b674e1c107db7e82bd728b6439e7bb76dd974562e4",
            1,
        ),
        _package(
            "manpages-dev",
            "6.03-2",
            "96f55cb5e26231d5567c89b692bced63825a14a2d5bd18fdf16ea2ed44eb9838",
            "man[1-8]/*",
            "5440635339e350df05874df8c2b182035990107e217685075731e68546f24d53",
            2,
        ),
    ),
    "fr": (
        _package(
            "manpages-fr",
            "4.18.1-1",
            "ec29759cc0e4a44dc7719c1e32869d0060667049e584f09556f0d982b969ea33",
            "fr/man[1-8]/*",
            "3ab54ee9b5a11c1bcc726bd7d0174e82488dd682b6e375109f910ea706b92690",
            2,
        ),
        _package(
            "manpages-fr-dev",
            "4.18.1-1",
            "25f5a53208d92f0a69a89e349edfb3068e6e6e4e0673fe712dd0d3b0c5b1512d",
            "fr/man[1-8]/*",
            "0c7fd73a63589a27a51eb41b428edf2fe5ae7fe349cf32b36d2e0df7e6a16b72",
            3,
        ),
    ),
    "de": (
        _package(
            "manpages-de",
            "4.18.1-1",
            "37d2e7ee51f22952aecec3af93647ff59194a3c74bb7a694560f49c7f7ab3978",
            "de/man[1-8]/*",
            "d4836f4989953f27cca49cb85fbbaa5c69fda1e964f6c0b24b9130b3ab2c2478",
            4,
        ),
        _package(
            "manpages-de-dev",
            "4.18.1-1",
            "cb3d7c10977dd3c811065d89e0d912196ec5e6f2551308edb0ba72e02da838d7",
            "de/man[1-8]/*",
            "31e542a434c3ecb8c6c8aa8f01ddd45952913cbfef1ddfd66841df40e1d7b0ae",
            1,
        ),
    ),
}

Pages = dict[str, list[Block] | str]  # name such as man2/dup.2 -> its blocks, or why it is not used


class ManPagesReader:
    """Headings, terms and paragraphs of manual pages.

    directions: such as [en-fr, en-de, fr-de]. folder: where the packages are unpacked (it holds `usr`), or
    `/usr/share/man` of a machine that has them; None: fetched. Splits go by page; pages that share half of their long
    paragraphs stand on one side, whatever their languages.
    """

    def __init__(self, directions: Sequence[str] = ("en-fr",), folder: str | None = None) -> None:
        self.directions = parse_directions(directions, PACKAGES)
        self.folder = folder

    @property
    def languages(self) -> list[str]:
        """Of all directions, and the original, which tells what has been translated."""
        return sorted({ORIGINAL, *(language for direction in self.directions for language in direction)})

    def fingerprint(self) -> dict[str, Any]:
        """Settings and versions that decide the pairs; of a named folder also its files."""
        fingerprint: dict[str, Any] = {
            "corpus": "manpages",
            "versions": {
                package.name: package.version for name in self.languages for package in PACKAGES[name]
            },
            "recipe": 1,
            "directions": ["-".join(direction) for direction in self.directions],
        }
        if self.folder is not None:
            patterns = [pattern for name in self.languages for pattern in PACKAGES[name][0].patterns]
            places = ("", "man/", "usr/share/man/")  # where `locate` looks
            fingerprint["files"] = listing_digest(
                Path(self.folder).expanduser(),
                tuple(place + pattern for place in places for pattern in patterns),
            )
        return fingerprint

    def load(self, data_dir: Path) -> TranslationCorpus:
        """Blocks that differ between the languages. Single words, numbers and the synopsis are skipped."""
        located = {
            name: [locate(package, data_dir, self.folder) for package in PACKAGES[name]]
            for name in self.languages
        }
        skipped: list[Skipped] = []
        origin = {
            package.name: found.facts()
            for name in self.languages
            for package, found in zip(PACKAGES[name], located[name], strict=True)
        }
        return TranslationCorpus(self._pairs(located, skipped), skipped, origin)

    def _pairs(self, located: Mapping[str, Sequence[Located]], skipped: list[Skipped]) -> Iterator[Pair]:
        pages = {}
        for language, places in located.items():
            log.info("manpages: reading %s", language)
            pages[language] = _read_all(places, language)
        groups = _groups(pages[ORIGINAL])
        for source, target in self.directions:
            languages = dict.fromkeys((ORIGINAL, source, target))
            for name in sorted(pages[source].keys() | pages[target].keys()):
                fingerprint = f"{source}-{target}:{name}"
                matched = _match({language: pages[language].get(name) for language in languages})
                if isinstance(matched, str):
                    skipped.append(Skipped(fingerprint, name, matched))
                    continue
                section = ""
                for number, row in enumerate(zip(*matched.values(), strict=True)):
                    block = dict(zip(matched, row, strict=True))
                    if block[ORIGINAL].kind == SECTION:
                        section = block[ORIGINAL].text
                    if block[ORIGINAL].kind == DISPLAY:
                        continue
                    if reason := _why_no_prose(block, section):
                        skipped.append(Skipped(f"{fingerprint}#{number}", name, reason))
                        continue
                    yield Pair(
                        id=f"{fingerprint}#{number}",
                        source=block[source].text,
                        target=block[target].text,
                        source_language=source,
                        target_language=target,
                        group=groups[name],
                        split=None,
                    )


def _read_all(places: Sequence[Located], language: str) -> Pages:
    """All pages of a language, without their section about the translation."""
    pages: Pages = {}
    for found, package in zip(places, PACKAGES[language], strict=True):
        for path in needed_files(found.root, package.patterns):
            name = f"{path.parent.name}/{path.name.removesuffix('.gz')}"
            if name not in pages:  # a folder of several packages has them all in one place
                pages[name] = _read(path, ABOUT_TRANSLATION.get(language))
    return pages


def _read(path: Path, last: str | None) -> list[Block] | str:
    """A page's blocks up to the section `last` at its end, or why there are none."""
    if path.is_symlink():
        return "another name of a page"
    try:
        raw = path.read_bytes()
        found = blocks(decode_text(gzip.decompress(raw) if path.suffix == ".gz" else raw))
    except (BadText, Unreadable) as bad:
        return str(bad)
    except (gzip.BadGzipFile, EOFError, zlib.error):
        return "damaged .gz file"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    end = max(number for number, block in enumerate(found) if block.kind == SECTION)
    return found[:end] if found[end].text == last else found


def _match(found: Mapping[str, list[Block] | str | None]) -> dict[str, list[Block]] | str:
    """Language -> the blocks of a page, which are of the same kinds in all; or why they cannot be joined."""
    matched: dict[str, list[Block]] = {}
    for language, page in found.items():
        if page is None:
            return "its original is in none of the packages" if language == ORIGINAL else "not translated"
        if isinstance(page, str):
            return f"{page} ({language})"
        matched[language] = page
    first, *others = [[block.kind for block in page] for page in matched.values()]
    return matched if all(kinds == first for kinds in others) else "blocks of other kinds than its original's"


def _groups(pages: Pages) -> dict[str, str]:
    """Name of a page -> name of its group."""
    return similar(
        [
            Page(
                name,
                "\n".join(block.text for block in page),
                frozenset(hash(block.text) for block in page if len(block.text) >= LONG_LINE),
            )
            for name, page in pages.items()
            if not isinstance(page, str)
        ]
    )


def _why_no_prose(block: Mapping[str, Block], section: str) -> str:
    """Why a block is not used, or ""; block: by language; section: the title of its original's section."""
    text = block[ORIGINAL].text
    if section == SYNOPSIS and block[ORIGINAL].kind != SECTION:
        return "synopsis"
    if len({content_group(side.text) for side in block.values()}) < len(block):
        return "the same in two languages: a name, code, or not translated"
    if len(text.split()) < LEAST_WORDS:
        return "single word"
    if sum(map(str.isalpha, text)) < LEAST_LETTERS * len(text.replace(" ", "")):
        return "mostly numbers and signs"
    return ""
