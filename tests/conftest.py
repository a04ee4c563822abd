"""Fixtures of the whole suite: a tiny corpus that a recogniser can learn, and runs through the real entry point."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hydra import compose, initialize_config_dir

from magneto.cli import CONF

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


@pytest.fixture(scope="session")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 72 recordings in two made-up languages: 56 to train on, 8 to validate, 8 to test."""
    folder = tmp_path_factory.mktemp("tones")
    random = np.random.default_rng(0)
    lines = []
    for number in range(72):
        text = ""
        while len(text) < random.integers(5, 11):
            letters = [c for c in LETTERS if c != text[-1:]]
            text += (
                " " if text and text[-1] != " " and random.random() < 0.15 else str(random.choice(letters))
            )
        text = text.strip()
        write_tones(folder / f"{number}.wav", text, random)
        split = "train" if number < 56 else "val" if number < 64 else "test"
        language = ("xx", "yy")[number % 2]
        lines.append({"audio_filepath": f"{number}.wav", "text": text, "lang": language, "split": split})
    manifest = folder / "tones.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return manifest


@pytest.fixture(scope="session")
def prepared_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One data folder for all runs of a worker: the corpus is prepared once."""
    return tmp_path_factory.mktemp("data")


Run = Callable[..., dict[str, Any]]


@pytest.fixture
def overrides(tones: Path, prepared_dir: Path, tmp_path: Path) -> list[str]:
    """A small, deterministic ASR run on the tones, as overrides of the real configuration."""
    return [
        "task=asr",
        "data=manifest",
        f"data.sources.manifest.manifest={tones}",
        f"data_dir={prepared_dir}",
        f"runs_dir={tmp_path / 'runs'}",
        "data.batch_frames=1500",
        "data.prepare_workers=1",
        "data.augment=null",
        "backbone.num_layers=2",
        "backbone.d_model=32",
        "backbone.num_heads=2",
        "backbone.ffn_dim=64",
        "trainer.precision=32-true",
        "trainer.accelerator=cpu",
        "trainer.max_steps=20",
        "trainer.val_check_interval=8",
        "trainer.log_every_n_steps=2",
        "trainer.enable_progress_bar=false",
        "callbacks.save_every=3",
        "callbacks.probe_every=5",
        "logger.wandb=disabled",
    ]


@pytest.fixture
def run(overrides: list[str]) -> Run:
    """`run("seed=2", ...)` composes the real configuration with further overrides and drives `engine.run`."""
    from magneto import engine

    def call(*more: str) -> dict[str, Any]:
        all_overrides = [*overrides, *more]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return engine.run(compose("config", all_overrides), more)

    return call
