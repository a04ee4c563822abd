"""Short texts that a user gives beside images: cleaned and tokenized as captions and questions are."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from magneto.data.collate import pad_texts
from magneto.data.tokenizers.encode import encode
from magneto.data.tokenizers.text import TextTokenizer
from magneto.data.transforms.text import readable_caption
from magneto.errors import ConfigError

log = logging.getLogger("magneto")


def text_batches(
    texts: Sequence[str], tokenizer: TextTokenizer, info: Any, key: str, size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ids (B, T) int64 of at most `size` texts, and their mask.

    Texts longer than `info.max_tokens` lose their end, which is logged.

    Raises:
        MagnetoError: there is no text, or one that cannot be read; `key` is what the user called it.
    """
    if not texts:
        raise ConfigError(f"{key}: is empty. Set it to a sentence.")
    clean = [readable_caption(text, info.lowercase, key) for text in texts]
    longest = info.max_tokens
    encoded = encode(tokenizer, clean, [None] * len(clean), longest)
    if encoded.truncated:
        log.warning("%s: %d were longer than %d tokens and lost their end", key, encoded.truncated, longest)
    ids = encoded.tokens
    for start in range(0, len(ids), size):
        yield pad_texts(ids[start : start + size], tokenizer.pad_id or 0, longest)
