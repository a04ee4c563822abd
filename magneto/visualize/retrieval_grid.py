"""Drawings of retrieval: a sentence with its images, an image with its texts."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from magneto.inference.vision_language import Match

SIDE = 112  # pixels of an image
GAP = 10
FONT_SIZE = 15
LINE = 22  # pixels from line to line
FOUND = 5  # images or texts of a query
FRAME = 4  # pixels around an image
RIGHT, WRONG, INK = (30, 140, 60), (200, 200, 200), (20, 20, 20)
WIDTH = FOUND * (SIDE + 2 * GAP) + GAP


def images_for(sentence: str, matches: Sequence[Match]) -> np.ndarray:
    """Draw a sentence above its first FOUND images, the best first, right ones in a green frame: (H, WIDTH, 3) uint8."""
    lines = wrapped(sentence, WIDTH - 2 * GAP)
    top = GAP + LINE * len(lines) + GAP
    canvas, draw = _canvas(top + SIDE + GAP + LINE + GAP)
    _write(draw, lines, GAP, GAP)
    for column, match in enumerate(matches[:FOUND]):
        left = GAP + column * (SIDE + 2 * GAP)
        _paste(canvas, draw, match.content, left, top, match.right)
        _write(draw, [f"{match.similarity:.2f}"], left, top + SIDE + GAP)
    return np.asarray(canvas)


def texts_for(image: np.ndarray, matches: Sequence[Match]) -> np.ndarray:
    """Draw an image (C, H, W) uint8 beside its first FOUND texts, right ones in green: (H, WIDTH, 3) uint8."""
    left = SIDE + 3 * GAP
    lines = [
        (line, match)
        for match in matches[:FOUND]
        for line in wrapped(f"{match.similarity:.2f}  {match.content}", WIDTH - left - GAP)
    ]
    canvas, draw = _canvas(2 * GAP + max(SIDE, LINE * len(lines)))
    _paste(canvas, draw, image, GAP, GAP, None)
    for row, (line, match) in enumerate(lines):
        _write(draw, [line], left, GAP + LINE * row, RIGHT if match.right else INK)
    return np.asarray(canvas)


def above(images: Sequence[np.ndarray]) -> np.ndarray:
    """Join images of equal width, one above the other, with a line between them."""
    rule = np.full((1, WIDTH, 3), WRONG, np.uint8)
    return np.concatenate([part for image in images for part in (rule, image)][1:])


def wrapped(text: str, width: int) -> list[str]:
    """Return lines of at most `width` pixels, broken at white space, in words that are too long anywhere."""
    lines, line = [], ""
    for word in text.split():
        while (joined := f"{line} {word}" if line else word) and _font().getlength(joined) > width:
            if line:
                lines.append(line)
                line = ""
                continue
            fits = max(1, sum(_font().getlength(word[:size]) <= width for size in range(1, len(word) + 1)))
            lines.append(word[:fits])
            word = word[fits:]
        line = joined
    return [*lines, line] if line or not lines else lines


@cache
def _font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib: Latin, Cyrillic, Greek, Arabic, Hebrew letters; not those of East Asia."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")), FONT_SIZE)


def _canvas(height: int) -> tuple[Image.Image, Any]:
    image = Image.new("RGB", (WIDTH, height), "white")
    return image, ImageDraw.Draw(image)


def _write(draw: Any, lines: Sequence[str], left: int, top: int, colour: tuple[int, int, int] = INK) -> None:
    for row, line in enumerate(lines):
        draw.text((left, top + LINE * row), line, fill=colour, font=_font())


def _paste(canvas: Image.Image, draw: Any, pixels: Any, left: int, top: int, right: bool | None) -> None:
    """An image (C, H, W) uint8 in a square of SIDE, framed where it is known whether it is right."""
    image = Image.fromarray(np.asarray(pixels).transpose(1, 2, 0).squeeze()).convert("RGB")
    # Small images are shown by their pixels, large ones smoothed.
    method = Image.Resampling.NEAREST if max(image.size) < SIDE else Image.Resampling.LANCZOS
    canvas.paste(image.resize((SIDE, SIDE), method), (left, top))
    if right is not None:
        box = (left - FRAME, top - FRAME, left + SIDE + FRAME - 1, top + SIDE + FRAME - 1)
        draw.rectangle(box, outline=RIGHT if right else WRONG, width=FRAME)
