"""Questions about prepared images, with the answers that people gave, in Arrow tables.

The columns, a row for each question: `id`; `question`, the text; `kind`; `answers`, one of each person who was asked;
`image_ids`; `row`, its number over all splits; `images`, the positions of its images in the same split of the prepared
images; `group`, equal where one statement is made of several pairs of images, -1 where it is made of this one only;
`tokens`, `<s>` and `</s>` included; `labels` and `counts`, which of `info.labels` people gave, and how many did.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from magneto.data.corpora.base import SPLITS
from magneto.data.corpora.text.base import why_unusable
from magneto.data.corpora.vqa.base import Question
from magneto.data.image.module import ImageDataModule
from magneto.data.io.image import read_image
from magneto.data.prepared import Preparation
from magneto.data.tokenizers.encode import encode
from magneto.data.tokenizers.text import TextTokenizer
from magneto.data.transforms.text import clean_caption
from magneto.data.vqa.answers import normalize_answer
from magneto.data.vqa.config import VqaConfig
from magneto.data.vqa.dataset import VqaInfo
from magneto.errors import ConfigError

ALONE = -1  # group of a question that is in none


class UsableQuestion(NamedTuple):
    """A question that is kept. images: their positions in their split."""

    question: Question
    row: int
    split: str
    images: list[int]


class CorpusImages:
    """The usable images of a corpus: see `UsableImages`.

    Attributes:
        positions: id -> position in its split.
        splits: id -> split, in the order of the corpus.
    """

    def __init__(self, images: ImageDataModule, name: str) -> None:
        self._info = images.info
        self._tables = {split: images.table(split) for split in SPLITS}
        found = [
            (row, id.partition("/")[2], split, position)
            for split, table in self._tables.items()
            for position, (row, id) in enumerate(
                zip(table.numbers("row").tolist(), table.arrow["id"].to_pylist(), strict=True)
            )
            if id.partition("/")[0] == name
        ]
        found.sort()
        self.positions = {id: position for _, id, _, position in found}
        self.splits = {id: split for _, id, split, _ in found}

    def pixels(self, id: str) -> np.ndarray:
        """Return an image as evaluation sees it, (H, W) or (H, W, 3) uint8."""
        table, position = self._tables[self.splits[id]], self.positions[id]
        if table.stored:
            pixels = table.pixels(np.array([position]))[0]
        else:
            image = read_image(table.image(position), self._info.channels, svg_side=self._info.svg_side)
            pixels = self._info.evaluation_image(image)
        return np.asarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))


def build(target: Preparation, images: ImageDataModule) -> dict[str, Any]:
    """Write the tables; return the fields of the info of the questions. images: prepared.

    For the model of a checkpoint (`target.given`) its tokenizer and its answers are used; otherwise both follow from the
    training questions.
    """
    config: VqaConfig = target.config
    model: VqaInfo | None = target.given
    found = list(_usable(target, images))
    target.report["corpus"] = target.origins
    each = {len(usable.images) for usable in found}
    if len(each) > 1:
        raise ConfigError(
            "data.corpora: some questions are about one image and others about two. Use corpora of one sort."
        )
    by_split = {split: [usable for usable in found if usable.split == split] for split in SPLITS}
    questions = {split: len(own) for split, own in by_split.items()}
    if model is not None:
        target.splits = ("test",) if questions["test"] else ("val",)
    target.require(questions, "Check data.corpora.")
    if model is not None:
        tokenizer, labels = TextTokenizer.from_json(model.tokenizer), list(model.labels)
    else:
        training = [usable.question for usable in by_split["train"]]
        tokenizer = config.tokenizer.make([question.text for question in training])
        labels = _labels(training)[: config.num_answers]
    index = {label: number for number, label in enumerate(labels)}
    counts = [
        Counter(index[answer] for answer in usable.question.answers if answer in index) for usable in found
    ]
    named = dict.fromkeys(usable.question.group for usable in found if usable.question.group)
    groups: dict[str | None, int] = {group: number for number, group in enumerate(named)}
    truncated = 0
    with target.tables(schema(each.pop())) as tables:
        for split, own in by_split.items():
            texts = [usable.question.text for usable in own]
            encoded = encode(tokenizer, texts, [None] * len(texts), config.max_tokens)
            truncated += encoded.truncated
            given = [counts[usable.row] for usable in own]
            columns = {
                "id": [usable.question.id for usable in own],
                "question": texts,
                "kind": [usable.question.kind for usable in own],
                "answers": [usable.question.answers for usable in own],
                "image_ids": [usable.question.images for usable in own],
                "row": [usable.row for usable in own],
                "images": np.array([usable.images for usable in own], np.int64),
                "group": [groups.get(usable.question.group, ALONE) for usable in own],
                "tokens": encoded.tokens,
                "labels": [np.array([*one], np.int64) for one in given],
                "counts": [np.array([*one.values()], np.int64) for one in given],
            }
            tables.write(split, columns)
    kinds = sorted({usable.question.kind for usable in found})
    return {
        "tokenizer": tokenizer.to_json(),
        "vocab_size": tokenizer.vocab_size,
        "labels": labels,
        "kinds": kinds,
        "images": len(found[0].images),
        "majority_answers": _majority_answers(found, counts, kinds),
        "questions": questions,
        "unanswerable": {
            split: sum(not counts[usable.row] for usable in own) for split, own in by_split.items()
        },
        "truncated": truncated,
    }


def _usable(target: Preparation, all_images: ImageDataModule) -> Iterator[UsableQuestion]:
    """Yield questions with clean texts and answers; note the others, and where the corpora come from."""
    number = 0
    for name, reader in target.corpora.items():
        images = CorpusImages(all_images, name)
        corpus = reader.questions(target.data_dir, images)
        for question in corpus.examples:
            # An answer that cannot be chosen still is that of a person who was asked.
            answers = tuple(
                "" if why_unusable(answer) else normalize_answer(answer) for answer in question.answers
            )
            reason = _why_unusable(question, images)
            if reason is not None:
                target.skip(f"{name}/{question.id}", "", reason)
                continue
            clean = replace(
                question,
                id=f"{name}/{question.id}",
                text=clean_caption(question.text, target.config.lowercase),
                answers=answers,
                group=question.group and f"{name}/{question.group}",
            )
            positions = [images.positions[id] for id in question.images]
            yield UsableQuestion(clean, number, images.splits[question.images[0]], positions)
            number += 1
        target.note(name, corpus)


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


def _labels(training: Sequence[Question]) -> list[str]:
    """Return the answers that most people gave, those of the most questions first; among equals by the alphabet."""
    given = (tuple(filter(None, question.answers)) for question in training)
    chosen = Counter(_majority(answers) for answers in given if answers)
    return sorted(chosen, key=lambda answer: (-chosen[answer], answer))


def _majority(answers: Sequence[str]) -> str:
    counts = Counter(answers)
    return min(counts, key=lambda answer: (-counts[answer], answer))


def _majority_answers(
    found: Sequence[UsableQuestion], counts: Sequence[Counter[int]], kinds: Sequence[str]
) -> list[int]:
    """See `VqaInfo.majority_answers`."""
    given: dict[str | None, Counter[int]] = {kind: Counter() for kind in (*kinds, None)}
    for usable, one in zip(found, counts, strict=True):
        if usable.split == "train":
            given[usable.question.kind] += one
            given[None] += one
    return [min(own, key=lambda label: (-own[label], label), default=0) for own in given.values()]


def schema(images: int) -> pa.Schema:
    """Return the columns. images: of each question."""
    texts, numbers = pa.list_(pa.string()), pa.list_(pa.int64())
    return pa.schema(
        {
            "id": pa.string(),
            "question": pa.string(),
            "kind": pa.string(),
            "answers": texts,
            "image_ids": texts,
            "row": pa.int64(),
            "images": pa.list_(pa.int64(), images),
            "group": pa.int64(),
            "tokens": pa.list_(pa.uint32()),
            "labels": numbers,
            "counts": numbers,
        }
    )
