"""Your own images with captions: a JSONL or TSV file with one caption a line (docs/data.md).

{"image": "birds/robin.jpg", "caption": "a robin on a fence", "language": "en", "split": "train"}
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from magneto.data.corpora.base import SPLITS, Skipped
from magneto.data.corpora.image.base import ImageCorpus, ImageExample, existing, image_files_digest
from magneto.data.corpora.text.base import BadText, decode_text
from magneto.data.io.digest import file_digest
from magneto.errors import ConfigError, DataError, nearest

COLUMNS = ("image", "caption", "language", "split")


class CaptionFileReader:
    """Images that a file names.

    file: `.jsonl` with an object a line, or `.tsv` whose first line names the columns (no quoting): image and caption, and
    if wanted language and split. Lines with the same image are captions of one image; an image without `split` is held
    out by a hash. folder: what relative paths are relative to; None: the file's folder. language: where a line has none.
    """

    def __init__(self, file: str | None = None, folder: str | None = None, language: str = "en") -> None:
        if file is None:
            raise ConfigError("data: name the file of captions (data.corpora.captions.file=captions.jsonl).")
        self.file = Path(file).expanduser()
        if self.file.suffix not in (".jsonl", ".tsv"):
            raise DataError(f"file={file}: must be .jsonl or .tsv.")
        self.folder = self.file.parent if folder is None else Path(folder).expanduser()
        self.language = language

    def fingerprint(self) -> dict[str, Any]:
        """Content of the file, where the images are, and their sizes and times."""
        return {
            "corpus": "caption_file",
            "recipe": 2,
            "file": file_digest(self.file) if self.file.is_file() else None,
            "images": image_files_digest(self),
            "folder": str(self.folder.absolute()),
            "language": self.language,
        }

    def load(self, data_dir: Path) -> ImageCorpus:
        """All images, in the order of their first lines."""
        skipped: list[Skipped] = []
        captions: dict[str, dict[str, list[str]]] = {}
        splits: dict[str, str | None] = {}
        for number, row in self._rows(skipped):
            values = [row.get(name) or "" for name in COLUMNS]
            image, caption, language, split = (
                value.strip() if isinstance(value, str) else "" for value in values
            )
            odd = [name for name, value in zip(COLUMNS, values, strict=True) if not isinstance(value, str)]
            reason = f"{odd[0]} is no text" if odd else self._why_unusable(image, caption, split, splits)
            if reason is not None:
                skipped.append(Skipped(f"line {number}", image, reason))
                continue
            splits[image] = split or None
            captions.setdefault(image, {}).setdefault(language or self.language, []).append(caption)
        if not captions:
            first = skipped[0].reason if skipped else "it is empty"
            raise DataError(
                f"{self.file}: no line can be used, the first for this reason: {first}. Each needs {COLUMNS[0]} and "
                f"{COLUMNS[1]}."
            )
        examples = [
            ImageExample(id=image, image=existing(self.folder / image), split=splits[image], captions=texts)
            for image, texts in captions.items()
        ]
        return ImageCorpus(
            examples=examples,
            skipped=skipped,
            origin={"file": self.file.name},
            evaluation_only=set(splits.values()) == {"test"},
        )

    @staticmethod
    def _why_unusable(image: str, caption: str, split: str, splits: dict[str, str | None]) -> str | None:
        if not image:
            return "no image"
        if not caption:
            return "no caption"
        if split and split not in SPLITS:
            return f"split {split!r} is none of {', '.join(SPLITS)}"
        if splits.get(image, split or None) != (split or None):
            return "another split than the image's first line"
        return None

    def _rows(self, skipped: list[Skipped]) -> Iterator[tuple[int, dict[str, Any]]]:
        """(number, columns by name) of the lines that can be read."""
        try:
            lines = self.file.read_bytes().split(b"\n")
        except OSError as error:
            raise DataError(f"file={self.file}: cannot be read ({error.strerror}).") from error
        names: list[str] | None = None
        for number, raw in enumerate(lines, start=1):
            if not raw.strip():
                continue
            try:
                line = decode_text(raw.rstrip(b"\r"))
                if self.file.suffix == ".jsonl":
                    yield number, _json(line)
                elif names is None:
                    names = self._header(line)
                else:
                    yield number, dict(zip(names, line.split("\t"), strict=False))
            except BadText as bad:
                skipped.append(Skipped(f"line {number}", self.file.name, str(bad)))

    def _header(self, line: str) -> list[str]:
        names = line.split("\t")
        for wanted in COLUMNS[:2]:
            if wanted not in names:
                raise DataError(
                    f"{self.file}: its first line names no column {wanted!r}.{nearest(wanted, names)} It must name "
                    f"{COLUMNS[0]} and {COLUMNS[1]}, with tabs between them."
                )
        return names


def _json(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise BadText("no JSON object")
    return row
