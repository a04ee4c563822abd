"""VQA (Goyal et al., arXiv 1612.00837, version 2): questions about COCO's photographs, ten answers each (docs/data.md).

As published: a file of questions and one of annotations for each split, and the folder of COCO's images.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from magneto.data.corpora.base import SPLITS, Skipped, listed, require_splits
from magneto.data.corpora.image.base import ImageCorpus, ImageExample, annotated
from magneto.data.corpora.text.base import text_of
from magneto.data.corpora.vqa.base import Question, QuestionCorpus, UsableImages
from magneto.data.io.text import read_json
from magneto.errors import ConfigError, DataError


class VqaReader:
    """Questions with one image each.

    Args:
        questions: split -> file, such as {train: v2_OpenEnded_mscoco_train2014_questions.json, ...}; validation may also be
            the test.
        annotations: split -> file, such as {train: v2_mscoco_train2014_annotations.json, ...}.
        folder: the folder of the images, or of their folders train2014, val2014...
    """

    def __init__(
        self,
        questions: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
        folder: str | None = None,
    ) -> None:
        if not questions or not annotations or folder is None:
            raise ConfigError(
                "data: name VQA's files and COCO's images (data.corpora.vqa.questions={train: QUESTIONS.json, val: ...} "
                "data.corpora.vqa.annotations={train: ANNOTATIONS.json, val: ...} data.corpora.vqa.folder=coco)."
            )
        for key, files in (("questions", questions), ("annotations", annotations)):
            require_splits(key, files)
        if alone := questions.keys() ^ annotations.keys():
            raise ConfigError(
                f"data: split {sorted(alone)[0]} has questions or annotations alone. Name both: without answers there is "
                "nothing to learn or to measure."
            )
        self.files = {
            split: (Path(questions[split]).expanduser(), Path(annotations[split]).expanduser())
            for split in SPLITS
            if split in questions
        }
        self.folder = Path(folder).expanduser()

    def fingerprint(self) -> dict[str, Any]:
        """See `Reader`."""
        return annotated(self, "vqa", self.files, folder=str(self.folder.absolute()))

    def load(self, data_dir: Path) -> ImageCorpus:
        """Return the images of the questions."""
        images: dict[str, ImageExample] = {}
        for split, (file, _) in self.files.items():
            entries, subset = _questions(file)
            for entry in entries:
                if isinstance(entry, dict) and isinstance(entry.get("image_id"), int):
                    name = f"COCO_{subset}_{entry['image_id']:012d}.jpg"
                    if name not in images:
                        direct = self.folder / name
                        path = direct if direct.exists() else self.folder / subset / name
                        images[name] = ImageExample(id=name, image=path, split=split)
        return ImageCorpus(examples=list(images.values()), origin=self._origin())

    def questions(self, data_dir: Path, images: UsableImages) -> QuestionCorpus:
        """Return all questions, joined with their annotations by id."""
        return QuestionCorpus(*listed(self._joined()), self._origin())

    def _joined(self) -> Iterator[Question | Skipped]:
        for file, annotations in self.files.values():
            answered: dict[Any, tuple[tuple[str, ...], str]] = {}
            for entry in _read(annotations, "annotations")["annotations"]:
                try:
                    answers = tuple(text_of(one["answer"]) for one in entry["answers"])
                    answered[entry["question_id"]] = answers, str(entry.get("answer_type", ""))
                except (KeyError, TypeError):
                    yield Skipped(_id(entry), annotations.name, "annotation without question_id or answers")
            entries, subset = _questions(file)
            for entry in entries:
                try:
                    number, text = entry["question_id"], text_of(entry["question"])
                    image = f"COCO_{subset}_{int(entry['image_id']):012d}.jpg"
                    found = answered.pop(number, None)  # TypeError: a list or an object is no id
                except (KeyError, TypeError, ValueError, OverflowError):
                    yield Skipped(_id(entry), file.name, "question without question_id, image_id or question")
                    continue
                if found is None:
                    yield Skipped(str(number), file.name, "question without annotation")
                else:
                    answers, kind = found
                    yield Question(id=str(number), text=text, images=(image,), answers=answers, kind=kind)
            for number in answered:
                yield Skipped(str(number), annotations.name, "annotation without question")

    def _origin(self) -> dict[str, Any]:
        return {"files": {split: [file.name for file in pair] for split, pair in self.files.items()}}


def _id(entry: Any) -> str:
    return str(entry.get("question_id") if isinstance(entry, dict) else entry)


def _read(file: Path, key: str) -> dict[str, Any]:
    """Return the object of a file of the official form: its `key` is a list."""
    content = read_json(file, key)
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        raise DataError(
            f"{key}={file}: not of VQA's form, which is an object with a list of {key}. Name the published file."
        )
    return dict(content)


def _questions(file: Path) -> tuple[list[Any], str]:
    """Return the questions, and the part of COCO in the names of their images (train2014); test-dev has test2015's."""
    content = _read(file, "questions")
    subset = str(content.get("data_subtype", ""))
    if not subset:
        raise DataError(
            f"questions={file}: has no data_subtype (train2014, val2014...), by which images are named. Name the "
            "published file."
        )
    return content["questions"], subset.replace("test-dev", "test")
