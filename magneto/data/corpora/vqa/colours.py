"""The colour of the object in a drawing, in words."""

import numpy as np
from PIL import Image

COLOURS = ("black", "grey", "red", "orange", "brown", "yellow", "green", "blue", "purple", "pink")
_PAPER = 235  # brightness from which on all channels make a pixel part of the white ground
_LEAST, _CLEAR = 0.05, 0.6  # share of the image that is no ground, and of that which has the colour
_HUES = (10, 28, 48, 115, 178, 208, 245)  # where red, orange, yellow... end on Pillow's circle of 256
_OF_HUE = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "red")


def main_colour(pixels: np.ndarray) -> str | None:
    """Return the colour of most pixels that are not white background; None if no colour is clear.

    A white object cannot be distinguished from the background.

    Args:
        pixels: (H, W) or (H, W, 3) uint8.
    """
    image = Image.fromarray(pixels).convert("RGB")
    thing = np.asarray(image).min(axis=2) < _PAPER
    if thing.mean() < _LEAST:
        return None
    hue, saturation, value = (channel[thing].astype(np.int64) for channel in np.moveaxis(_hsv(image), 2, 0))
    names = np.array([COLOURS.index(name) for name in _OF_HUE])[np.searchsorted(_HUES, hue)]
    names = np.where((names == COLOURS.index("orange")) & (value < 170), COLOURS.index("brown"), names)
    names = np.where(
        (names == COLOURS.index("red")) & (saturation < 110) & (value > 150), COLOURS.index("pink"), names
    )
    names = np.where(saturation < 45, COLOURS.index("grey"), names)
    names = np.where(value < 55, COLOURS.index("black"), names)
    counts = np.bincount(names, minlength=len(COLOURS))
    return COLOURS[int(counts.argmax())] if counts.max() >= _CLEAR * len(names) else None


def _hsv(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("HSV"))
