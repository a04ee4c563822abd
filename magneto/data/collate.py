"""Make batches of examples of different lengths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

IGNORE = -100  # a target that is not scored, as in torch's cross-entropy
PAD_TO_MULTIPLE = 8  # tokens; equal lengths reuse kernels and compiled graphs


def pad_texts(texts: Sequence[np.ndarray], value: int, max_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Texts as one (B, T) int64, filled up with `value`, and its mask, True = real token.

    T is a multiple of PAD_TO_MULTIPLE where `max_tokens`, the longest text, leaves room.
    """
    lengths = np.array([len(text) for text in texts])
    longest = int(lengths.max())
    width = max(longest, min(-(-longest // PAD_TO_MULTIPLE) * PAD_TO_MULTIPLE, max_tokens))
    padded = np.full((len(texts), width), value, np.int64)
    for row, text in enumerate(texts):
        padded[row, : len(text)] = text
    return torch.from_numpy(padded), torch.from_numpy(np.arange(width) < lengths[:, None])
