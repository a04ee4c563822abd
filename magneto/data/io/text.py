"""Text files with care: UTF-8, plain or compressed, lines that end with a line feed only, JSON lines, whole JSON files.

`str.splitlines`, the csv module and most libraries also end a line at form feeds and U+2028, which texts hold, and refuse
a whole file for one bad line. Here a bad line is one `BadText`, which the readers of corpora list and count.
"""

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from magneto.errors import DataError

CHUNK = 1 << 16  # compressed bytes read at a time
COMPRESSIONS = (".gz", ".zst")
WINDOW = 1 << 31  # bytes: the largest of .zst, `zstd --long=31`
LONGEST_INT = 4_300  # digits that Python converts


class BadText(ValueError):
    """Bytes that are not text, or text of another form. Examples are counted by the message, which says why."""


class Damaged(ValueError):
    """A file that breaks off or is not of the kind that its name says."""


DAMAGES: tuple[type[Exception], ...] = (Damaged, EOFError, zlib.error, gzip.BadGzipFile)
"""What reading a damaged compressed file raises, once everything before the damage has been read."""


def decode_text(raw: bytes) -> str:
    """Decode UTF-8, with or without a byte-order mark. Raises `BadText`."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadText("not UTF-8") from error


def open_text(file: Path) -> io.BufferedReader | gzip.GzipFile:
    """Open a plain, .gz or .zst file for reading bytes. Damage of a compressed file raises one of `DAMAGES`."""
    suffix = file.suffix.lower()
    if suffix == ".gz":
        return gzip.GzipFile(file)  # buffered; a second buffer would lose its content at a damage
    if suffix == ".zst":
        return io.BufferedReader(_Zstd(file), 1 << 20)
    return file.open("rb")


class _Zstd(io.RawIOBase):
    """A decompressing stream of one frame or many, as `zstd` and `pzstd` write them.

    Unlike the library's own stream it notices when the last frame breaks off.
    """

    def __init__(self, file: Path) -> None:
        import zstandard

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
                    raise Damaged("the file breaks off")
                return 0
            if self._frame.eof:
                self._frame = self._start_frame()
            try:
                self._ready = self._frame.decompress(self._raw)
            except self._error as error:
                raise Damaged(str(error)) from error
            self._within = not self._frame.eof
            self._raw = self._frame.unused_data
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def parquet_column(file: Path, column: str, start: int = 0) -> Iterator[Any]:
    """Yield the values of a column of a Parquet file from row `start` on; `BadText` for bytes that are not UTF-8.

    Raises:
        DataError: there is no such column.
        ValueError: one of `DAMAGES`.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file) as table:
            names = table.schema_arrow.names
            if column not in names:
                raise DataError(
                    f"{file}: there is no column {column!r}; it has {', '.join(names)}. Name the right one "
                    "(data.corpora...key)."
                )
            sizes = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
            first = 0
            while first < len(sizes) and start >= sizes[first]:  # whole groups are not read
                start -= sizes[first]
                first += 1
            groups = list(range(first, len(sizes)))
            for batch in table.iter_batches(batch_size=256, columns=[column], row_groups=groups):
                left, start = batch.column(0)[start:], max(0, start - batch.num_rows)
                for value in left:
                    try:
                        yield value.as_py()
                    except UnicodeDecodeError:
                        yield BadText("not UTF-8")
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise Damaged(str(error)) from error


def _int(digits: str) -> int | float:
    return int(digits) if len(digits) <= LONGEST_INT else float(digits)


_JSON = json.JSONDecoder(parse_int=_int)  # an int of more digits is valid JSON, which Python refuses


def json_lines(lines: Iterable[bytes], start: int = 0) -> Iterator[tuple[int, Any]]:
    """Yield the number (from 1) and the JSON value of each line that is not blank; `BadText` for a line that has none.

    The first `start` lines are passed by unread.
    """
    for number, line in enumerate(islice(lines, start, None), start=start + 1):
        if not line.strip():
            continue
        try:
            yield number, _JSON.decode(decode_text(line))
        except (ValueError, RecursionError) as error:
            bad = error if isinstance(error, BadText) else BadText("not valid JSON")
            bad.__cause__ = bad.__cause__ or error  # a reader that stops at a bad line says more
            yield number, bad


def read_bytes(file: Path, key: str) -> bytes:
    """Return a file's content. Raises `DataError`, which names the configuration key and the reason."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(
            f"{key}={file}: cannot be read ({error.strerror}). Set it to an existing file."
        ) from error


def read_json(file: Path, key: str) -> Any:
    """Return the value of a JSON file. Raises `DataError`, which names the configuration key and the reason."""
    try:
        return json.loads(read_bytes(file, key))
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{key}={file}: damaged ({error}). Fetch the file again.") from error


def read_lines(file: Path, key: str) -> list[str]:
    """Return the lines of a UTF-8 file. Raises `DataError`, which names the configuration key and the reason."""
    try:
        return decode_text(read_bytes(file, key)).split("\n")
    except BadText as bad:
        raise DataError(f"{key}={file}: cannot be read ({bad}). Save it as UTF-8.") from bad
