"""Text of your own: .txt, .jsonl and .parquet files, plain or compressed, one by one or in folders (docs/data.md)."""

import codecs
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np

from magneto.data.cache import short_hash
from magneto.data.corpora.base import Skipped, broken_shard, lazy, stated_splits
from magneto.data.corpora.text.base import LINES, Document, TextCorpus, content_group
from magneto.data.io import text as io
from magneto.data.io.digest import files_digest, path_digest
from magneto.data.io.text import DAMAGES, BadText, decode_text
from magneto.errors import DataError

KINDS = (".txt", ".jsonl", ".ndjson", ".parquet")
SUFFIXES = (*KINDS, *(kind + compression for kind in KINDS[:3] for compression in io.COMPRESSIONS))

Numbered = Iterator[tuple[int | None, str | BadText]]
"""Number of the line or row, from 1 (None: the whole file), and its text."""


SplitFile = tuple[str | None, Path]
"""A file, and the split that the user states; None: its documents are divided."""

PART_BYTES, MOST_PARTS = 32_000_000, 1000


@dataclass(frozen=True)
class TextFilesPart:
    """The reader of some of the files of another."""

    whole: "TextFilesReader"
    files: list[SplitFile]
    others: list[Skipped]

    def fingerprint(self) -> dict[str, Any]:
        """Return which files these are; the rest is in the fingerprint of the whole, which looks at every file."""
        return {"files": [str(file) for _, file in self.files]}

    def load(self, data_dir: Path) -> TextCorpus:
        """Return the documents of these files, read one by one."""
        return self.whole.corpus(self.files, self.others)


