"""Captions of prepared images as token ids in Arrow tables.

The columns, a row for each caption: `id` of its image; `caption`, the text; `language`; `row`, its number over all splits,
by which its masks follow from the seed; `image`, the position of its image in the same split of the prepared images;
`caption_key`, equal for captions that do not differ in a letter or digit; `tokens`, `<s>` and `</s>` included.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from magneto.data.corpora.base import SPLITS, Skipped, lazy
from magneto.data.corpora.image.base import (
    ImageCorpus,
    ImageExample,
    ImageReader,
    caption_key,
    each_caption,
)
from magneto.data.corpora.text.base import why_unusable
from magneto.data.image.module import ImageDataModule
from magneto.data.image_text.config import ImageTextConfig
from magneto.data.prepared import Preparation
from magneto.data.tokenizers.encode import encode
from magneto.data.tokenizers.text import TextTokenizer
from magneto.data.transforms.text import clean_caption

SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "caption": pa.string(),
        "language": pa.string(),
        "row": pa.int64(),
        "image": pa.int64(),
        "caption_key": pa.int64(),
        "tokens": pa.list_(pa.uint32()),
    }
)


class CaptionedImages(ImageDataModule):
    """Images of which the captions are kept too, and equal captions are on one side of the split."""

    captioned = True


@dataclass(frozen=True)
class CaptionedReader:
    """The images of a corpus that have a caption in one of `languages` (None: in any), without their classes."""

    reader: ImageReader
    languages: Sequence[str] | None
    lowercase: bool

    def fingerprint(self) -> dict[str, Any]:
        """Return that of the corpus, and how captions are read."""
        languages = None if self.languages is None else list(self.languages)
        return {
            **self.reader.fingerprint(),
            "captions": {"languages": languages, "lowercase": self.lowercase},
        }

    def load(self, data_dir: Path) -> ImageCorpus:
        """Return the corpus's images with clean captions. What is skipped is known after all have been read."""
        corpus = self.reader.load(data_dir)

        def examples() -> Iterator[ImageExample | Skipped]:
            for example in corpus.examples:
                yield from self.usable(example)
            yield from corpus.skipped

        images, skipped = lazy(examples, len(corpus.examples))
        return replace(corpus, examples=images, labels=(), skipped=skipped)

    def usable(self, example: ImageExample) -> Iterator[ImageExample | Skipped]:
        """Yield what cannot be used of an image and its captions, then the image with the others, if there are any."""
        captions: dict[str, list[str]] = {}
        for language, text in each_caption(example.captions):
            if self.languages is not None and language not in self.languages:
                continue
            if reason := why_unusable(text) or why_unusable(language):
                yield Skipped(example.id, "", f"caption: {reason}")
                continue
            text = clean_caption(text, self.lowercase)
            if text not in captions.setdefault(language, []):
                captions[language].append(text)
        if captions:
            yield replace(example, captions=captions, label=None)
        else:
            languages = "any language" if self.languages is None else " or ".join(self.languages)
            yield Skipped(example.id, "", f"no caption in {languages}")


def build(
    target: Preparation, images: ImageDataModule, captions: Iterable[str] | None = None
) -> dict[str, Any]:
    """Write the tables; return the fields of the info of the captions.

    Args:
        target: the folder.
        images: prepared, with captions.
        captions: to train the tokenizer on; None: those of the training images.
    """
    config: ImageTextConfig = target.config
    columns = {split: _captions(images, split) for split in SPLITS}
    target.require(
        {split: len(columns[split]["row"]) for split in SPLITS}, "Check data.corpora and data.languages."
    )
    if target.given is not None:
        tokenizer = TextTokenizer.from_json(target.given.tokenizer)
    else:
        tokenizer = config.tokenizer.make(columns["train"]["caption"] if captions is None else captions)
    texts = [text for split in SPLITS for text in columns[split]["caption"]]
    keys = np.unique(np.array([caption_key(text) for text in texts], object), return_inverse=True)[1]
    truncated = start = 0
    with target.tables(SCHEMA) as tables:
        for split, own in columns.items():
            encoded = encode(tokenizer, own["caption"], [None] * len(own["caption"]), config.max_tokens)
            truncated += encoded.truncated
            own["tokens"] = encoded.tokens
            own["caption_key"] = keys[start : start + len(own["row"])]
            start += len(own["row"])
            tables.write(split, own)
    spoken = {language for own in columns.values() for language in own["language"]}
    return {
        "tokenizer": tokenizer.to_json(),
        "vocab_size": tokenizer.vocab_size,
        "languages": sorted(spoken) if config.languages is None else list(config.languages),
        "captions": dict(target.rows),
        "truncated": truncated,
    }


def _captions(images: ImageDataModule, split: str) -> dict[str, Any]:
    """Return the columns that follow from the images of a split."""
    table = images.table(split).arrow
    names = ("id", "captions", "languages", "caption_row")
    columns: dict[str, Any] = {name: [] for name in ("id", "caption", "language", "row", "image")}
    rows = zip(*(table[name].to_pylist() for name in names), strict=True)
    for position, (id, captions, languages, first) in enumerate(rows):
        for number, (text, language) in enumerate(zip(captions, languages, strict=True)):
            for name, value in zip(columns, (id, text, language, first + number, position), strict=True):
                columns[name].append(value)
    return columns
