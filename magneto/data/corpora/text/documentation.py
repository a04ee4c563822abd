"""The Debian documentation union: manuals in English, about 50 MB of technical prose (see docs/data.md).

A document is a file: reStructuredText, Markdown and POD as they are written, HTML as its text without navigation.
Copies are left out. Files that share half of their lines (templates, editions of one text) have one split.
"""

import gzip
import hashlib
import itertools
import logging
import re
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magneto.data.corpora.base import Groups, Skipped, hash_split
from magneto.data.corpora.download import locate
from magneto.data.corpora.package import Package
from magneto.data.corpora.text.base import Document, TextCorpus, content_group
from magneto.data.corpora.text.html_text import html_text
from magneto.data.io.digest import listing_digest, needed_files
from magneto.data.io.text import BadText, decode_text
from magneto.errors import DataError, nearest

log = logging.getLogger(__name__)


# name, version, SHA-256 of the package, folder, patterns, SHA-256 of the needed files, megabytes, homepage
_TABLE: tuple[tuple[str, str, str, str, tuple[str, ...], str, int, str], ...] = (
    ("linux-doc-6.1", "6.1.192-2", "d1d1b5a602f0d439ecc39e713e044bf2df30d839fb4bf8a7b859ba3273c47993",
     "usr/share/doc/linux-doc-6.1/Documentation", ("**/*.rst.gz", "**/*.txt.gz"),
     "84cec4dffe031b85f16daa6731704bff2499e3a3e312d93c4b8609d9d1ee734b", 37, "https://www.kernel.org/doc/"),
    ("anarchism", "15.3-3", "cf21c10948b00e923c62eb31c39a3390413fa26c5ee0e3b925feb0ec7fe42948",
     "usr/share/doc/anarchism/markdown", ("*.md", "*.md.gz"),
     "99ec2049a6402eed887aae7ff4a1296bd7c9e29e42abb6527523444ce0858743", 7, "http://www.anarchistfaq.org/"),
    ("python3.11-doc", "3.11.2-6+deb12u9", "5b3594189d6ef9a6963ce0347fd307a1cc67620ad697e144db366070e2e146be",
     "usr/share/doc/python3.11/html/_sources", ("**/*.rst.txt",),
     "fbfbfeb726497d4e6532774c69509e321d0acf2d213a5341b42b62731b71ae3f", 13, "https://docs.python.org/3.11/"),
    ("perl-doc", "5.36.0-7+deb12u4", "f4269cff4576d6f02a6756df842988e58451c7e945b08517dd235531b24e48f8",
     "usr/share/perl/5.36.0/pod", ("*.pod",),
     "2a75ee1bc40d13354a244edab1ad470d606f60504e75856f3e1cbca5e5ca86f1", 8, "https://perldoc.perl.org/"),
    ("postgresql-doc-15", "15.20-0+deb12u1", "4c44bf2c599f208b3f46454a6cf7a72e25ec46ff74d37b59dd31ad76b00eebb7",
     "usr/share/doc/postgresql-doc-15/html", ("*.html",),
     "3e3264dbf518e203ef8cb83f4e16355f442c361d77f7daec1b86164ebc4683a5", 3, "https://www.postgresql.org/docs/15/"),
    ("libreoffice-help-en-us", "4:7.4.7-1+deb12u14", "8faa840285734d6cfe1ed25537b48f07e74bd6412e3917bf8e5f8a653f7b3712",
     "usr/share/libreoffice/help/en-US/text", ("**/*.html",),
     "e94216328ecf9602877074db1df47169f02754d1ab0eb93cf14e0d8bea30b364", 2, "https://help.libreoffice.org/"),
)  # fmt: skip
PACKAGES = {
    name: Package(
        name=name,
        version=version,
        sha256=sha256,
        inside=inside,
        installed=("/" + inside,),
        patterns=patterns,
        content_sha256=content,
        megabytes=megabytes,
        homepage=homepage,
    )
    for name, version, sha256, inside, patterns, content, megabytes, homepage in _TABLE
}

VAL, TEST = 0.02, 0.02
LEAST_CHARS = 200  # shorter files are tables of contents and redirections
FOREIGN = re.compile(r"(^|/)translations/")  # of the kernel's documents
LONG_LINE = 40  # characters of a line that is compared
COMMON = 20  # a line of more files is boilerplate, which says nothing about similarity


@dataclass
class Page:
    """A file that is kept, before it gets its split."""

    id: str
    text: str
    lines: frozenset[int]  # hashes of its long lines


