"""Read images of the common formats: 8 bits a channel, grey or RGB, upright, without transparency.

An image that cannot be used is refused with a reason that can be counted, before it is decoded where its header shows it.
"""

import io
import os
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from magneto.data.io.folders import walk
from magneto.data.io.svg import self_contained, svg_text
from magneto.data.io.tar import Slice

# Only these decoders: Pillow's others are rare, and one of them (EPS) runs a program.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm",
    ".pnm", ".svg",
)  # fmt: skip
SIDE_LIMIT = 20_000  # pixels
SVG_SIDE = 256  # pixels of the longer side that an SVG image is drawn with
DECODER_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, AttributeError, ArithmeticError, struct.error
)  # fmt: skip
ROTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # of the values of EXIF's orientation
DPI = 96  # of SVG lengths in millimetres or points, as CSS has it
WHITE = 255
NO_IDS = "not class ids: neither grey nor of a palette, or a JPEG"
SAMPLE_FORMAT, SIGNED = 339, 2  # a tag of TIFF, and its value for numbers with a sign


class BadImage(Exception):
    """An image that cannot be used; the message is a short reason, the same for all images with this fault."""


ImageData = bytes | Path | Slice | np.ndarray
"""An encoded image, where one is, or decoded pixels: uint8 (H, W) or (H, W, 3)."""


def printable(name: str) -> str:
    """Return a file's name as valid UTF-8; other bytes are escaped."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def read_bytes(image: ImageData) -> bytes:
    """Return the encoded bytes, or those of the pixels. Raises `BadImage` if the file cannot be read."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, np.ndarray):
        return image.tobytes()
    try:
        return image.read_bytes() if isinstance(image, Path) else image.read()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise BadImage("file cannot be read") from error


def read_image(
    image: ImageData, channels: int = 3, limit: int = SIDE_LIMIT, svg_side: int = SVG_SIDE
) -> Image.Image:
    """Decode an image.

    CMYK, palettes and 16 bits a channel are converted, transparent places become white, the camera's rotation (EXIF)
    is applied, of an animation the first frame is read. The content decides the format, not the file's name.

    Args:
        image: see `ImageData`.
        channels: 1 for grey, 3 for colour.
        limit: longest side in pixels. An area above Pillow's own limit (89 megapixels) is also refused.
        svg_side: longer side in pixels with which an SVG image is drawn.

    Returns:
        An image of mode "L" or "RGB".

    Raises:
        BadImage: it is empty, truncated, damaged, not an image, of a single row or column, or too large.
    """
    mode = {1: "L", 3: "RGB"}[channels]
    if isinstance(image, np.ndarray):
        _check_size(image.shape[1], image.shape[0], limit)
        return Image.fromarray(image).convert(mode)

    def opaque(opened: Image.Image) -> Image.Image:
        return _flatten(_upright(opened), *_grey_scale(opened)).convert(mode)

    return _decode(image, opaque, limit, svg_side)


def read_rgba(image: ImageData, svg_side: int = SVG_SIDE) -> Image.Image:
    """Decode an image and keep its transparency, as mode "RGBA". For the rest see `read_image`."""
    return _decode(image, lambda opened: _upright(opened).convert("RGBA"), SIDE_LIMIT, svg_side)


def read_class_ids(mask: ImageData) -> np.ndarray:
    """Decode the mask of an image, whose values are ids of classes: grey of 1, 8 or 16 bits, or indices of a palette.

    Returns:
        (H, W) of an integer type.

    Raises:
        BadImage: see `read_image`; or it has colours, or is a JPEG, whose values are not exact.
    """
    if isinstance(mask, np.ndarray):
        if mask.ndim != 2 or mask.dtype.kind not in "iub":
            raise BadImage(NO_IDS)
        return mask.astype(np.uint8) if mask.dtype == bool else mask

    def indices(opened: Image.Image) -> Image.Image:
        if opened.format == "JPEG" or not (opened.mode in ("1", "L", "P") or opened.mode.startswith("I")):
            raise BadImage(NO_IDS)
        return opened.copy()

    ids = np.asarray(_decode(mask, indices, SIDE_LIMIT, SVG_SIDE))
    return ids.astype(np.uint8) if ids.dtype == bool else ids


