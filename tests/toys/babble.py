"""Documents in a made-up language, and a run on them."""

from pathlib import Path

import numpy as np

from tests.toys.runs import SHORT, SMALL, folders

WORDS = ("baku", "cedo", "difa", "fogi", "gahu", "hilo", "jumi", "kona")
"""Each word is followed by the next or the next but two, by the toss of a coin."""
BITS_PER_BYTE = 1 / 5
"""One toss for each word of four letters and a space: no model of this language can stay below."""


def sentence(random: np.random.Generator, words: int) -> str:
    """Some words of that language."""
    places = np.cumsum(random.choice([1, 3], words)) % len(WORDS)
    return " ".join(WORDS[place] for place in places)


def write_babble(folder: Path, words: tuple[int, int] = (40, 100)) -> Path:
    """A folder of 100 documents, whose words are as many as `words` says, the second number excluded."""
    random = np.random.default_rng(0)
    for number in range(100):
        (folder / f"{number:03d}.txt").write_text(sentence(random, int(random.integers(*words))))
    return folder


def toy_text(folder: Path, data_dir: Path, tmp_path: Path) -> list[str]:
    """A small, deterministic run on it, for any task whose data are texts (`task=` is still to be said)."""
    return [
        "data=text_files",
        f"data.corpora.text_files.path={folder}",
        *folders(data_dir, tmp_path),
        "data.tokenizer={kind: byte_bpe, vocab_size: 280}",
        "data.block_size=32",
        "data.batch_size=8",
        "data.val_fraction=0.1",
        "data.test_fraction=0.1",
        *SMALL,
        *SHORT,
    ]
