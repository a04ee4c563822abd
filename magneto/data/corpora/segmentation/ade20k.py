"""Images and masks in the folders of ADE20k's scene parsing challenge, and your own in the same form (docs/data.md).

root/images/training/*.jpg     root/annotations/training/*.png     the mask has the name of its image
root/images/validation/*.jpg   root/annotations/validation/*.png   [root/objectInfo150.txt]
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from magneto.data.corpora.base import Skipped, listed
from magneto.data.corpora.image.base import held_out
from magneto.data.corpora.segmentation.base import ClassIds, SegmentationCorpus, SegmentationExample
from magneto.data.io.digest import file_digest, listing_digest
from magneto.data.io.image import find_images, printable
from magneto.data.io.text import read_lines
from magneto.errors import ConfigError, DataError

NAMES = "objectInfo150.txt"
SIDES = ("training", "validation")


class Ade20kReader:
    """Images with a mask each; ids 1 to 150 are classes, and 0 is ignored, unless the arguments say otherwise.

    Args:
        folder: the root, `ADEChallengeData2016`.
        validation: share of the training images that is held out by a hash for validation; the folder `validation` is
            then the test, as ADE20k is reported. None: it is the validation and the test.
        classes: their number. Their names are those of objectInfo150.txt, if it is there.
        first: the id in masks of the first class.
        ignored: ids whose pixels are neither learnt nor scored.
    """

    def __init__(
        self,
        folder: str | None = None,
        validation: float | None = None,
        classes: int = 150,
        first: int = 1,
        ignored: tuple[int, ...] = (0,),
    ) -> None:
        if folder is None:
            raise ConfigError(
                "data: name the folder that holds images/training, annotations/training and the same for validation: "
                "data.corpora.NAME.folder=..."
            )
        if validation is not None and not 0 < validation < 1:
            raise ConfigError(f"data: validation={validation} must lie between 0 and 1: 0.02.")
        self.folder, self.share = Path(folder).expanduser(), validation
        self.ids = ClassIds(classes, first, tuple(ignored))

    def fingerprint(self) -> dict[str, Any]:
        """See `Reader`; of all files names, sizes and times."""
        names = self.folder / NAMES
        return {
            "corpus": "ade20k",
            "recipe": 1,
            "files": listing_digest(self.folder, ("images/**/*", "annotations/**/*")),
            "names": file_digest(names) if names.is_file() else None,
            "validation": self.share,
            "ids": [self.ids.classes, self.ids.first, list(self.ids.ignored)],
        }

    def load(self, data_dir: Path) -> SegmentationCorpus:
        """Return all images that have a mask.

        Raises:
            DataError: a folder is missing, or objectInfo150.txt has another form.
        """
        examples, skipped = listed(self._examples())
        return SegmentationCorpus(
            examples=examples,
            labels=self._labels(),
            first=self.ids.first,
            ignored=self.ids.ignored,
            skipped=skipped,
            origin={"folder": self.folder.name},
        )

    def _examples(self) -> Iterator[SegmentationExample | Skipped]:
        for side in SIDES:
            folders = [self.folder / kind / side for kind in ("images", "annotations")]
            for folder in folders:
                if not folder.is_dir():
                    raise DataError(
                        f"{folder}: there is no such folder. Set data.corpora...folder to one that holds images/ and "
                        "annotations/, each with training/ and validation/."
                    )
            others: list[Path] = []
            images, masks = dict[str, Path](), dict[str, Path]()
            for folder, files in zip(folders, (images, masks), strict=True):
                for path in find_images(folder, others):
                    if files.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path) != path:
                        yield Skipped(
                            printable(path.name), str(path), "another file of this name but for its ending"
                        )
            split = {"training": "train", "validation": "val" if self.share is None else "test"}[side]
            names = sorted(images)
            held = set()
            if self.share is not None and side == "training":
                held = held_out(names, max(1, round(self.share * len(names))))
            for number, name in enumerate(names):
                own = printable(f"{side}/{name}")
                if name not in masks:
                    yield Skipped(own, str(images[name]), "image without a mask")
                    continue
                stated = "val" if number in held else split
                yield SegmentationExample(id=own, image=images[name], mask=masks[name], split=stated)
            for name in sorted(masks.keys() - images.keys()):
                yield Skipped(printable(f"{side}/{name}"), str(masks[name]), "mask without an image")
            for path in others:
                yield Skipped(printable(path.name), str(path), "not an image by its name")

    def _labels(self) -> tuple[str, ...]:
        """Return the names of the classes: the first synonym of each, or all of them where others have the same."""
        file = self.folder / NAMES
        if not file.is_file():
            return self.ids.names()
        rows = [line.split("\t") for line in read_lines(file, "objectInfo150.txt") if line.strip()][1:]
        if len(rows) != self.ids.classes or not all(len(row) > 1 and row[-1].strip() for row in rows):
            raise DataError(
                f"{file}: it names {len(rows)} classes, one a line after the first, the name last, and "
                f"classes={self.ids.classes}. Set data.corpora...classes to their number, or remove the file."
            )
        synonyms = [row[-1].strip() for row in rows]
        firsts = [name.partition(",")[0] for name in synonyms]
        count = Counter(firsts)
        return tuple(
            short if count[short] == 1 else name for short, name in zip(firsts, synonyms, strict=True)
        )