def _decode(
    image: ImageData, convert: Callable[[Image.Image], Image.Image], limit: int, svg_side: int
) -> Image.Image:
    """Return what `convert` makes of an opened image. Raises `BadImage`, see `read_image`."""
    data = read_bytes(image)
    if not data:
        raise BadImage("empty file")
    data = _rasterise(data, svg_side) or data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # damaged EXIF, palettes with odd transparency
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
                _check_size(*opened.size, limit)
                opened.load()
                return convert(opened)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise BadImage("too many pixels") from error
        except UnidentifiedImageError as error:
            raise BadImage("not an image") from error
        # Pillow's decoders raise whatever a damaged file leads them to.
        except DECODER_ERRORS as error:
            raise BadImage("truncated or damaged") from error


def _upright(image: Image.Image) -> Image.Image:
    """Return the image with its camera's rotation (EXIF) applied, unchanged if that cannot be read.

    Not `ImageOps.exif_transpose`, which rewrites the other EXIF fields and fails for one of an unexpected type.
    """
    try:
        turn = ROTATIONS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except DECODER_ERRORS:
        turn = None
    return image if turn is None else image.transpose(turn)


def _check_size(width: int, height: int, limit: int) -> None:
    if min(width, height) < 2:
        raise BadImage("a single row or column of pixels")
    if max(width, height) > limit:
        raise BadImage("too many pixels")


def _grey_scale(image: Image.Image) -> tuple[int, bool]:
    """Return the bits of a grey value with more than 8, 16 unless a TIFF states fewer, and whether 0 is white."""
    tags = getattr(image, "tag_v2", {})
    signed = tags.get(SAMPLE_FORMAT, (1,))[0] == SIGNED
    bits = min(16, tags.get(ExifTags.Base.BitsPerSample, (16,))[0])
    return bits - signed, tags.get(ExifTags.Base.PhotometricInterpretation) == 0


def _flatten(image: Image.Image, bits: int, inverted: bool) -> Image.Image:
    """Return the image with 8 bits a channel, on white."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        if image.mode == "F" or values.min() < 0 or values.max() >= 1 << bits:
            raise BadImage("more than 16 bits a channel")
        grey = (values >> (bits - 8)).astype(np.uint8)
        return Image.fromarray(WHITE - grey if inverted else grey)
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    ground = Image.new("RGBA", image.size, (WHITE,) * 4)
    return Image.alpha_composite(ground, image).convert("RGB")


# ------------------------------------------------------------------------------------------------------------ SVG


def _rasterise(data: bytes, side: int) -> bytes | None:
    """Draw an SVG file as PNG with `side` pixels on the longer side; return None if it is no SVG.

    Text is not drawn: fonts differ between machines.
    """
    try:
        text = svg_text(data)
    except (ValueError, LookupError) as error:
        raise BadImage("damaged SVG") from error
    if text is None:
        return None
    try:
        text = self_contained(text)
    except ValueError as error:
        raise BadImage(str(error)) from error
    import resvg_py

    try:
        png = bytes(
            resvg_py.svg_to_bytes(svg_string=text, width=side, height=side, dpi=DPI, skip_system_fonts=True)
        )
    except ValueError as error:
        raise BadImage("damaged SVG") from error
    with Image.open(io.BytesIO(png)) as drawn:
        if len(drawn.getcolors(maxcolors=2) or ()) == 1:
            raise BadImage("SVG of one colour")
    return png


# ------------------------------------------------------------------------------------------------------------ shapes


def square(image: Image.Image, size: int, fit: str) -> Image.Image:
    """Return a square image of `size` pixels a side.

    Args:
        image: of any size.
        size: in pixels.
        fit: "crop" keeps the middle of a longer image, as for photographs; "pad" keeps all of it on white, as for drawings.
    """
    if fit == "crop":
        return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    white = WHITE if image.mode == "L" else (WHITE,) * 3
    return ImageOps.pad(image, (size, size), Image.Resampling.BICUBIC, color=white)


def find_images(folder: Path, others: list[Path]) -> list[Path]:
    """Return the files below `folder` with the suffix of an image, sorted; see `walk`. others: takes the other files."""
    files = [parent / name for parent, names in walk(folder) for name in names]
    found = {file for file in files if file.name.lower().endswith(SUFFIXES)}
    others.extend(file for file in files if file not in found)
    return sorted(found)
