"""Arrow tables on disk: one for each split, written a batch of rows at a time, read as views of the mapped file.

    folder/dataset_dict.json      folder/train/data-00000-of-00001.arrow, ...      folder/train/state.json, dataset_info.json

is the layout of `datasets.Dataset.save_to_disk`, so `datasets.load_from_disk(folder)` opens it. Reading goes through
pyarrow alone: importing `datasets` takes seconds.
"""

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from magneto.data.corpora.base import SPLITS

DATA = "data-{:05d}-of-{:05d}.arrow"  # number of the file, of how many


class TableWriter:
    """Tables of the splits of a folder, all of one schema. To be used in a `with` statement.

    Args:
        folder: where they are written.
        schema: the columns.
        fingerprint: by which `datasets` knows the contents.

    Attributes:
        rows: split -> rows written so far.
    """

    def __init__(self, folder: Path, schema: pa.Schema, fingerprint: str = "") -> None:
        self.folder, self.schema, self.fingerprint = folder, schema, fingerprint
        self.rows = dict.fromkeys(SPLITS, 0)
        self._files = ExitStack()

    def __enter__(self) -> Self:
        self._streams = {}
        for split in SPLITS:
            (self.folder / split).mkdir()
            file = self._files.enter_context(pa.OSFile(str(self.folder / split / DATA.format(0, 1)), "wb"))
            self._streams[split] = self._files.enter_context(pa.ipc.new_stream(file, self.schema))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._files.close()
        _describe(self.folder, 1, self.fingerprint)

    def write(self, split: str, columns: Mapping[str, Any]) -> None:
        """Append rows to a split.

        Args:
            split: its name.
            columns: name -> the values of these rows: an array or a sequence of plain values; for a column of lists a
                sequence of arrays, None where a row has none; for one of lists of fixed sizes (A, B, ...) an array
                (rows, A, B, ...).
        """
        arrays = [to_arrow(columns[field.name], field.type) for field in self.schema]
        batch = pa.record_batch(arrays, schema=self.schema)
        if batch.num_rows:
            self._streams[split].write_batch(batch)
            self.rows[split] += batch.num_rows


def join_tables(parts: Sequence[Path], folder: Path, fingerprint: str = "") -> None:
    """Make the tables of a folder from those of others, in their order. All have one schema.

    Args:
        parts: folders that `TableWriter` wrote. Their files are linked, or copied where the disk has no hard links.
        folder: where the tables are made.
        fingerprint: see `TableWriter`.
    """
    for split in SPLITS:
        (folder / split).mkdir()
        for number, part in enumerate(parts):
            source, file = part / split / DATA.format(0, 1), folder / split / DATA.format(number, len(parts))
            try:
                os.link(source, file)
            except OSError:
                shutil.copyfile(source, file)
    _describe(folder, len(parts), fingerprint)


def _describe(folder: Path, count: int, fingerprint: str) -> None:
    """Write what `datasets` reads of tables of `count` files a split."""
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(SPLITS)}))
    for split in SPLITS:
        state: dict[str, Any] = {
            "_data_files": [{"filename": DATA.format(number, count)} for number in range(count)],
            "_fingerprint": f"{fingerprint}{split}",
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": split,
        }
        (folder / split / "state.json").write_text(json.dumps(state, indent=1))
        (folder / split / "dataset_info.json").write_text("{}")


def with_classes(schema: pa.Schema, **names: Sequence[str]) -> pa.Schema:
    """Return the schema with the names of the numbers of int64 columns, as `datasets.ClassLabel` has them."""
    features = {column: {"names": list(known), "_type": "ClassLabel"} for column, known in names.items()}
    return schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def to_arrow(values: Any, kind: pa.DataType) -> pa.Array:
    """Return the values of some rows as an Arrow array: see `TableWriter.write`.

    Buffers are made by numpy: `pa.array` would import pandas, which takes 60 MB.
    """
    if isinstance(values, pa.Array):
        return values
    count, valid = len(values), None
    if not isinstance(values, np.ndarray) and any(value is None for value in values):
        present = np.array([value is not None for value in values])
        valid = pa.py_buffer(np.packbits(present, bitorder="little"))
    if pa.types.is_fixed_size_list(kind):
        inner = to_arrow(np.reshape(values, (-1, *np.shape(values)[2:])), kind.value_type)
        return pa.FixedSizeListArray.from_arrays(inner, type=kind)
    if pa.types.is_list(kind):
        rows = [row for row in values if row is not None and len(row)]
        if pa.types.is_string(kind.value_type):
            flat: Any = [text for row in rows for text in row]
        else:
            flat = np.concatenate(rows) if rows else np.empty((0, *_fixed_shape(kind.value_type)), np.uint8)
        buffers = [valid, _offsets(0 if row is None else len(row) for row in values)]
        return pa.Array.from_buffers(kind, count, buffers, children=[to_arrow(flat, kind.value_type)])
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        # A file's name need not be UTF-8; in a text, what is not is escaped.
        texts = [
            text.encode(errors="backslashreplace") if isinstance(text, str) else text or b""
            for text in values
        ]
        return pa.Array.from_buffers(
            kind, count, [valid, _offsets(map(len, texts)), pa.py_buffer(b"".join(texts))]
        )
    plain = values if valid is None else [0 if value is None else value for value in values]
    numbers = np.ascontiguousarray(plain, kind.to_pandas_dtype())
    return pa.Array.from_buffers(kind, count, [valid, pa.py_buffer(numbers)])


