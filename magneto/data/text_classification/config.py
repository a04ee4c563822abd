"""Settings of labelled texts."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from magneto.data.config import Count, DataConfig
from magneto.data.tokenizers.settings import TokenizerSettings


@dataclass(frozen=True, kw_only=True)
class TextClassificationConfig(DataConfig):
    """Settings of `TextClassificationDataModule`."""

    tokenizer: TokenizerSettings
    max_tokens: Annotated[int, Ge(8)] = 128
    """Longer examples are truncated, and counted."""
    batch_size: Count = 32
    """Examples of a training batch on one rank, of about one length."""
    eval_batch_size: Count | None = None
    """Of an evaluation batch; None: the same."""
