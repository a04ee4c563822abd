"""Uncompressed tar files of samples, read in place by the standard library: a member is a slice of the file.

A sample is what WebDataset calls so: the files whose names are equal up to the first dot, its key.
"""

import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstandard
TEXTS = ("cls", "json", "txt")  # endings of members that are read with the headers


@dataclass(frozen=True)
class Slice:
    """A file's bytes within a larger file, such as a member of a tar archive."""

    path: Path
    start: int
    size: int

    def read(self) -> bytes:
        """Return the bytes. Raises OSError, or ValueError for a name that no file can have."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            return file.read(self.size)


Members = Mapping[str, bytes | Slice]
"""Of a sample, by their endings: the content of texts; where the others are."""


class BadTar(Exception):
    """A tar file that cannot be read to its end; the message is the reason."""


class Member(NamedTuple):
    """A file of an archive."""

    row: int
    """At which its header begins: `members` can start there."""
    key: str
    ending: str
    data: bytes | Slice


def members(path: Path, row: int = 0) -> Iterator[Member]:
    """Yield the members of an archive, from the header at byte `row` on.

    Raises:
        BadTar: it is empty, compressed, damaged or truncated.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        if not (begin := file.read(6)):
            raise BadTar("empty file")
        if begin.startswith(COMPRESSED):
            raise BadTar("compressed shard: unpack it, as with gunzip")
        file.seek(row)
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None:
                    tar.members.clear()  # type: ignore[attr-defined]  # the headers of the whole archive
                    if not member.isfile():
                        continue
                    folder, slash, name = member.name.rpartition("/")
                    stem, _, ending = name.partition(".")
                    data: bytes | Slice = Slice(path, member.offset_data, member.size)
                    if (ending := ending.lower()) in TEXTS and (
                        stream := tar.extractfile(member)
                    ) is not None:
                        data = stream.read()
                    yield Member(member.offset, folder + slash + stem, ending, data)
                # tarfile takes a damaged or missing header for the end, which is a block of zeros.
                file.seek(tar.offset)
                if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                    raise BadTar("shard breaks off")
        except (tarfile.TarError, EOFError) as error:
            raise BadTar("shard breaks off") from error


def samples(path: Path) -> Iterator[tuple[str, Members]]:
    """Yield the key and the members of each sample of an archive, which may be anywhere in it.

    Raises:
        BadTar: after the samples before the damage.
        OSError: likewise.
    """
    found: dict[str, dict[str, bytes | Slice]] = {}
    key, failure = "", None
    try:
        for member in members(path):
            key, copy = member.key, 1
            while member.ending in found.setdefault(key, {}):  # another sample of that name
                copy += 1
                key = f"{member.key} ({copy})"
            found[key][member.ending] = member.data
    except (BadTar, OSError) as error:
        failure = error
        found.pop(key, None)  # its other members are not known
    yield from found.items()
    if failure is not None:
        raise failure


def neighbours(path: Path, row: int = 0) -> Iterator[tuple[int, str, Members]]:
    """Yield the samples of which the members stand one after another, from byte `row` on, without reading further.

    Yields:
        The row that follows the sample, its key, its members.

    Raises:
        BadTar: the archive is empty, compressed, damaged or truncated.
        OSError: it cannot be read.
    """
    key, found = "", dict[str, bytes | Slice]()
    for member in members(path, row):
        if found and (member.key != key or member.ending in found):
            yield member.row, key, found
            found = {}
        key = member.key
        found[member.ending] = member.data
    if found:
        yield path.stat().st_size, key, found
