"""Prepared captions beside prepared images, and batches of both (see data/image_text.py)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from magneto.data.collate import IGNORE as IGNORE  # part of the batches
from magneto.data.collate import pad_texts
from magneto.data.corpora.image.base import caption_key, each_caption
from magneto.data.image.dataset import ImageDataset, ImageInfo, image_lines
from magneto.data.rng import random_stream, uniforms
from magneto.data.text.prepared_texts import PreparedTexts
from magneto.data.tokenizers.encode import encode
from magneto.data.tokenizers.text import TextTokenizer
from magneto.data.transforms.mask_tokens import Masking


@dataclass(frozen=True, kw_only=True)
class ImageTextInfo(ImageInfo):
    """The facts of prepared images with captions: all that a task, and a checkpoint alone, needs to know."""

    tokenizer: str  # content of tokenizer.json
    vocab_size: int
    max_tokens: int  # of a caption, <s> and </s> included
    lowercase: bool
    languages: list[str]
    captions: dict[str, int]  # per split
    truncated: int  # captions that were longer


@dataclass
class PreparedCaptions(PreparedTexts):
    """Facts: languages, captions for each split, truncated, key.

    Arrays in the order of the images: `image` (M,) their rows, `language` (M,), `key` (M,) equal for equal captions,
    `start` (M + 1,) where each begins in `tokens`.
    """

    kind: str = "captions"

    def tokens(self, caption: int) -> np.ndarray:
        """(T,) int64 with <s> and </s>."""
        start, stop = self.arrays["start"][caption : caption + 2]
        return self.arrays["tokens"][start:stop].astype(np.int64)


def write_captions(
    folder: Path, images: Path, tokenizer: TextTokenizer, max_tokens: int, languages: Sequence[str] | None
) -> None:
    """Encode the captions of a prepared folder of images: captions.npz, captions.jsonl, tokenizer.json, facts.json."""
    found = [
        (row, line["split"], language, text)
        for row, line in enumerate(image_lines(images))
        for language, text in each_caption(line["captions"])
    ]
    rows, splits, spoken, texts = zip(*found, strict=True)
    names = sorted(set(spoken)) if languages is None else list(languages)
    encoded = encode(tokenizer, texts, [None] * len(texts), max_tokens)
    _, keys = np.unique(np.array([caption_key(text) for text in texts], object), return_inverse=True)
    np.savez(
        folder / "captions.npz",
        image=np.array(rows, np.int64),
        language=np.array([names.index(language) for language in spoken], np.int64),
        key=keys.astype(np.int64),
        start=encoded.start,
        tokens=encoded.tokens,
    )
    with (folder / "captions.jsonl").open("w", encoding="utf-8") as file:
        for row, split, language, text in found:
            line = {"image": row, "split": split, "language": language, "text": text}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    (folder / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
    facts = {
        "languages": names,
        "captions": {split: splits.count(split) for split in ("train", "val", "test")},
        "truncated": encoded.truncated,
    }
    (folder / "facts.json").write_text(json.dumps(facts, ensure_ascii=False), encoding="utf-8")


@dataclass(frozen=True, kw_only=True)
class TextReading:
    """How the captions of a split become parts of batches. texts, pairs: what is hidden of them; None: nothing."""

    split: str
    tokenizer: TextTokenizer
    max_tokens: int
    languages: np.ndarray  # of the folder -> of the model
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


class ImageTextDataset(Dataset[dict[str, Any]]):
    """Images of a split with their captions. Batches are asked for as lists of (epoch, position), all of one epoch.

    In training an example is an image, with one of its captions, another one in every epoch; in evaluation it is a
    caption, so that all of them are seen, with its image.
    """

    def __init__(self, images: ImageDataset, captions: PreparedCaptions, reading: TextReading) -> None:
        self.images, self.captions, self.reading = images, captions, reading
        of = captions.arrays["image"]
        self._first, self._end = (np.searchsorted(of, images.rows, side) for side in ("left", "right"))
        self.training = reading.split == "train"
        if self.training:
            self._image = np.arange(len(images.rows))
        else:
            of_image = [np.arange(*span) for span in zip(self._first, self._end, strict=True)]
            nothing = np.empty(0, np.int64)  # where a test set stands alone
            self._caption = np.concatenate([*of_image, nothing])
            self._image = np.repeat(np.arange(len(images.rows)), self._end - self._first)
        self.lengths = np.ones(len(self._image), np.int64)
        """(n,): batches are counted in pairs."""

    def __len__(self) -> int:
        return len(self._image)

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Any]:
        """A batch of one."""
        return self.__getitems__([place])

    def __getitems__(self, places: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """The batch: see data/image_text.py."""
        epoch = places[0][0]
        positions = np.array([position for _, position in places])
        chosen = self._drawn(positions, epoch) if self.training else self._caption[positions]
        batch = self.images.__getitems__([(epoch, int(place)) for place in self._image[positions]])
        del batch["label"]
        arrays, pad = self.captions.arrays, self.reading.pad_id
        texts = [self.captions.tokens(caption) for caption in chosen.tolist()]
        batch["image_id"] = torch.from_numpy(self.images.prepared.index["first"][batch["id"].numpy()])
        batch["caption"] = torch.from_numpy(arrays["key"][chosen])
        batch["language"] = torch.from_numpy(self.reading.languages[arrays["language"][chosen]])
        batch["tokens"], batch["mask"] = pad_texts(texts, pad, self.reading.max_tokens)
        for prefix, masking in (("masked", self.reading.texts), ("pair", self.reading.pairs)):
            if masking is not None:
                hidden = [
                    self._hide(masking, prefix, text, epoch, caption)
                    for text, caption in zip(texts, chosen.tolist(), strict=True)
                ]
                batch[f"{prefix}_tokens"], _ = pad_texts([h[0] for h in hidden], pad, self.reading.max_tokens)
                targets, _ = pad_texts([h[1] for h in hidden], IGNORE, self.reading.max_tokens)
                batch["targets" if prefix == "masked" else "pair_targets"] = targets
        if not self.training:
            batch["text"] = [self.captions.texts[caption] for caption in chosen.tolist()]
        return batch

    def _drawn(self, positions: np.ndarray, epoch: int) -> np.ndarray:
        """(B,) one caption of each image."""
        first, end = self._first[positions], self._end[positions]
        random = uniforms(self.reading.seed, "caption", epoch, self.images.rows[positions], 1)[:, 0]
        drawn: np.ndarray = first + (random * (end - first)).astype(np.int64)
        return drawn

    def _hide(
        self, masking: Masking, prefix: str, text: np.ndarray, epoch: int, caption: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """What the model sees of a text (T,), and the targets (T,)."""
        reading = self.reading
        random = random_stream(reading.seed, f"{prefix} words of {reading.split}", epoch, caption)
        allowed = ~np.isin(text, list(reading.tokenizer.special_ids))
        runs = masking.choose(allowed, random)
        shown = masking.hide(text, runs, reading.tokenizer.require("mask"), reading.ordinary, random)
        return shown, np.where(runs > 0, text, IGNORE)
