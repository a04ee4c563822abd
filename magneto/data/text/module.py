"""Text for language models: corpora -> token ids on disk -> blocks for causal or masked models.

    corpora --tokenizer, trained on the training documents--> one row of tokens a split (build.py, packing.py) --sampler-->
    blocks --masking, if any--> batch

A batch is a dict: `id` (B,) int64, the index of the block in its split; `tokens` (B, T) int64, what the model sees;
`targets` (B, T) int64, what is to be predicted there, IGNORE where nothing is scored; `mask` (B, T) bool,
True = real token, absent where all are; causal only: `bytes` (B,) int64, UTF-8 bytes of the scored targets (exact in
evaluation, whatever the tokenizer; in training from the mean of the split).

Causal: `tokens` are the targets moved by one; a document follows the `</s>` of the one before. Masked: `tokens` begin
with `<s>`, targets are the original tokens at the chosen places.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from magneto.config.validate import from_mapping
from magneto.data.collate import IGNORE as IGNORE  # part of the batches described here
from magneto.data.collate import Collate, Pad
from magneto.data.corpora.text.base import Document, TextReader
from magneto.data.module import Batching
from magneto.data.prepared import Preparation, PreparedDataModule
from magneto.data.text.build import TextCorpora, build
from magneto.data.text.dataset import BlockReading, TextDataset, TextInfo
from magneto.data.text.packing import TokenRow, evaluation_pieces, training_pieces
from magneto.data.tokenizers.settings import TokenizerSettings
from magneto.data.tokenizers.text import TextTokenizer
from magneto.data.transforms.mask_tokens import Masking
from magneto.errors import ConfigError, DataError

log = logging.getLogger(__name__)

PAD_MULTIPLE = 64  # padded lengths are rounded up to it, so that kernels and compiled graphs are reused


@dataclass(frozen=True, kw_only=True)
class TextTokenizerSettings(TokenizerSettings):
    """A given tokenizer, or one that is trained on the beginning of each corpus.

    Attributes:
        sample_mb: megabytes of each corpus's training text that it is trained on.
    """

    kind: str = "byte_bpe"
    vocab_size: int = 4096
    sample_mb: float = 100.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sample_mb <= 0:
            raise ConfigError(f"data.tokenizer.sample_mb={self.sample_mb} must be above 0 (megabytes).")

    def fingerprint(self) -> dict[str, Any]:
        """Return what decides the tokenizer."""
        sample = {} if self.file is not None else {"sample_mb": float(self.sample_mb)}
        return super().fingerprint() | sample


class TextDataModule(PreparedDataModule[TextInfo]):
    """Documents from one or more corpora.

    Args:
        corpora: name -> corpus.
        tokenizer: `TextTokenizerSettings` as a dict.
        block_size: tokens of a block.
        documents: "pack" (blocks run over the ends of documents; no padding; they begin elsewhere in every epoch) or
            "separate" (a block holds one document or a part of it).
        batch_size: blocks of a batch on one rank; as many padded tokens are the budget where documents are separate.
        eval_stride: causal evaluation slides its window by this number of tokens, and each token has at least
            block_size - eval_stride tokens of context; None: block_size, the cheapest.
        masking: `Masking` as a dict; None: for causal models.
        val_fraction: share of the documents that is held out, by a hash, where a corpus states no split.
        test_fraction: likewise.
        data_dir, num_workers, seed: see `PreparedDataModule`.
    """

    Info = TextInfo
    kind, noun = "text", "document"
    FORMAT = 2

    def __init__(
        self,
        corpora: Mapping[str, TextReader],
        *,
        data_dir: str = "data",
        tokenizer: Mapping[str, Any] | None = None,
        block_size: int = 512,
        documents: str = "pack",
        batch_size: int = 16,
        eval_stride: int | None = None,
        masking: Mapping[str, Any] | None = None,
        val_fraction: float = 0.02,
        test_fraction: float = 0.02,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(corpora, data_dir=data_dir, num_workers=num_workers, seed=seed)
        if documents not in ("pack", "separate"):
            raise ConfigError(f"data.documents={documents!r} must be pack or separate.")
        if block_size < 2 or batch_size < 1:
            raise ConfigError(
                f"data.block_size={block_size} must be at least 2 and data.batch_size={batch_size} at least 1."
            )
        if eval_stride is not None and not 1 <= eval_stride <= block_size:
            raise ConfigError(
                f"data.eval_stride={eval_stride} must lie between 1 and data.block_size={block_size}; null is the "
                "latter."
            )
        if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
            raise ConfigError(
                f"data.val_fraction={val_fraction} and data.test_fraction={test_fraction} must be 0 or more, and "
                "leave something to train on."
            )
        self.tokenizer_settings = from_mapping(TextTokenizerSettings, tokenizer or {}, "data.tokenizer")
        self.block_size, self.batch_size = block_size, batch_size
        self.separate = documents == "separate"
        self.eval_stride = eval_stride or block_size
        self.masking = None if masking is None else from_mapping(Masking, masking, "data.masking")
        self.fractions = (float(val_fraction), float(test_fraction))

    def settings(self) -> dict[str, Any]:
        """Return the tokenizer and the shares of the splits."""
        return {"tokenizer": self.tokenizer_settings.fingerprint(), "fractions": list(self.fractions)}

    def info_of_settings(self) -> dict[str, Any]:
        """Return the size of the blocks, which are cut when they are read."""
        return {"block_size": self.block_size}

    @property
    def _corpora(self) -> TextCorpora:
        return TextCorpora(readers=self.corpora, data_dir=self.data_dir, fractions=self.fractions)

    def build(self, target: Preparation) -> dict[str, Any]:
        """Train the tokenizer, unless it is given, and write the tokens."""
        own = self.tokenizer_settings
        given = None if own.file is None else TextTokenizer.from_file(own.file)
        if self.given is not None:
            given = TextTokenizer.from_json(self.given.tokenizer)
        training = {"kind": own.kind, "vocab_size": own.vocab_size, "sample_mb": own.sample_mb}
        return build(target, self._corpora, given, **training)

    def details(self) -> str:
        """Return the size of the training text."""
        return f", {self.info.tokens['train']:,} training tokens"

    def warnings(self, report: Mapping[str, Any]) -> Iterator[str]:
        """Warn of a tokenizer by which scores do not compare."""
        if self.masking is None and (lossy := sum(report["lossy"].values())):
            yield (
                f"of {lossy} held-out documents the tokenizer loses something (capitals, white space, unknown characters), "
                "which the model is not asked for: bits per byte do not compare with those of a tokenizer that loses "
                "nothing, such as data.tokenizer.kind=byte_bpe"
            )

    def check(self) -> None:
        """Raise `DataError` for a tokenizer without a mask, or a text that is shorter than a block."""
        if self.masking is not None:
            self.tokenizer.require("mask")
        tokens = self.info.tokens["train"]
        if "train" in self.splits and not self.separate and tokens < self.block_size:
            raise DataError(
                f"The training text has {tokens} tokens, fewer than data.block_size={self.block_size}: lower it, give more "
                "text, or set data.documents=separate."
            )

    def adapted(self, model: TextInfo) -> Self:
        """Return a copy with blocks as long as those of the model."""
        data = self.copy()
        if model.block_size != self.block_size:
            log.info("text: blocks of %d tokens, as the checkpoint's model has them", model.block_size)
            whole = self.eval_stride == self.block_size
            data.block_size = model.block_size
            data.eval_stride = model.block_size if whole else min(self.eval_stride, model.block_size)
        return data

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer of the prepared folder."""
        return TextTokenizer.from_json(self.info.tokenizer)

    def documents(self, split: str) -> Iterator[Document]:
        """Yield the documents of a split in the order of its tokens, read from the corpora again."""
        for name in self.corpora:
            yield from (one for one in self._corpora.documents(name) if one.split == split)

    def open(self, split: str) -> TextDataset:
        """Return the blocks of a split."""
        training = split == "train"
        row = TokenRow(self.table(split))
        # A masked block begins with <s>, where the tokenizer has one.
        room = self.block_size - (self.masking is not None and self.tokenizer.bos_id is not None)
        if training:
            pieces = training_pieces(row, room, self.separate)
        else:
            stride = room if self.masking is not None else self.eval_stride
            pieces = evaluation_pieces(row, room, stride, self.separate)
        reading = BlockReading(
            split=split,
            tokenizer=self.tokenizer,
            masking=self.masking if training or self.masking is None else self.masking.for_evaluation(),
            shift=room if training and not self.separate else 0,
            seed=self.seed if training else 0,  # the masks of an evaluation are the same for all runs
            bytes_per_token=self.info.bytes["train"] / max(self.info.tokens["train"], 1)
            if training
            else None,
        )
        return TextDataset(row, pieces, reading)

    @property
    def batching(self) -> Batching:
        """By padded tokens: full blocks, or as many of the shorter ones as make up for them."""
        tokens = self.batch_size * self.block_size
        pad = PAD_MULTIPLE if self.block_size % PAD_MULTIPLE == 0 else 1
        return Batching(budget=tokens, eval_budget=tokens, pad_to_multiple=pad)

    def collate(self, dataset: TextDataset) -> Collate:
        """Return what pads tokens and targets."""
        pad = self.tokenizer.require("eos") if self.tokenizer.pad_id is None else self.tokenizer.pad_id
        multiple = self.batching.pad_to_multiple
        tokens = Pad(value=pad, multiple=multiple, mask="mask", full=False)
        return Collate({"tokens": tokens, "targets": Pad(value=IGNORE, multiple=multiple)})
