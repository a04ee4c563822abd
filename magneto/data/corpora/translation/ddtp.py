"""Descriptions of Debian's packages, translated by the Debian Description Translation Project (see docs/data.md).

APT's indexes `Translation-XX` hold a stanza a package: `Package`, `Description-md5` (of the English text) and
`Description-XX`, a short description and, on indented lines, the long one. Pairs are joined by the sum and cut into
paragraphs.
"""

import bz2
import gzip
import hashlib
import logging
import lzma
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from magneto.data.corpora.base import Skipped
from magneto.data.corpora.download import Unavailable, apt_lists
from magneto.data.corpora.translation.base import Pair, TranslationCorpus, parse_directions
from magneto.errors import DataError

log = logging.getLogger(__name__)

ORIGINAL = "en"
LANGUAGES = (ORIGINAL, "ca", "cs", "da", "de", "eo", "es", "eu", "fi", "fr", "hr", "hu", "id", "it", "ja", "km", "ko",
             "lt", "ml", "nb", "nl", "pl", "pt", "pt_BR", "ro", "ru", "sk", "sl", "sr", "sv", "tr", "uk", "vi", "zh",
             "zh_CN", "zh_TW")  # fmt: skip
OPENERS: dict[str, Callable[..., Any]] = {"": Path.open, ".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
STANZA = re.compile(
    r"^Package: (\S+)\nDescription-md5: (\w+)\nDescription-([A-Za-z_]+): (.*(?:\n .*)*)", re.MULTILINE
)
BULLET = re.compile(r"[-*+•o—–] +")
DOT_SPACE = str.maketrans("\u22c5", " ")  # how some translators wrote the no-break space


class DDTPReader:
    """Short descriptions and the paragraphs of long ones.

    directions: such as [en-fr, de-it]; two translations are joined through the English original. folder: a folder with
    files named `...Translation-XX` (plain, .gz, .bz2 or .xz), such as `/var/lib/apt/lists` or a mirror's `i18n`; None:
    fetched by apt-get into the data folder, which needs no root. Splits go by package.
    """

    def __init__(self, directions: Sequence[str] = ("en-fr",), folder: str | None = None) -> None:
        self.directions = parse_directions(directions, LANGUAGES)
        self.folder = folder

    @property
    def languages(self) -> list[str]:
        """Of all directions, and the original, through which they are joined."""
        return sorted({ORIGINAL, *(language for direction in self.directions for language in direction)})

    def fingerprint(self) -> dict[str, Any]:
        """Settings that decide the pairs; of a named folder also its files."""
        fingerprint: dict[str, Any] = {
            "corpus": "ddtp",
            "recipe": 1,
            "directions": ["-".join(direction) for direction in self.directions],
        }
        if self.folder is not None:
            stats = [
                file.stat()
                for files in self._files(Path(self.folder).expanduser()).values()
                for file in files
            ]
            fingerprint["files"] = [[stat.st_size, stat.st_mtime_ns] for stat in stats]
        return fingerprint

    def load(self, data_dir: Path) -> TranslationCorpus:
        """Paragraphs of all packages whose original and translation have equally many, else the short descriptions."""
        folder = self._fetch(data_dir) if self.folder is None else Path(self.folder).expanduser()
        files = self._files(folder)
        skipped: list[Skipped] = []
        origin = {
            name: {"file": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
            for paths in files.values()
            for name, file in ((path.name.rpartition("Translation-")[2], path) for path in paths)
        }
        return TranslationCorpus(self._pairs(files, skipped), skipped, origin)

    def _fetch(self, data_dir: Path) -> Path:
        home = data_dir / "raw" / ("ddtp-" + "-".join(self.languages))
        home.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(home.with_name(home.name + ".lock")):
            if not home.is_dir():
                try:
                    apt_lists(home, self.languages)
                except Unavailable as reason:
                    raise DataError(
                        f"APT's indexes of descriptions in {', '.join(self.languages)} could not be had: {reason}. Get "
                        "the files main/i18n/Translation-XX of a Debian mirror on any machine and name their folder "
                        "with `folder=...` in the data config."
                    ) from reason
        return home

    def _files(self, folder: Path) -> dict[str, list[Path]]:
        """Language -> its indexes (a distribution has several: main, updates, security)."""
        if not folder.is_dir():
            raise DataError(
                f"folder={folder}: there is no such folder. Name the one that holds the Translation-XX files."
            )
        files = {}
        for language in self.languages:
            names = [f"Translation-{language}{ending}" for ending in OPENERS]
            files[language] = sorted(
                path for path in folder.glob("[!.]*") if path.name.endswith(tuple(names))
            )
            if not files[language]:
                raise DataError(
                    f"folder={folder} holds no file ending in Translation-{language} ({', '.join(OPENERS)} may follow). "
                    "APT fetches only the languages that Acquire::Languages names."
                )
        return files

    def _pairs(self, files: dict[str, list[Path]], skipped: list[Skipped]) -> Iterator[Pair]:
        texts = {language: _read(paths) for language, paths in files.items()}
        for source, target in self.directions:
            for key, (package, _) in texts[target if source == ORIGINAL else source].items():
                name = f"{source}-{target}:{package}:{key[:8]}"
                if key not in texts[source] or key not in texts[target]:
                    reason = (
                        "not translated" if key in texts[ORIGINAL] else "its original is not in the index"
                    )
                    skipped.append(Skipped(name, package, reason))
                    continue
                left, right = (paragraphs(texts[side][key][1]) for side in (source, target))
                if len(left) != len(right):
                    skipped.append(Skipped(name, package, "long description divided otherwise"))
                    left, right = left[:1], right[:1]
                for number, (text, translation) in enumerate(zip(left, right, strict=True)):
                    yield Pair(
                        id=f"{name}:{number}",
                        source=text,
                        target=translation,
                        source_language=source,
                        target_language=target,
                        group=package,
                        split=None,
                    )


def _read(paths: Sequence[Path]) -> dict[str, tuple[str, str]]:
    """Sum of the original -> package, description; broken bytes become U+FFFD, which cleaning refuses."""
    found: dict[str, tuple[str, str]] = {}
    for path in paths:
        opener = OPENERS[path.suffix if path.suffix in OPENERS else ""]
        try:
            with opener(path, "rb") as file:
                text = file.read().decode("utf-8", errors="replace")
        except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
            raise DataError(f"{path}: the index cannot be read ({error}). Fetch it anew.") from error
        for match in STANZA.finditer(text):
            found.setdefault(match[2], (match[1], match[4]))
    return found


def paragraphs(description: str) -> list[str]:
    """The short description, then the paragraphs and list items of the long one, each on one line."""
    short, *lines = description.translate(DOT_SPACE).split("\n")
    found, current = [short.strip()], list[str]()
    in_item = False

    def close() -> None:
        if current:
            found.append(" ".join(current))
            current.clear()

    for line in lines:
        text = line.strip()
        if text == ".":
            close()
            in_item = False
            continue
        item = BULLET.match(text)
        if item or (in_item and not line.startswith("  ")):
            close()
            in_item = bool(item)
        current.append(text[item.end() :] if item else text)
    close()
    return found
