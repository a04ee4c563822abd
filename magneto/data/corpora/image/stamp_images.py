"""Images of the Tux Paint stamps, with captions in many languages (docs/data.md); stamps.py has their recordings."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from magneto.data.corpora.base import Groups, Skipped, listed
from magneto.data.corpora.download import locate
from magneto.data.corpora.image.base import ImageCorpus, ImageExample
from magneto.data.corpora.speech.stamps import PACKAGE as RECORDINGS
from magneto.data.io.text import BadText, decode_text
from magneto.data.transforms.text import normalize_text
from magneto.errors import ConfigError

PACKAGE = replace(
    RECORDINGS,
    patterns=("**/*.txt", "**/*.png", "**/*.svg"),
    content_sha256="723c8838a90909b54636355b72bd44e4c41cf671f01b45fa9f8867a9a56cca9a",
)
VARIANT = re.compile(r"_(mirror|flip)(_flip)?$")  # an image that the program shows when the stamp is turned


@dataclass
class StampImagesReader:
    """All stamps; the class is the topmost folder (animals, food...).

    Of a stamp that exists as PNG and as SVG the PNG is used. Stamps with equal English captions have one split.

    Args:
        languages: of the captions that are kept, as in the files ("en", "fr", "pt_BR"); None: all 78.
        folder: the folder of `animals`, `clothes`...; None: find or fetch it.
    """

    languages: Sequence[str] | None = None
    folder: str | None = None

    def __post_init__(self) -> None:
        if self.languages is not None and not self.languages:
            raise ConfigError(
                "data: languages is empty; leave it out for all languages, or name some: [en, fr]."
            )

    def fingerprint(self) -> dict[str, Any]:
        """See `Reader`."""
        languages = None if self.languages is None else list(self.languages)
        return PACKAGE.fingerprint(self.folder, recipe=1, languages=languages) | {"corpus": "stamp_images"}

    def load(self, data_dir: Path) -> ImageCorpus:
        """Return all images."""
        located = locate(PACKAGE, data_dir, self.folder)
        examples, skipped = listed(self._images(located.root))
        labels = tuple(sorted({str(example.label) for example in examples}))
        return ImageCorpus(examples=examples, labels=labels, skipped=skipped, origin=located.origin())

    def _images(self, root: Path) -> Iterator[ImageExample | Skipped]:
        files = {path.with_suffix(""): path for path in root.glob("**/[!.]*.svg")}
        files |= {path.with_suffix(""): path for path in root.glob("**/[!.]*.png")}
        groups = Groups()
        captions: dict[str, tuple[Path, dict[str, str]]] = {}
        for stem, path in sorted(files.items()):
            if VARIANT.search(stem.name) and stem.with_name(VARIANT.sub("", stem.name)) in files:
                continue
            name, texts = stem.relative_to(root).as_posix(), dict[str, str]()
            try:
                texts = read_captions(stem.with_name(stem.name + ".txt"))
            except BadText as bad:
                yield Skipped(name, f"{stem}.txt", f"captions {bad} (the image is used)")
            groups.union(name, ("caption", normalize_text(texts.get("en", "")) or name))
            captions[name] = path, texts
        names = groups.names()
        for name, (path, texts) in captions.items():
            if self.languages is not None:
                texts = {language: text for language, text in texts.items() if language in self.languages}
            label = name.partition("/")[0]
            yield ImageExample(id=name, image=path, label=label, group=names[name], captions=texts)


def read_captions(file: Path) -> dict[str, str]:
    """Return language -> caption: the first line is English, the others are `xx.utf8=...`; {} without a file.

    Raises `BadText` when it is not UTF-8.
    """
    if not file.is_file():
        return {}
    first, *lines = decode_text(file.read_bytes()).split("\n")
    pairs = (line.partition(".utf8=") for line in lines if ".utf8=" in line)
    captions = {"en": first.strip()} | {language.strip(): text.strip() for language, _, text in pairs}
    return {language: text for language, text in captions.items() if text}
