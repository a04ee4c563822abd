"""Texts of data sets of the Hugging Face hub, by name, or of local files through the same library (docs/data.md)."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from magneto.data.corpora.base import LazyExamples, Skipped
from magneto.data.corpora.hub import HubData
from magneto.data.corpora.text.base import Document, TextCorpus, content_group
from magneto.errors import ConfigError


class HubReader:
    """Documents of a data set.

    With `train` alone in `splits`, validation and test are held out from it by a hash, equal texts on one side; `test`
    alone is for the evaluation of a trained model.

    Args:
        name: see `HubData`, as for splits, revision, data_files, streaming and limit.
        config: the data set's configuration.
        splits: ours -> the data set's.
        key: the column of the text.
        start: a regular expression for the first row of a document, where rows are smaller than documents (WikiText's
            are lines); the rows are joined without a separator.
        revision: of the data set.
        data_files: local files.
        streaming: keep nothing on disk.
        limit: rows of each split, at most.
    """

    def __init__(
        self,
        name: str,
        config: str | None = None,
        *,
        splits: Mapping[str, str] | None = None,
        key: str = "text",
        start: str | None = None,
        revision: str | None = None,
        data_files: Any = None,
        streaming: bool = False,
        limit: int | None = None,
    ) -> None:
        self.data = HubData(
            name, splits, revision=revision, data_files=data_files, streaming=streaming, limit=limit
        )
        try:
            self._start = None if start is None else re.compile(start)
        except re.error as error:
            raise ConfigError(f"data: start={start!r} is not a regular expression ({error}).") from error
        self.key, self.config = key, config

    def fingerprint(self) -> dict[str, Any]:
        """See `Reader`; of local files also sizes and times."""
        start = None if self._start is None else self._start.pattern
        settings = {"config": self.config, "key": self.key, "start": start}
        # The first recipe took combining marks for punctuation.
        return {"corpus": "hub", "recipe": 2, **self.data.fingerprint(), **settings}

    def load(self, data_dir: Path) -> TextCorpus:
        """Return all documents, read one by one."""
        skipped: list[Skipped] = []

        def documents() -> Iterator[Document]:
            skipped.clear()
            for side, split in self.data.splits.items():
                stated = self.data.stated(side)
                for number, text in self._texts(side, skipped):
                    name = f"{split}:{number}"
                    yield Document(
                        id=name, text=text, group=name if stated else content_group(text), split=stated
                    )

        origin = {**self.data.origin(), **({"config": self.config} if self.config else {})}
        return TextCorpus(LazyExamples(documents), skipped, origin)

    def _texts(self, side: str, skipped: list[Skipped]) -> Iterator[tuple[int, str]]:
        """Yield the index of the (first) row and the text of each document."""
        split, parts, first = self.data.splits[side], list[str](), 0
        for number, row in enumerate(self.data.rows(side, self.config)):
            if self.key not in row:
                raise ConfigError(
                    f"data: {self.data.name} has no column {self.key!r}; it has {', '.join(row)}. Name the right one "
                    "(data.corpora...key)."
                )
            text = row[self.key]
            if not isinstance(text, str):
                skipped.append(Skipped(f"{split}:{number}", split, f"no text under the key {self.key!r}"))
            elif self._start is None:
                yield number, text
            else:
                if parts and self._start.search(text):
                    yield first, "".join(parts)
                    parts = []
                if not parts and not text.strip():
                    continue  # empty rows before a document
                if not parts:
                    first = number
                parts.append(text)
        if parts:
            yield first, "".join(parts)
