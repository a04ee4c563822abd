"""Small recordings and manifests for the tests of this folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np


def tone(seconds: float, rate: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    """(samples, channels) of a chirp in noise."""
    random = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    wave = 0.4 * np.sin(
        2 * np.pi * (200 + 150 * seed % 800) * time * (1 + time)
    ) + 0.02 * random.standard_normal(len(time))
    return np.repeat(wave[:, None], channels, axis=1).astype(np.float32)


def write_manifest(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def read_manifest(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def copy_by_macos(folder: Path) -> None:
    """Put beside each file below `folder` what macOS does where it copies to other disks: `._NAME`."""
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        \xb0\xff")
