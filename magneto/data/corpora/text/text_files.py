"""Text of your own: .txt, .jsonl and .parquet files, plain or compressed, one by one or in folders (docs/data.md)."""

import codecs
import gzip
import importlib
import io
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from magneto.data.corpora.base import Skipped
from magneto.data.corpora.text.base import (
    LINES,
    BadText,
    Document,
    Lazily,
    TextCorpus,
    content_group,
    decode_text,
)
from magneto.data.io.digest import files_digest, path_digest
from magneto.errors import DataError

KINDS = (".txt", ".jsonl", ".ndjson", ".parquet")
CHUNK = 1 << 16  # compressed bytes read at a time
COMPRESSIONS = (".gz", ".zst")
WINDOW = 1 << 31  # bytes: the largest of .zst, `zstd --long=31`
SUFFIXES = (*KINDS, *(kind + compression for kind in KINDS[:3] for compression in COMPRESSIONS))


class TextFilesReader:
    """A document for each .txt file (per_line: for each of its lines), line of a .jsonl file, or row of a .parquet
    file.

    path: a file, or a folder that is searched; divided by a hash, equal texts on one side (per_line: blocks of LINES
    neighbouring lines). Or, instead, train, val and test: the same for each split; test alone: for the evaluation of a
    trained model. key: of the text in a JSON object or a table.
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
        named = {"train": train, "val": val, "test": test}
        self.paths: dict[str | None, Path]
        if path is not None and not any(named.values()):
            self.paths = {None: Path(path).expanduser()}
        elif path is None and (all(named.values()) or (test and not (train or val))):
            self.paths = {split: Path(place).expanduser() for split, place in named.items() if place}
        else:
            raise DataError(
                "data: text files are given either by one path (corpora.text_files.path=..., divided by a hash), or by "
                "all of train, val and test, or for mode=test by test alone; "
                f"here path={path}, " + ", ".join(f"{split}={place}" for split, place in named.items()) + "."
            )
        self.key, self.per_line = key, per_line

    def fingerprint(self) -> dict[str, Any]:
        """Settings, and names, sizes and times of the files."""
        files = {
            str(split): files_digest(path, _files(path, [])) if path.is_dir() else path_digest(path)
            for split, path in self.paths.items()
        }
        return {
            "corpus": "text_files",
            "recipe": 3,  # the first divided a text line by line, the second took combining marks for punctuation
            "files": files,
            "key": self.key,
            "per_line": self.per_line,
        }

    def load(self, data_dir: Path) -> TextCorpus:
        """All documents, read one by one. Raises `MagnetoError` for a path that holds no such files."""
        others: list[Skipped] = []
        files = [
            (split, path, file) for split, path in self.paths.items() for file in _readable(path, others)
        ]
        skipped: list[Skipped] = []

        def documents() -> Iterator[Document]:
            skipped[:] = others
            for split, path, file in files:
                name = file.name if file == path else file.relative_to(path).as_posix()
                for number, text in self._texts(file, name, skipped):
                    document = name if number is None else f"{name}:{number}"
                    if split is not None:
                        document = f"{split}/{document}"
                    group = document if split else self._group(name, number, text)
                    yield Document(id=document, text=text, group=group, split=split)

        return TextCorpus(Lazily(documents), skipped, {"files": [file.name for _, _, file in files[:100]]})

    def _group(self, name: str, number: int | None, text: str) -> str:
        """Lines of one text follow from their neighbours: they stand together, as those of parallel files do."""
        if self.per_line and number is not None and _kind(Path(name)) == ".txt":
            return f"{name}:{(number - 1) // LINES}"
        return content_group(text)

    def _texts(self, file: Path, name: str, skipped: list[Skipped]) -> Iterator[tuple[int | None, str]]:
        """Number (of the line or row, from 1; None: the whole file) and text."""
        read = {".txt": self._txt, ".parquet": self._parquet}.get(_kind(file), self._jsonl)
        anything = False
        try:
            for number, found in read(file):
                anything = True
                if isinstance(found, str):
                    yield number, found
                else:
                    place = name if number is None else f"{name}:{number}"
                    skipped.append(Skipped(place, name, str(found)))
            if not anything:
                skipped.append(Skipped(name, name, "file without a line"))
        except DAMAGES as error:
            reason = str(error) or type(error).__name__
            skipped.append(Skipped(name, name, f"damaged file ({reason}): its rest is left out"))
        except PermissionError:
            skipped.append(Skipped(name, name, "no permission to read the file"))

    def _txt(self, file: Path) -> Iterator[tuple[int | None, str | BadText]]:
        with open_text(file) as stream:
            if self.per_line:
                for number, line in enumerate(stream, start=1):
                    if line.strip():
                        yield number, _decoded(line.rstrip(b"\r\n"))
                return
            parts: list[bytes] = []
            try:
                parts += iter(lambda: stream.read1(CHUNK), b"")
            except DAMAGES:
                if parts:  # what comes before the damage, but for half a character
                    yield None, _decoded(b"".join(parts), final=False)
                raise
            yield None, _decoded(b"".join(parts))

    def _jsonl(self, file: Path) -> Iterator[tuple[int, str | BadText]]:
        usable, keys = False, ""
        with open_text(file) as stream:
            for number, line in enumerate(stream, start=1):
                if not line.strip():
                    continue
                try:
                    row = _JSON.decode(decode_text(line))
                except (ValueError, RecursionError) as error:
                    yield number, error if isinstance(error, BadText) else BadText("not valid JSON")
                    continue
                found = self._text(row)
                usable |= isinstance(found, str)
                keys = keys or (", ".join(map(str, row)) if isinstance(row, dict) else "")
                yield number, found
        if keys and not usable:
            raise DataError(
                f"{file}: no line has text under the key {self.key!r}; the first has the keys {keys}. Name the right "
                "one (data.corpora...key)."
            )

    def _parquet(self, file: Path) -> Iterator[tuple[int, str | BadText]]:
        pyarrow, parquet = _library("pyarrow", file), _library("pyarrow.parquet", file)
        try:
            table = parquet.ParquetFile(file)
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise _Damaged(str(error)) from error
        names = table.schema_arrow.names
        if self.key not in names:
            raise DataError(
                f"{file}: there is no column {self.key!r}; it has {', '.join(names)}. Name the right one "
                "(data.corpora...key)."
            )
        number = 0
        with table:
            try:
                for batch in table.iter_batches(batch_size=256, columns=[self.key]):
                    for value in batch.column(0):
                        number += 1
                        try:
                            yield number, self._text({self.key: value.as_py()})
                        except UnicodeDecodeError:
                            yield number, BadText("not UTF-8")
            except (pyarrow.ArrowInvalid, OSError) as error:
                raise _Damaged(str(error)) from error

    def _text(self, row: Any) -> str | BadText:
        value = row.get(self.key) if isinstance(row, Mapping) else None
        return value if isinstance(value, str) else BadText(f"no text under the key {self.key!r}")


class _Damaged(ValueError):
    """A file that breaks off or is not what its name says."""


_JSON = json.JSONDecoder(parse_int=float)  # an int of thousands of digits is valid JSON that Python refuses
DAMAGES: tuple[type[Exception], ...] = (_Damaged, EOFError, zlib.error, gzip.BadGzipFile)


def open_text(file: Path) -> io.BufferedReader | gzip.GzipFile:
    """The bytes of a plain, .gz or .zst file. Breaks in a compressed file show as one of `DAMAGES`, once all before them
    has been read.
    """
    suffix = file.suffix.lower()
    if suffix == ".gz":
        return gzip.GzipFile(file)  # buffered; a second buffer would lose what it holds at a damage
    if suffix == ".zst":
        return io.BufferedReader(_Zstd(file), 1 << 20)
    return file.open("rb")


class _Zstd(io.RawIOBase):
    """A decompressing stream of one frame or many, as `zstd` and `pzstd` write them.

    Unlike the library's own stream it notices when the last frame breaks off.
    """

    def __init__(self, file: Path) -> None:
        zstandard = _library("zstandard", file)
        self._error = zstandard.ZstdError
        self._start_frame = zstandard.ZstdDecompressor(max_window_size=WINDOW).decompressobj
        self._frame = self._start_frame()
        self._within = False  # a frame
        self._file = file.open("rb")
        self._raw, self._ready = b"", b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            self._raw = self._raw or self._file.read(CHUNK)
            if not self._raw:
                if self._within:
                    raise _Damaged("the file breaks off")
                return 0
            if self._frame.eof:
                self._frame = self._start_frame()
            try:
                self._ready = self._frame.decompress(self._raw)
            except self._error as error:
                raise _Damaged(str(error)) from error
            self._within = not self._frame.eof
            self._raw = self._frame.unused_data
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def _library(name: str, file: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DataError(f"{file}: to read it, {name} is needed: pip install {name}.") from error


def _kind(file: Path) -> str:
    """The suffix in small letters, without that of a compression."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    return next((suffix for suffix in reversed(suffixes) if suffix not in COMPRESSIONS), "")


