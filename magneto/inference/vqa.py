"""Answer a question about images, or judge a statement about two."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from magneto.data.vqa.dataset import VqaInfo
from magneto.errors import ConfigError
from magneto.inference.images import image_batches, read_images
from magneto.inference.inputs import PredictInput
from magneto.inference.texts import text_batches

BATCH = 32


@dataclass(frozen=True, kw_only=True)
class VqaPredictOptions:
    """Options of `mode=predict`, `conf/predict/vl_classification.yaml`."""

    question: str | None = None
    """The question, or the statement."""
    second: str | float | None = None
    """The right image of a statement; `input=` is the left one."""
    top_k: Annotated[int, Ge(1)] = 5
    """Answers that are listed, the most probable first."""

    def __post_init__(self) -> None:
        if self.question is None or not self.question.strip():
            raise ConfigError(
                'predict.question is missing: the model answers a question about the image. Set predict.question="what '
                'colour is it?".'
            )


def answer(model: Any, inputs: PredictInput, options: VqaPredictOptions) -> Iterator[dict[str, Any]]:
    """Answer the question about each image, or judge the statement about it and the second image.

    Yields:
        `input`, `question`, `second` of a statement, `answer`, `probability`, and `top`: the `top_k` answers.
    """
    if (options.second is not None) != (model.info.images > 1):
        raise ConfigError(
            f"predict.second={options.second}: this model answers questions about one image. Leave it out."
            if options.second is not None
            else "predict.second: this model judges statements about two images. Set it to the right one."
        )
    assert options.question is not None
    ((tokens, mask),) = text_batches([options.question], model.tokenizer, model.info, "predict.question", 1)
    tokens, mask = tokens.to(model.device), mask.to(model.device)
    asked = {"question": options.question}
    second = None
    if options.second is not None:
        asked["second"], second = _second(model.info, options.second)
    for names, pixels in image_batches(inputs, model.info, BATCH):
        images = pixels[:, None]
        if second is not None:
            images = torch.cat((images, second.expand_as(images)), dim=1)
        rows = len(images)
        logits = model(images.to(model.device), tokens.expand(rows, -1), mask.expand(rows, -1))
        for name, top in zip(names, model.describe(logits, options.top_k), strict=True):
            listed = "\t".join(f"{one['answer']}\t{one['probability']}" for one in top)
            yield {"text": f"{name}\t{listed}", "input": name, **asked, **top[0], "top": top}


def _second(info: VqaInfo, image: Any) -> tuple[str, Tensor]:
    """Return name and normalised pixels (1, C, S, S) of the one image of `predict.second`."""
    item = str(image) if isinstance(image, str | float | int | Path) else image
    images = list(islice(read_images(PredictInput(items=(item,), key="predict.second"), info), 2))
    if len(images) > 1:
        raise ConfigError(
            f"predict.second={image}: must be one image, not a folder of several. Name one of them."
        )
    name, pixels = images[0]
    return name, info.normalise(pixels[None])
