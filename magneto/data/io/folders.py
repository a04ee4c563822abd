"""Walk through a user's folder, and read the files in it."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from magneto.errors import ConfigError

log = logging.getLogger(__name__)

T = TypeVar("T")


def walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield the folders below `root`, itself first, each with the sorted names of its files.

    Hidden folders and files are left out. Links to folders are followed last; each folder is visited once, however many
    links lead to it, and the parents of `root` are not visited.
    """
    seen = set(root.resolve().parents)
    starts = [root]
    while starts:
        links: list[Path] = []
        for start in starts:
            if start.resolve() in seen:
                continue
            for folder, folders, names in os.walk(start):
                seen.add(Path(folder).resolve())
                inside = {name: Path(folder, name) for name in sorted(folders) if name[0] != "."}
                links += [path for path in inside.values() if path.is_symlink()]
                folders[:] = [name for name, path in inside.items() if path.resolve() not in seen]
                yield Path(folder), sorted(name for name in names if name[0] != ".")
        starts = links


def user_files(
    path: str | Path,
    read: Callable[[Path], T],
    suffixes: tuple[str, ...],
    bad: type[Exception],
    noun: str,
    key: str = "input",
) -> Iterator[tuple[Path, T]]:
    """Yield a file and its content, or all files with these endings below a folder in the order of their names.

    Args:
        path: the file or folder.
        read: gives the content of a file.
        suffixes: of the files of a folder that are read.
        bad: what `read` raises for a file that cannot be read.
        noun: what the files are called, for messages.
        key: the setting that names the path, for messages.

    Raises:
        ConfigError: there is no such file or folder; the named file, or every one of the folder, cannot be read. Single
            bad files of a folder are skipped with a warning, and files with other endings are counted.
    """
    path = Path(path).expanduser()
    endings = ", ".join(suffixes)
    if not path.is_dir():
        if not path.is_file():
            raise ConfigError(f"{key}={path}: there is no such file or folder.")
        try:
            yield path, read(path)
        except bad as error:
            raise ConfigError(f"{key}={path}: {error}. Give a readable file ({endings}).") from error
        return
    files = sorted(folder / name for folder, names in walk(path) for name in names)
    found = [file for file in files if file.name.lower().endswith(suffixes)]
    if len(found) < len(files):
        others = Counter(file.suffix.lower() or "without one" for file in set(files) - set(found))
        listed = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(8))
        log.warning("%s: left out for their endings: %s", path, listed)
    if not found:
        raise ConfigError(f"{key}={path}: there is no {noun} file in this folder ({endings}).")
    reasons: list[str] = []
    for file in found:
        try:
            content = read(file)
        except bad as error:
            reasons.append(f"{file}: {error}")
            log.warning("skipped: %s", reasons[-1])
            continue
        yield file, content
    if len(reasons) == len(found):
        raise ConfigError(
            f"{key}={path}: none of the {len(found)} {noun} files can be read; the first: {reasons[0]}."
        )
