"""Prepared questions beside prepared images, and batches of both (see data/image_question.py)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from magneto.data.collate import pad_texts
from magneto.data.corpora.base import SPLITS, Skipped
from magneto.data.corpora.text.base import why_unusable
from magneto.data.corpora.vqa.base import Question, QuestionReader
from magneto.data.image.dataset import ImageDataset, ImageInfo, Prepared, image_lines
from magneto.data.io.image import read_image
from magneto.data.text.prepared_texts import PreparedTexts
from magneto.data.text_classification.dataset import TokenizerSettings
from magneto.data.tokenizers.encode import encode
from magneto.data.tokenizers.text import TextTokenizer
from magneto.data.transforms.text import clean_caption
from magneto.data.vqa.answers import normalize_answer
from magneto.errors import ConfigError, DataError

LISTED = 1000  # skipped questions in the report; all are counted
ALONE = -1  # group of a question that is in none


@dataclass(frozen=True, kw_only=True)
class VqaInfo(ImageInfo):
    """The facts of prepared questions: all that a task, and a checkpoint alone, needs to know.

    `labels` are the answers among which a model chooses, the most frequent first.
    """

    tokenizer: str  # content of tokenizer.json
    vocab_size: int
    max_tokens: int  # of a question, <s> and </s> included
    lowercase: bool
    images: int  # of each question: 1, or 2 where statements are judged
    kinds: list[str]  # of questions
    majority_answers: list[
        int
    ]  # of each kind the most frequent answer in training, then that of all questions
    questions: dict[str, int]  # per split
    unanswerable: dict[str, int]  # per split, questions none of whose answers is among `labels`
    truncated: int  # questions that were longer


class CorpusImages:
    """The usable images of a source: see `UsableImages`."""

    def __init__(self, folder: Path, name: str, info: ImageInfo) -> None:
        self._prepared, self._info = Prepared(folder), info
        self.rows: dict[str, int] = {}
        """Id -> row of the prepared folder."""
        self.splits: dict[str, str] = {}
        for row, line in enumerate(image_lines(folder)):
            source, _, id = line["id"].partition("/")
            if source == name and line["split"] is not None:
                self.rows[id], self.splits[id] = row, line["split"]

    def pixels(self, id: str) -> np.ndarray:
        """(H, W) or (H, W, 3) uint8, as evaluation sees it."""
        row = self.rows[id]
        if self._prepared.stored:
            pixels = self._prepared.pixels[row]
        else:
            info = self._info
            image = read_image(self._prepared.image(row), info.channels, svg_side=info.svg_side)
            pixels = info.evaluation_image(image)
        return np.asarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


@dataclass(frozen=True, kw_only=True)
class QuestionBuilder:
    """Settings of `VqaDataModule` under which `builder(folder)` fills a folder.

    Writes questions.npz, questions.jsonl, tokenizer.json, facts.json and prepare_report.json.
    """

    corpora: Mapping[str, QuestionReader]
    data_dir: Path
    images: Path  # their prepared folder
    info: ImageInfo  # of them
    tokenizer: TokenizerSettings
    given: TextTokenizer | None
    labels: Sequence[str] | None  # None: the most frequent ones
    num_answers: int | None
    max_tokens: int
    lowercase: bool

    def __call__(self, folder: Path) -> None:
        skipped: list[Skipped] = []
        origin: dict[str, Any] = {}
        found = list(self._usable(skipped, origin))
        each = {len(images) for _, _, images in found}
        if len(each) > 1:
            raise ConfigError(
                "data.corpora: some questions are about one image and others about two: choose one sort."
            )
        for split in ("train", "val"):
            if not any(of == split for _, of, _ in found):
                reasons = Counter(item.reason for item in skipped).most_common(5)
                listed = "; ".join(f"{count} {reason}" for reason, count in reasons) or "none was skipped"
                raise DataError(
                    f"No usable question is left for the {split} split (skipped: {listed}). Check data.corpora."
                )
        labels = self._labels([question for question, split, _ in found if split == "train"])
        place = {label: number for number, label in enumerate(labels)}
        counts = [
            Counter(place[answer] for answer in question.answers if answer in place)
            for question, _, _ in found
        ]
        splits = [split for _, split, _ in found]
        texts = [question.text for question, _, _ in found]
        tokenizer = self.given or self.tokenizer.make(
            [text for text, split in zip(texts, splits, strict=True) if split == "train"]
        )
        encoded = encode(tokenizer, texts, [None] * len(texts), self.max_tokens)
        kinds = sorted({question.kind for question, _, _ in found})
        groups = {
            group: number
            for number, group in enumerate(dict.fromkeys(q.group for q, _, _ in found if q.group))
        }
        np.savez(
            folder / "questions.npz",
            split=np.array([SPLITS.index(split) for split in splits], np.int8),
            images=np.array([images for _, _, images in found], np.int64),
            start=encoded.start,
            tokens=encoded.tokens,
            kind=np.array([kinds.index(question.kind) for question, _, _ in found], np.int64),
            group=np.array([groups[q.group] if q.group else ALONE for q, _, _ in found], np.int64),
            people=np.array([len(question.answers) for question, _, _ in found], np.int64),
            answer_start=np.cumsum([0, *map(len, counts)]),
            answer=np.array([answer for one in counts for answer in one], np.int64),
            count=np.array([count for one in counts for count in one.values()], np.int64),
        )
        with (folder / "questions.jsonl").open("w", encoding="utf-8") as file:
            for question, split, _ in found:
                file.write(json.dumps({"split": split, **asdict(question)}, ensure_ascii=False) + "\n")
        (folder / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
        facts = {
            "labels": labels,
            "kinds": kinds,
            "images": each.pop(),
            "majority_answers": _majority_answers(found, counts, kinds),
            "questions": {split: splits.count(split) for split in SPLITS},
            "unanswerable": {
                split: sum(not one for one, of in zip(counts, splits, strict=True) if of == split)
                for split in SPLITS
            },
            "truncated": encoded.truncated,
        }
        report = {
            **facts,
            "corpus": origin,
            "skipped_by_reason": dict(Counter(item.reason for item in skipped).most_common()),
            "skipped": [asdict(item) for item in skipped[:LISTED]],
        }
        for name, values in (("facts.json", facts), ("prepare_report.json", report)):
            (folder / name).write_text(json.dumps(values, indent=1, ensure_ascii=False), encoding="utf-8")

    def _usable(
        self, skipped: list[Skipped], origin: dict[str, Any]
    ) -> Iterator[tuple[Question, str, list[int]]]:
        """Questions with clean texts and answers, their split, and the rows of their images; notes the others."""
        for name, source in self.corpora.items():
            images = CorpusImages(self.images, name, self.info)
            corpus = source.questions(self.data_dir, images)
            origin[name] = corpus.origin
            for question in corpus.questions:
                # An answer that cannot be chosen still is that of a person who was asked.
                answers = tuple(
                    "" if why_unusable(answer) else normalize_answer(answer) for answer in question.answers
                )
                reason = self._why_unusable(question, images)
                if reason is not None:
                    skipped.append(Skipped(f"{name}/{question.id}", "", reason))
                    continue
                clean = Question(
                    id=f"{name}/{question.id}",
                    text=clean_caption(question.text, self.lowercase),
                    images=question.images,
                    answers=answers,
                    kind=question.kind,
                    group=question.group and f"{name}/{question.group}",
                )
                rows = [images.rows[id] for id in question.images]
                yield clean, images.splits[question.images[0]], rows
            skipped += [Skipped(f"{name}/{item.id}", item.file, item.reason) for item in corpus.skipped]

    @staticmethod
    def _why_unusable(question: Question, images: CorpusImages) -> str | None:
        reason = why_unusable(question.text)
        if reason is not None:
            return f"question: {reason}"
        if all(map(why_unusable, question.answers)):
            return "no answer"
        sides = {images.splits.get(id) for id in question.images}
        if None in sides:
            return "its image is missing or was left out"
        return "its images stand on two sides of the split" if len(sides) > 1 else None

    def _labels(self, training: Sequence[Question]) -> list[str]:
        """The answers that most people gave to the most questions; among equals by the alphabet."""
        if self.labels is not None:
            return list(self.labels)
        told = (tuple(filter(None, question.answers)) for question in training)
        chosen = Counter(_commonest(answers) for answers in told if answers)
        ranked = sorted(chosen, key=lambda answer: (-chosen[answer], answer))
        return ranked[: self.num_answers]


def _commonest(answers: Sequence[str]) -> str:
    counts = Counter(answers)
    return min(counts, key=lambda answer: (-counts[answer], answer))


def _majority_answers(
    found: Sequence[tuple[Question, str, list[int]]], counts: Sequence[Counter[int]], kinds: Sequence[str]
) -> list[int]:
    """See `VqaInfo.majority_answers`."""
    given: dict[str | None, Counter[int]] = {kind: Counter() for kind in (*kinds, None)}
    for (question, split, _), one in zip(found, counts, strict=True):
        if split == "train":
            given[question.kind] += one
            given[None] += one
    return [min(own, key=lambda label: (-own[label], label), default=0) for own in given.values()]


@dataclass
class PreparedQuestions(PreparedTexts):
    """Facts: labels, kinds, images, majority_answers, questions, unanswerable, truncated.

    Arrays for M questions: split (M,), images (M, P) rows, start (M + 1,) in tokens, kind, group and people (M,), and
    answer_start (M + 1,) in answer and count, the labels that people gave and how many did.
    """

    kind: str = "questions"


@dataclass(frozen=True, kw_only=True)
class QuestionReading:
    """How the questions of a split become parts of batches. kinds: of the folder -> of the model, and -1."""

    split: str
    pad_id: int
    max_tokens: int
    num_labels: int
    kinds: np.ndarray = field(repr=False)


class VqaDataset(Dataset[dict[str, Any]]):
    """Questions with their images. Batches are asked for as lists of (epoch, position), all of one epoch.

    images: all images of the prepared folder, in its order. rows: (n,) of the questions' folder.
    """

    def __init__(
        self, images: ImageDataset, questions: PreparedQuestions, rows: np.ndarray, reading: QuestionReading
    ) -> None:
        self.images, self.questions, self.rows, self.reading = images, questions, rows, reading
        self.lengths = np.ones(len(rows), np.int64)
        """(n,): batches are counted in questions."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Any]:
        """A batch of one."""
        return self.__getitems__([place])

    def __getitems__(self, places: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """The batch: see data/image_question.py."""
        epoch, reading, arrays = places[0][0], self.reading, self.questions.arrays
        rows = self.rows[[position for _, position in places]]
        image_rows = arrays["images"][rows]
        images = self.images.__getitems__([(epoch, row) for row in image_rows.flatten().tolist()])["image"]
        texts = [
            arrays["tokens"][arrays["start"][row] : arrays["start"][row + 1]].astype(np.int64) for row in rows
        ]
        tokens, mask = pad_texts(texts, reading.pad_id, reading.max_tokens)
        counts = np.zeros((len(rows), reading.num_labels), np.float32)
        for line, row in enumerate(rows):
            given = slice(*arrays["answer_start"][row : row + 2])
            counts[line, arrays["answer"][given]] = arrays["count"][given]
        batch: dict[str, Any] = {
            "id": torch.from_numpy(rows.astype(np.int64)),
            "image": images.unflatten(0, image_rows.shape),
            "tokens": tokens,
            "mask": mask,
            "counts": torch.from_numpy(counts),
            "people": torch.from_numpy(arrays["people"][rows].astype(np.float32)),
            "kind": torch.from_numpy(reading.kinds[arrays["kind"][rows]]),
            "group": torch.from_numpy(arrays["group"][rows]),
        }
        if reading.split != "train":
            batch["text"] = [self.questions.texts[row] for row in rows]
        return batch
