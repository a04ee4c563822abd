"""Texts of data sets of the Hugging Face hub, by name, or of local files through the same library (docs/data.md)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magneto.data.corpora.base import Skipped, lazy
from magneto.data.corpora.hub import HubData
from magneto.data.corpora.text.base import Document, TextCorpus, content_group
from magneto.errors import ConfigError


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

    def fingerprint(self) -> dict[str, Any]:
        """See `Reader`; of local files also sizes and times."""
        settings = {"config": self.config, "key": self.key, "start": self.start}
        # The first recipe took combining marks for punctuation.
        return {"corpus": "hub", "recipe": 2, **super().fingerprint(), **settings}

    def load(self, data_dir: Path) -> TextCorpus:
        """Return all documents, read one by one."""
        origin = {**self.origin(), **({"config": self.config} if self.config else {})}
        return TextCorpus(*lazy(self._documents), origin)

    def _documents(self) -> Iterator[Document | Skipped]:
        for side, split in self.sides.items():
            stated = self.stated(side)
            for number, text in self._texts(side):
                name = f"{split}:{number}"
                if text is None:
                    yield Skipped(name, split, f"no text under the key {self.key!r}")
                else:
                    group = name if stated else content_group(text)
                    yield Document(id=name, text=text, group=group, split=stated)

    def _texts(self, side: str) -> Iterator[tuple[int, str | None]]:
        """Yield the index of the (first) row and the text of each document; None for a row without text."""
        parts, first = list[str](), 0
        for number, row in enumerate(self.rows(side, self.config)):
            if self.key not in row:
                raise self.no_column("key", self.key, row)
            text = row[self.key]
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
