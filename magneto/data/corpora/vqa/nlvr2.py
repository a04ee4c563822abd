"""NLVR2 (Suhr et al., arXiv 1811.00491): statements about two photographs, true or false, as on disk (docs/data.md).

A file of JSON lines for each split; the statement `train-10171-0-1` is about `train-10171-0-img0.png` and
`train-10171-0-img1.png`. Its name tells the split, the number of a set, of a pair of the set and of a sentence of the set:
the same sentence is said of several pairs, and is understood where all of them are judged rightly.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from magneto.data.corpora.base import SPLITS, Skipped
from magneto.data.corpora.image.base import ImageCorpus, ImageExample, image_files_digest
from magneto.data.corpora.text.base import BadText, decode_text, text_of
from magneto.data.corpora.vqa.base import TRUTH, Question, QuestionCorpus, UsableImages
from magneto.data.io.digest import file_digest
from magneto.errors import ConfigError, DataError, nearest

_PARTS = 4  # of an identifier


class Nlvr2Reader:
    """Statements with two images each.

    files: split -> file: {train: train.json, val: dev.json, test: test1.json}; validation may serve as the test.
    folders: split -> folder of its images, in which they lie directly or in the numbered folders of the training set
    (`directory` of a line).
    """

    def __init__(
        self, files: Mapping[str, str] | None = None, folders: Mapping[str, str] | None = None
    ) -> None:
        if not files or not folders:
            raise ConfigError(
                "data: name NLVR2's files and images (data.corpora.nlvr2.files={train: train.json, val: dev.json, test: "
                "test1.json} data.corpora.nlvr2.folders={train: images/train, val: dev, test: test1})."
            )
        for key, named in (("files", files), ("folders", folders)):
            for split in named:
                if split not in SPLITS:
                    raise ConfigError(
                        f"data: {key} are of {', '.join(SPLITS)}, not of {split!r}.{nearest(split, SPLITS)}"
                    )
        if alone := files.keys() ^ folders.keys():
            raise ConfigError(f"data: split {sorted(alone)[0]} has a file or a folder alone. Name both.")
        self.files = {split: Path(files[split]).expanduser() for split in SPLITS if split in files}
        self.folders = {split: Path(folder).expanduser() for split, folder in folders.items()}

    def fingerprint(self) -> dict[str, Any]:
        """Content of the files, where the images are, and their sizes and times."""
        files = {split: file_digest(file) if file.is_file() else None for split, file in self.files.items()}
        return {
            "corpus": "nlvr2",
            "recipe": 2,
            "files": files,
            "images": image_files_digest(self),
            "folders": {split: str(folder.absolute()) for split, folder in self.folders.items()},
        }

    def load(self, data_dir: Path) -> ImageCorpus:
        """The images that statements are about."""
        images: dict[str, ImageExample] = {}
        for split, line in self._lines([]):
            for name in _images(line["identifier"]):
                if name not in images:
                    place = self._find(split, line.get("directory"), name)
                    images[name] = ImageExample(id=name, image=place, split=split)
        return ImageCorpus(examples=list(images.values()), origin=self._origin())

    def _find(self, split: str, directory: Any, name: str) -> Path:
        direct = self.folders[split] / name
        return direct if directory is None or direct.exists() else self.folders[split] / str(directory) / name

    def questions(self, data_dir: Path, images: UsableImages) -> QuestionCorpus:
        """All statements."""
        skipped: list[Skipped] = []
        found = []
        for _, line in self._lines(skipped):
            name, label = line["identifier"], str(line.get("label", "")).lower()
            if label not in TRUTH:
                skipped.append(Skipped(name, "", "no label True or False"))
                continue
            found.append(
                Question(
                    id=name,
                    text=text_of(line["sentence"]),
                    images=_images(name),
                    answers=(label,),
                    group=_sentence(name),
                )
            )
        return QuestionCorpus(found, skipped, self._origin())

    def _lines(self, skipped: list[Skipped]) -> Iterator[tuple[str, dict[str, Any]]]:
        """(split, object) of the lines with an identifier and a sentence."""
        for split, file in self.files.items():
            try:
                lines = file.read_bytes().split(b"\n")
            except OSError as error:
                raise DataError(f"files={file}: cannot be read ({error.strerror}).") from error
            good = 0
            for number, raw in enumerate(lines, start=1):
                if not raw.strip():
                    continue
                try:
                    line = json.loads(decode_text(raw))
                    if len(line["identifier"].split("-")) != _PARTS or not isinstance(line["sentence"], str):
                        raise ValueError
                except (BadText, ValueError, KeyError, TypeError, AttributeError):
                    reason = "no JSON object with an identifier and a sentence"
                    skipped.append(Skipped(f"line {number}", file.name, reason))
                    continue
                good += 1
                yield split, line
            if not good:
                raise DataError(
                    f"files={file}: no line is of NLVR2's form, a JSON object with identifier, sentence and label."
                )

    def _origin(self) -> dict[str, Any]:
        return {"files": {split: file.name for split, file in self.files.items()}}


def _images(identifier: str) -> tuple[str, str]:
    pair = identifier.rpartition("-")[0]
    return f"{pair}-img0.png", f"{pair}-img1.png"


def _sentence(identifier: str) -> str:
    """The identifier without the number of the pair."""
    split, number, _, sentence = identifier.split("-")
    return f"{split}-{number}-{sentence}"
