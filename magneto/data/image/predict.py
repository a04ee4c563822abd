"""A user's pictures for mode=predict, prepared from a checkpoint's spec alone."""

import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from magneto.data.image.dataset import ImageSpec
from magneto.data.io.image import SUFFIXES, SVG_SIDE, BadPicture, find_pictures, read_picture
from magneto.errors import UserError

log = logging.getLogger(__name__)


def user_pictures(
    path: str | Path, channels: int = 3, svg_side: int = SVG_SIDE, key: str = "input"
) -> Iterator[tuple[Path, Image.Image]]:
    """The picture of a file, or all pictures below a folder, in the order of their names.

    Args:
        path: the file or folder.
        channels: see `read_picture`.
        svg_side: see `read_picture`; that of the model's spec makes of a drawing what it was trained on.
        key: what the user called the path, for messages.

    Raises:
        UserError: there is no such file or folder; the named file, or every one of the folder, cannot be read. Single
            bad pictures of a folder are passed over with a warning.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        if not path.is_file():
            raise UserError(f"{key}={path}: there is no such file or folder.")
        try:
            yield path, read_picture(path, channels, svg_side=svg_side)
        except BadPicture as bad:
            raise UserError(f"{key}={path}: {bad}. Give a picture ({', '.join(SUFFIXES)}).") from bad
        return
    used = 0
    bad_ones: list[str] = []
    others: list[Path] = []
    for file in find_pictures(path, others):
        try:
            image = read_picture(file, channels, svg_side=svg_side)
        except BadPicture as bad:
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
        raise UserError(f"{key}={path}: there is no picture in this folder ({reason}).")


def evaluation_batch(images: list[Image.Image], spec: ImageSpec) -> Tensor:
    """Decoded pictures as a model expects them: (B, channels, S, S) float32, normalised."""
    pixels = [torch.tensor(spec.evaluation_picture(image)) for image in images]
    return spec.normalise(torch.stack(pixels))
