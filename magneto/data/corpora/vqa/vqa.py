"""VQA (Goyal et al., arXiv 1612.00837, version 2): questions about COCO's photographs, ten answers each (docs/data.md).

As published: a file of questions and one of annotations for each split, and the folder of COCO's images.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from magneto.data.corpora.base import SPLITS, Skipped, require_splits
from magneto.data.corpora.image.base import ImageCorpus, ImageExample, image_files_digest
from magneto.data.corpora.text.base import text_of
from magneto.data.corpora.vqa.base import Question, QuestionCorpus, UsableImages
from magneto.data.io.digest import file_digest
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
        """See `Reader`; of the images names, sizes and times."""
        files = {
            split: [file_digest(file) if file.is_file() else None for file in pair]
            for split, pair in self.files.items()
        }
        return {
            "corpus": "vqa",
            "recipe": 2,
            "files": files,
            "folder": str(self.folder.absolute()),
            "images": image_files_digest(self),
        }

    def load(self, data_dir: Path) -> ImageCorpus:
        """Return the images of the questions."""
        images: dict[str, ImageExample] = {}
        for split, (file, _) in self.files.items():
            content = _read(file, "questions")
            subset = _subset(file, content)
            for entry in content["questions"]:
                if isinstance(entry, dict) and isinstance(entry.get("image_id"), int):
                    name = f"COCO_{subset}_{entry['image_id']:012d}.jpg"
                    if name not in images:
                        images[name] = ImageExample(id=name, image=self._find(name, subset), split=split)
        return ImageCorpus(examples=list(images.values()), origin=self._origin())

    def _find(self, name: str, subset: str) -> Path:
        direct = self.folder / name
        return direct if direct.exists() else self.folder / subset / name

    def questions(self, data_dir: Path, images: UsableImages) -> QuestionCorpus:
        """Return all questions, joined with their annotations by id."""
        skipped: list[Skipped] = []
        return QuestionCorpus(list(self._joined(skipped)), skipped, self._origin())

    def _joined(self, skipped: list[Skipped]) -> Iterator[Question]:
        for file, annotations in self.files.values():
            answered: dict[Any, tuple[tuple[str, ...], str]] = {}
            for entry in _read(annotations, "annotations")["annotations"]:
                try:
                    answers = tuple(text_of(one["answer"]) for one in entry["answers"])
                    answered[entry["question_id"]] = answers, str(entry.get("answer_type", ""))
                except (KeyError, TypeError):
                    number = entry.get("question_id") if isinstance(entry, dict) else entry
                    skipped.append(
                        Skipped(str(number), annotations.name, "annotation without question_id or answers")
                    )
            content = _read(file, "questions")
            subset = _subset(file, content)
            for entry in content["questions"]:
                try:
                    number, text = entry["question_id"], text_of(entry["question"])
                    hash(number)  # a list or an object is no id: TypeError
                    image = f"COCO_{subset}_{int(entry['image_id']):012d}.jpg"
                except (KeyError, TypeError, ValueError, OverflowError):
                    number = entry.get("question_id") if isinstance(entry, dict) else entry
                    skipped.append(
                        Skipped(str(number), file.name, "question without question_id, image_id or question")
                    )
                    continue
                if number not in answered:
                    skipped.append(Skipped(str(number), file.name, "question without annotation"))
                    continue
                answers, kind = answered.pop(number)
                yield Question(id=str(number), text=text, images=(image,), answers=answers, kind=kind)
            skipped += [
                Skipped(str(number), annotations.name, "annotation without question") for number in answered
            ]

    def _origin(self) -> dict[str, Any]:
        return {"files": {split: [file.name for file in pair] for split, pair in self.files.items()}}


def _read(file: Path, key: str) -> dict[str, Any]:
    """Return the object of a file of the official form: its `key` is a list."""
    content = read_json(file, key)
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        raise DataError(
            f"{key}={file}: not of VQA's form, which is an object with a list of {key}. Name the published file."
        )
    return dict(content)


def _subset(file: Path, content: Mapping[str, Any]) -> str:
    """Return the part of COCO in the names of the images (train2014); images of test-dev are of test2015."""
    subset = str(content.get("data_subtype", ""))
    if not subset:
        raise DataError(
            f"questions={file}: has no data_subtype (train2014, val2014...), by which images are named. Name the "
            "published file."
        )
    return subset.replace("test-dev", "test")
