"""Images in a folder for each class, as those of ImageNet and of torchvision's `ImageFolder` (docs/data.md).

root/train/CLASS/*.jpg  root/val/CLASS/*.jpg  [root/test/CLASS/*.jpg]      or      root/CLASS/*.jpg
"""

import hashlib
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from magneto.data.corpora.base import Skipped
from magneto.data.corpora.image.base import ImageCorpus, ImageExample, held_out
from magneto.data.io.folders import walk
from magneto.data.io.image import SUFFIXES, find_images, printable
from magneto.data.io.text import read_lines
from magneto.errors import ConfigError, DataError

SIDES = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


class ImageFolderReader:
    """Any tree with a folder for each class. Links to folders are followed.

    Folders `train`, `val` and `test` in the root are the splits; without them the classes are divided by a hash
    (`data.val_fraction`, `data.test_fraction`).

    Args:
        folder: the root.
        validation: share of the training images that is held out by a hash for validation; the folder `val` is then the
            test, as ImageNet is reported. None: `val` is the validation, and also the test if there is no folder `test`.
        evaluation: all images are a test set, for models that were trained on another corpus (ImageNet-A, -R, -Sketch).
        names: a table FOLDER<tab>LABEL, one line a class: the model's names of the classes, where those of the folders
            differ.
        classes_only: folders named `train`, `val` and `test` are classes.
    """

    def __init__(
        self,
        folder: str | None = None,
        validation: float | None = None,
        evaluation: bool = False,
        names: str | None = None,
        classes_only: bool = False,
    ) -> None:
        if folder is None:
            raise ConfigError(
                "data: name the folder that holds a folder for each class, or train/ and val/: "
                "data.corpora.NAME.folder=..."
            )
        if validation is not None and not 0 < validation < 1:
            raise ConfigError(f"data: validation={validation} must lie between 0 and 1: 0.01.")
        self.folder = Path(folder).expanduser()
        self.validation, self.evaluation, self.classes_only = validation, evaluation, classes_only
        self.names = None if names is None else Path(names).expanduser()

    def fingerprint(self) -> dict[str, Any]:
        """See `Reader`; of all files names, sizes and times, since images may be read from their own files."""
        return {
            "corpus": "image_folder",
            "recipe": 2,
            "folder": str(self.folder.absolute()),
            "files": _listing(self.folder) if self.folder.is_dir() else None,
            "validation": self.validation,
            "evaluation": self.evaluation,
            "classes_only": self.classes_only,
            "names": None if self.names is None else self._read_names(),
        }

    def load(self, data_dir: Path) -> ImageCorpus:
        """Return all images; the classes are those of the training folder, in the order of their folders' names."""
        if not self.folder.is_dir():
            raise DataError(f"folder={self.folder}: there is no such folder. Set it to an existing one.")
        skipped: list[Skipped] = []
        # Split -> folder of a class -> files.
        found = {side: _classes(root, skipped) for side, root in self._roots(skipped).items()}
        names = self._read_names()
        folders = sorted({name for classes in found.values() for name in classes})
        for side in ("val", "test"):
            if "train" in found and (strange := sorted(found.get(side, {}).keys() - found["train"].keys())):
                raise DataError(
                    f"{self.folder}: {side} has classes that train has not: {', '.join(strange[:5])}. Give the folders of "
                    "one class one name."
                )
        if missing := [name for name in folders if names and name not in names]:
            raise DataError(f"{self.names}: there is no line for the folder {missing[0]}. Add it.")
        return ImageCorpus(
            examples=list(self._images(found, names)),
            labels=tuple(dict.fromkeys(names.get(name, name) for name in folders)),
            skipped=skipped,
            origin={"folder": self.folder.name},
            evaluation_only=self.evaluation,
        )

    def _roots(self, skipped: list[Skipped]) -> dict[str, Path]:
        """Return split -> the folder of its classes; "" where the corpus states no split."""
        sides: dict[str, Path] = {}
        beside: list[Skipped] = []
        for path in sorted(path for path in self.folder.iterdir() if path.is_dir() and not self.classes_only):
            side = SIDES.get(path.name.lower())
            if side is None and not path.name.startswith("."):
                beside.append(Skipped(path.name, str(path), "folder beside those of the splits"))
            elif side in sides:
                raise DataError(
                    f"{self.folder}: {sides[side].name} and {path.name} are both the {side} split. Rename or remove one, or "
                    "put their classes together; if they are classes, set data.corpora...classes_only=true."
                )
            elif side is not None:
                sides[side] = path
        if sides:
            skipped += beside
        if self.evaluation:
            return {"test": sides.get("test") or sides.get("val") or self.folder}
        if not sides:
            if self.validation is None:
                return {"": self.folder}
            raise DataError(
                f"{self.folder}: validation={self.validation} is a share of the folder `train`, and there is none. Use "
                "data.val_fraction instead."
            )
        remedy = None
        if "train" not in sides:
            what = f"{' and '.join(sides)}, but no folder `train`"
            remedy = "use the images for evaluation only (data.corpora...evaluation=true)"
        elif "val" not in sides and self.validation is None:
            what, remedy = "no folder `val`", "hold out a share of train (data.corpora...validation=0.05)"
        if remedy:
            classes = (
                "; if train, val and test are classes, set data.corpora...classes_only=true" if beside else ""
            )
            raise DataError(f"{self.folder}: there is {what}. Add it, or {remedy}{classes}.")
        return sides

    def _images(
        self, found: dict[str, dict[str, list[Path]]], names: dict[str, str]
    ) -> Iterator[ImageExample]:
        held: set[str] = set()
        if "train" in found and self.validation is not None:
            if "val" in found and "test" in found:
                raise DataError(
                    f"{self.folder}: with val and test folders no images are held out: leave out `validation`."
                )
            paths = [self._name(path) for files in found["train"].values() for path in files]
            held = {paths[index] for index in held_out(paths, max(1, round(self.validation * len(paths))))}
        for side, classes in found.items():
            # As ImageNet is reported: its folder `val` is the test.
            stated = "test" if side == "val" and held and "test" not in found else side
            for name, files in classes.items():
                for path in files:
                    own = self._name(path)
                    split = "val" if own in held else stated or None
                    yield ImageExample(id=own, image=path, label=names.get(name, name), split=split)

    def _name(self, path: Path) -> str:
        return printable(path.relative_to(self.folder).as_posix())

    def _read_names(self) -> dict[str, str]:
        if self.names is None:
            return {}
        pairs = {}
        for number, line in enumerate(read_lines(self.names, "names"), 1):
            name, tab, label = line.partition("\t")
            if line.strip() and not (tab and name.strip() and label.strip()):
                raise DataError(f"{self.names}, line {number}: {line[:40]!r} is not FOLDER<tab>LABEL.")
            if line.strip():
                pairs[unicodedata.normalize("NFC", name.strip())] = label.strip()
        return pairs


