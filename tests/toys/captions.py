"""Small images of a coloured square with captions in two languages that tell its colour and its place."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 16
COLOURS = {
    "red": ((220, 30, 20), "rouge"), "green": ((20, 160, 40), "vert"), "blue": ((20, 50, 220), "bleu"),
    "yellow": ((230, 210, 20), "jaune"), "black": ((10, 10, 10), "noir"), "pink": ((250, 130, 180), "rose"),
}  # fmt: skip
PLACES = {
    "top left": (0, 0, "en haut à gauche"), "top right": (0, 1, "en haut à droite"),
    "bottom left": (1, 0, "en bas à gauche"), "bottom right": (1, 1, "en bas à droite"),
}  # fmt: skip
ALIKE = {"train": 4, "val": 1, "test": 1}  # images of each colour and place
KINDS = len(COLOURS) * len(PLACES)


def squares() -> Iterator[tuple[str, str, np.ndarray]]:
    """English and French caption with the pixels (SIZE, SIZE, 3) uint8, a little different each time."""
    random = np.random.default_rng(0)
    while True:
        for colour, (rgb, couleur) in COLOURS.items():
            for place, (row, column, lieu) in PLACES.items():
                pixels = np.full((SIZE, SIZE, 3), 240.0)
                side, half = random.integers(5, 8), SIZE // 2
                y, x = row * half + random.integers(0, 2), column * half + random.integers(0, 2)
                pixels[y : y + side, x : x + side] = rgb
                pixels += random.normal(0, 4, pixels.shape)
                yield f"{colour} {place}", f"{couleur} {lieu}", pixels.clip(0, 255).astype(np.uint8)


def write_squares(folder: Path) -> Path:
    """`folder`/captions.jsonl, a line for each caption, and the images that it names."""
    made, lines = squares(), []
    for split, count in ALIKE.items():
        (folder / split).mkdir(parents=True)
        for number in range(count * KINDS):
            english, french, pixels = next(made)
            name = f"{split}/{number:03d} {english}.png"
            Image.fromarray(pixels).save(folder / name)
            lines.append({"image": name, "caption": english, "language": "en", "split": split})
            lines.append({"image": name, "caption": french, "language": "fr", "split": split})
    file = folder / "captions.jsonl"
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return folder


def caption_settings(folder: Path) -> list[str]:
    """Overrides that name these images, without augmentation."""
    return [
        "data=caption_file",
        f"data.corpora.captions.file={folder}/captions.jsonl",
        f"data.image_size={SIZE}",
        "data.patch_size=4",
        "data.max_tokens=16",
        "data.tokenizer={kind: bpe, vocab_size: 60}",
        "data.augment=null",
        "data.batch_size=24",
        "data.prepare_workers=1",
    ]
