"""Texts of data sets of the Hugging Face hub, by name, or of local files through the same library (docs/data.md)."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magneto.data.corpora.base import Skipped, lazy
from magneto.data.corpora.hub import HubData
from magneto.data.corpora.text.base import Document, TextCorpus, content_group
from magneto.errors import ConfigError, DataError

ROWS = 256  # that are taken from the library at a time


@dataclass(kw_only=True)
class HubReader(HubData):
    """Documents of a data set. Held-out documents go by a hash, equal texts on one side.

    Args:
        config: the data set's configuration.
        key: the column of the text.
        start: a regular expression for the first row of a document, where rows are smaller than documents (WikiText's
            are lines); the rows are joined without a separator.
        others: see `HubData`.
    """

    config: str | None = None
    key: str = "text"
    start: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            re.compile(self.start or "")
        except re.error as error:
            raise ConfigError(f"data: start={self.start!r} is not a regular expression ({error}).") from error

    def fingerprint(self, contents: bool = True) -> dict[str, Any]:
        """See `Reader`; of local files also sizes and times. contents: False: their names alone."""
        settings = {"config": self.config, "key": self.key, "start": self.start}
        if not contents:
            settings["data_files"] = self.file_names()
        # The first recipe took combining marks for punctuation.
        return {"corpus": "hub", "recipe": 2, **super().fingerprint(), **settings}

    def load(self, data_dir: Path) -> TextCorpus:
        """Return all documents, read one by one."""
        origin = {**self.origin(), **({"config": self.config} if self.config else {})}
        return TextCorpus(*lazy(self._documents), origin)

    def shards(self) -> list["HubShard"]:
        """Return the shards of the data set as its publisher has divided it, which are read while downloading.

        Raises:
            ConfigError: it is not available, or a setting has no meaning here.
        """
        for key, value in (("start", self.start), ("limit", self.limit)):
            if value is not None:
                raise ConfigError(
                    f"data: {key}={value} of {self.name} needs the rows in their order, which data.streaming=true does not "
                    f"keep. Set {key} to null (data.corpora...{key}), or data.streaming to false."
                )
        found: list[HubShard] = []
        for side in self.sides:
            rows = self.open(side, self.config, streaming=True)
            found += [HubShard(self, side, rows, index) for index in range(rows.num_shards)]
        return found

    def document(self, side: str, name: str, text: Any) -> Document | Skipped:
        """Return the document of a row."""
        if not isinstance(text, str):
            return Skipped(name, self.sides[side], f"no text under the key {self.key!r}")
        stated = self.stated(side)
        return Document(id=name, text=text, group=name if stated else content_group(text), split=stated)

    def _documents(self) -> Iterator[Document | Skipped]:
        for side, split in self.sides.items():
            for number, text in self._texts(side):
                yield self.document(side, f"{split}:{number}", text)

    def text(self, row: Mapping[str, Any]) -> Any:
        """Return the text of a row. Raises `ConfigError` if it has no such column."""
        if self.key not in row:
            raise self.no_column("key", self.key, row)
        return row[self.key]

    def _texts(self, side: str) -> Iterator[tuple[int, str | None]]:
        """Yield the index of the (first) row and the text of each document; None for a row without text."""
        parts, first = list[str](), 0
        for number, row in enumerate(self.rows(side, self.config)):
            text = self.text(row)
            if not isinstance(text, str):
                yield number, None
            elif self.start is None:
                yield number, text
            else:
                if parts and re.search(self.start, text):
                    yield first, "".join(parts)
                    parts = []
                if not parts and not text.strip():
                    continue  # empty rows before a document
                first = first if parts else number
                parts.append(text)
        if parts:
            yield first, "".join(parts)


@dataclass(frozen=True)
class HubShard:
    """A file of a `HubReader`'s data set, read from its beginning to its end (`magneto.data.streaming.Shard`)."""

    reader: HubReader
    side: str
    rows: Any
    """The library's object for the whole split."""
    index: int

    @property
    def split(self) -> str | None:
        """See `HubData.stated`."""
        return self.reader.stated(self.side)

    @property
    def name(self) -> str:
        """Which shard of which split."""
        return f"{self.reader.name}, shard {self.index} of {self.reader.sides[self.side]}"

    def read(self, start: int = 0) -> Iterator[tuple[int, Document | Skipped]]:
        """Yield the documents from row `start` on, each with the row that follows it.

        Raises:
            MagnetoError: the shard is not available, or empty.
        """
        reader, number = self.reader, start
        with reader.explained(self.side, reader.config):
            rows = self.rows.shard(num_shards=self.rows.num_shards, index=self.index).skip(start)
            # Not one by one: in a worker of a loader, the library's own iterator leaves rows to the other workers.
            for table in rows.with_format("arrow").iter(ROWS):
                for text in reader.text(
                    dict(zip(table.column_names, table.columns, strict=True))
                ).to_pylist():
                    name = f"{reader.sides[self.side]}:{self.index}:{number}"
                    number += 1
                    yield number, reader.document(self.side, name, text)
        if not number:
            raise DataError(
                f"data: {self.name} is empty. Choose another revision of the data set, or download its files and name those "
                "that are whole (data.corpora...data_files with name=parquet, json, csv or text)."
            )
