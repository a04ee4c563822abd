"""Make batches of examples of different lengths."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

IGNORE = -100  # a target that is not scored, as in torch's cross-entropy
PAD_TO_MULTIPLE = 8  # tokens; equal lengths reuse kernels and compiled graphs


@dataclass(frozen=True, kw_only=True)
class Pad:
    """How arrays of different lengths become one.

    Attributes:
        value: what shorter ones are filled up with.
        multiple: the length of the batch is rounded up to a multiple of it.
        limit: longest length that a multiple may lead to; None for no limit.
        dtype: of the batch.
        mask: key under which the batch gets (B, T) bool, True = real.
        lengths: key under which the batch gets (B,) int64.
        full: whether the mask stays in a batch in which all is real.
    """

    value: float = 0
    multiple: int = 1
    limit: int | None = None
    dtype: type[np.generic] = np.int64
    mask: str | None = None
    lengths: str | None = None
    full: bool = True

    def __call__(self, rows: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the padded rows (B, T, ...) and their lengths (B,)."""
        lengths = [len(row) for row in rows]
        longest = max(lengths)
        width = -(-longest // self.multiple) * self.multiple
        if self.limit is not None:
            width = max(longest, min(width, self.limit))
        padded = np.full((len(rows), width, *np.shape(rows[0])[1:]), self.value, self.dtype)
        for number, row in enumerate(rows):
            padded[number, : lengths[number]] = row
        return torch.from_numpy(padded), torch.tensor(lengths)


class Collate:
    """Examples -> a batch: some values are padded, texts stay a list, and the others become one tensor.

    Args:
        pads: key of an example -> how its values are padded.
    """

    def __init__(self, pads: Mapping[str, Pad]) -> None:
        self.pads = dict(pads)

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = {}
        for key in items[0]:
            values = [item[key] for item in items]
            if key not in self.pads:
                batch[key] = values if isinstance(values[0], str) else torch.tensor(values)
                continue
            pad = self.pads[key]
            batch[key], lengths = pad(values)
            if pad.lengths is not None:
                batch[pad.lengths] = lengths
            if pad.mask is not None and (pad.full or int(lengths.min()) < batch[key].shape[1]):
                batch[pad.mask] = torch.arange(batch[key].shape[1]) < lengths[:, None]
        return batch


def pad_texts(texts: Sequence[np.ndarray], value: int, max_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return texts as one (B, T) int64, filled up with `value`, and its mask, True = real token.

    T is a multiple of PAD_TO_MULTIPLE where `max_tokens`, the longest text, leaves room.
    """
    tokens, lengths = Pad(value=value, multiple=PAD_TO_MULTIPLE, limit=max_tokens)(texts)
    return tokens, torch.arange(tokens.shape[1]) < lengths[:, None]
