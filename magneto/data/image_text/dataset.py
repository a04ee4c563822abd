"""Prepared captions with their images as batches (see module.py)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from magneto.data.collate import IGNORE, pad_texts
from magneto.data.dataset import BatchDataset
from magneto.data.image.dataset import ImageDataset, ImageInfo
from magneto.data.image_text.config import PairMasking
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
    """How captions of a split become batches.

    Attributes:
        split: train, val or test.
        tokenizer: of the model.
        max_tokens: of a caption.
        masking: what is hidden of captions, alone and beside their image; None: nothing.
        seed: of what is hidden.
    """

    split: str
    tokenizer: TextTokenizer
    max_tokens: int
    masking: PairMasking | None
    seed: int

    def batch(self, texts: Sequence[np.ndarray], rows: Sequence[int], epoch: int) -> dict[str, torch.Tensor]:
        """Return the tokens of some captions, (T,) int64 each with a number of its own: see module.py."""
        pad, batch = self.tokenizer.padding, dict[str, torch.Tensor]()
        batch["tokens"], batch["mask"] = pad_texts(texts, pad, self.max_tokens)
        if self.masking is not None:
            for prefix, targets, masking in (
                ("masked", "targets", self.masking.texts),
                ("pair", "pair_targets", self.masking.pairs),
            ):
                hidden = [self._hide(masking, prefix, *one, epoch) for one in zip(texts, rows, strict=True)]
                batch[f"{prefix}_tokens"], _ = pad_texts([seen for seen, _ in hidden], pad, self.max_tokens)
                batch[targets], _ = pad_texts([asked for _, asked in hidden], IGNORE, self.max_tokens)
        return batch

    def _hide(
        self, masking: Masking, prefix: str, text: np.ndarray, row: int, epoch: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return what the model sees of a text (T,), and the targets (T,)."""
        random = random_stream(self.seed, f"{prefix} words of {self.split}", epoch, row)
        allowed = ~np.isin(text, list(self.tokenizer.special_ids))
        masking = masking if self.split == "train" else masking.for_evaluation()
        return masking(text, allowed, self.tokenizer, random)


class ImageTextDataset(BatchDataset):
    """Images of a split with their captions.

    In training an example is an image with one of its captions, another one in every epoch; in evaluation it is a
    caption with its image, so that all captions are seen.

    Args:
        images: of the split.
        table: of its captions.
        captions: how they become batches.
        languages: of the model.
    """

    def __init__(
        self, images: ImageDataset, table: SplitTable, captions: CaptionReading, languages: Sequence[str]
    ) -> None:
        self.images, self.table, self.captions = images, table, captions
        self.languages = table.index_in("language", languages)
        self.training = captions.split == "train"
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
        texts = [self.table.list("tokens", caption).astype(np.int64) for caption in chosen.tolist()]
        batch["image_id"] = torch.from_numpy(self.images.table.numbers("copy_of")[image])
        batch["caption"] = torch.from_numpy(self.table.numbers("caption_key")[chosen])
        batch["language"] = torch.from_numpy(self.languages[chosen])
        batch |= self.captions.batch(texts, self.table.numbers("row")[chosen].tolist(), epoch)
        if not self.training:
            batch["text"] = self.table.arrow["caption"].take(chosen).to_pylist()
        return batch

    def _choose(self, positions: np.ndarray, epoch: int) -> np.ndarray:
        """Return one caption of each image, (B,)."""
        first, end = self._first[positions], self._end[positions]
        random = uniforms(self.captions.seed, "caption", epoch, self.images.rows[positions], 1)[:, 0]
        chosen: np.ndarray = first + (random * (end - first)).astype(np.int64)
        return chosen
