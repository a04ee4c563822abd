"""Encode one or two texts to a limited number of tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from magneto.data.tokenizers.text import TextTokenizer


@dataclass(frozen=True)
class Encoded:
    """Token ids of many examples, one after another.

    tokens: (all tokens,) uint32. start: (N + 1,), index of each example's first token. second: (N,), tokens of an example
    before its second text; its length if there is none. truncated: number of examples that were cut.
    """

    tokens: np.ndarray
    start: np.ndarray
    second: np.ndarray
    truncated: int = 0

    def items(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the tokens of each example, and (T,) bool: whether a token stands in its second text."""
        for row, second in enumerate(self.second.tolist()):
            tokens = self.tokens[self.start[row] : self.start[row + 1]]
            yield tokens, np.arange(len(tokens)) >= second


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
    parts: list[list[int]] = []
    second, truncated = [], 0
    for a, b, pair in zip(firsts, seconds, pairs, strict=True):
        room = max_tokens - (2 if pair is None else 3)
        if len(a) + len(b) > room:
            truncated += 1
            half = room // 2
            keep = max(half, room - len(b)) if len(a) > half else len(a)
            a, b = a[:keep], b[: room - min(keep, len(a))]
        parts.append([bos, *a, eos] if pair is None else [bos, *a, eos, *b, eos])
        second.append(len(a) + 2)
    start = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    flat = np.fromiter((token for part in parts for token in part), np.uint32, count=int(start[-1]))
    return Encoded(flat, start, np.array(second, np.int64), truncated)
