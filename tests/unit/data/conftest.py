"""Small real audio files and manifests, made by soundfile."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import soundfile

from tests.toys.recordings import tone, write_manifest

WORDS = ("one", "two", "three", "four", "five", "six", "seven")
SIDES = ("train", "train", "train", "val", "test")


@pytest.fixture
def corpus(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder of `count` recordings in all formats, rates and channel numbers, with a
    manifest.jsonl."""

    def make(count: int = 20, name: str = "corpus", sides: tuple[str, ...] = SIDES) -> Path:
        folder = tmp_path / name
        (folder / "clips").mkdir(parents=True)
        lines: list[dict[str, Any]] = []
        for number in range(count):
            suffix = ("wav", "flac", "ogg", "mp3")[number % 4]
            rate, seconds = (8_000, 16_000, 44_100)[number % 3], 0.6 + 0.1 * (number % 9)
            path = folder / "clips" / f"{number:03d}.{suffix}"
            soundfile.write(path, tone(seconds, rate, 1 + number % 2, number), rate)
            text = f"{WORDS[number % 7]} {WORDS[number // 7 % 7]}"
            lines.append({"audio_filepath": f"clips/{path.name}", "duration": seconds, "text": text,
                          "split": sides[number % len(sides)], "lang": ("en", "fr")[number % 2]})  # fmt: skip
        write_manifest(folder / "manifest.jsonl", lines)
        return folder

    return make
