"""Data sets of the Hugging Face hub, by name, or local files through the same library, for all modalities."""

import contextlib
import glob
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, ClassVar

from magneto.data.corpora.base import SPLITS
from magneto.data.io.digest import listing_digest, path_digest
from magneto.errors import ConfigError, MagnetoError

FILE_BUILDERS = ("json", "parquet", "csv", "text")  # of the library, for local files
PUBLISHED = {"train": "train", "val": "validation", "test": "test"}
"""Our splits -> the names that the hub gives them most often."""


class MissingSplit(ConfigError):
    """The data set can be read, and has no split of that name."""


@dataclass
class HubData:
    """A data set, or local files, and which of its splits are ours: the base of the readers.

    Args:
        name: of the data set on the hub, or the path of a folder of its form; or json, parquet, csv or text for the local
            files `data_files`.
        splits: ours -> the data set's; None: `PUBLISHED`. With `train` alone, the others are held out from it; `test` alone
            is for the evaluation of a trained model.
        revision: as `datasets.load_dataset` takes it.
        data_files: likewise.
        limit: rows of each split, at most.
        streaming: read while downloading, nothing is kept on disk.
    """

    allowed: ClassVar[Collection[Collection[str]]] = (("train",), ("test",), SPLITS)
    """Combinations of splits that the reader takes."""

    name: str | None = None
    _: KW_ONLY
    splits: Mapping[str, str] | None = None
    revision: str | None = None
    data_files: Any = None
    limit: int | None = None
    streaming: bool = False

    def __post_init__(self) -> None:
        if self.name is None:
            raise ConfigError("data: name a data set of the hub (data.corpora...name=uoft-cs/cifar10).")
        self.data_files = _each(self.data_files, _home)
        self.splits = dict(self.splits or PUBLISHED)
        if set(self.splits) not in map(set, self.allowed):
            options = ", or ".join(" and ".join(option) for option in self.allowed)
            raise ConfigError(f"data: splits of {self.name} names {', '.join(self.splits)}. Name {options}.")
        if self.name in FILE_BUILDERS and not self.data_files:
            raise ConfigError(f"data: name={self.name} reads local files. Set data_files to them.")

    def fingerprint(self) -> dict[str, Any]:
        """See `Reader`; of local files also sizes and times."""
        settings = {"name": self.name, "splits": self.splits, "revision": self.revision, "limit": self.limit}
        return {**settings, "data_files": _each(self.data_files, file_fingerprint)}

    def file_names(self) -> Any:
        """Return the names of local files without their folders."""
        return _each(self.data_files, lambda name: Path(name).name)

    def origin(self) -> dict[str, Any]:
        """Return where the rows come from, for reports."""
        return {"dataset": self.name, **({"revision": self.revision} if self.revision else {})}

    def stated(self, side: str) -> str | None:
        """Return the split of the examples of our split `side`; None where the others are held out from it."""
        return None if set(self.sides) == {"train"} else side

    @property
    def sides(self) -> Mapping[str, str]:
        """Our splits -> the data set's."""
        return self.splits or PUBLISHED

    def rows(self, side: str, config: str | None = None) -> Iterator[dict[str, Any]]:
        """Yield the rows of our split `side`. For errors see `open`."""
        rows = self.open(side, config)
        with self.explained(side, config):
            yield from itertools.islice(rows, self.limit)

    def open(self, side: str, config: str | None = None, streaming: bool | None = None) -> Any:
        """Return the library's own object for our split `side` of a configuration.

        Args:
            side: ours.
            config: of the data set.
            streaming: whether it is read while downloading; None: as the setting says.

        Raises:
            MissingSplit: the data set has no such split.
            ConfigError: the data set, the configuration or a file is not available.
        """
        import datasets  # imported here: it takes a second, and only these corpora need it

        split, name = self.sides[side], str(self.name)
        streaming = self.streaming if streaming is None else streaming
        where = {"revision": self.revision, "data_files": _each(self.data_files, _pattern)}
        try:
            with self.explained(side, config):
                return datasets.load_dataset(name, config, split=split, streaming=streaming, **where)
        except MagnetoError as error:
            if not isinstance(error.__cause__, ValueError):
                raise
            # The library's own error is the same for a bad slice, such as train[:1%.
            try:
                known = set(datasets.get_dataset_split_names(name, config, **where))
            except (ValueError, OSError, datasets.exceptions.DatasetsError):
                raise error from error.__cause__
            if {part.partition("[")[0] for part in split.split("+")} <= known:
                raise
            raise MissingSplit(str(error)) from error.__cause__

    def no_column(self, key: str, column: str, columns: Collection[str]) -> ConfigError:
        """Return the error for a column that the rows lack. key: that names it."""
        return ConfigError(
            f"data: {self.name} has no column {column!r}; it has {', '.join(columns)}. Name the right one "
            f"(data.corpora...{key})."
        )

    @contextlib.contextmanager
    def explained(self, side: str, config: str | None) -> Iterator[None]:
        """Raise errors of the library as `ConfigError`."""
        import datasets

        what = f"split {self.sides[side]!r} of the data set {self.name}" + (f" ({config})" if config else "")
        try:
            yield
        except MagnetoError:
            raise
        # StopIteration is what the library raises for a pattern that fits no file.
        except (ValueError, OSError, RuntimeError, StopIteration, datasets.exceptions.DatasetsError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConfigError(
                f"data: {what} cannot be read: {reason}. Check the name, config and split, and the network; or download "
                "its files and name them (data.corpora...data_files with name=parquet, json, csv or text)."
            ) from error


def _each(data_files: Any, change: Callable[[str], Any]) -> Any:
    """Return `data_files` as plain lists and dicts (Hydra has containers of its own), with `change` of each name."""
    if isinstance(data_files, str):
        return change(data_files)
    if isinstance(data_files, Mapping):
        return {key: _each(value, change) for key, value in data_files.items()}
    return None if data_files is None else [_each(value, change) for value in data_files]


def _home(name: str) -> str:
    """Fill in the user's home."""
    return name if "://" in name else str(Path(name).expanduser())


def _pattern(name: str) -> str:
    """Return a name for the library, which takes it for a pattern: a file that exists is itself."""
    return glob.escape(name) if Path(name).is_file() else name


def file_fingerprint(name: str) -> Any:
    """Return a name with size and time of its local files, so that a change is noticed."""
    path = Path(name).expanduser()
    if path.is_file():
        return [path.name, path_digest(path)]
    root = next((folder for folder in path.parents if not glob.has_magic(str(folder))), Path())
    if "://" in name or not root.is_dir():
        return name
    return [path.name, listing_digest(root, (str(path.relative_to(root)),))]