class DocumentationReader:
    """Documents of some or all packages. Splits are fixed by a hash of the names of similar files: 2% val, 2% test.

    Args:
        packages: names of PACKAGES; None: all.
        folder: the folder where they are unpacked (that of `usr`); None: installed copies, else fetched.
    """

    def __init__(self, packages: list[str] | None = None, folder: str | None = None) -> None:
        self.packages = list(packages or PACKAGES)
        for name in self.packages:
            if name not in PACKAGES:
                raise DataError(
                    f"data: packages names {name!r}; the documentation union has {', '.join(PACKAGES)}."
                    + nearest(name, PACKAGES)
                )
        self.folder = folder
        self._corpus: TextCorpus | None = None

    def fingerprint(self) -> dict[str, Any]:
        """See `Reader`."""
        versions = {name: PACKAGES[name].version for name in self.packages}
        fingerprint = {"corpus": "documentation", "recipe": 1, "packages": versions, "split": [VAL, TEST]}
        if self.folder is not None:
            root = Path(self.folder).expanduser()
            fingerprint["files"] = [
                listing_digest(root, tuple(f"**/{pattern}" for pattern in PACKAGES[name].patterns))
                for name in self.packages
            ]
        return fingerprint

    def load(self, data_dir: Path) -> TextCorpus:
        """Return all files. They are kept in memory, since the splits depend on all of them."""
        if self._corpus is None:
            pages: list[Page] = []
            skipped: list[Skipped] = []
            origin: dict[str, Any] = {}
            seen: set[bytes] = set()
            for name in self.packages:
                located = locate(PACKAGES[name], data_dir, self.folder)
                origin[name] = located.origin()
                log.info("documentation: reading %s", name)
                for path in needed_files(located.root, PACKAGES[name].patterns):
                    relative = path.relative_to(located.root).as_posix()
                    if FOREIGN.search(relative):
                        continue
                    page = _read(path, f"{name}/{relative}")
                    if isinstance(page, Skipped):
                        skipped.append(page)
                    elif (content := _file_key(page.text)) in seen:
                        skipped.append(Skipped(page.id, relative, "copy of another file"))
                    else:
                        seen.add(content)
                        pages.append(page)
            groups = _similar(pages)
            documents = [
                Document(
                    id=page.id,
                    text=page.text,
                    group=groups[page.id],
                    split=hash_split(groups[page.id], val=VAL, test=TEST, kind="documentation"),
                )
                for page in pages
            ]
            self._corpus = TextCorpus(documents, skipped, origin)
        return self._corpus


def _read(path: Path, name: str) -> Page | Skipped:
    try:
        raw = path.read_bytes()
        text = decode_text(gzip.decompress(raw) if path.suffix == ".gz" else raw)
    except BadText as bad:
        return Skipped(name, path.name, str(bad))
    except (OSError, EOFError, ValueError, zlib.error) as error:
        return Skipped(name, path.name, f"cannot be read ({type(error).__name__})")
    text = (html_text(text) if path.suffix == ".html" else text).strip()
    if len(text) < LEAST_CHARS:
        return Skipped(name, path.name, f"shorter than {LEAST_CHARS} characters")
    lines = (line.strip() for line in text.splitlines())
    return Page(name, text, frozenset(hash(line) for line in lines if len(line) >= LONG_LINE))


def _file_key(text: str) -> bytes:
    """Return a key that is the same for files that differ only in white space."""
    return hashlib.blake2b(" ".join(text.split()).encode(), digest_size=16).digest()


def _similar(pages: list[Page]) -> dict[str, str]:
    """Return page id -> name of its group.

    Pages are joined that differ only in numbers and punctuation, or share half of the smaller one's long lines.
    """
    holders: dict[int, list[int]] = defaultdict(list)
    for number, page in enumerate(pages):
        for line in page.lines:
            holders[line].append(number)
    shared: Counter[tuple[int, int]] = Counter()
    for numbers in holders.values():
        if 1 < len(numbers) <= COMMON:
            shared.update(itertools.combinations(numbers, 2))
    groups = Groups()
    for page in pages:
        groups.union(page.id, ("content", content_group(page.text)))
    for (first, second), count in shared.items():
        if 2 * count >= min(len(pages[first].lines), len(pages[second].lines)):
            groups.union(pages[first].id, pages[second].id)
    names = groups.names()
    return {page.id: names[page.id] for page in pages}
