"""Settings of questions about images."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from magneto.data.image.config import ImageConfig
from magneto.data.tokenizers.settings import TokenizerSettings


@dataclass(frozen=True, kw_only=True)
class VqaConfig(ImageConfig):
    """Settings of `VqaDataModule`."""

    tokenizer: TokenizerSettings
    num_answers: Annotated[int, Ge(2)] | None = None
    """How many answers there are to choose from, the most frequent of the training questions; None: all."""
    lowercase: bool = False
    """Questions in small letters."""
    max_tokens: Annotated[int, Ge(3)] = 32
    """Of a question, `<s>` and `</s>` included; longer ones are cut at the end."""
