"""A user's images for mode=predict, prepared from a checkpoint's info alone."""

import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from magneto.data.image.dataset import ImageInfo
from magneto.data.io.image import SUFFIXES, SVG_SIDE, BadImage, find_images, read_image
from magneto.errors import DataError

log = logging.getLogger(__name__)


def user_images(
    path: str | Path, channels: int = 3, svg_side: int = SVG_SIDE, key: str = "input"
) -> Iterator[tuple[Path, Image.Image]]:
    """The image of a file, or all images below a folder, in the order of their names.

    Args:
        path: the file or folder.
        channels: see `read_image`.
        svg_side: see `read_image`; that of the model's info makes of a drawing what it was trained on.
        key: what the user called the path, for messages.

    Raises:
        DataError: there is no such file or folder; the named file, or every one of the folder, cannot be read. Single
            bad images of a folder are passed over with a warning.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        if not path.is_file():
            raise DataError(f"{key}={path}: there is no such file or folder.")
        try:
            yield path, read_image(path, channels, svg_side=svg_side)
        except BadImage as bad:
            raise DataError(f"{key}={path}: {bad}. Give an image ({', '.join(SUFFIXES)}).") from bad
        return
    used = 0
    bad_ones: list[str] = []
    others: list[Path] = []
    for file in find_images(path, others):
        try:
            image = read_image(file, channels, svg_side=svg_side)
        except BadImage as bad:
            bad_ones.append(f"{file}: {bad}")
            log.warning("passed over: %s", bad_ones[-1])
            continue
        used += 1
        yield file, image
    if others:
        endings = ", ".join(sorted({other.suffix.lower() or "none" for other in others})[:5])
        log.warning("%d files with other endings were skipped (%s)", len(others), endings)
    if not used:
        reason = (
            f"none can be read; the first: {bad_ones[0]}" if bad_ones else f"none with {', '.join(SUFFIXES)}"
        )
        raise DataError(f"{key}={path}: there is no image in this folder ({reason}).")


def evaluation_batch(images: list[Image.Image], info: ImageInfo) -> Tensor:
    """Decoded images as a model expects them: (B, channels, S, S) float32, normalised."""
    pixels = [torch.tensor(info.evaluation_image(image)) for image in images]
    return info.normalise(torch.stack(pixels))