def _offsets(lengths: Iterable[int]) -> pa.Buffer:
    """Where rows of these lengths begin and end."""
    bounds = np.cumsum([0, *lengths])
    assert bounds[-1] < 2**31, "Arrow's lists count to 2^31: write fewer rows at a time"
    return pa.py_buffer(bounds.astype(np.int32))


def _fixed_shape(kind: pa.DataType) -> tuple[int, ...]:
    """The sizes of lists of fixed size in lists of fixed size."""
    if not pa.types.is_fixed_size_list(kind):
        return ()
    return kind.list_size, *_fixed_shape(kind.value_type)


class Flat:
    """One long array in parts, which are views of a mapped file, a part for each batch of rows that was written."""

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self.parts = parts
        self.starts = np.cumsum([0, *map(len, parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def span(self, start: int, stop: int) -> np.ndarray:
        """Return the values from `start` to `stop`: a view, or a copy where they stand in several parts."""
        part = int(np.searchsorted(self.starts, start, "right")) - 1
        if part == len(self.parts):  # nothing, at the end
            return self.parts[-1][:0]
        if stop <= self.starts[part + 1]:
            return self.parts[part][start - self.starts[part] : stop - self.starts[part]]
        last = int(np.searchsorted(self.starts, stop, "left"))
        pieces = [
            self.parts[n][max(start - self.starts[n], 0) : stop - self.starts[n]] for n in range(part, last)
        ]
        return np.concatenate(pieces)

    def take(self, places: np.ndarray) -> np.ndarray:
        """Return the values at `places`, in that order."""
        if len(self.parts) == 1:
            return np.asarray(self.parts[0][places])
        part = np.searchsorted(self.starts, places, "right") - 1
        taken = np.empty((len(places), *self.parts[0].shape[1:]), self.parts[0].dtype)
        for number in np.unique(part):
            here = part == number
            taken[here] = self.parts[number][places[here] - self.starts[number]]
        return taken


class SplitTable:
    """The table of one split, memory-mapped. Cheap to send to a worker, which maps the files itself."""

    def __init__(self, folder: Path, split: str) -> None:
        self.folder = folder / split
        self._read: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "_read": {}}

    @cached_property
    def arrow(self) -> pa.Table:
        """All columns."""
        files = sorted(self.folder.glob("data-*.arrow"))
        return pa.concat_tables(pa.ipc.open_stream(pa.memory_map(str(file))).read_all() for file in files)

    def _chunks(self, name: str) -> list[pa.Array]:
        column = self.arrow.column(name)
        return column.chunks or [to_arrow([], column.type)]

    def __len__(self) -> int:
        return int(self.arrow.num_rows)

    def numbers(self, name: str) -> np.ndarray:
        """Return a column of numbers, (rows,)."""
        if name not in self._read:
            self._read[name] = np.concatenate([_plain(chunk) for chunk in self._chunks(name)])
        numbers: np.ndarray = self._read[name]
        return numbers

    def index_in(self, name: str, values: Sequence[str]) -> np.ndarray:
        """Return the index of each row's text in a list of texts, (rows,) int64; -1 where it is not in there."""
        found = pc.index_in(self.arrow.column(name), to_arrow(values, pa.string())).fill_null(-1)
        return np.asarray(found.to_numpy().astype(np.int64))

    def values(self, name: str) -> Flat:
        """Return the values of a column of lists, one row after another; rows of a fixed size keep their shape."""
        if name not in self._read:
            self._read[name] = Flat([_view(chunk) for chunk in self._chunks(name)])
        flat: Flat = self._read[name]
        return flat

    def bounds(self, name: str) -> np.ndarray:
        """Return where the rows of a column of lists begin and end in its `values`, (rows + 1,) int64."""
        key = f"bounds of {name}"
        if key not in self._read:
            lengths = [np.diff(_plain(chunk.offsets)) for chunk in self._chunks(name) if len(chunk)]
            self._read[key] = np.cumsum(np.concatenate([[0], *lengths]), dtype=np.int64)
        bounds: np.ndarray = self._read[key]
        return bounds

    def list(self, name: str, row: int) -> np.ndarray:
        """Return the values of one row of a column of lists."""
        start, stop = self.bounds(name)[row : row + 2]
        return self.values(name).span(int(start), int(stop))

    def row(self, row: int, *names: str) -> dict[str, Any]:
        """Return one row as plain values: of these columns, or of all."""
        return {name: self.arrow.column(name)[row].as_py() for name in names or self.arrow.column_names}


def _view(array: pa.Array) -> np.ndarray:
    """The values of an array of lists, without a copy."""
    shape: list[int] = []
    if pa.types.is_list(array.type):
        array = array.values
        shape = [-1]
    elif pa.types.is_fixed_size_list(array.type):
        shape = [len(array)]
    while pa.types.is_fixed_size_list(array.type):
        shape.append(array.type.list_size)
        array = array.values
    return _plain(array).reshape(shape)


def _plain(array: pa.Array) -> np.ndarray:
    """Numbers, without a copy, and without pandas, which `to_numpy` would import."""
    dtype = np.dtype(array.type.to_pandas_dtype())
    if not len(array):
        return np.empty(0, dtype)
    view: np.ndarray = np.frombuffer(array.buffers()[1], dtype, len(array), array.offset * dtype.itemsize)
    return view
