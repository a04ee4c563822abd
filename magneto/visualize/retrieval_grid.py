"""What was found for a sentence or an image, drawn for a person to look at."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE = 112  # pixels of an image
GAP = 10
FONT_SIZE = 15
LINE = 22  # pixels from line to line
FOUND = 5  # answers to a query
FRAME = 4  # pixels around an answer
RIGHT, WRONG, INK = (30, 140, 60), (200, 200, 200), (20, 20, 20)
WIDTH = FOUND * (SIDE + 2 * GAP) + GAP


@dataclass(frozen=True)
class Answer:
    """One of those that were found.

    Attributes:
        content: an image, (C, H, W) uint8, or a text.
        similarity: cosine, 1 is the same direction.
        right: whether it is a right one; None: it is not known.
    """

    content: np.ndarray | str
    similarity: float
    right: bool | None = None


def images_for(sentence: str, answers: Sequence[Answer]) -> np.ndarray:
    """A sentence above the images that were found, the best first, right ones in a green frame: (H, WIDTH, 3) uint8."""
    lines = wrapped(sentence, WIDTH - 2 * GAP)
    top = GAP + LINE * len(lines) + GAP
    canvas, draw = _canvas(top + SIDE + GAP + LINE + GAP)
    _write(draw, lines, GAP, GAP)
    for place, answer in enumerate(answers):
        left = GAP + place * (SIDE + 2 * GAP)
        _paste(canvas, draw, answer.content, left, top, answer.right)
        _write(draw, [f"{answer.similarity:.2f}"], left, top + SIDE + GAP)
    return np.asarray(canvas)


def texts_for(image: np.ndarray, answers: Sequence[Answer]) -> np.ndarray:
    """An image (C, H, W) uint8 beside the texts that were found, right ones in green: (H, WIDTH, 3) uint8."""
    left = SIDE + 3 * GAP
    lines = [
        (line, answer)
        for answer in answers
        for line in wrapped(f"{answer.similarity:.2f}  {answer.content}", WIDTH - left - GAP)
    ]
    canvas, draw = _canvas(2 * GAP + max(SIDE, LINE * len(lines)))
    _paste(canvas, draw, image, GAP, GAP, None)
    for place, (line, answer) in enumerate(lines):
        _write(draw, [line], left, GAP + LINE * place, RIGHT if answer.right else INK)
    return np.asarray(canvas)


def above(panels: Sequence[np.ndarray]) -> np.ndarray:
    """Panels of equal width, one above the other, with a line between them."""
    rule = np.full((1, WIDTH, 3), WRONG, np.uint8)
    return np.concatenate([part for panel in panels for part in (rule, panel)][1:])


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` pixels, broken at white space, in words that are too long anywhere."""
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
    for number, line in enumerate(lines):
        draw.text((left, top + LINE * number), line, fill=colour, font=_font())


def _paste(canvas: Image.Image, draw: Any, pixels: Any, left: int, top: int, right: bool | None) -> None:
    """An image (C, H, W) uint8 in a square of SIDE, framed where it is known whether it is right."""
    image = Image.fromarray(np.asarray(pixels).transpose(1, 2, 0).squeeze()).convert("RGB")
    # Small images are shown by their pixels, large ones smoothed.
    method = Image.Resampling.NEAREST if max(image.size) < SIDE else Image.Resampling.LANCZOS
    canvas.paste(image.resize((SIDE, SIDE), method), (left, top))
    if right is not None:
        box = (left - FRAME, top - FRAME, left + SIDE + FRAME - 1, top + SIDE + FRAME - 1)
        draw.rectangle(box, outline=RIGHT if right else WRONG, width=FRAME)