def _decoded(raw: bytes, final: bool = True) -> str | BadText:
    """final: False: the end may be cut off in the middle of a character."""
    try:
        if not final:
            raw = codecs.getincrementaldecoder("utf-8")().decode(raw).encode()
        return decode_text(raw)
    except UnicodeDecodeError:
        return BadText("not UTF-8")
    except BadText as bad:
        return bad


def _files(path: Path, others: list[Skipped]) -> list[Path]:
    """The files below a folder that are read; `others` takes the rest."""
    found = []
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path)
        if not file.is_file():
            continue
        if any(part.startswith(".") for part in name.parts):
            others.append(Skipped(name.as_posix(), name.as_posix(), "hidden file"))
        elif file.name.lower().endswith(SUFFIXES):
            found.append(file)
        else:
            kind = file.suffix.lower() or "no suffix"
            others.append(Skipped(name.as_posix(), name.as_posix(), f"another kind of file ({kind})"))
    return found


def _readable(path: Path, others: list[Skipped]) -> list[Path]:
    """The files of a path. Raises `DataError` where there are none."""
    if path.is_file():
        if not path.name.lower().endswith(SUFFIXES):
            raise DataError(f"{path}: this kind of file is not read; the kinds are {', '.join(SUFFIXES)}.")
        return [path]
    found = _files(path, others) if path.is_dir() else []
    if not found:
        reason = "no such file in this folder" if path.is_dir() else "there is no such file or folder"
        raise DataError(f"{path}: {reason}. Name a file or a folder with {', '.join(SUFFIXES)} files.")
    return found
