"""Keys and options of earlier versions, and the names that they have now."""

from collections.abc import Iterable

from magneto.errors import nearest

KEYS = {
    "data.masking.pictures": "data.masking.images",
    "data.source": "data.corpus",
    "data.sources": "data.corpora",
    "data.sources.stamp_pictures": "data.corpora.stamp_images",
    "task.cells": "task.pool_grid",
}
OPTIONS = {
    "data=parallel_files": "data=translation_files",
    "data=stamp_pictures": "data=stamp_images",
}


def new_key(key: str) -> str | None:
    """Return the name that `key`, or the node that it is in, has now; None if it was not renamed."""
    for old in sorted(KEYS, key=len, reverse=True):
        if key == old or key.startswith(f"{old}."):
            return KEYS[old] + key.removeprefix(old)
    return None


def hint(key: str, available: Iterable[str]) -> str:
    """Return a sentence for an unknown key, to end a message with: its new name, or the nearest of `available`, or ""."""
    now = new_key(key)
    return nearest(key, available) if now is None else f" It is now {now}."
