"""Tar shards that a user names, and their samples as they are read while a model trains."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from magneto.data.corpora.base import Skipped, broken_shard, require_splits
from magneto.data.io.tar import BadTar, Members, Slice, neighbours, samples
from magneto.errors import ConfigError

Raw = TypeVar("Raw")
BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")


class TarShards:
    """Uncompressed tar files on a local or mounted disk.

    Args:
        shards: a glob, a range `{00000..00099}.tar` or a list of them, divided by a hash of the keys; or split -> the same
            (with train alone, the others are held out from it by a hash).
    """

    def __init__(self, shards: str | Sequence[str] | Mapping[str, str | Sequence[str]] | None) -> None:
        if not shards:
            raise ConfigError(
                "data: name the tar files: data.corpora.NAME.shards=folder/*.tar, or {train: ..., val: ..., test: ...}."
            )
        sides = shards if isinstance(shards, Mapping) else {"": shards}
        require_splits("shards", {side: value for side, value in sides.items() if side})
        self.patterns = {
            side: [one for each in ([value] if isinstance(value, str) else value) for one in _expand(each)]
            for side, value in sides.items()
        }

    def fingerprint(self, contents: bool = True) -> dict[str, list[list[Any]]]:
        """Return names, sizes and times of the files; without contents their names."""
        found: dict[str, list[list[Any]]] = {}
        for side, patterns in self.patterns.items():
            files = [path for pattern in patterns for path in _find(pattern)]
            stats = [(path.stat().st_size, path.stat().st_mtime_ns) if contents else () for path in files]
            found[side] = [[str(path.absolute()), *stat] for path, stat in zip(files, stats, strict=True)]
        return found

    def files(self) -> list[tuple[str | None, Path]]:
        """Return the split (None: by a hash) and the path of each file. Raises `ConfigError` where there is none."""
        paths = {pattern: _find(pattern) for patterns in self.patterns.values() for pattern in patterns}
        if missing := [pattern for pattern, found in paths.items() if not found]:
            raise ConfigError(
                f"data: no file fits shards={missing[0]}. Name tar files, by a glob (folder/*.tar) or a range "
                "(folder/{00000..00099}.tar)."
            )
        # A training set alone is divided like one without stated splits.
        stated = {*self.patterns} != {"train"}
        return [
            (side if side and stated else None, path)
            for side, patterns in self.patterns.items()
            for pattern in patterns
            for path in paths[pattern]
        ]


@dataclass(frozen=True)
class TarShard(Generic[Raw]):
    """A tar file that is read from its beginning to its end (`magneto.data.streaming.Shard`).

    Attributes:
        split: train, val or test where the corpus states it.
        path: of the file.
        make: returns the examples of a sample, and what cannot be used of it, from shard, key and members.
    """

    split: str | None
    path: Path
    make: Callable[["TarShard[Raw]", str, Members], Iterable[Raw | Skipped]]

    @property
    def name(self) -> str:
        """The whole path."""
        return str(self.path)

    def all(self) -> Iterator[Raw | Skipped]:
        """Yield the examples of all samples, whose members may be anywhere in the file, and its fault as one skipped."""
        try:
            for key, members in samples(self.path):
                yield from self.make(self, key, members)
        except (BadTar, OSError) as error:
            yield Skipped(
                self.path.name, self.name, str(error) if isinstance(error, BadTar) else "shard breaks off"
            )

    def read(self, start: int = 0) -> Iterator[tuple[int, Raw | Skipped]]:
        """Yield the examples from byte `start` on, each with the one at which the next sample begins.

        Raises:
            DataError: the file is missing, empty, compressed or damaged.
        """
        row = start
        try:
            for row, key, members in neighbours(self.path, start):
                for one in self.make(self, key, members):
                    yield row, one
        except BadTar as error:
            raise broken_shard(self.name, f"{error} (after byte {row})") from error
        except OSError as error:
            raise broken_shard(self.name, str(error.strerror or error)) from error
        if not row:
            raise broken_shard(self.name, "it is empty")

    def id(self, key: str) -> str:
        """Return the id of a sample."""
        return f"{self.path.name}/{key}"


def shard_bytes(place: Slice) -> bytes:
    """Return the content of a member. Raises `DataError` if its shard is missing or has become shorter."""
    try:
        content = place.read()
    except OSError as error:
        raise broken_shard(str(place.path), str(error.strerror or error)) from error
    if len(content) < place.size:
        raise broken_shard(str(place.path), "shard breaks off")
    return content


def _find(pattern: str) -> list[Path]:
    """Return the files that a glob fits. Its folders, and the whole name, may contain brackets or stars themselves."""
    path = Path(pattern).expanduser().absolute()
    parts = path.parts
    folder, count = Path(path.anchor), 1
    while count < len(parts) and (folder / parts[count]).exists():
        folder, count = folder / parts[count], count + 1
    if count == len(parts):
        return [path] if path.is_file() else []
    found = sorted(folder.glob("/".join(parts[count:])))
    return [file for file in found if file.is_file() and not file.name.startswith("._")]  # those of macOS


def _expand(pattern: str) -> list[str]:
    """Expand `a-{00..02}.tar` to a-00.tar, a-01.tar, a-02.tar; `{a,b}` to a, b."""
    found = BRACES.search(pattern)
    if found is None:
        return [pattern]
    first, last, listed = found.groups()
    width = len(first or "") if (first or "").startswith("0") else 0
    values = listed.split(",") if listed else [f"{n:0{width}}" for n in range(int(first), int(last) + 1)]
    head, tail = pattern[: found.start()], pattern[found.end() :]
    return [head + value + rest for value in values for rest in _expand(tail)]
