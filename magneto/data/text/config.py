"""Settings of documents for language models."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt

from magneto.data.config import Count, HeldOutConfig, StreamConfig
from magneto.data.tokenizers.settings import TokenizerSettings
from magneto.data.transforms.mask_tokens import Masking
from magneto.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TextTokenizerSettings(TokenizerSettings):
    """A given tokenizer, or one that is trained on the beginning of each corpus."""

    kind: str = "byte_bpe"
    vocab_size: int = 4096
    sample_mb: Annotated[float, Gt(0)] = 100.0
    """Megabytes of each corpus's training text that it is trained on."""

    def fingerprint(self) -> dict[str, Any]:
        """Return what decides the tokenizer."""
        sample = {} if self.file is not None else {"sample_mb": float(self.sample_mb)}
        return super().fingerprint() | sample


@dataclass(frozen=True, kw_only=True)
class TextConfig(StreamConfig, HeldOutConfig):
    """Settings of `TextDataModule`."""

    tokenizer: TextTokenizerSettings = TextTokenizerSettings()
    block_size: Annotated[int, Ge(2)] = 512
    """Tokens of a block."""
    documents: Literal["pack", "separate"] = "pack"
    """pack: blocks run over the ends of documents; no padding; they begin elsewhere in every epoch. separate: a block holds
    one document or a part of it."""
    batch_size: Count = 16
    """Blocks of a batch on one rank; as many padded tokens are the budget where documents are separate."""
    eval_stride: Count | None = None
    """Causal evaluation slides its window by this number of tokens, and each token has at least block_size - eval_stride
    tokens of context; None: block_size, the cheapest."""
    masking: Masking | None = None
    """None: for causal models."""
    prepare_workers: Count | None = None
    """Processes that tokenize the parts of a large corpus; None: all cores."""
    val_fraction: Annotated[float, Ge(0)] = 0.02
    test_fraction: Annotated[float, Ge(0)] = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.streaming and self.documents == "separate":
            raise ConfigError(
                "data.documents=separate needs the lengths of all documents, which data.streaming=true does not know. Set "
                "data.documents to pack (task.document_mask=true keeps documents apart in a causal model)."
            )
        if self.eval_stride is not None and self.eval_stride > self.block_size:
            raise ConfigError(
                f"data.eval_stride={self.eval_stride} must lie between 1 and data.block_size={self.block_size}; null is "
                "the latter."
            )
