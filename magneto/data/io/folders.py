"""Walk through a user's folder."""

import os
from collections.abc import Iterator
from pathlib import Path


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
