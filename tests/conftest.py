"""Fixtures of the whole suite: tiny corpora that can be learnt, and runs through the real entry point."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from magneto.training import checkpointing
from tests.toys.runs import SHORT, SMALL, drive, folders, values
from tests.toys.translation import toy_sentence, toy_translation

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
        f"data.corpora.manifest.manifest={tones}",
        *folders(prepared_dir, tmp_path),
        "data.batch_frames=1500",
        "data.prepare_workers=1",
        "data.augment=null",
        "optimizer=adamw",  # tests of a toy's numbers do not follow the defaults of a corpus
        "optimizer.lr=4e-3",
        "backbone.dropout=0",
        *SMALL,
        *SHORT,
    ]


@pytest.fixture(scope="session")
def toy_translation_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Line-aligned files `train.en`, `train.fr`...: 600 sentences to train on, 30 to validate, 40 to test, all different."""
    folder = tmp_path_factory.mktemp("parallel")
    random = np.random.default_rng(0)
    pairs: dict[str, str] = {}
    while len(pairs) < 670:
        source, target = toy_sentence(random)
        pairs[source] = target
    lines = list(pairs.items())
    for split, part in {"train": lines[:600], "val": lines[600:630], "test": lines[630:]}.items():
        for place, language in enumerate(("en", "fr")):
            (folder / f"{split}.{language}").write_text("".join(f"{pair[place]}\n" for pair in part))
    return folder


@pytest.fixture
def translation_overrides(toy_translation_files: Path, prepared_dir: Path, tmp_path: Path) -> list[str]:
    """See `toy_translation`."""
    return toy_translation(toy_translation_files, prepared_dir, tmp_path / "runs")


@pytest.fixture
def run(overrides: list[str]) -> Run:
    """`run("seed=2", ...)` composes the real configuration with further overrides and drives `magneto.commands.run`."""
    return partial(drive, overrides)


WORDS = ("baku", "cedo", "difa", "fogi", "gahu", "hilo", "jumi", "kona")
"""A made-up language: each word is followed by the next or the next but two, by the toss of a coin."""
BITS_PER_BYTE = 1 / 5
"""One toss for each word of four letters and a space: no model of this language can stay below."""


def sentence(random: np.random.Generator, words: int) -> str:
    """Some words of that language."""
    places = np.cumsum(random.choice([1, 3], words)) % len(WORDS)
    return " ".join(WORDS[place] for place in places)


@pytest.fixture(scope="session")
def babble(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 100 documents of 40 to 99 words."""
    folder = tmp_path_factory.mktemp("babble")
    random = np.random.default_rng(0)
    for number in range(100):
        (folder / f"{number:03d}.txt").write_text(sentence(random, int(random.integers(40, 100))))
    return folder


@pytest.fixture
def text_overrides(babble: Path, prepared_dir: Path, tmp_path: Path) -> list[str]:
    """A small, deterministic run on that language, for any task whose data are texts (`task=` is still to be said)."""
    return [
        "data=text_files",
        f"data.corpora.text_files.path={babble}",
        *folders(prepared_dir, tmp_path),
        "data.tokenizer={kind: byte_bpe, vocab_size: 280}",
        "data.block_size=32",
        "data.batch_size=8",
        "data.val_fraction=0.1",
        "data.test_fraction=0.1",
        *SMALL,
        *SHORT,
    ]


@pytest.fixture
def run_text(text_overrides: list[str]) -> Run:
    """`run_text("task=causal_lm", "seed=2", ...)`: as `run`, on texts."""
    return partial(drive, text_overrides)


@pytest.fixture
def kill_after_save(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], AbstractContextManager[None]]:
    """`with kill_after_save(12): run(...)`: the run dies right after it has written last.ckpt at step 12 or later."""

    @contextmanager
    def killing(step: int = 0) -> Iterator[None]:
        save = checkpointing.Checkpoints._save

        def save_and_die(self: checkpointing.Checkpoints, trainer: Any, name: str) -> None:
            save(self, trainer, name)
            if name == "last" and trainer.global_step >= step:
                raise RuntimeError("killed")

        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
            patch.setattr(checkpointing.Checkpoints, "_save", save_and_die)
            yield

    return killing


@pytest.fixture
def rows_of() -> Callable[..., list[tuple[str, ...]]]:
    """See `toys.runs.values`."""
    return values


@pytest.fixture
def resumes_identically(
    kill_after_save: Callable[[int], AbstractContextManager[None]],
) -> Callable[..., dict[str, Any]]:
    """`resumes_identically(run, "seed=2", stop_at=8)`: a run killed there and repeated gives what an unbroken one gives:
    metrics, curves and weights, bit by bit. Returns its result.
    """

    def check(run: Run, *overrides: str, stop_at: int) -> dict[str, Any]:
        whole = run("name=whole", *overrides)
        with kill_after_save(stop_at):
            run("name=parts", *overrides)
        parts = run("name=parts", *overrides)
        assert parts["status"] == whole["status"] == "finished"
        assert parts["metrics"] == whole["metrics"]
        assert values(parts["folder"]) == values(whole["folder"])
        last = [
            torch.load(Path(result["folder"]) / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
            for result in (whole, parts)
        ]
        assert last[0].keys() == last[1].keys()
        for name, weight in last[0].items():
            assert torch.equal(weight, last[1][name]), name
        return parts

    return check
