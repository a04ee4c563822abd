"""Encode one or two texts to a limited number of tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from magneto.data.tokenizers.text import TextTokenizer


@dataclass(frozen=True)
class Encoded:
    """Token ids of examples.

    Attributes:
        tokens: of each example, (T,) uint32.
        second: (N,), tokens of an example before its second text; all of them if there is none.
        truncated: number of examples that were cut.
    """

    tokens: list[np.ndarray]
    second: np.ndarray
    truncated: int = 0


def encode(
    tokenizer: TextTokenizer, texts: Sequence[str], pairs: Sequence[str | None], max_tokens: int
) -> Encoded:
    """Encode texts, or pairs of texts, with the special tokens around them.

    Runs of white space become one space. An example of more than `max_tokens` loses tokens at the end of its longer text.

    Raises:
        MagnetoError: the tokenizer has no `<s>` or `</s>`.
    """
    bos, eos = tokenizer.require("bos"), tokenizer.require("eos")
    firsts = tokenizer.encode_batch([" ".join(text.split()) for text in texts])
    seconds = tokenizer.encode_batch([" ".join((pair or "").split()) for pair in pairs])
    tokens: list[np.ndarray] = []
    second, truncated = [], 0
    for a, b, pair in zip(firsts, seconds, pairs, strict=True):
        room = max_tokens - (2 if pair is None else 3)
        if len(a) + len(b) > room:
            truncated += 1
            half = room // 2
            keep = max(half, room - len(b)) if len(a) > half else len(a)
            a, b = a[:keep], b[: room - min(keep, len(a))]
        ids = [bos, *a, eos] if pair is None else [bos, *a, eos, *b, eos]
        tokens.append(np.array(ids, np.uint32))
        second.append(len(a) + 2)
    return Encoded(tokens, np.array(second, np.int64), truncated)
