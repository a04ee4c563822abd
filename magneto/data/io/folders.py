"""Walking through a user's folder."""

import os
from collections.abc import Iterator
from pathlib import Path


def walk(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yield the folders below `root`, itself first, each with the sorted names in it that are no folders.

    Hidden folders and files are left out. Links to folders are followed, after all else; each folder is visited once,
    however many links lead to it, and none that holds `root`.
    """
    seen = set(root.resolve().parents)
    starts = [root]
    while starts:
        links: list[Path] = []
        for start in starts:
            if start.resolve() in seen:
                continue
            for place, folders, names in os.walk(start):
                seen.add(Path(place).resolve())
                inside = {name: Path(place, name) for name in sorted(folders) if name[0] != "."}
                links += [path for path in inside.values() if path.is_symlink()]
                folders[:] = [name for name, path in inside.items() if path.resolve() not in seen]
                yield Path(place), sorted(name for name in names if name[0] != ".")
        starts = links
