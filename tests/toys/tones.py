"""Recordings whose letters are tones, and a run on them."""

import json
from pathlib import Path

import numpy as np
import soundfile

from tests.toys.runs import SHORT, SMALL, folders

LETTERS = "abcdef"
RATE = 16_000


def write_tones(path: Path, text: str, random: np.random.Generator) -> None:
    """A recording in which each letter is a tone of its own (0.14 s) and a space is silence, over faint noise."""
    seconds = 0.14
    time = np.arange(int(seconds * RATE)) / RATE
    envelope = np.sin(np.pi * time / seconds) ** 0.5
    parts = [
        np.zeros_like(time)
        if char == " "
        else np.sin(2 * np.pi * 300 * 1.5 ** LETTERS.index(char) * time) * envelope
        for char in text
    ]
    samples = 0.3 * np.concatenate(parts)
    soundfile.write(path, samples + random.normal(0, 0.003, len(samples)), RATE)


def write_manifest_of_tones(folder: Path, letters: tuple[int, int] = (5, 11)) -> Path:
    """A manifest of 72 recordings in two made-up languages, of `letters` each: 56 to train on, 8 to validate, 8 to test."""
    random = np.random.default_rng(0)
    lines = []
    for number in range(72):
        text = ""
        while len(text) < random.integers(*letters):
            others = [c for c in LETTERS if c != text[-1:]]
            text += " " if text and text[-1] != " " and random.random() < 0.15 else str(random.choice(others))
        text = text.strip()
        write_tones(folder / f"{number}.wav", text, random)
        split = "train" if number < 56 else "val" if number < 64 else "test"
        language = ("xx", "yy")[number % 2]
        lines.append({"audio_filepath": f"{number}.wav", "text": text, "lang": language, "split": split})
    manifest = folder / "tones.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return manifest


def toy_speech(manifest: Path, data_dir: Path, tmp_path: Path) -> list[str]:
    """A small, deterministic ASR run on them, as overrides of the real configuration."""
    return [
        "task=asr",
        "data=manifest",
        f"data.corpora.manifest.manifest={manifest}",
        *folders(data_dir, tmp_path),
        "data.batch_frames=1500",
        "data.prepare_workers=1",
        "data.augment=null",
        "optimizer=adamw",  # tests of a toy's numbers do not follow the defaults of a corpus
        "optimizer.lr=4e-3",
        "backbone.dropout=0",
        *SMALL,
        *SHORT,
    ]
