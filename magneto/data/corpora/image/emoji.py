"""Emoji: the colour bitmaps of Google's Noto font, with their names in 14 languages (docs/data.md).

The names are in files of the Python package `emoji` (Unicode's CLDR). They are read as data; its code is not run.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from magneto.data.corpora.base import Skipped
from magneto.data.corpora.download import Package, locate
from magneto.data.corpora.image.base import ImageCorpus, ImageExample, LazyImages
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
        skipped: list[Skipped] = []

        def examples() -> Iterator[ImageExample]:
            skipped.clear()
            draw = Drawing(font.root / FONT.patterns[0])
            for emoji, texts in captions.items():
                name = "-".join(f"{ord(char):x}" for char in emoji)
                image = draw(emoji)
                if image is None:
                    skipped.append(Skipped(name, FONT.patterns[0], "no image in the font"))
                else:
                    yield ImageExample(id=name, image=image, group=concept(emoji), captions=texts)

        return ImageCorpus(
            examples=LazyImages(examples, len(captions)),
            skipped=skipped,
            origin={"font": font.origin(), "names": names.origin()},
        )


class Drawing:
    """Drawing of the emoji of a bitmap font. Raises `MagnetoError` if the font or Pillow cannot."""

    def __init__(self, font: Path) -> None:
        from PIL import ImageFont, features

        if not features.check("raqm"):
            raise ConfigError(
                "data: this build of Pillow cannot join the characters of an emoji (it has no Raqm). Install Pillow's own "
                "wheel: pip install --force-reinstall pillow."
            )
        try:
            self._font = ImageFont.truetype(str(font), POINT_SIZE, layout_engine=ImageFont.Layout.RAQM)
        except OSError as error:
            raise DataError(
                f"{font}: not a font with bitmaps of {POINT_SIZE} points ({error}). Use NotoColorEmoji.ttf."
            ) from error

    def __call__(self, emoji: str) -> np.ndarray | None:
        """Return (128, 136, 3) uint8 on white; None if the font has no image of its own for these characters."""
        from PIL import Image, ImageDraw

        if self._font.getbbox(emoji) != (0, 0, *BITMAP):  # several images side by side, or none
            return None
        image = Image.new("RGB", BITMAP, "white")
        ImageDraw.Draw(image).text((0, 0), emoji, font=self._font, embedded_color=True)
        return np.asarray(image)


def read_names(folder: Path, languages: Sequence[str]) -> Mapping[str, dict[str, str]]:
    """Return emoji -> language -> name, of the fully qualified ones. Raises `DataError` for files of another form."""
    try:
        base = json.loads((folder / "emoji.json").read_text(encoding="utf-8"))
        chosen = [emoji for emoji, entry in base.items() if entry["status"] == FULLY_QUALIFIED]
        tables = {
            language: {emoji: base[emoji]["en"] for emoji in chosen}
            if language == "en"
            else json.loads((folder / f"emoji_{language}.json").read_text(encoding="utf-8"))
            for language in languages
        }
        return {
            emoji: {
                language: plain
                for language, table in tables.items()
                if (plain := _plain(table.get(emoji, "")))
            }
            for emoji in chosen
        }
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise DataError(
            f"{folder}: not the names of {NAMES.name} {NAMES.version} ({error!r}). Fetch them again."
        ) from error


def _plain(name: str) -> str:
    """Return a name without the colons and underscores of `:grinning_face:`."""
    return name.strip(":").replace("_", " ").strip()


def concept(emoji: str) -> str:
    """Return an emoji without skin tone, gender and presentation: equal for the variants of one image."""
    plain = GENDERS.sub("", TONES.sub("", emoji.replace("\ufe0f", "")))
    return PEOPLE.sub("\U0001f9d1", plain)
