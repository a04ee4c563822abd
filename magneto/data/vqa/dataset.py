"""Prepared questions with their images as batches (see module.py)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from magneto.data.collate import pad_texts
from magneto.data.dataset import BatchDataset
from magneto.data.image.dataset import ImageDataset, ImageInfo
from magneto.data.table import SplitTable
from magneto.data.tokenizers.text import TextTokenizer


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


class VqaDataset(BatchDataset):
    """Questions of a split with their images.

    Args:
        images: of the split.
        table: of its questions.
        info: of the model.
        max_tokens: of a question.
        training: whether questions without an answer to choose are left out, and texts too.
    """

    def __init__(
        self, images: ImageDataset, table: SplitTable, info: VqaInfo, max_tokens: int, training: bool
    ) -> None:
        self.images, self.table, self.max_tokens, self.training = images, table, max_tokens, training
        self.positions = np.arange(len(table))
        if training:
            self.positions = self.positions[np.diff(table.bounds("labels")) > 0]
        self.pad_id, self.num_labels = TextTokenizer.from_json(info.tokenizer).padding, len(info.labels)
        self.kinds = table.index_in("kind", info.kinds)
        self.lengths = np.ones(len(self.positions), np.int64)  # batches are counted in questions

    def batch(self, epoch: int, positions: np.ndarray) -> dict[str, Any]:
        """Return the batch: see module.py."""
        table = self.table
        chosen = self.positions[positions]
        of = table.values("images").take(chosen)
        images = self.images.batch(epoch, of.flatten())["image"]
        texts = [table.list("tokens", question).astype(np.int64) for question in chosen.tolist()]
        tokens, mask = pad_texts(texts, self.pad_id, self.max_tokens)
        counts = np.zeros((len(chosen), self.num_labels), np.float32)
        for number, question in enumerate(chosen.tolist()):
            counts[number, table.list("labels", question)] = table.list("counts", question)
        batch: dict[str, Any] = {
            "id": torch.from_numpy(table.numbers("row")[chosen]),
            "image": images.unflatten(0, of.shape),
            "tokens": tokens,
            "mask": mask,
            "counts": torch.from_numpy(counts),
            "people": torch.from_numpy(np.diff(table.bounds("answers"))[chosen].astype(np.float32)),
            "kind": torch.from_numpy(self.kinds[chosen]),
            "group": torch.from_numpy(table.numbers("group")[chosen]),
        }
        if not self.training:
            batch["text"] = table.arrow["question"].take(chosen).to_pylist()
        return batch
