"""Open Clip Art: 7,000 drawings as SVG, with titles and keywords (docs/data.md)."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magneto.data.corpora.base import Skipped
from magneto.data.corpora.download import Package, listing_digest, locate
from magneto.data.corpora.image.base import ImageCorpus, ImageExample
from magneto.data.transforms.text import normalize_text
from magneto.errors import DataError

PACKAGE = Package(
    name="openclipart-svg",
    version="1:0.18+dfsg-19",
    sha256="989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5",
    inside="usr/share/openclipart/svg",
    installed=("/usr/share/openclipart/svg",),
    patterns=("**/*.svg",),
    content_sha256="52bd7e37fef04da1beed83635ef8162a0a42a23e26bb1213b451bfc061a108b5",
    megabytes=25,
    homepage="https://packages.debian.org/openclipart-svg",
)
RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
COLLECTION = 5  # a title of more images than that names a collection
TEMPLATE = re.compile(r"^clipart by ", re.IGNORECASE)  # left in by an author who began with an older drawing
ADMINISTRATIVE = {"hash", "unsorted", "theme", "icons", "clip art", "openclipart", "signs and symbols"}


@dataclass(frozen=True)
class Metadata:
    """What a drawing says of itself."""

    title: str = ""
    keywords: tuple[str, ...] = ()


class OpenClipartReader:
    """Drawings; the class is the topmost folder (animals, food...), the caption title and keywords.

    exclude: folders that are left out; by default the 1,375 stars that a program drew. folder: where the drawings are
    (the folder that holds `animals`, `buildings`...); None: find or fetch them. Drawings with equal captions stand on
    one side of a split. Captions are in English, but for the titles that their authors gave in another language.
    """

    def __init__(self, exclude: Sequence[str] = ("shapes/stars",), folder: str | None = None) -> None:
        self.exclude = tuple(name.strip("/") for name in exclude)
        self.folder = folder

    def fingerprint(self) -> dict[str, Any]:
        """Settings and version."""
        fingerprint: dict[str, Any] = {"corpus": "openclipart", "version": PACKAGE.version, "recipe": 1}
        fingerprint["exclude"] = list(self.exclude)
        if self.folder is not None:
            fingerprint["files"] = listing_digest(Path(self.folder).expanduser(), PACKAGE.patterns)
        return fingerprint

    def load(self, data_dir: Path) -> ImageCorpus:
        """All drawings; links to others are passed over."""
        located = locate(PACKAGE, data_dir, self.folder)
        skipped: list[Skipped] = []
        found: dict[str, tuple[Path, Metadata]] = {}
        for path in sorted(located.root.glob("**/[!.]*.svg")):
            name = path.relative_to(located.root).as_posix()
            if path.is_symlink() or any(name.startswith(f"{folder}/") for folder in self.exclude):
                continue
            try:
                found[name] = path, read_metadata(path)
            except ValueError as error:
                skipped.append(Skipped(name, str(path), str(error)))
        titles = Counter(metadata.title for _, metadata in found.values())
        if not found:
            raise DataError(f"{located.root}: no drawing is left; check data.corpora.openclipart.exclude.")
        examples = []
        for name, (path, metadata) in found.items():
            own_title = titles[metadata.title] <= COLLECTION and not TEMPLATE.match(metadata.title)
            caption = describe(metadata) if metadata.title and own_title else ""
            examples.append(
                ImageExample(
                    id=name,
                    image=path,
                    label=name.partition("/")[0],
                    group=f"caption:{normalize_text(caption)}" if caption else name,
                    captions={"en": caption} if caption else {},
                )
            )
        labels = tuple(sorted({example.label for example in examples if example.label is not None}))
        return ImageCorpus(examples=examples, labels=labels, skipped=skipped, origin=located.facts())


def describe(metadata: Metadata) -> str:
    """A caption: the title, then the keywords that it does not hold already."""
    title = " ".join(metadata.title.split())
    new = [word for word in metadata.keywords if word not in ADMINISTRATIVE and word not in title.lower()]
    return ", ".join([title, *dict.fromkeys(new)])


def read_metadata(path: Path) -> Metadata:
    """Title and keywords of an SVG file's RDF. Raises `ValueError`, with a short reason, for a file that is no XML."""
    from lxml import etree

    parser = etree.XMLParser(resolve_entities=False, no_network=True)
    try:
        tree = etree.fromstring(path.read_bytes(), parser)
    except (etree.XMLSyntaxError, OSError) as error:
        raise ValueError("damaged SVG") from error
    for element in tree.iter():
        if isinstance(element.tag, str) and element.tag.endswith("}Work"):
            title = next((part.text for part in element if str(part.tag).endswith("}title")), None)
            words = [
                word.text.strip().replace("_", " ").lower() for word in element.iter(f"{RDF}li") if word.text
            ]
            return Metadata((title or "").strip(), tuple(word for word in words if word))
    return Metadata()
