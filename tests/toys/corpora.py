"""Small files of corpora, and what a reader makes of them."""

import io
import json
import tarfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def read(reader: Any, data_dir: Path) -> tuple[list[Any], Counter[str]]:
    """Return the examples of a reader, and the reasons of what it skips; reading twice gives the same."""
    corpus = reader.load(data_dir)
    found = list(corpus.examples)
    assert [repr(one) for one in found] == [repr(one) for one in corpus.examples]
    assert len({one.id for one in found}) == len(found), "ids repeat"
    assert json.dumps([corpus.origin, reader.fingerprint()])
    return found, Counter(item.reason for item in corpus.skipped)


def write(path: Path, content: bytes | str) -> Path:
    """Write a file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines(*values: Any) -> bytes:
    """Return JSON lines; bytes are a line as they are."""
    return b"".join((v if isinstance(v, bytes) else json.dumps(v).encode()) + b"\n" for v in values)


def noise(seed: int, size: int = 12) -> np.ndarray:
    """Return (size, size, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


def png(seed: int, size: int = 12) -> bytes:
    """Return `noise` as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(noise(seed, size)).save(buffer, "PNG")
    return buffer.getvalue()


def outlined(seed: int, size: int = 12) -> bytes:
    """Return a PNG file of a disc of `noise` on a transparent ground."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    alpha = np.where(x**2 + y**2 < (size / 2.5) ** 2, 255, 0).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.dstack((noise(seed, size), alpha))).save(buffer, "PNG")
    return buffer.getvalue()


def shard(path: Path, members: Mapping[str, bytes], mode: str = "w") -> Path:
    """Write a tar file; mode "a": append to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path
