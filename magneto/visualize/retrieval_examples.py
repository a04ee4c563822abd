"""Retrieval for some pairs of an evaluation, as samples with a drawing."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from magneto.inference.vision_language import Match, top_matches
from magneto.metrics.retrieval import ranks
from magneto.visualize.retrieval_grid import FOUND, above, images_for, texts_for

LIMIT = 1000  # images that an evaluation keeps to show some of them


class RetrievalExamples(Metric):
    """The pairs of an evaluation, of which the first LIMIT images are kept with their pixels.

    A metric without a value: the loop of an evaluation updates and resets it as the others. Each process keeps its own.
    """

    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self.reset()

    def reset(self) -> None:
        """Forget all pairs."""
        super().reset()
        self._images: dict[int, tuple[np.ndarray, Tensor]] = {}
        self._texts: dict[int, tuple[str, Tensor]] = {}
        self._right: set[tuple[int, int]] = set()

    def update(
        self,
        image_ids: Tensor,
        pixels: Tensor,
        vision: Tensor,
        text_ids: Tensor,
        texts: Sequence[str],
        vectors: Tensor,
    ) -> None:
        """Keep a batch of B pairs.

        Args:
            image_ids: (B,) equal for equal images.
            pixels: (B, C, H, W) uint8.
            vision: (B, E) vectors of the images.
            text_ids: (B,) equal for equal texts.
            texts: B strings.
            vectors: (B, E) of the texts.
        """
        for row, (image, text) in enumerate(zip(image_ids.tolist(), text_ids.tolist(), strict=True)):
            if image not in self._images:
                if len(self._images) == LIMIT:
                    continue
                self._images[image] = pixels[row].cpu().numpy(), vision[row].float().cpu()
            if text not in self._texts:
                self._texts[text] = texts[row], vectors[row].float().cpu()
            self._right.add((image, text))

    def compute(self) -> dict[str, float]:
        """Return no score."""
        return {}

    def samples(self, count: int) -> list[dict[str, Any]]:
        """Return for about `count` pairs, evenly over the images, what is found for the sentence and for the image."""
        if not self._images:
            return []
        image_ids, text_ids = sorted(self._images), sorted(self._texts)
        vision = torch.stack([self._images[id][1] for id in image_ids])
        text = torch.stack([self._texts[id][1] for id in text_ids])
        right = torch.tensor([[(image, text) in self._right for text in text_ids] for image in image_ids])
        pixels = [self._images[id][0] for id in image_ids]
        sentences = [self._texts[id][0] for id in text_ids]
        shown = []
        for row in range(0, len(image_ids), max(1, len(image_ids) // count)):
            column = int(right[row].nonzero()[0])
            images = [
                Match(pixels[index], cosine, bool(right[index, column]))
                for index, cosine in top_matches(text[column], vision, FOUND)
            ]
            texts = [
                Match(sentences[index], cosine, bool(right[row, index]))
                for index, cosine in top_matches(vision[row], text, FOUND)
            ]
            shown.append(
                {
                    "id": f"{image_ids[row]:08d}",
                    "kind": "retrieval",
                    "text": sentences[column],
                    "found": [str(match.content) for match in texts],
                    "rank_of_image": _rank(text[column], vision, right[:, column]),
                    "rank_of_text": _rank(vision[row], text, right[row]),
                    "images": len(image_ids),
                    "image": above([images_for(sentences[column], images), texts_for(pixels[row], texts)]),
                }
            )
        return shown


def _rank(query: Tensor, candidates: Tensor, right: Tensor) -> int:
    """Return the rank of the best right candidate, from 1: (E,), (G, E), (G,) bool."""
    pairs = torch.nn.functional.pad(right.nonzero(), (1, 0))  # (right ones, 2)
    return int(ranks(query[None], candidates, pairs)[0]) + 1
