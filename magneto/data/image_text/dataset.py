"""Prepared captions with their images as batches (see module.py)."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from magneto.data.collate import IGNORE, pad_texts
from magneto.data.image.dataset import ImageDataset, ImageInfo
from magneto.data.prepared import BatchDataset
from magneto.data.rng import random_stream, uniforms
from magneto.data.table import SplitTable
from magneto.data.tokenizers.text import TextTokenizer
from magneto.data.transforms.mask_tokens import Masking


@dataclass(frozen=True, kw_only=True)
class ImageTextInfo(ImageInfo):
    """Info of prepared images with captions: all that a task needs to know."""

    tokenizer: str  # content of tokenizer.json
    vocab_size: int
    max_tokens: int  # of a caption, <s> and </s> included
    lowercase: bool
    languages: list[str]
    captions: dict[str, int]  # per split
    truncated: int  # captions that were longer


@dataclass(frozen=True, kw_only=True)
class CaptionReading:
    """How the captions of a split become parts of batches.

    Attributes:
        split: its name.
        tokenizer: of the captions.
        max_tokens: of a caption.
        texts: what is hidden of captions alone; None: nothing.
        pairs: what is hidden of captions beside their image.
        seed: of the masks.
    """

    split: str
    tokenizer: TextTokenizer
    max_tokens: int
    texts: Masking | None
    pairs: Masking | None
    seed: int
    ordinary: np.ndarray = field(init=False, repr=False)  # ids that stand for text

    def __post_init__(self) -> None:
        special = self.tokenizer.special_ids
        ids = np.array([index for index in range(self.tokenizer.vocab_size) if index not in special])
        object.__setattr__(self, "ordinary", ids)

    @property
    def pad_id(self) -> int:
        """What shorter texts are filled up with."""
        return self.tokenizer.require("eos") if self.tokenizer.pad_id is None else self.tokenizer.pad_id


class ImageTextDataset(BatchDataset):
    """Images of a split with their captions.

    In training an example is an image with one of its captions, another one in every epoch; in evaluation it is a
    caption with its image, so that all captions are seen.

    Args:
        images: of the split.
        table: of its captions.
        languages: (captions,) their indices in the model's list; -1: none.
        reading: how they become parts of batches.
    """

    def __init__(
        self, images: ImageDataset, table: SplitTable, languages: np.ndarray, reading: CaptionReading
    ) -> None:
        self.images, self.table, self.languages, self.reading = images, table, languages, reading
        self.training = reading.split == "train"
        self._image = np.arange(len(images)) if self.training else table.numbers("image")
        every = np.arange(len(images))
        self._first, self._end = (
            np.searchsorted(table.numbers("image"), every, side) for side in ("left", "right")
        )
        self.lengths = np.ones(len(self._image), np.int64)  # batches are counted in pairs

    def batch(self, epoch: int, positions: np.ndarray) -> dict[str, Any]:
        """Return the batch: see module.py."""
        chosen = self._choose(positions, epoch) if self.training else positions
        image = self._image[positions]
        batch = self.images.batch(epoch, image)
        del batch["label"]
        pad = self.reading.pad_id
        texts = [self.table.list("tokens", caption).astype(np.int64) for caption in chosen.tolist()]
        batch["image_id"] = torch.from_numpy(self.images.table.numbers("copy_of")[image])
        batch["caption"] = torch.from_numpy(self.table.numbers("caption_key")[chosen])
        batch["language"] = torch.from_numpy(self.languages[chosen])
        batch["tokens"], batch["mask"] = pad_texts(texts, pad, self.reading.max_tokens)
        for prefix, masking in (("masked", self.reading.texts), ("pair", self.reading.pairs)):
            if masking is not None:
                hidden = [
                    self._hide(masking, prefix, text, epoch, row)
                    for text, row in zip(texts, self.table.numbers("row")[chosen].tolist(), strict=True)
                ]
                batch[f"{prefix}_tokens"], _ = pad_texts([h[0] for h in hidden], pad, self.reading.max_tokens)
                targets, _ = pad_texts([h[1] for h in hidden], IGNORE, self.reading.max_tokens)
                batch["targets" if prefix == "masked" else "pair_targets"] = targets
        if not self.training:
            batch["text"] = self.table.arrow["caption"].take(chosen).to_pylist()
        return batch

    def _choose(self, positions: np.ndarray, epoch: int) -> np.ndarray:
        """Return one caption of each image, (B,)."""
        first, end = self._first[positions], self._end[positions]
        random = uniforms(self.reading.seed, "caption", epoch, self.images.rows[positions], 1)[:, 0]
        chosen: np.ndarray = first + (random * (end - first)).astype(np.int64)
        return chosen

    def _hide(
        self, masking: Masking, prefix: str, text: np.ndarray, epoch: int, row: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return what the model sees of a text (T,), and the targets (T,)."""
        reading = self.reading
        random = random_stream(reading.seed, f"{prefix} words of {reading.split}", epoch, row)
        allowed = ~np.isin(text, list(reading.tokenizer.special_ids))
        runs = masking.choose(allowed, random)
        shown = masking.hide(text, runs, reading.tokenizer.require("mask"), reading.ordinary, random)
        return shown, np.where(runs > 0, text, IGNORE)
