"""Data sets of the Hugging Face hub, by name, or local files through the same library (docs/data.md)."""

import contextlib
import glob
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from magneto.data.corpora.base import SPLITS, Skipped
from magneto.data.corpora.text.base import Document, Lazily, TextCorpus, content_group
from magneto.data.io.digest import listing_digest, path_digest
from magneto.errors import ConfigError, MagnetoError

FILE_BUILDERS = ("json", "parquet", "csv", "text")  # of the library, for local files


class MissingSplit(MagnetoError):
    """The data set can be read, and has no split of that name."""


def hub_rows(
    name: str,
    *,
    split: str,
    config: str | None = None,
    revision: str | None = None,
    data_files: str | Sequence[str] | Mapping[str, Any] | None = None,
    streaming: bool = False,
    limit: int | None = None,
) -> Iterator[dict[str, Any]]:
    """Rows of one split of a data set.

    Args:
        name: of the data set on the hub; or json, parquet, csv or text, with `data_files`: local files.
        split: as the data set names it; its own slices work too ("train[:1%]", unless streaming).
        config: as `datasets.load_dataset` takes it.
        revision: likewise.
        data_files: likewise.
        streaming: read while downloading, nothing is kept on disk.
        limit: only so many rows.

    Raises:
        MagnetoError: the library is not installed, or the data set or the config cannot be had; `MissingSplit` where the
            split alone is lacking.
    """
    rows = hub_dataset(
        name, split=split, config=config, revision=revision, data_files=data_files, streaming=streaming
    )
    with _explained(name, split, config):
        yield from itertools.islice(rows, limit)


def hub_dataset(
    name: str,
    *,
    split: str,
    config: str | None = None,
    revision: str | None = None,
    data_files: str | Sequence[str] | Mapping[str, Any] | None = None,
    streaming: bool = False,
) -> Any:
    """The library's own object for one split of a data set. Arguments and errors: see `hub_rows`."""
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(f"data: {name} needs the `datasets` library: pip install datasets.") from error
    where = {"revision": revision, "data_files": _patterns(plain(data_files))}
    try:
        with _explained(name, split, config):
            return datasets.load_dataset(name, config, split=split, streaming=streaming, **where)
    except MagnetoError as error:
        if isinstance(error.__cause__, ValueError) and _lacks(name, config, split, where):
            raise MissingSplit(str(error)) from error.__cause__
        raise


def _lacks(name: str, config: str | None, split: str, where: Mapping[str, Any]) -> bool:
    """Whether a data set that can be read has no such split. The library's own error is the same for a bad slice."""
    import datasets

    try:
        known = datasets.get_dataset_split_names(name, config, **where)
    except (ValueError, OSError, datasets.exceptions.DatasetsError):
        return False
    return not {part.partition("[")[0] for part in split.split("+")} <= set(known)


@contextlib.contextmanager
def _explained(name: str, split: str, config: str | None) -> Iterator[None]:
    """Errors of the library as `ConfigError`."""
    import datasets

    what = f"the data set {name}" + (f" ({config})" if config else "")
    try:
        yield
    # StopIteration is what the library gives for a pattern that fits no file.
    except (ValueError, OSError, RuntimeError, StopIteration, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"data: split {split!r} of {what} cannot be read: {reason}. Check the name, config and split, and the "
            "network; or download its files and name them (data.corpora...data_files with name=parquet, json, csv or "
            "text, or data=text_files)."
        ) from error


def plain(data_files: Any) -> Any:
    """`data_files` as plain lists and dicts with the user's home filled in (Hydra gives containers of its own)."""
    if data_files is None:
        return None
    if isinstance(data_files, str):
        return data_files if "://" in data_files else str(Path(data_files).expanduser())
    if isinstance(data_files, Mapping):
        return {key: plain(value) for key, value in data_files.items()}
    return [plain(value) for value in data_files]