class TextFilesReader:
    """A document for each .txt file, line of a .jsonl file, or row of a .parquet file.

    Args:
        path: a file, or a folder that is searched. It is divided by a hash, equal texts on one side (per_line: blocks of
            LINES neighbouring lines).
        train: in place of `path`, the same for each split.
        val: likewise.
        test: likewise; alone for the evaluation of a trained model.
        key: of the text in a JSON object or a table.
        per_line: each line of a .txt file is a document.
    """

    def __init__(
        self,
        path: str | None = None,
        *,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        key: str = "text",
        per_line: bool = False,
    ) -> None:
        named = stated_splits("path", path, {"train": train, "val": val, "test": test})
        self.paths = {split: Path(file).expanduser() for split, file in named.items()}
        self.key, self.per_line = key, per_line

    def fingerprint(self, contents: bool = True) -> dict[str, Any]:
        """See `Reader`; of the files names, sizes and times. contents: False: the names alone."""

        def digest(split: str | None, path: Path) -> str:
            if contents:
                return files_digest(_readable(path)[0], path) if path.is_dir() else path_digest(path)
            return short_hash([self.name(split, file) for file in _readable(path)[0]])

        files = {str(split): digest(split, path) for split, path in self.paths.items()}
        return {
            "corpus": "text_files",
            "recipe": 3,  # the first divided a text line by line, the second took combining marks for punctuation
            "files": files,
            "key": self.key,
            "per_line": self.per_line,
        }

    def load(self, data_dir: Path) -> TextCorpus:
        """Return all documents, read one by one. Raises `DataError` for a path that holds no such files."""
        return self.corpus(*self._found())

    def parts(self, data_dir: Path) -> list[TextFilesPart]:
        """See `DivisibleReader`: files one after another with PART_BYTES on disk, or more, so that there are MOST_PARTS."""
        files, others = self._found()
        sizes = [file.stat().st_size for _, file in files]
        size = max(PART_BYTES, sum(sizes) // MOST_PARTS)
        ends = np.cumsum(sizes)
        parts: list[TextFilesPart] = []
        for _, group in groupby(zip(files, (ends - 1) // size, strict=True), key=lambda one: one[1]):
            parts.append(TextFilesPart(self, [file for file, _ in group], [] if parts else others))
        return parts

    def shards(self) -> list["TextShard"]:
        """Return a shard for each file. Raises `DataError` as `load` does, and for a file of no bytes."""
        found = [TextShard(self, split, file) for split, file in self._found()[0]]
        for shard in found:
            if shard.file.stat().st_size == 0:
                raise broken_shard(shard.name, "it is empty")
        return found

    def _found(self) -> tuple[list[SplitFile], list[Skipped]]:
        """Return the files with their splits, and those that are not read."""
        found = {split: _readable(path) for split, path in self.paths.items()}
        for split, (files, _) in found.items():
            if not files:
                path = self.paths[split]
                reason = "there is no such file or folder"
                if path.exists():
                    reason = (
                        "no such file in this folder" if path.is_dir() else "this kind of file is not read"
                    )
                raise DataError(
                    f"{path}: {reason}. Name a file or a folder with {', '.join(SUFFIXES)} files."
                )
        return (
            [(split, file) for split, (files, _) in found.items() for file in files],
            [other for _, others in found.values() for other in others],
        )

    def corpus(self, files: Sequence[SplitFile], others: Sequence[Skipped]) -> TextCorpus:
        """Return the documents of some files, read one by one. others: files that are not read."""

        def documents() -> Iterator[Document | Skipped]:
            yield from others
            for split, file in files:
                yield from self._documents(split, file)

        return TextCorpus(*lazy(documents), {"files": [file.name for _, file in files[:100]]})

    def _documents(self, split: str | None, file: Path) -> Iterator[Document | Skipped]:
        name, anything = self.name(split, file), False
        try:
            for _, document in self.read(split, file):
                anything = True
                yield document
            if not anything:
                yield Skipped(name, name, "file without a line")
        except DAMAGES as error:
            reason = str(error) or type(error).__name__
            yield Skipped(name, name, f"damaged file ({reason}): its rest is left out")
        except PermissionError:
            yield Skipped(name, name, "no permission to read the file")

    def name(self, split: str | None, file: Path) -> str:
        """Return the name of a file of a split, relative to its folder."""
        path = self.paths[split]
        return file.name if file == path else file.relative_to(path).as_posix()

    def read(self, split: str | None, file: Path, start: int = 0) -> Iterator[tuple[int, Document | Skipped]]:
        """Yield the documents of a file from line or row `start` on, each with the line or row that follows it.

        Raises:
            DataError: there is no text under the key.
            ValueError: one of `DAMAGES`.
        """
        name, kind = self.name(split, file), _kind(file)
        read = {".txt": self._txt, ".parquet": self._parquet}.get(kind, self._jsonl)
        for number, text in read(file, start):
            own, following = (name, 1) if number is None else (f"{name}:{number}", number)
            document: Document | Skipped
            if isinstance(text, BadText):
                document = Skipped(own, name, str(text))
            elif split is not None:
                document = Document(id=f"{split}/{own}", text=text, group=f"{split}/{own}", split=split)
            elif kind == ".txt" and number is not None:
                # Lines of one text follow from their neighbours: they have one split, as those of parallel files do.
                document = Document(id=own, text=text, group=f"{name}:{(number - 1) // LINES}", split=None)
            else:
                document = Document(id=own, text=text, group=content_group(text), split=None)
            yield following, document

    def _txt(self, file: Path, start: int) -> Numbered:
        with io.open_text(file) as stream:
            if self.per_line:
                for number, line in enumerate(islice(stream, start, None), start=start + 1):
                    if line.strip():
                        yield number, _decoded(line.rstrip(b"\r\n"))
                return
            if start:
                return
            parts: list[bytes] = []
            try:
                parts += iter(lambda: stream.read1(io.CHUNK), b"")
            except DAMAGES:
                if parts:  # the text before the damage, without an incomplete character
                    yield None, _decoded(b"".join(parts), final=False)
                raise
            yield None, _decoded(b"".join(parts))

    def _jsonl(self, file: Path, start: int) -> Numbered:
        usable, keys = False, ""
        with io.open_text(file) as stream:
            for number, row in io.json_lines(stream, start):
                text = row if isinstance(row, BadText) else self._text(row)
                usable |= isinstance(text, str)
                keys = keys or (", ".join(map(str, row)) if isinstance(row, dict) else "")
                yield number, text
        if keys and not usable and not start:
            raise DataError(
                f"{file}: no line has text under the key {self.key!r}; the first has the keys {keys}. Name the right "
                "one (data.corpora...key)."
            )

    def _parquet(self, file: Path, start: int) -> Numbered:
        for number, value in enumerate(io.parquet_column(file, self.key, start), start=start + 1):
            yield number, value if isinstance(value, BadText) else self._text({self.key: value})

    def _text(self, row: Any) -> str | BadText:
        value = row.get(self.key) if isinstance(row, Mapping) else None
        return value if isinstance(value, str) else BadText(f"no text under the key {self.key!r}")


@dataclass(frozen=True)
class TextShard:
    """A file of a `TextFilesReader`, read from its beginning to its end (`magneto.data.streaming.Shard`)."""

    reader: TextFilesReader
    split: str | None
    file: Path

    @property
    def name(self) -> str:
        """The whole path."""
        return str(self.file)

    def read(self, start: int = 0) -> Iterator[tuple[int, Document | Skipped]]:
        """Yield the documents from row `start` on, each with the row that follows it; damage is an error here.

        Raises:
            DataError: the file is missing, empty or damaged, or cannot be read.
        """
        row, document = start, None
        try:
            for row, document in self.reader.read(self.split, self.file, start):
                yield row, document
            if isinstance(document, Skipped) and self._breaks_off():
                raise io.Damaged("the last line breaks off")
        except DAMAGES as error:
            raise broken_shard(
                self.name, f"it is damaged after line or row {row} ({error or 'it breaks off'})"
            ) from error
        except OSError as error:
            raise broken_shard(self.name, str(error.strerror)) from error
        if not row:
            raise broken_shard(self.name, "it is empty")

    def _breaks_off(self) -> bool:
        """Whether a plain file ends within a line; where a line that is no JSON is the last one, its rest is missing."""
        if _kind(self.file) not in (".jsonl", ".ndjson") or self.file.suffix.lower() in io.COMPRESSIONS:
            return False
        with self.file.open("rb") as file:
            file.seek(-1, 2)
            return file.read() != b"\n"


def _kind(file: Path) -> str:
    """Return the suffix in lower case, without that of a compression."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    return next((suffix for suffix in reversed(suffixes) if suffix not in io.COMPRESSIONS), "")


def _decoded(raw: bytes, final: bool = True) -> str | BadText:
    """Decode a text. final: False: the end may be in the middle of a character."""
    try:
        if not final:
            raw = codecs.getincrementaldecoder("utf-8")().decode(raw).encode()
        return decode_text(raw)
    except ValueError:
        return BadText("not UTF-8")


def _readable(path: Path) -> tuple[list[Path], list[Skipped]]:
    """Return the files of a path that are read, and those below a folder that are not."""
    if not path.is_dir():
        return [path] if path.is_file() and path.name.lower().endswith(SUFFIXES) else [], []
    files: list[Path] = []
    others: list[Skipped] = []
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        name = file.relative_to(path)
        if any(part.startswith(".") for part in name.parts):
            others.append(Skipped(name.as_posix(), name.as_posix(), "hidden file"))
        elif file.name.lower().endswith(SUFFIXES):
            files.append(file)
        else:
            kind = file.suffix.lower() or "no suffix"
            others.append(Skipped(name.as_posix(), name.as_posix(), f"another kind of file ({kind})"))
    return files, others
