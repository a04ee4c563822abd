"""Prepared questions with their images as batches (see module.py)."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from magneto.data.collate import pad_texts
from magneto.data.image.dataset import ImageDataset, ImageInfo
from magneto.data.prepared import BatchDataset
from magneto.data.table import SplitTable


@dataclass(frozen=True, kw_only=True)
class VqaInfo(ImageInfo):
    """Info of prepared questions: all that a task needs to know.

    `labels` are the answers among which a model chooses, the most frequent first.
    """

    tokenizer: str  # TextTokenizer.to_json()
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


@dataclass(frozen=True, kw_only=True)
class QuestionReading:
    """How the questions of a split become parts of batches.

    Attributes:
        split: its name.
        pad_id: what shorter questions are filled up with.
        max_tokens: of a question.
        num_labels: the answers to choose from.
        kinds: (questions of the table,) their indices in the model's list; -1: none.
    """

    split: str
    pad_id: int
    max_tokens: int
    num_labels: int
    kinds: np.ndarray = field(repr=False)


class VqaDataset(BatchDataset):
    """Questions of a split with their images.

    Args:
        images: of the split.
        table: of its questions.
        positions: (n,) those of the table that are used.
        reading: how they become parts of batches.
    """

    def __init__(
        self, images: ImageDataset, table: SplitTable, positions: np.ndarray, reading: QuestionReading
    ) -> None:
        self.images, self.table, self.positions, self.reading = images, table, positions, reading
        self.lengths = np.ones(len(positions), np.int64)  # batches are counted in questions

    def batch(self, epoch: int, positions: np.ndarray) -> dict[str, Any]:
        """Return the batch: see module.py."""
        reading, table = self.reading, self.table
        chosen = self.positions[positions]
        of = table.values("images").take(chosen)
        images = self.images.batch(epoch, of.flatten())["image"]
        texts = [table.list("tokens", question).astype(np.int64) for question in chosen.tolist()]
        tokens, mask = pad_texts(texts, reading.pad_id, reading.max_tokens)
        counts = np.zeros((len(chosen), reading.num_labels), np.float32)
        for number, question in enumerate(chosen.tolist()):
            counts[number, table.list("labels", question)] = table.list("counts", question)
        batch: dict[str, Any] = {
            "id": torch.from_numpy(table.numbers("row")[chosen]),
            "image": images.unflatten(0, of.shape),
            "tokens": tokens,
            "mask": mask,
            "counts": torch.from_numpy(counts),
            "people": torch.from_numpy(np.diff(table.bounds("answers"))[chosen].astype(np.float32)),
            "kind": torch.from_numpy(reading.kinds[chosen]),
            "group": torch.from_numpy(table.numbers("group")[chosen]),
        }
        if reading.split != "train":
            batch["text"] = table.arrow["question"].take(chosen).to_pylist()
        return batch
