"""Label images with a classifier: the top classes of each, and their probabilities."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from annotated_types import Ge
from torch import Tensor

from magneto.data.image.dataset import ImageInfo
from magneto.inference.images import image_batches
from magneto.inference.inputs import PredictInput, PredictModel

BATCH = 32


@dataclass(frozen=True, kw_only=True)
class ImageClassificationPredictOptions:
    """Options of `mode=predict`, `conf/predict/image_classification.yaml`."""

    top_k: Annotated[int, Ge(1)] = 5
    """Classes that are listed for each image, the most probable first."""


class ImageClassifier(PredictModel, Protocol):
    """A classifier of images."""

    info: ImageInfo
    labels: list[str]

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, S, S) -> fp32 logits (B, classes)."""


def classify_images(
    model: ImageClassifier, inputs: PredictInput, options: ImageClassificationPredictOptions
) -> Iterator[dict[str, Any]]:
    """Label images, or all images of a folder.

    Yields:
        `input`, `label`, `probability`, and `top`: labels and probabilities of the `top_k` classes.
    """
    for names, images in image_batches(inputs, model.info, BATCH):
        probabilities = model(images.to(model.device)).softmax(-1)
        answers = top_answers(probabilities, model.labels, options.top_k, "label")
        for name, top in zip(names, answers, strict=True):
            listed = "\t".join(f"{answer['label']}\t{answer['probability']}" for answer in top)
            yield {"text": f"{name}\t{listed}", "input": name, **top[0], "top": top}


def top_answers(probabilities: Tensor, labels: list[str], top_k: int, key: str) -> list[list[dict[str, Any]]]:
    """(B, classes) -> for each row its `top_k` classes, the most probable first, as `key` and `probability`."""
    top = probabilities.topk(min(top_k, len(labels)), dim=1)
    return [
        [
            {key: labels[index], "probability": round(probability, 4)}
            for index, probability in zip(*row, strict=True)
        ]
        for row in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]
