"""Emoji: the colour bitmaps of Google's Noto font, with their names in 14 languages (docs/data.md).

The names are in files of the Python package `emoji` (Unicode's CLDR). They are read as data; its code is not run.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from magneto.data.corpora.base import Skipped, lazy
from magneto.data.corpora.download import Package, locate
from magneto.data.corpora.image.base import ImageCorpus, ImageExample
from magneto.data.io.digest import listing_digest
from magneto.errors import ConfigError, DataError

FONT = Package(
    name="fonts-noto-color-emoji",
    version="2.042-0+deb12u1",
    sha256="a5ab0f69c7938423862320d9aca5dd187b3fd879d6a9a57dd52e17c3fa8d2751",
    inside="usr/share/fonts/truetype/noto",
    patterns=("NotoColorEmoji.ttf",),
    content_sha256="9568ed4ffbbac2de5bb0b99e1cdd28412ad030618e6bfd36b6d0f5014b5c946e",
    megabytes=10,
    homepage="https://github.com/googlefonts/noto-emoji",
)
NAMES = Package(
    name="emoji",
    version="2.16.0",
    sha256="c4230d80640def9071599ff56b1b5950fe13a2a94c0da98c5deab12431b24330",
    registry="pypi",
    inside="emoji/unicode_codes",
    patterns=("emoji*.json",),
    content_sha256="9394279633e010b8dea0507909838b2b79eeb65ae78ff1f4671ca2d0a0c0e526",
    megabytes=1,
    homepage="https://github.com/carpedm20/emoji",
)
LANGUAGES = ("en", "ar", "de", "es", "fa", "fr", "id", "it", "ja", "ko", "pt", "ru", "tr", "zh")
POINT_SIZE = 109  # the one size of this bitmap font
BITMAP = (136, 128)  # pixels
FULLY_QUALIFIED = 2  # status of the one spelling of an emoji that is meant for keyboards
TONES = re.compile("[\U0001f3fb-\U0001f3ff]")
GENDERS = re.compile("\u200d[\u2640\u2642]")
PEOPLE = re.compile("[\U0001f468\U0001f469]")  # man, woman


class EmojiReader:
    """All emoji of which the font has an image. They have no classes.

    Variants of one emoji by skin tone and gender have one split.

    Args:
        languages: of the captions; None: all 14.
        skin_tones: include the variants of each emoji in five skin tones.
        folder: the folder of NotoColorEmoji.ttf; None: find or fetch it.
        names_folder: the folder of emoji.json, emoji_fr.json...; None: find or fetch it.
    """

    def __init__(
        self,
        languages: Sequence[str] | None = ("en",),
        skin_tones: bool = False,
        folder: str | None = None,
        names_folder: str | None = None,
    ) -> None:
        languages = LANGUAGES if languages is None else languages
        if not languages or (unknown := [name for name in languages if name not in LANGUAGES]):
            what = f"has {unknown[0]!r}" if languages else "is empty"
            raise ConfigError(
                f"data: languages {what}. Choose from {', '.join(LANGUAGES)}, which emoji have names in."
            )
        self.languages, self.skin_tones = tuple(languages), skin_tones
        self.folder, self.names_folder = folder, names_folder

    def fingerprint(self) -> dict[str, Any]:
        """See `Reader`."""
        fingerprint: dict[str, Any] = {
            "corpus": "emoji",
            "versions": [FONT.version, NAMES.version],
            "recipe": 1,
            "languages": list(self.languages),
            "skin_tones": self.skin_tones,
        }
        for package, folder in ((FONT, self.folder), (NAMES, self.names_folder)):
            if folder is not None:
                fingerprint[package.name] = listing_digest(Path(folder).expanduser(), package.patterns)
        return fingerprint

    def load(self, data_dir: Path) -> ImageCorpus:
        """Return all emoji, drawn while they are read."""
        font = locate(FONT, data_dir, self.folder)
        names = locate(NAMES, data_dir, self.names_folder)
        captions = read_names(names.root, self.languages)
        if not self.skin_tones:
            captions = {emoji: texts for emoji, texts in captions.items() if not TONES.search(emoji)}

        def examples() -> Iterator[ImageExample | Skipped]:
            draw = drawing(font.root / FONT.patterns[0])
            for emoji, texts in captions.items():
                name = "-".join(f"{ord(char):x}" for char in emoji)
                image = draw(emoji)
                if image is None:
                    yield Skipped(name, FONT.patterns[0], "no image in the font")
                else:
                    yield ImageExample(id=name, image=image, group=concept(emoji), captions=texts)

        images, skipped = lazy(examples, len(captions))
        origin = {"font": font.origin(), "names": names.origin()}
        return ImageCorpus(examples=images, skipped=skipped, origin=origin)


def drawing(file: Path) -> Callable[[str], np.ndarray | None]:
    """Return a function that draws emoji with a bitmap font: (128, 136, 3) uint8 on white, or None if it has no image.

    Raises:
        MagnetoError: the font, or this build of Pillow, cannot.
    """
    from PIL import Image, ImageDraw, ImageFont, features

    if not features.check("raqm"):
        raise ConfigError(
            "data: this build of Pillow cannot join the characters of an emoji (it has no Raqm). Install Pillow's own "
            "wheel: pip install --force-reinstall pillow."
        )
    try:
        font = ImageFont.truetype(str(file), POINT_SIZE, layout_engine=ImageFont.Layout.RAQM)
    except OSError as error:
        raise DataError(
            f"{file}: not a font with bitmaps of {POINT_SIZE} points ({error}). Use NotoColorEmoji.ttf."
        ) from error

    def draw(emoji: str) -> np.ndarray | None:
        if font.getbbox(emoji) != (0, 0, *BITMAP):  # several images side by side, or none
            return None
        image = Image.new("RGB", BITMAP, "white")
        ImageDraw.Draw(image).text((0, 0), emoji, font=font, embedded_color=True)
        return np.asarray(image)

    return draw


def read_names(folder: Path, languages: Sequence[str]) -> Mapping[str, dict[str, str]]:
    """Return emoji -> language -> name, of the fully qualified ones. Raises `DataError` for files of another form."""

    def table(language: str) -> Any:
        return json.loads((folder / f"emoji{language}.json").read_text(encoding="utf-8"))

    try:
        chosen = {
            emoji: entry["en"] for emoji, entry in table("").items() if entry["status"] == FULLY_QUALIFIED
        }
        tables = {language: chosen if language == "en" else table(f"_{language}") for language in languages}
        named: dict[str, dict[str, str]] = {emoji: {} for emoji in chosen}
        for language, names in tables.items():
            for emoji in chosen:  # :grinning_face:
                if plain := names.get(emoji, "").strip(":").replace("_", " ").strip():
                    named[emoji][language] = plain
        return named
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise DataError(
            f"{folder}: not the names of {NAMES.name} {NAMES.version} ({error!r}). Fetch them again."
        ) from error


def concept(emoji: str) -> str:
    """Return an emoji without skin tone, gender and presentation: equal for the variants of one image."""
    plain = GENDERS.sub("", TONES.sub("", emoji.replace("\ufe0f", "")))
    return PEOPLE.sub("\U0001f9d1", plain)
