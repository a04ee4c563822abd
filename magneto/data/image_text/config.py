"""Settings of images with captions."""

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge, Len

from magneto.data.config import StreamConfig
from magneto.data.image.config import ImageConfig
from magneto.data.tokenizers.settings import TokenizerSettings
from magneto.data.transforms.mask_patches import BlockMasking
from magneto.data.transforms.mask_tokens import Masking


@dataclass(frozen=True, kw_only=True)
class PairMasking:
    """What is hidden of images, of captions alone, and of captions beside their image.

    The defaults are the shares of BEiT-3 (arXiv 2208.10442, section 3): 40 % of the patches, 15 % of the words, 50 % of
    those of pairs.
    """

    images: BlockMasking = field(default_factory=BlockMasking)
    texts: Masking = field(default_factory=Masking)
    pairs: Masking = field(default_factory=lambda: Masking(probability=0.5))


@dataclass(frozen=True, kw_only=True)
class ImageTextConfig(StreamConfig, ImageConfig):
    """Settings of `ImageTextDataModule`."""

    tokenizer: TokenizerSettings
    languages: Annotated[tuple[str, ...], Len(1)] | None = ("en",)
    """Of the captions; None: all that there are."""
    lowercase: bool = False
    """Captions in small letters."""
    max_tokens: Annotated[int, Ge(3)] = 32
    """Of a caption, `<s>` and `</s>` included; longer ones are cut at the end."""
    masking: PairMasking | None = None  # type: ignore[assignment]
    """None: nothing is hidden."""
