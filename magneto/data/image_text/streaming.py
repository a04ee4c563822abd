"""Images with captions that are read from tar shards and decoded while a model trains, and the part that is prepared.

An image is held out if one of its captions is, by a hash of its letters and digits, and keeps these captions alone: so no
caption of a held-out image is one of a training image. Images with the bytes of a prepared held-out one are skipped.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from magneto.data.corpora.base import SPLITS, LazyExamples, Skipped, hash_split
from magneto.data.corpora.image.base import ImageCorpus, ImageExample, caption_key, each_caption
from magneto.data.corpora.tar_shards import shard_bytes
from magneto.data.held_out import bounded, undivided
from magneto.data.image.dataset import ImageReading, ImageTable
from magneto.data.image_text.build import CaptionedReader
from magneto.data.image_text.dataset import CaptionReading
from magneto.data.io.image import BadImage, read_image
from magneto.data.io.tar import Slice
from magneto.data.rng import uniforms
from magneto.data.streaming import Position, Streams
from magneto.data.tokenizers.encode import encode
from magneto.data.transforms.image import Draws

SAMPLE = 1000  # training images that are prepared, for their mean and deviation
SAMPLE_CHARS = 10_000_000  # of training captions of each corpus that a tokenizer is trained on


@dataclass(frozen=True)
class StreamedReader(CaptionedReader):
    """The images of a streamed corpus with their splits, of which `load` returns a bounded part.

    Attributes:
        reader: of the corpus, which has `shards()`.
        fractions: of val and test, where the corpus states no split.
        limit: images of each of them.
    """

    reader: Any
    fractions: tuple[float, float]
    limit: int

    def fingerprint(self) -> dict[str, Any]:
        """Return that of the corpus, of which the names of the shards count alone, and what is prepared of it."""
        return {**super().fingerprint(), **self.reader.fingerprint(contents=False), "streaming": self.limit}

    def load(self, data_dir: Path) -> ImageCorpus:
        """Return the images that are prepared, with their bytes, so that they outlast the shards: see `bounded`."""
        shards, skipped = self.reader.shards(), list[Skipped]()
        shares = dict(zip(("val", "test"), self.fractions, strict=True))
        usable = partial(self.divided, skipped=skipped)
        found = [*bounded(shards, usable, shares=shares, limit=self.limit, sample=SAMPLE)]
        examples = LazyExamples(
            lambda: (replace(one, image=_content(one.image)) for one in found), count=len(found)
        )
        return ImageCorpus(examples=examples, skipped=skipped, origin={"shards": len(shards)})

    def divided(
        self, rows: Iterable[ImageExample | Skipped], skipped: list[Skipped] | None = None
    ) -> Iterator[ImageExample]:
        """Yield the images that can be used, with their splits and their captions in these. skipped: takes the others."""
        for row in rows:
            for one in [row] if isinstance(row, Skipped) else self.usable(row):
                if not isinstance(one, Skipped):
                    yield divide(one, self.fractions)
                elif skipped is not None:
                    skipped.append(one)

    def training_captions(self) -> Iterator[str]:
        """Yield the first captions of the training images."""
        room = SAMPLE_CHARS
        for example in undivided(self.reader.shards(), self.divided):
            for _, text in each_caption(example.captions) if example.split == "train" else ():
                yield text
                room -= len(text)
            if room <= 0:
                break

    def take(self, example: ImageExample) -> tuple[ImageExample, int] | None:
        """Return a training image, not yet read, and the characters of its captions; None for another one."""
        for one in self.divided([example]):
            if one.split == "train":
                return one, sum(len(text) for _, text in each_caption(one.captions))
        return None


def divide(example: ImageExample, fractions: tuple[float, float]) -> ImageExample:
    """Return the image with its split, where the corpus states none, and with its captions in that split."""
    if example.split is not None:
        return example
    val, test = fractions
    sides = {
        text: hash_split(caption_key(text), val=val, test=test, kind="caption")
        for _, text in each_caption(example.captions)
    }
    split = max(sides.values(), key=SPLITS.index)
    captions = {
        language: [text for text in texts if sides[text] == split]
        for language, texts in example.captions.items()
    }
    return replace(example, split=split, captions={key: texts for key, texts in captions.items() if texts})


def held_out_images(tables: Sequence[ImageTable]) -> frozenset[int]:
    """Return the digests of prepared images that are not trained on."""
    return frozenset(_number(_content(table.image(row))) for table in tables for row in range(len(table)))


class StreamedPairs:
    """Training images with a caption each, read in the order of streams. See `ItemSource`.

    Args:
        streams: of the images.
        images: how they become batches.
        captions: how those do.
        languages: of the model.
        held_out: digests of images that are not trained on.
    """

    def __init__(
        self,
        streams: Streams[ImageExample, ImageExample],
        images: ImageReading,
        captions: CaptionReading,
        languages: Sequence[str],
        held_out: frozenset[int],
    ) -> None:
        self.streams, self.images, self.captions = streams, images, captions
        self.languages, self.held_out = list(languages), held_out

    def items(self, stream: int, start: Position) -> Iterator[tuple[dict[str, Any], Position]]:
        """See `ItemSource`."""
        return self.streams.items(stream, start, self._item)

    def _item(self, example: ImageExample, index: int) -> dict[str, Any] | None:
        """Return an image, cut to its size, with one of its captions; None if it cannot be used."""
        info, rows = self.images.info, np.array([index])
        data = _content(example.image)
        if (digest := _number(data)) in self.held_out:
            return None
        try:
            decoded = read_image(data, info.channels, svg_side=info.svg_side)
        except BadImage:
            return None
        captions = [*each_caption(example.captions)]
        random = uniforms(self.images.seed, "caption", 0, rows, 1)[0, 0]
        language, text = captions[int(random * len(captions))]
        return {
            "id": index,
            "image": self.images.cut([decoded], Draws(self.images.seed, 0, rows))[0],
            "image_id": digest,
            "caption": _number(caption_key(text).encode()),
            "language": self.languages.index(language) if language in self.languages else -1,
            "text": text,
        }

    def collate(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Return a batch: see module.py."""
        columns = {name: [item[name] for item in items] for name in items[0]}
        rows, texts = np.array(columns["id"]), columns["text"]
        tokens = encode(self.captions.tokenizer, texts, [None] * len(texts), self.captions.max_tokens).tokens
        images = self.images.finish(torch.stack(columns["image"]), Draws(self.images.seed, 0, rows))
        return {
            **{name: torch.tensor(columns[name]) for name in ("id", "image_id", "caption", "language")},
            "image": images,
            **self.images.masks(rows, 0),
            **self.captions.batch([ids.astype(np.int64) for ids in tokens], rows.tolist(), 0),
        }


def _content(image: Any) -> bytes:
    return shard_bytes(image) if isinstance(image, Slice) else bytes(image)


def _number(content: bytes) -> int:
    """A number, equal for equal contents alone, that fits into int64."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big", signed=True)
