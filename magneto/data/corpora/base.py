"""Corpora: one file each, from raw files to plain examples.

What all speech corpora share: the example (`Utterance`), what a corpus gives (`Corpus`), the protocol
(`SpeechReader`), and splits that are fixed by a hash.
"""

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from magneto.data.io.audio import Audio

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One recording with its transcript, as the corpus has it (text not yet normalised)."""

    id: str  # unique in its corpus
    audio: Audio
    text: str
    language: str
    speaker: str
    group: str  # what must not stand on both sides of a split
    split: str  # train, val or test
    duration: float | None = None  # seconds, where the corpus states it


@dataclass(frozen=True)
class Skipped:
    """An example that is not used: which, and why."""

    id: str
    file: str
    reason: str


@dataclass(frozen=True)
class Corpus:
    """The examples of a corpus, what it skipped itself, and where it came from (plain values).

    advice: what a user can do about its splits, for messages.
    """

    utterances: list[Utterance]
    skipped: list[Skipped] = field(default_factory=list)
    origin: dict[str, Any] = field(default_factory=dict)
    advice: str = ""


class SpeechReader(Protocol):
    """A speech corpus. Its constructor takes plain values."""

    def fingerprint(self) -> dict[str, Any]:
        """All settings and versions that decide the examples, as plain values; cheap, without network."""
        ...

    def load(self, data_dir: Path) -> Corpus:
        """Find or fetch the corpus and list its examples. Raises `MagnetoError` when it cannot be had."""
        ...


def hash_split(group: str, *, val: float, test: float, kind: str = "speech") -> str:
    """The side on which a group stands, fixed by the group's name alone.

    About the fractions `val` and `test` of all groups; the same on every machine and for every subset of the
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
        """The representative of the key's group."""
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
        """Key -> name of its group: the smallest string among its members, so it does not depend on the
        order.
        """
        smallest: dict[Hashable, str] = {}
        for key in self._parent:
            root = self.find(key)
            if isinstance(key, str):
                smallest[root] = min(smallest.get(root, key), key)
        return {key: smallest[self.find(key)] for key in self._parent if self.find(key) in smallest}
