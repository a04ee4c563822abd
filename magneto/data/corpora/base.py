"""What the corpora of all modalities share: the protocol of their readers, skipped examples, splits by a hash.

A corpus is one module, from raw files to plain examples. The `base.py` of each modality states its example and its corpus.
"""

import hashlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from magneto.errors import ConfigError, DataError, nearest

SPLITS = ("train", "val", "test")

T = TypeVar("T")
CorpusT = TypeVar("CorpusT", covariant=True)


class Reader(Protocol[CorpusT]):
    """The reader of a corpus. Its constructor takes plain values, as a YAML file has them."""

    def fingerprint(self) -> dict[str, Any]:
        """Return all settings, versions and files that decide the examples, as plain values.

        It is cheap, needs no network, and names the prepared folder: another fingerprint prepares the corpus again.
        """
        ...

    def load(self, data_dir: Path) -> CorpusT:
        """Find or fetch the corpus and list its examples. May be called again.

        Args:
            data_dir: downloads are unpacked into its folder `raw`.

        Raises:
            MagnetoError: the corpus is not available or has another form.
        """
        ...


@runtime_checkable
class DivisibleReader(Protocol[CorpusT]):
    """A reader of a large corpus, which several processes may read at once."""

    def parts(self, data_dir: Path) -> Sequence[Reader[CorpusT]]:
        """Return readers whose examples, one after another, are those of `load`. They can be pickled."""
        ...


@dataclass(frozen=True)
class Skipped:
    """An example that is not used: which, and why."""

    id: str
    file: str
    reason: str


@dataclass(frozen=True)
class Corpus(Generic[T]):
    """The examples of a corpus, what its reader skipped (complete once they have been read), its origin (plain values)."""

    examples: Iterable[T]
    skipped: list[Skipped] = field(default_factory=list)
    origin: dict[str, Any] = field(default_factory=dict)


class LazyExamples(Generic[T]):
    """Examples that `make` makes again each time they are iterated over, so that a corpus need not fit into memory.

    Args:
        make: yields examples, and `Skipped` for those that cannot be used.
        skipped: takes the latter, which are complete once all examples have been read.
        count: the number of examples, at most, where it is known before.
    """

    def __init__(
        self,
        make: Callable[[], Iterable[T | Skipped]],
        skipped: list[Skipped] | None = None,
        count: int | None = None,
    ) -> None:
        self._make, self._skipped, self._count = make, [] if skipped is None else skipped, count

    def __len__(self) -> int:
        if self._count is None:
            raise TypeError("the number of these examples is known once they have been read")
        return self._count

    def __iter__(self) -> Iterator[T]:
        self._skipped.clear()
        for one in self._make():
            if isinstance(one, Skipped):
                self._skipped.append(one)
            else:
                yield one


def lazy(
    make: Callable[[], Iterable[T | Skipped]], count: int | None = None
) -> tuple[LazyExamples[T], list[Skipped]]:
    """Return the examples that `make` yields, made again each time, and the list that takes what it skips."""
    skipped: list[Skipped] = []
    return LazyExamples(make, skipped, count), skipped


def listed(found: Iterable[T | Skipped]) -> tuple[list[T], list[Skipped]]:
    """Return the examples, and what is skipped, as lists."""
    examples, skipped = lazy(lambda: found)
    return [*examples], skipped


def stated_splits(key: str, whole: T | None, named: Mapping[str, T | None]) -> dict[str | None, T]:
    """Return the user's files by split: None -> `whole`, which is divided here, or those of train, val and test.

    Args:
        key: of `whole` in the configuration; "": there is none.
        whole: the one file or folder, or None.
        named: train, val and test -> theirs, or None; test alone is for the evaluation of a trained model.

    Raises:
        ConfigError: neither or both are given, or one of the splits is missing.
    """
    given: dict[str | None, T] = {split: value for split, value in named.items() if value is not None}
    if whole is not None and not given:
        return {None: whole}
    if whole is None and set(given) in (set(SPLITS), {"test"}):
        return given
    present = ([key] if whole is not None else []) + [str(split) for split in given]
    one = f"`{key}`, which is divided by a hash, or " if key else ""
    raise ConfigError(
        f"data: set {one}all of train, val and test, or for mode=test test alone. Set are: {', '.join(present) or 'none'}. "
        "The keys are those of data.corpora.NAME or data.corpus, as --cfg job prints them."
    )


def broken_shard(name: str, reason: str) -> DataError:
    """Return the error of a shard of a streamed corpus that is missing, empty or damaged."""
    return DataError(
        f"{name}: this shard cannot be read to its end: {reason}. Fetch it again and repeat the command: the run continues "
        "from its last checkpoint. Or remove it, and begin another run with resume=never."
    )


def require_splits(key: str, named: Mapping[str, Any]) -> None:
    """Raise `ConfigError` if the mapping `key` has another key than train, val or test."""
    if unknown := sorted(named.keys() - set(SPLITS)):
        raise ConfigError(
            f"data: {key} has {unknown[0]!r}; its splits are train, val and test.{nearest(unknown[0], SPLITS)}"
        )


def hash_split(group: str, *, val: float, test: float, kind: str = "speech") -> str:
    """Return the split of a group, fixed by the group's name alone.

    About the fractions `val` and `test` of all groups are held out; the same on every machine and for every subset of the
    corpus. kind: of data, so that two kinds do not hold out the same groups by chance.
    """
    digest = hashlib.sha256(f"{kind}:{group}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    return "val" if position < val else "test" if position < val + test else "train"


class Groups:
    """Union-find over anything hashable: examples that share a key end up in one group."""

    def __init__(self) -> None:
        self._parent: dict[Hashable, Hashable] = {}

    def find(self, key: Hashable) -> Hashable:
        """Return the representative of the key's group."""
        parent = self._parent.setdefault(key, key)
        while parent != self._parent[parent]:
            self._parent[key] = self._parent[parent]  # path halving
            key, parent = parent, self._parent[parent]
        return parent

    def union(self, *keys: Hashable) -> None:
        """Put all keys into one group."""
        first = self.find(keys[0])
        for key in keys[1:]:
            self._parent[self.find(key)] = first

    def names(self) -> dict[Hashable, str]:
        """Return key -> name of its group: the smallest string among its members, whatever the order."""
        smallest: dict[Hashable, str] = {}
        for key in self._parent:
            root = self.find(key)
            if isinstance(key, str):
                smallest[root] = min(smallest.get(root, key), key)
        return {key: smallest[self.find(key)] for key in self._parent if self.find(key) in smallest}
