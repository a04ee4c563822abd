"""Find images for sentences and captions for images, by the vectors of a vision-language model."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from magneto.data.corpora.text.base import why_unusable
from magneto.data.tokenizers.text import TextTokenizer
from magneto.errors import ConfigError
from magneto.inference.images import image_batches
from magneto.inference.inputs import PredictInput, PredictModel
from magneto.inference.texts import text_batches

BATCH = 64

log = logging.getLogger("magneto")


@dataclass(frozen=True)
class Match:
    """A retrieved image or text.

    Attributes:
        content: an image, (C, H, W) uint8, or a text.
        similarity: cosine, 1 is the same direction.
        right: whether it is a right one; None: it is not known.
    """

    content: np.ndarray | str
    similarity: float
    right: bool | None = None


@dataclass(frozen=True, kw_only=True)
class RetrievalPredictOptions:
    """Options of `mode=predict`, `conf/predict/vl.yaml`: what to find among the images of `input=`, or for each of them."""

    query: str | float | Sequence[str | float] | None = None
    """A sentence, or several."""
    captions: str | float | None = None
    """A file with a caption a line."""
    top_k: Annotated[int, Ge(1)] = 5
    """Images of a sentence, or captions of an image."""

    def __post_init__(self) -> None:
        if (self.query is None) == (self.captions is None):
            raise ConfigError(
                'task=vl finds the images of input= that fit a sentence (predict.query="a red apple"), or the lines of a '
                "file that fit each image (predict.captions=FILE). Set one of the two."
            )


class RetrievalModel(PredictModel, Protocol):
    """A model that has vectors of length 1 for images and texts."""

    tokenizer: TextTokenizer

    def image_vectors(self, images: Tensor) -> Tensor:
        """(B, C, S, S) -> fp32 (B, E)."""

    def text_vectors(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """(B, T) int64 and bool -> fp32 (B, E)."""


@dataclass(frozen=True)
class Drawings:
    """Functions that draw results, (H, W, 3) uint8.

    Attributes:
        images_of: of a sentence and the images that were retrieved for it.
        texts_of: of an image and the texts that were retrieved for it.
    """

    images_of: Callable[[str, Sequence[Match]], np.ndarray]
    texts_of: Callable[[np.ndarray, Sequence[Match]], np.ndarray]


def top_matches(query: Tensor, vectors: Tensor, count: int) -> list[tuple[int, float]]:
    """Return index and cosine of the `count` of (G, E) that are nearest to (E,), the best first; all of length 1."""
    top = (vectors @ query).topk(min(count, len(vectors)))
    return list(zip(top.indices.tolist(), top.values.tolist(), strict=True))


def retrieve(
    model: RetrievalModel, inputs: PredictInput, options: RetrievalPredictOptions, draw: Drawings
) -> Iterator[dict[str, Any]]:
    """Find the best images of `inputs` for each sentence, or the best captions for each image.

    Yields:
        `query` or `input`, `found` (`input` or `caption`, and `similarity`) and `image`, a drawing.
    """
    if options.captions is None:
        # A number on the command line is a sentence too.
        given = options.query if isinstance(options.query, list | tuple) else [options.query]
        yield from _images_of_texts(model, inputs, [str(query) for query in given], options.top_k, draw)
        return
    file = PredictInput(path=str(options.captions), key="predict.captions")
    captions = list(_captions(file))
    if not captions:
        raise ConfigError(
            f"predict.captions={options.captions}: holds no caption. Name a file with one in each line."
        )
    yield from _texts_of_images(model, inputs, captions, options.top_k, draw)


def _images_of_texts(
    model: RetrievalModel, inputs: PredictInput, queries: Sequence[str], top_k: int, draw: Drawings
) -> Iterator[dict[str, Any]]:
    texts = _text_vectors(model, queries, "predict.query")
    names: list[str] = []
    pixels: list[np.ndarray] = []
    parts = []
    for some, images, vectors in _image_vectors(model, inputs):
        names += some
        pixels += images
        parts.append(vectors)
    vectors = torch.cat(parts)
    for query, vector in zip(queries, texts, strict=True):
        matches = top_matches(vector, vectors, top_k)
        listed = [{"input": names[index], "similarity": round(cosine, 4)} for index, cosine in matches]
        lines = [f"{one['similarity']:.3f}\t{one['input']}" for one in listed]
        shown = draw.images_of(query, [Match(pixels[index], cosine) for index, cosine in matches])
        yield {"text": "\n".join([query, *lines]), "query": query, "found": listed, "image": shown}


def _texts_of_images(
    model: RetrievalModel, inputs: PredictInput, captions: Sequence[str], top_k: int, draw: Drawings
) -> Iterator[dict[str, Any]]:
    texts = _text_vectors(model, captions, "predict.captions")
    for names, pixels, vectors in _image_vectors(model, inputs):
        for name, image, vector in zip(names, pixels, vectors, strict=True):
            matches = top_matches(vector, texts, top_k)
            listed = [
                {"caption": captions[index], "similarity": round(cosine, 4)} for index, cosine in matches
            ]
            lines = [f"{one['similarity']:.3f}\t{one['caption']}" for one in listed]
            shown = draw.texts_of(image, [Match(captions[index], cosine) for index, cosine in matches])
            yield {"text": "\n".join([name, *lines]), "input": name, "found": listed, "image": shown}


def _captions(file: PredictInput) -> Iterator[str]:
    """Yield the lines of the file but empty ones and, named in the log, those that cannot be read."""
    for number, line in enumerate(file.lines(), start=1):
        if not line.strip():
            continue
        if reason := why_unusable(line):
            log.warning("%s=%s, line %d: %s, skipped", file.key, file.path, number, reason)
            continue
        yield line


def _text_vectors(model: RetrievalModel, texts: Sequence[str], key: str) -> Tensor:
    """Return (texts, E) on the CPU."""
    batches = text_batches(texts, model.tokenizer, model.info, key, BATCH)
    return torch.cat(
        [model.text_vectors(tokens.to(model.device), mask.to(model.device)).cpu() for tokens, mask in batches]
    )


def _image_vectors(
    model: RetrievalModel, inputs: PredictInput
) -> Iterator[tuple[list[str], list[np.ndarray], Tensor]]:
    """Yield names, pixels (C, S, S) uint8 as the model sees them, and vectors (B, E) on the CPU."""
    for names, images in image_batches(inputs, model.info, BATCH):
        vectors = model.image_vectors(images.to(model.device)).cpu()
        yield names, list(model.info.pixels(images).numpy()), vectors
