"""Images and texts with their vectors: what is found among them, and panels that show it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from magneto.metrics.retrieval import ranks
from magneto.visualize.retrieval_grid import FOUND, Answer, above, images_for, texts_for

LIMIT = 1000  # images that an evaluation keeps to show some of them


def nearest(query: Tensor, gallery: Tensor, count: int) -> list[tuple[int, float]]:
    """(place, cosine) of the `count` vectors of (G, E) that are nearest to (E,), the best first; all of length 1."""
    found = (gallery @ query).topk(min(count, len(gallery)))
    return list(zip(found.indices.tolist(), found.values.tolist(), strict=True))


class Gallery:
    """The pairs of an evaluation, of which the first LIMIT images are kept with their pixels."""

    def __init__(self) -> None:
        self._images: dict[int, tuple[np.ndarray, Tensor]] = {}
        self._texts: dict[int, tuple[str, Tensor]] = {}
        self._right: set[tuple[int, int]] = set()

    def add(
        self,
        numbers: Tensor,
        pixels: Tensor,
        vision: Tensor,
        keys: Tensor,
        texts: Sequence[str],
        vectors: Tensor,
    ) -> None:
        """Keep a batch of B pairs.

        Args:
            numbers: (B,) equal for equal images.
            pixels: (B, C, H, W) uint8.
            vision: (B, E) vectors of the images.
            keys: (B,) equal for equal texts.
            texts: B strings.
            vectors: (B, E) of the texts.
        """
        for place, (number, key) in enumerate(zip(numbers.tolist(), keys.tolist(), strict=True)):
            if number not in self._images:
                if len(self._images) == LIMIT:
                    continue
                self._images[number] = pixels[place].cpu().numpy(), vision[place].float().cpu()
            if key not in self._texts:
                self._texts[key] = texts[place], vectors[place].float().cpu()
            self._right.add((number, key))

    def samples(self, count: int) -> list[dict[str, Any]]:
        """For about `count` pairs, evenly over the images: what is found for the sentence, and for the image."""
        if not self._images:
            return []
        numbers, keys = sorted(self._images), sorted(self._texts)
        vision = torch.stack([self._images[number][1] for number in numbers])
        text = torch.stack([self._texts[key][1] for key in keys])
        place = {key: column for column, key in enumerate(keys)}
        row = {number: line for line, number in enumerate(numbers)}
        right = torch.zeros(len(numbers), len(keys), dtype=torch.bool)
        for number, key in self._right:
            right[row[number], place[key]] = True
        shown = range(0, len(numbers), max(1, len(numbers) // count))
        return [
            self._sample(numbers, keys, vision, text, right, line, int(right[line].nonzero()[0]))
            for line in shown
        ]

    def _sample(
        self,
        numbers: Sequence[int],
        keys: Sequence[int],
        vision: Tensor,
        text: Tensor,
        right: Tensor,
        line: int,
        column: int,
    ) -> dict[str, Any]:
        sentence, image = self._texts[keys[column]][0], self._images[numbers[line]][0]
        images = [
            Answer(self._images[numbers[found]][0], alike, bool(right[found, column]))
            for found, alike in nearest(text[column], vision, FOUND)
        ]
        texts = [
            Answer(self._texts[keys[found]][0], alike, bool(right[line, found]))
            for found, alike in nearest(vision[line], text, FOUND)
        ]
        of_text = int(ranks(text[column, None], vision, right[:, column][None])[0])
        of_image = int(ranks(vision[line, None], text, right[line, None])[0])
        return {
            "id": f"{numbers[line]:08d}",
            "kind": "retrieval",
            "text": sentence,
            "found": [str(answer.content) for answer in texts],
            "place_of_image": of_text + 1,
            "place_of_text": of_image + 1,
            "gallery": len(numbers),
            "image": above([images_for(sentence, images), texts_for(image, texts)]),
        }
