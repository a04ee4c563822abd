"""Reading images of every kind and every fault, each a real file made here."""

import base64
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from magneto.data.io.image import BadImage, find_images, read_image, square
from magneto.data.io.tar import Slice

SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="{w}" height="{h}"><rect width="50%" height="100%" fill="red"/></svg>'


def gradient(width: int = 40, height: int = 30) -> Image.Image:
    """A colour image in which each place tells where it is."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack((x, y, 255 - x), axis=2).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    header = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return header + struct.pack(">I", 1000) + b"IDAT" + bytes(20)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "JPEG", "GIF"])
def test_every_format_gives_its_pixels(kind):
    image = gradient()
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
    read = read_image(encoded(image, kind, **options))
    assert (read.mode, read.size) == ("RGB", (40, 30))
    error = np.abs(np.asarray(read).astype(int) - np.asarray(image)).max()
    assert error <= (40 if kind in ("GIF", "JPEG") else 0)


def test_channels_and_forms_of_an_image(tmp_path):
    """A file, bytes, a slice or an array."""
    image = gradient()
    data = encoded(image, "PNG")
    (tmp_path / "a.jpg").write_bytes(data)  # a wrong extension: the content decides
    (tmp_path / "shard").write_bytes(b"before" + data + b"after")
    pixels = np.asarray(image)
    for one in (data, tmp_path / "a.jpg", Slice(tmp_path / "shard", 6, len(data)), pixels):
        assert np.array_equal(np.asarray(read_image(one)), pixels)
    grey = np.asarray(read_image(data, channels=1))
    assert np.array_equal(grey, np.asarray(image.convert("L")))
    assert np.array_equal(np.asarray(read_image(grey, channels=3)), np.stack([grey] * 3, axis=2))


def test_transparent_places_become_white():
    image = gradient().convert("RGBA")
    image.paste((10, 20, 30, 0), (0, 0, 20, 30))
    for kind in ("PNG", "WEBP"):
        read = np.asarray(read_image(encoded(image, kind, **({"lossless": True} if kind == "WEBP" else {}))))
        assert (read[:, :20] == 255).all()
        assert np.array_equal(read[:, 20:], np.asarray(gradient())[:, 20:])
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert abs(int(np.asarray(read_image(encoded(half, "PNG")))[0, 0, 0]) - 127) <= 1
    shade = Image.new("LA", (4, 4), (0, 0))
    assert (np.asarray(read_image(encoded(shade, "PNG"), channels=1)) == 255).all()


def test_palettes_with_and_without_transparency():
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 200, 10, 60])
    assert (np.asarray(read_image(encoded(palette, "PNG"))) == (200, 10, 60)).all()
    assert (np.asarray(read_image(encoded(palette, "PNG", transparency=1))) == 255).all()


def test_cmyk_and_black_and_white():
    read = np.asarray(read_image(encoded(gradient().convert("CMYK"), "JPEG", quality=95)))
    assert np.abs(read.astype(int) - np.asarray(gradient())).mean() < 6  # not inverted
    two = Image.new("1", (8, 8), 1)
    assert (np.asarray(read_image(encoded(two, "PNG"))) == 255).all()


def test_sixteen_bits_keep_their_upper_eight():
    values = (np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8)
    for kind in ("PNG", "TIFF"):
        read = np.asarray(read_image(encoded(Image.fromarray(values), kind), channels=1))
        assert np.array_equal(read, values >> 8)
    wide = Image.fromarray(np.full((4, 4), 0.5, np.float32))
    with pytest.raises(BadImage, match="more than 16 bits"):
        read_image(encoded(wide, "TIFF"))


def tiff(values: np.ndarray, bits: int, photometric: int, sample_format: int) -> bytes:
    """An uncompressed grey TIFF of 12 or 16 bits a value."""
    data = values.astype("<u2").tobytes()
    if bits == 12:  # two values in three bytes
        one, two = values.reshape(-1, 2).T
        data = np.stack((one >> 4, (one & 15) << 4 | two >> 8, two & 255), 1).astype(np.uint8).tobytes()
    height, width = values.shape
    tags = [
        (256, width),
        (257, height),
        (258, bits),
        (259, 1),
        (262, photometric),
        (273, 8),
        (277, 1),
        (278, height),
    ]
    tags += [(279, len(data)), (339, sample_format)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return (
        b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)
    )


@pytest.mark.parametrize(
    ("bits", "photometric", "sample_format"), [(16, 1, 1), (12, 1, 1), (16, 0, 1), (16, 1, 2)]
)
def test_tiff_grey_values_fill_their_range(bits, photometric, sample_format):
    """Black and white of 12 bits, of 15 bits and a sign, and of 0 for white."""
    shades = np.arange(64).reshape(8, 8) * 4
    highest = (1 << bits - (sample_format == 2)) - 1
    values = shades * (highest + 1) // 256
    if photometric == 0:
        values = highest - values
    read = np.asarray(read_image(tiff(values, bits, photometric, sample_format), channels=1))
    assert np.array_equal(read, shades)


def test_the_cameras_rotation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the top is at the right of the stored pixels
    read = read_image(encoded(gradient(), "PNG", exif=exif))
    assert read.size == (30, 40)
    assert np.array_equal(np.asarray(read), np.rot90(np.asarray(gradient()), -1))


def exif_block(*odd: tuple[int, int, int, bytes]) -> bytes:
    """EXIF that says "turn", and fields (tag, type, count, 4 bytes) of whatever kind."""
    fields = sorted([*odd, (0x0112, 3, 1, b"\6\0\0\0")])
    entries = b"".join(struct.pack("<HHI4s", *field) for field in fields)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(fields)) + entries + bytes(4)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
@pytest.mark.parametrize(
    "odd",
    [
        (0x0100, 2, 4, b"abc\0"),  # a width that is text
        (0x0100, 9, 1, b"\xff\xff\xff\xff"),  # and one below 0
        (0x011A, 11, 1, b"\0\0\xc0\x7f"),  # a resolution of NaN
        (0x8769, 4, 1, b"\x08\0\0\0"),  # a directory that lies in itself
    ],
)
def test_odd_exif_fields_do_no_harm(kind, odd):
    """The image is used, and turned as its orientation says, whatever else is in its EXIF."""
    read = read_image(encoded(gradient(), kind, exif=exif_block(odd)))
    plain = read_image(encoded(gradient(), kind))
    assert np.array_equal(np.asarray(read), np.rot90(np.asarray(plain), -1))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_damaged_exif_spoils_the_turn_alone(kind):
    """The pixels are those of the file, turned or not, for any bytes in the EXIF block."""
    nested = Image.Exif()
    nested[0x0112], nested[0x011A], nested[0x010F] = 6, 72.5, "Nintendo"
    nested.get_ifd(0x8769).update({0x9000: b"0232", 0x829A: (1, 50), 0x927C: b"FUJIFILM" + bytes(30)})
    nested.get_ifd(0x8825).update({1: "N", 2: (1.0, 2.0, 3.0)})
    block = nested.tobytes()
    data = encoded(gradient(), kind, exif=block)
    start = data.index(block) if block in data else data.index(block[6:])
    stop = start + len(block) - (block not in data) * 6
    plain = np.asarray(read_image(encoded(gradient(), kind)))
    turned = [np.rot90(plain, turns) for turns in range(4)]
    turned += [image.swapaxes(0, 1) for image in turned] + [plain[::-1], plain[:, ::-1]]
    random = np.random.default_rng(0)
    for _ in range(500):
        bytes_ = bytearray(data)
        for place in random.integers(start + (block in data) * 6, stop, 3):
            bytes_[place] = random.integers(256)
        read = np.asarray(read_image(bytes(bytes_)))
        assert any(read.shape == image.shape and (read == image).all() for image in turned)


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (10, 10), colour) for colour in ("red", "blue", "lime")]
    for kind in ("GIF", "WEBP"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        red, green, blue = np.asarray(read_image(data))[5, 5].tolist()
        assert red > 240 and green < 15 and blue < 15


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"no image at all", "not an image"),
        (b"<html><body>Not found</body></html>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),  # no program is run for it
        (encoded(gradient(), "PNG")[:90], "truncated or damaged"),
        (encoded(gradient(), "JPEG")[:-200], "truncated or damaged"),
        (encoded(gradient(), "BMP")[:500], "truncated or damaged"),
        (encoded(gradient(), "PNG")[:45] + bytes(400), "truncated or damaged"),
        (encoded(Image.new("RGB", (1, 1)), "PNG"), "single row"),
        (encoded(Image.new("RGB", (1, 50)), "PNG"), "single row"),
        (
            png_header(20_000, 20_000),
            "too many pixels",
        ),  # refused by the header: there are no pixels to decode
        (png_header(20_001, 10), "too many pixels"),
        (png_header(10_000, 10_000), "too many pixels"),
        (SVG.format(w=20, h=20).encode()[:-8], "damaged SVG"),
        (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "SVG of one colour"),
    ],
)
def test_bad_images_are_refused(data, reason):
    """With a reason."""
    with pytest.raises(BadImage, match=reason):
        read_image(data)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(BadImage, match="cannot be read"):
        read_image(tmp_path / "none.png")


def test_svg_is_drawn_in_its_proportions():
    """With lengths in any unit."""
    for lengths in ({"w": "40", "h": "20"}, {"w": "40mm", "h": "20mm"}, {"w": "40pt", "h": "20.0pt"}):
        read = read_image(SVG.format(**lengths).encode(), svg_side=64)
        assert read.width == 64 and read.height in (32, 33)  # 20mm are 75.6 pixels
        pixels = np.asarray(read)
        assert (pixels[16, 10] == (255, 0, 0)).all() and (pixels[16, 50] == 255).all()
    assert read_image(SVG.format(w=1, h=3).encode(), svg_side=60).size == (20, 60)
    with pytest.raises(BadImage, match="of one colour|single row|one colour"):  # however long it says to be
        read_image(SVG.format(w=1, h=10_000_000).encode())


def test_svg_of_another_encoding_and_hostile_svg():
    latin = "<?xml version='1.0' encoding='ISO-8859-1'?><!-- é -->" + SVG.format(w=20, h=20)
    assert read_image(latin.encode("latin-1")).size == (256, 256)
    bomb = '<!DOCTYPE svg [<!ENTITY a "aaaaaaaaaa">' + "".join(
        f'<!ENTITY {chr(98 + level)} "{f"&{chr(97 + level)};" * 10}">' for level in range(9)
    )
    with pytest.raises(BadImage, match="damaged SVG"):
        read_image(f"{bomb}]><svg xmlns='http://www.w3.org/2000/svg'><text>&j;</text></svg>".encode())


def test_square_crops_or_pads():
    """The middle is kept; the padding is white."""
    image = Image.new("RGB", (60, 20), "blue")
    image.paste("red", (20, 0, 40, 20))
    assert (np.asarray(square(image, 20, "crop")) == (255, 0, 0)).all()
    padded = np.asarray(square(image, 30, "pad"))
    assert padded.shape == (30, 30, 3)
    assert (padded[:9] == 255).all() and (padded[15, 0] == (0, 0, 255)).all()
    assert (np.asarray(square(image.convert("L"), 30, "pad"))[0] == 255).all()


def test_find_images(tmp_path: Path):
    """However deep; hidden and other files are skipped."""
    for name in ("b/c/2.JPEG", "a/1.png", "a/notes.txt", ".trash/3.png", "a/._1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path, [])] == [
        "a/1.png",
        "b/c/2.JPEG",
    ]


HEAD = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="64" height="64">'
RED = '<rect width="30" height="64" fill="red"/>'
LINKS = {
    "group": ("<g>", "</g>"),
    "unknown": ("<foo>", "</foo>"),
    "use": ('<g id="a{i}"><use href="#a{n}"/></g>', ""),
    "xlink": ('<g id="a{i}"><use xlink:href=" #a{n}"/></g>', ""),
    "marker": ('<marker id="a{i}"><path d="M0 0L5 5" marker-start="url(#a{n})"/></marker>', ""),
    "pattern": (
        '<pattern id="a{i}" width="9" height="9"><rect width="9" height="9" fill="url(#a{n})"/></pattern>',
        "",
    ),
    "style": ("<mask id='a{i}'><path d='M0 0L5 5' style='marker-start:url(\"#a{n}\")'/></mask>", ""),
    "sheet": (
        '<style>.b{i}:hover{{fill:url(#a{n})}}</style><pattern id="a{i}"><path class="b{i}"/></pattern>',
        "",
    ),
}


def nested(before: str, after: str, depth: int) -> bytes:
    """A drawing with elements inside one another, or with as many that each refer to the next."""
    start = "".join(before.format(i=i, n=i + 1) for i in range(depth))
    return f'{HEAD}{start}{RED}{after * depth}<use href="#a0"/></svg>'.encode()


@pytest.mark.parametrize("kind", LINKS)
def test_nesting_too_deep_is_refused(kind):
    """The renderer would overflow its stack, and the process would end."""
    plain = np.asarray(read_image(f"{HEAD}{RED}</svg>".encode()))
    if kind in ("group", "unknown"):  # what is drawn is not changed by groups
        shown = "" if kind == "group" else RED
        data = nested(*LINKS[kind], 100).replace(b"</svg>", f"{shown}</svg>".encode())
        assert np.array_equal(np.asarray(read_image(data)), plain)
    for depth in (150, 250, 5000):
        with pytest.raises(BadImage, match="SVG is nested too deep"):
            read_image(nested(*LINKS[kind], depth))


def test_an_svg_that_refers_to_itself_ends():
    """A loop is drawn without it; loops that branch are refused, and soon."""
    once = f'{HEAD}<linearGradient id="a" href="#a"/>{RED}<g id="b">{RED}<path fill="url(#a)"/></g></svg>'
    assert read_image(once.encode()).size == (256, 256)
    uses = "".join(f'<use href="#l{i}"/>' for i in range(16))
    many = "".join(f'<g id="l{i}">{uses}</g>' for i in range(16))
    with pytest.raises(BadImage, match="SVG is nested too deep"):
        read_image(f"{HEAD}{many}</svg>".encode())


@pytest.mark.parametrize(
    "part",
    [
        '<image {href} width="64" height="64"/>',
        '<image xlink:{href} width="64" height="64"/>',
        '<filter id="f"><feImage {href}/></filter><rect width="64" height="64" filter="url(#f)"/>',
        '<defs><image id="i" {href} width="64" height="64"/></defs><use href="#i"/>',
        '<pattern id="p" width="64" height="64" patternUnits="userSpaceOnUse"><image {href} width="64" height="64"/>'
        '</pattern><rect width="64" height="64" fill="url(#p)"/>',
    ],
)
@pytest.mark.parametrize("form", ["{file}", " {file}", "file://{file}", "&file;", "{inside}"])
def test_svg_reads_no_other_file(tmp_path, part, form):
    """A drawing looks the same whether the file it names is there or not."""
    file = tmp_path / "secret.png"
    named = f"<svg xmlns='http://www.w3.org/2000/svg'><image href='{file}' width='9' height='9'/></svg>"
    inside = "data:image/svg+xml;base64," + base64.b64encode(named.encode()).decode()
    href = 'href="' + form.format(file=file, inside=inside) + '"'
    data = f"<!DOCTYPE svg [<!ENTITY file '{file}'>]>{HEAD}{RED}{part.format(href=href)}</svg>".encode()
    without = np.asarray(read_image(data))
    Image.new("RGB", (64, 64), "blue").save(file)
    assert np.array_equal(np.asarray(read_image(data)), without)


def test_svg_keeps_what_is_inside_it():
    """A photograph in a data URI is drawn; so is one beside a dropped reference."""
    photo = base64.b64encode(encoded(Image.new("RGB", (9, 9), "blue"), "PNG")).decode()
    part = f'<image href="data:image/png;base64,{photo}" x="30" width="34" height="64" preserveAspectRatio="none"/>'
    for more in ("", '<image href="/none.png" width="9" height="9"/>'):
        read = np.asarray(read_image(f"{HEAD}{RED}{part}{more}</svg>".encode()))
        assert read[128, 60].tolist() == [255, 0, 0] and read[128, 200].tolist() == [0, 0, 255]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1"])
def test_svg_in_any_encoding(encoding):
    """Also those with two bytes a character, with a byte order mark or without."""
    stated = "utf-8" if encoding.startswith("utf-8") else encoding.upper()
    text = f'<?xml version="1.0" encoding="{stated}"?>{HEAD}<title>é</title>{RED}</svg>'
    plain = np.asarray(read_image(f"{HEAD}{RED}</svg>".encode()))
    assert np.array_equal(np.asarray(read_image(text.encode(encoding))), plain)