def _classes(root: Path, skipped: list[Skipped]) -> dict[str, list[Path]]:
    """Return folder of a class -> its images, however deep. Raises `DataError` if there is none."""
    found: dict[str, list[Path]] = {}
    others: list[Path] = []
    for path in sorted(root.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            # One class, however its accents are encoded: macOS decomposes them.
            name = unicodedata.normalize("NFC", printable(path.name))
            found[name] = found.get(name, []) + find_images(path, others)
        elif path.name.lower().endswith(SUFFIXES):
            skipped.append(Skipped(path.name, str(path), "in no folder of a class"))
    for path in others:
        ending = f"names that end in {path.suffix.lower()}" if path.suffix else "names without an ending"
        skipped.append(Skipped(printable(path.name), str(path), f"{ending} are not read"))
    for name in [name for name, files in found.items() if not files]:
        skipped.append(Skipped(name, str(root / name), "class folder without images"))
        del found[name]
    if not found:
        raise DataError(
            f"{root}: there is no folder with images in it ({', '.join(SUFFIXES)}); each class needs a folder."
        )
    return found


def _listing(root: Path) -> str:
    """Return a digest of all names, sizes and times."""
    total = hashlib.sha256()
    for folder, names in walk(root):
        entries = {entry.name: entry for entry in os.scandir(folder)}
        total.update(os.fsencode(folder.relative_to(root)) + b"/\0")
        for name in names:
            try:
                stat = entries[name].stat()
            except OSError:  # a link to nowhere: a bad image, reported when it is read
                stat = entries[name].stat(follow_symlinks=False)
            total.update(os.fsencode(name) + f"\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return total.hexdigest()