def _patterns(data_files: Any) -> Any:
    """`data_files` for the library, which takes names for patterns: a file that there is stands for itself."""
    if isinstance(data_files, str):
        return glob.escape(data_files) if Path(data_files).is_file() else data_files
    if isinstance(data_files, Mapping):
        return {key: _patterns(value) for key, value in data_files.items()}
    return None if data_files is None else [_patterns(value) for value in data_files]


def file_fingerprint(data_files: Any) -> Any:
    """`data_files` with size and time of each local file, so that a change of a file is noticed."""
    if isinstance(data_files, Mapping):
        return {key: file_fingerprint(value) for key, value in data_files.items()}
    if isinstance(data_files, str):
        path = Path(data_files).expanduser()
        if path.is_file():
            return [path.name, path_digest(path)]
        root = next((folder for folder in path.parents if not glob.has_magic(str(folder))), Path())
        if "://" in data_files or not root.is_dir():
            return data_files
        return [path.name, listing_digest(root, (str(path.relative_to(root)),))]
    return None if data_files is None else [file_fingerprint(value) for value in data_files]


class HubReader:
    """Documents of a data set of the hub.

    name, config, revision, data_files, streaming: see `hub_rows`. splits: ours -> the data set's; with `train` alone,
    the others are held out from it by a hash, equal texts on one side; `test` alone is for the evaluation of a trained
    model. key: of the text in a row. start: a regular
    expression for the first row of a document, where rows are smaller than documents (WikiText's are lines); the rows
    are joined as they are. limit: rows of each split at most.
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
        self.splits = dict(splits or {"train": "train", "val": "validation", "test": "test"})
        if set(self.splits) not in ({"train"}, {"test"}, set(SPLITS)):
            raise ConfigError(
                f"data: splits of {name} names {', '.join(self.splits)}; name train, val and test, or train alone (the "
                "others are then held out from it), or for mode=test test alone."
            )
        if name in FILE_BUILDERS and not data_files:
            raise ConfigError(f"data: name={name} reads local files: name them with data_files.")
        try:
            self._start = None if start is None else re.compile(start)
        except re.error as error:
            raise ConfigError(f"data: start={start!r} is not a regular expression ({error}).") from error
        self.key = key
        self.arguments: dict[str, Any] = {
            "name": name,
            "config": config,
            "revision": revision,
            "data_files": plain(data_files),
            "streaming": streaming,
            "limit": limit,
        }

    def fingerprint(self) -> dict[str, Any]:
        """All settings; of local files also sizes and times."""
        settings = {key: value for key, value in self.arguments.items() if key != "streaming"}
        settings["data_files"] = file_fingerprint(self.arguments["data_files"])
        start = None if self._start is None else self._start.pattern
        # The first recipe took combining marks for punctuation.
        return {
            "corpus": "hub",
            "recipe": 2,
            **settings,
            "splits": self.splits,
            "key": self.key,
            "start": start,
        }

    def load(self, data_dir: Path) -> TextCorpus:
        """All documents, read one by one."""
        skipped: list[Skipped] = []

        def documents() -> Iterator[Document]:
            skipped.clear()
            for side, split in self.splits.items():
                stated = None if set(self.splits) == {"train"} else side
                for number, text in self._texts(split, skipped):
                    name = f"{split}:{number}"
                    group = name if stated else content_group(text)
                    yield Document(id=name, text=text, group=group, split=stated)

        return TextCorpus(Lazily(documents), skipped, {"dataset": self.arguments["name"], **self._origin()})

    def _origin(self) -> dict[str, Any]:
        return {key: self.arguments[key] for key in ("config", "revision") if self.arguments[key]}

    def _texts(self, split: str, skipped: list[Skipped]) -> Iterator[tuple[int, str]]:
        """Number of the (first) row and text of each document."""
        parts: list[str] = []
        first = 0
        for number, row in enumerate(hub_rows(split=split, **self.arguments)):
            if self.key not in row:
                raise ConfigError(
                    f"data: {self.arguments['name']} has no column {self.key!r}; it has {', '.join(row)}. Name the "
                    "right one (data.corpora...key)."
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
