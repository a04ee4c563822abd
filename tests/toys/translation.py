"""A small language that a translator learns within seconds, and a run on it."""

from pathlib import Path

import numpy as np

from tests.toys.runs import SHORT

NOUNS = {
    "boat": "bateau",
    "cat": "chat",
    "house": "maison",
    "river": "fleuve",
    "tree": "arbre",
    "bird": "oiseau",
}
ADJECTIVES = {
    "red": "rouge",
    "small": "petit",
    "old": "vieux",
    "green": "vert",
    "quiet": "calme",
    "tall": "grand",
}
VERBS = {"sees": "voit", "finds": "trouve", "likes": "aime", "leaves": "quitte"}


def toy_sentence(random: np.random.Generator) -> tuple[str, str]:
    """A sentence of a small English and its translation into a French where every adjective follows its noun."""
    nouns, adjectives = random.choice(list(NOUNS), 2), random.choice(list(ADJECTIVES), 2)
    verb = str(random.choice(list(VERBS)))
    sides = [f"{adjective} {noun}" for adjective, noun in zip(adjectives, nouns, strict=True)]
    turned = [f"{NOUNS[n]} {ADJECTIVES[a]}" for a, n in zip(adjectives, nouns, strict=True)]
    return f"the {sides[0]} {verb} the {sides[1]}", f"le {turned[0]} {VERBS[verb]} le {turned[1]}"


def write_translation(folder: Path, sentences: int = 1) -> Path:
    """Line-aligned files `train.en`, `train.fr`...: 600 lines to train on, 30 to validate, 40 to test, all different.

    sentences: number of sentences in a line, joined by "and".
    """
    random = np.random.default_rng(0)
    pairs: dict[str, str] = {}
    while len(pairs) < 670:
        sides = zip(*(toy_sentence(random) for _ in range(sentences)), strict=True)
        source, target = (word.join(side) for word, side in zip((" and ", " et "), sides, strict=True))
        pairs[source] = target
    lines = list(pairs.items())
    for split, part in {"train": lines[:600], "val": lines[600:630], "test": lines[630:]}.items():
        for place, language in enumerate(("en", "fr")):
            (folder / f"{split}.{language}").write_text("".join(f"{pair[place]}\n" for pair in part))
    return folder


def translation_files(folder: Path, source: str = "en", target: str = "fr", name: str = "files") -> list[str]:
    """Overrides that name the files of `write_translation`."""
    return [
        f"data.corpora.{name}.{split}={{source:{folder / split}.{source},target:{folder / split}.{target}}}"
        for split in ("train", "val", "test")
    ]


def toy_translation(folder: Path, data_dir: Path, runs_dir: Path) -> list[str]:
    """A small, deterministic translation run on `write_translation`, as overrides of the real configuration."""
    return [
        "task=mt",
        "data=translation_files",
        *translation_files(folder),
        f"data_dir={data_dir}",
        f"runs_dir={runs_dir}",
        "data.tokenizer.kind=bpe",
        "data.tokenizer.vocab_size=90",
        "data.batch_tokens=400",
        "backbone.num_layers=1",
        "backbone.decoder_layers=1",
        "backbone.d_model=32",
        "backbone.num_heads=2",
        "backbone.ffn_dim=64",
        "backbone.dropout=0.1",
        "scheduler.warmup=0.2",
        *SHORT,
        "callbacks.average_last=null",
    ]
