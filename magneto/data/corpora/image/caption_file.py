"""The user's own images with captions: a JSONL or TSV file with one caption a line (docs/data.md).

{"image": "birds/robin.jpg", "caption": "a robin on a fence", "language": "en", "split": "train"}
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from magneto.data.corpora.base import SPLITS, Skipped
from magneto.data.corpora.image.base import ImageCorpus, ImageExample, annotated, existing
from magneto.data.io.text import BadText, decode_text, json_lines, read_bytes
from magneto.errors import ConfigError, DataError, nearest

COLUMNS = ("image", "caption", "language", "split")


class CaptionFileReader:
    """Images that a file names. Lines with the same image are captions of one image.

    Args:
        file: `.jsonl` with an object a line, or `.tsv` whose first line names the columns (no quoting): image and caption,
            and optionally language and split; an image without `split` is held out by a hash.
        folder: relative paths are relative to it; None: the file's folder.
        language: of the lines without `language`.
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
        """See `Reader`."""
        folder = str(self.folder.absolute())
        found = annotated(self, "caption_file", self.file, folder=folder, language=self.language)
        return {"file": found.pop("files"), **found}

    def load(self, data_dir: Path) -> ImageCorpus:
        """Return all images, in the order of their first lines."""
        captions: dict[str, dict[str, list[str]]] = {}
        splits: dict[str, str | None] = {}
        skipped: list[Skipped] = []
        for number, row in self._rows():
            try:
                image, caption, language, split = _values(row)
                if splits.setdefault(image, split) != split:
                    raise BadText("another split than the image's first line")
                captions.setdefault(image, {}).setdefault(language or self.language, []).append(caption)
            except BadText as bad:
                name = row.get("image") if isinstance(row, dict) else None
                file = name if isinstance(name, str) else self.file.name
                skipped.append(Skipped(f"line {number}", file, str(bad)))
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

    def _rows(self) -> Iterator[tuple[int, Any]]:
        """Yield (number, columns by name) of the lines; `BadText` for a line that cannot be read."""
        lines = read_bytes(self.file, "file").split(b"\n")
        if self.file.suffix == ".jsonl":
            yield from json_lines(lines)
            return
        names: list[str] | None = None
        for number, raw in enumerate(lines, start=1):
            if not raw.strip():
                continue
            try:
                values = decode_text(raw.rstrip(b"\r")).split("\t")
            except BadText as bad:
                yield number, bad
                continue
            if names is not None:
                yield number, dict(zip(names, values, strict=False))
                continue
            names = values
            if missing := [name for name in COLUMNS[:2] if name not in names]:
                raise DataError(
                    f"{self.file}: its first line names no column {missing[0]!r}.{nearest(missing[0], names)} It must "
                    f"name {COLUMNS[0]} and {COLUMNS[1]}, with tabs between them."
                )


def _values(row: Any) -> tuple[str, str, str, str | None]:
    """Return image, caption, language and split of a line. Raises `BadText` with the reason why it is not used."""
    if isinstance(row, BadText):
        raise row
    if not isinstance(row, dict):
        raise BadText("no JSON object")
    values = [row.get(name) or "" for name in COLUMNS]
    for name, value in zip(COLUMNS, values, strict=True):
        if not isinstance(value, str):
            raise BadText(f"{name} is no text")
    image, caption, language, split = (value.strip() for value in values)
    if not image:
        raise BadText("no image")
    if not caption:
        raise BadText("no caption")
    if split and split not in SPLITS:
        raise BadText(f"split {split!r} is none of {', '.join(SPLITS)}")
    return image, caption, language, split or None
