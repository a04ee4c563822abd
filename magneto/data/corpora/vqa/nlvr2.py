"""NLVR2 (Suhr et al., arXiv 1811.00491): statements about two photographs, true or false (docs/data.md).

A file of JSON lines for each split; the statement `train-10171-0-1` is about `train-10171-0-img0.png` and
`train-10171-0-img1.png`. Its name states the split, the number of a set, of a pair of the set and of a sentence of the set:
one sentence is about several pairs, and is understood if the answers about all of them are correct.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from magneto.data.corpora.base import SPLITS, Skipped, listed, require_splits
from magneto.data.corpora.image.base import ImageCorpus, ImageExample, annotated
from magneto.data.corpora.text.base import text_of
from magneto.data.corpora.vqa.base import TRUTH, Question, QuestionCorpus, UsableImages
from magneto.data.io.text import json_lines, read_bytes
from magneto.errors import ConfigError, DataError

_PARTS = 4  # of an identifier


class Nlvr2Reader:
    """Statements with two images each.

    Args:
        files: split -> file: {train: train.json, val: dev.json, test: test1.json}; validation may also be the test.
        folders: split -> folder of its images, directly or in the numbered folders of the training set (`directory` of a
            line).
    """

    def __init__(
        self, files: Mapping[str, str] | None = None, folders: Mapping[str, str] | None = None
    ) -> None:
        if not files or not folders:
            raise ConfigError(
                "data: name NLVR2's files and images (data.corpora.nlvr2.files={train: train.json, val: dev.json, test: "
                "test1.json} data.corpora.nlvr2.folders={train: images/train, val: dev, test: test1})."
            )
        require_splits("files", files)
        require_splits("folders", folders)
        if alone := files.keys() ^ folders.keys():
            raise ConfigError(f"data: split {sorted(alone)[0]} has a file or a folder alone. Name both.")
        self.files = {split: Path(files[split]).expanduser() for split in SPLITS if split in files}
        self.folders = {split: Path(folder).expanduser() for split, folder in folders.items()}

    def fingerprint(self) -> dict[str, Any]:
        """See `Reader`."""
        folders = {split: str(folder.absolute()) for split, folder in self.folders.items()}
        return annotated(self, "nlvr2", self.files, folders=folders)

    def load(self, data_dir: Path) -> ImageCorpus:
        """Return the images of the statements."""
        images: dict[str, ImageExample] = {}
        for split, line in listed(self._lines())[0]:
            for name in _images(line["identifier"]):
                if name not in images:
                    path = self._find(split, line.get("directory"), name)
                    images[name] = ImageExample(id=name, image=path, split=split)
        return ImageCorpus(examples=list(images.values()), origin=self._origin())

    def _find(self, split: str, directory: Any, name: str) -> Path:
        direct = self.folders[split] / name
        return direct if directory is None or direct.exists() else self.folders[split] / str(directory) / name

    def questions(self, data_dir: Path, images: UsableImages) -> QuestionCorpus:
        """Return all statements."""
        return QuestionCorpus(*listed(self._statements()), self._origin())

    def _statements(self) -> Iterator[Question | Skipped]:
        for one in self._lines():
            if isinstance(one, Skipped):
                yield one
                continue
            name, text = one[1]["identifier"], text_of(one[1]["sentence"])
            label = str(one[1].get("label", "")).lower()
            if label not in TRUTH:
                yield Skipped(name, "", "no label True or False")
                continue
            split, number, _, sentence = name.split("-")  # the third is the number of the pair
            group = f"{split}-{number}-{sentence}"
            yield Question(id=name, text=text, images=_images(name), answers=(label,), group=group)

    def _lines(self) -> Iterator[tuple[str, dict[str, Any]] | Skipped]:
        """Yield (split, object) of the lines with an identifier and a sentence."""
        for split, file in self.files.items():
            usable = False
            for number, line in json_lines(read_bytes(file, "files").split(b"\n")):
                try:
                    if len(line["identifier"].split("-")) != _PARTS or not isinstance(line["sentence"], str):
                        raise ValueError
                except (ValueError, KeyError, TypeError, AttributeError):  # of BadText too
                    reason = "no JSON object with an identifier and a sentence"
                    yield Skipped(f"line {number}", file.name, reason)
                    continue
                usable = True
                yield split, line
            if not usable:
                raise DataError(
                    f"files={file}: no line is of NLVR2's form, a JSON object with identifier, sentence and label. "
                    "Name the published file."
                )

    def _origin(self) -> dict[str, Any]:
        return {"files": {split: file.name for split, file in self.files.items()}}


def _images(identifier: str) -> tuple[str, str]:
    pair = identifier.rpartition("-")[0]
    return f"{pair}-img0.png", f"{pair}-img1.png"
