"""Find images for sentences and captions for images, by the vectors of a vision-language model."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor

from magneto.data.corpora.text.base import why_unusable
from magneto.errors import ConfigError
from magneto.inference.images import image_batches
from magneto.inference.inputs import PredictInput
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


def top_matches(query: Tensor, vectors: Tensor, count: int) -> list[tuple[int, float]]:
    """Return index and cosine of the `count` of (G, E) that are nearest to (E,), the best first; all of length 1."""
    top = (vectors @ query).topk(min(count, len(vectors)))
    return list(zip(top.indices.tolist(), top.values.tolist(), strict=True))


Draw = Callable[[Any, Sequence[Match]], np.ndarray]
"""What was asked for, a sentence or an image, and its matches -> a drawing, (H, W, 3) uint8."""


def retrieve(
    model: Any, inputs: PredictInput, options: RetrievalPredictOptions, draw_images: Draw, draw_texts: Draw
) -> Iterator[dict[str, Any]]:
    """Find the best images of `inputs` for each sentence, or the best captions for each image.

    Yields:
        `query` or `input`, `found` (`input` or `caption`, and `similarity`) and `image`, a drawing.
    """
    if options.captions is None:
        # A number on the command line is a sentence too.
        given = options.query if isinstance(options.query, list | tuple) else [options.query]
        queries = [str(query) for query in given]
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
            yield _result(
                {"query": query}, query, vector, vectors, options.top_k, names, pixels, "input", draw_images
            )
        return
    file = PredictInput(path=str(options.captions), key="predict.captions")
    captions = list(_captions(file))
    if not captions:
        raise ConfigError(
            f"predict.captions={options.captions}: holds no caption. Name a file with one in each line."
        )
    texts = _text_vectors(model, captions, "predict.captions")
    for names, pixels, vectors in _image_vectors(model, inputs):
        for name, image, vector in zip(names, pixels, vectors, strict=True):
            yield _result(
                {"input": name},
                image,
                vector,
                texts,
                options.top_k,
                captions,
                captions,
                "caption",
                draw_texts,
            )


def _result(
    asked: dict[str, str],
    content: Any,
    vector: Tensor,
    vectors: Tensor,
    top_k: int,
    names: Sequence[str],
    contents: Sequence[Any],
    key: str,
    draw: Draw,
) -> dict[str, Any]:
    """Return the `top_k` of `vectors` that are nearest to `vector`, by their names, and a drawing of their contents."""
    matches = top_matches(vector, vectors, top_k)
    listed = [{key: names[index], "similarity": round(cosine, 4)} for index, cosine in matches]
    lines = [f"{one['similarity']:.3f}\t{one[key]}" for one in listed]
    image = draw(content, [Match(contents[index], cosine) for index, cosine in matches])
    return {"text": "\n".join([*asked.values(), *lines]), **asked, "found": listed, "image": image}


def _captions(file: PredictInput) -> Iterator[str]:
    """Yield the lines of the file but empty ones and, named in the log, those that cannot be read."""
    for number, line in enumerate(file.lines(), start=1):
        if not line.strip():
            continue
        if reason := why_unusable(line):
            log.warning("%s=%s, line %d: %s, skipped", file.key, file.path, number, reason)
            continue
        yield line


def _text_vectors(model: Any, texts: Sequence[str], key: str) -> Tensor:
    """Return (texts, E) on the CPU."""
    batches = text_batches(texts, model.tokenizer, model.info, key, BATCH)
    return torch.cat(
        [model.text_vectors(tokens.to(model.device), mask.to(model.device)).cpu() for tokens, mask in batches]
    )


def _image_vectors(model: Any, inputs: PredictInput) -> Iterator[tuple[list[str], list[np.ndarray], Tensor]]:
    """Yield names, pixels (C, S, S) uint8 as the model sees them, and vectors (B, E) on the CPU."""
    for names, images in image_batches(inputs, model.info, BATCH):
        vectors = model.image_vectors(images.to(model.device)).cpu()
        yield names, list(model.info.pixels(images).numpy()), vectors
