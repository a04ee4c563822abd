"""Digests of files: of their contents, or of their names, sizes and times."""

import hashlib
from collections.abc import Iterable
from pathlib import Path


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def needed_files(root: Path, patterns: Iterable[str]) -> list[Path]:
    """Return the files below `root` that fit one of the globs, sorted by their relative names.

    Folders and broken links are left out, and the hidden file `._NAME` that macOS puts beside each file it copies.
    """
    found = {path for pattern in patterns for path in root.glob(pattern) if path.is_file()}
    return sorted(
        (path for path in found if not path.name.startswith("._")),
        key=lambda path: path.relative_to(root).as_posix(),
    )


def content_digest(root: Path, patterns: Iterable[str]) -> str:
    """Return a digest of the relative names and the contents of the `needed_files`."""
    total = hashlib.sha256()
    for path in needed_files(root, patterns):
        total.update(path.relative_to(root).as_posix().encode() + b"\0")
        total.update(bytes.fromhex(file_digest(path)))
    return total.hexdigest()


def files_digest(paths: Iterable[Path], root: Path | None = None) -> str:
    """Return a digest of the names (relative to `root`, if it is given), sizes and times of files.

    It changes when a file is replaced, added or removed, and reads no content. A file may be missing.
    """
    total = hashlib.sha256()
    for path in paths:
        try:
            stat = path.stat()
            state = f"{stat.st_size}\0{stat.st_mtime_ns}"
        except (OSError, ValueError):  # ValueError: a name that no file can have
            state = "missing"
        name = path if root is None else path.relative_to(root).as_posix()
        total.update(f"{name}\0{state}\0".encode(errors="backslashreplace"))
    return total.hexdigest()


def listing_digest(root: Path, patterns: Iterable[str]) -> str:
    """Return the `files_digest` of the `needed_files` below `root`."""
    return files_digest(needed_files(root, patterns), root)


def path_digest(path: Path) -> str:
    """Return the `files_digest` of one file, independent of its folder."""
    return files_digest([path], path.parent)
