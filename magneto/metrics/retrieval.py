"""Recall at k: how often the right image is among the first k of all images for a text, and the right text for an image."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from magneto.metrics.error_rate import metric_names

CUTS = (1, 5, 10)
CHUNK, LARGEST = 1024, 2**26  # queries at once, and similarities


class RetrievalScores(Metric):
    """R@1, R@5 and R@10 over all images and texts of an evaluation, each of them, with its copies, counted once.

    A query counts at k if one of its right answers is among the k nearest. An answer as near as a right one counts as
    nearer: a model whose similarities are all equal finds nothing.

    - `image_to_text/r1`, `/r5`, `/r10`: queries are images; `text_to_image/...`: queries are texts, with several
      languages also for each of them (`text_to_image/r1/fr`).
    - `r1`: the mean of both directions.
    - `facts/images`, `facts/captions`: the numbers of different images and captions.
    - `facts/chance`: `r1` of answers at random.

    Args:
        languages: names of the languages that `update` counts.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False

    pairs: list[Tensor]
    """Each (B, 3) int64: key of the image, key of the text, language."""
    vision: list[Tensor]
    text: list[Tensor]

    def __init__(self, languages: Sequence[str], width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.languages, self.width = tuple(languages), width
        for name in ("pairs", "vision", "text"):
            self.add_state(name, default=[], dist_reduce_fx="cat")
        self.reset()

    def reset(self) -> None:
        """Forget all pairs."""
        super().reset()
        # With an empty block, a process that saw no pair can take part in the gathering.
        self.pairs.append(torch.zeros(0, 3, dtype=torch.int64, device=self.device))
        for rows in (self.vision, self.text):
            rows.append(torch.zeros(0, self.width, device=self.device))

    def update(self, images: Tensor, texts: Tensor, languages: Tensor, vision: Tensor, text: Tensor) -> None:
        """Keep a batch of pairs.

        Args:
            images: (B,) equal for equal images.
            texts: (B,) equal for equal texts.
            languages: (B,) indices, -1 for those without a name.
            vision: (B, width) vectors of length 1 of the images.
            text: (B, width) of the texts.
        """
        self.pairs.append(torch.stack((images, texts, languages), dim=1).to(self.device))
        self.vision.append(vision.float().to(self.device))
        self.text.append(text.float().to(self.device))

    def compute(self) -> dict[str, float]:
        """The scores as fractions; empty when no pair was seen."""
        pairs, vision, text = (dim_zero_cat(state).cpu() for state in (self.pairs, self.vision, self.text))
        if not len(pairs):
            return {}
        image, first_image = _unique(pairs[:, 0])
        key, first_text = _unique(pairs[:, 1])
        right = torch.unique(torch.stack((image, key), dim=1), dim=0)
        vision, text = vision[first_image], text[first_text]
        scores: dict[str, float] = {}
        of_images, of_texts = ranks(vision, text, right), ranks(text, vision, right.flip(1))
        for name, rank in (("image_to_text", of_images), ("text_to_image", of_texts)):
            scores |= {f"{name}/r{cut}": _share(rank < cut) for cut in CUTS}
        if len(self.languages) > 1:
            for index, language in enumerate(metric_names(self.languages)):
                own = torch.zeros(len(first_text), dtype=torch.bool)
                own[key[pairs[:, 2] == index]] = True  # a text may be of several languages
                if own.any():
                    scores[f"text_to_image/r1/{language}"] = _share(of_texts[own] < 1)
        return scores | {
            "r1": (scores["image_to_text/r1"] + scores["text_to_image/r1"]) / 2,
            "facts/images": float(len(vision)),
            "facts/captions": float(len(text)),
            "facts/chance": len(right) / (len(vision) * len(text)),
        }


def ranks(queries: Tensor, candidates: Tensor, right: Tensor) -> Tensor:
    """Return the rank of each query's best right candidate, from 0: (Q, E), (G, E), (P, 2) int64 -> (Q,) int64.

    Of equally similar ones the right one is the last, and a similarity of NaN is as good as any: a model whose vectors all
    agree, or are no numbers, finds nothing. Memory is linear in G.

    Args:
        queries: one or more.
        candidates: likewise.
        right: indices of queries and of candidates that are right for them, each pair once.
    """
    right = right[right[:, 0].argsort()]
    parts, size = [], max(1, min(CHUNK, LARGEST // len(candidates)))
    for start in range(0, len(queries), size):
        part = queries[start : start + size]
        begin, end = torch.searchsorted(
            right[:, 0].contiguous(), torch.tensor([start, start + size])
        ).tolist()
        targets = torch.zeros(len(part), len(candidates), dtype=torch.bool)
        targets[right[begin:end, 0] - start, right[begin:end, 1]] = True
        similarity = part @ candidates.T
        best = similarity.masked_fill(~targets, -torch.inf).amax(1, keepdim=True)
        parts.append((~(similarity < best) & ~targets).sum(1))
    return torch.cat(parts)


def _unique(ids: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) -> indices among the K different ones (B,), and where each of these comes first (K,)."""
    _, first, index = np.unique(ids.numpy(), return_index=True, return_inverse=True)
    return torch.from_numpy(index), torch.from_numpy(first)


def _share(flags: Tensor) -> float:
    return float(flags.double().mean())
