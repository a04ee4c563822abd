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
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from typing import Any, Self

from magneto.data.collate import IGNORE as IGNORE  # part of the batches described here
from magneto.data.collate import Collate, Pad
from magneto.data.corpora.text.base import Document
from magneto.data.module import Batching
from magneto.data.prepared import Preparation
from magneto.data.streamed import StreamedDataModule
from magneto.data.text.build import build
from magneto.data.text.config import TextConfig
from magneto.data.text.dataset import BlockReading, TextDataset, TextInfo
from magneto.data.text.documents import usable_documents
from magneto.data.text.packing import TokenRow, evaluation_pieces, training_pieces
from magneto.data.text.streaming import StreamedBlocks, training_text
from magneto.data.tokenizers.text import TextTokenizer
from magneto.errors import DataError

log = logging.getLogger(__name__)

PAD_MULTIPLE = 64  # padded lengths are rounded up to it, so that kernels and compiled graphs are reused


class TextDataModule(StreamedDataModule[TextInfo, TextConfig]):
    """Documents from one or more corpora: name -> `TextReader`; the settings are those of `TextConfig`."""

    Info, Config = TextInfo, TextConfig
    kind, noun = "text", "document"
    FORMAT = 2

    def settings(self) -> dict[str, Any]:
        """Return the tokenizer, the shares of the splits, and of a streamed corpus how much is prepared."""
        fractions = list(self.config.fractions)
        return {
            "tokenizer": self.config.tokenizer.fingerprint(),
            "fractions": fractions,
            **super().settings(),
        }

    def info_of_settings(self) -> dict[str, Any]:
        """Return the size of the blocks, which are cut when they are read."""
        return {"block_size": self.config.block_size}

    def build(self, target: Preparation) -> dict[str, Any]:
        """Train the tokenizer, unless it is given, and write the tokens."""
        return build(target)

    def details(self) -> str:
        """Return the size of the training text."""
        return super().details() or f", {self.info.tokens['train']:,} training tokens"

    def warnings(self, report: Mapping[str, Any]) -> Iterator[str]:
        """Warn of a tokenizer by which scores do not compare."""
        if self.config.masking is None and (lossy := sum(report["lossy"].values())):
            yield (
                f"of {lossy} held-out documents the tokenizer loses something (capitals, white space, unknown characters), "
                "which the model is not asked for: bits per byte do not compare with those of a tokenizer that loses "
                "nothing, such as data.tokenizer.kind=byte_bpe"
            )

    def check(self) -> None:
        """Raise `DataError` for a tokenizer without a mask, or a text that is shorter than a block."""
        if self.config.masking is not None:
            self.tokenizer.require("mask")
        tokens = self.info.tokens["train"]
        if (
            "train" in self.splits
            and not self.config.streaming
            and not self.separate
            and tokens < self.config.block_size
        ):
            raise DataError(
                f"The training text has {tokens} tokens, fewer than data.block_size={self.config.block_size}: lower it, "
                "give more text, or set data.documents=separate."
            )

    def adapted(self, model: TextInfo) -> Self:
        """Return a copy with blocks as long as those of the model."""
        size, stride = model.block_size, self.config.eval_stride
        if size != self.config.block_size:
            log.info("text: blocks of %d tokens, as the checkpoint's model has them", size)
            stride = None if stride in (None, self.config.block_size) else min(stride, size)
        return self.with_config(block_size=size, eval_stride=stride)

    @property
    def separate(self) -> bool:
        """Whether a block holds one document only."""
        return self.config.documents == "separate"

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer of the prepared folder."""
        return TextTokenizer.from_json(self.info.tokenizer)

    def documents(self, split: str) -> Iterator[Document]:
        """Yield the documents of a split in the order of its tokens, read from the corpora again."""
        for name, reader in self.corpora.items():
            corpus = reader.load(self.data_dir)
            usable = usable_documents(name, corpus.examples, self.config.fractions)
            yield from (one for one in usable if one.split == split)

    @property
    def room(self) -> int:
        """Tokens of a block. A masked one begins with <s>, where the tokenizer has one."""
        begins = self.config.masking is not None and self.tokenizer.bos_id is not None
        return self.config.block_size - begins

    def open(self, split: str) -> TextDataset:
        """Return the blocks of a split."""
        config, training, room = self.config, split == "train", self.room
        row = TokenRow(self.table(split))
        if training:
            pieces = training_pieces(row, room, self.separate)
        else:
            stride = room if config.masking is not None else config.eval_stride or room
            pieces = evaluation_pieces(row, room, stride, self.separate)
        return TextDataset(row, pieces, self._reading(split))

    def _reading(self, split: str) -> BlockReading:
        masking, training = self.config.masking, split == "train"
        return BlockReading(
            split=split,
            tokenizer=self.tokenizer,
            masking=masking if training or masking is None else masking.for_evaluation(),
            shift=self.room if training and not self.separate else 0,
            seed=self.seed if training else 0,  # the masks of an evaluation are the same for all runs
            bytes_per_token=self.info.bytes["train"] / max(self.info.tokens["train"], 1)
            if training
            else None,
        )

    # ------------------------------------------------------------------ streaming

    @property
    def take(self) -> Callable[[Document], tuple[str, int] | None]:
        """What returns the text of a training document, and its characters."""
        return partial(training_text, self.config.fractions)

    def item_source(self) -> tuple[StreamedBlocks, Collate]:
        """Return what packs documents into blocks, and what makes batches of these."""
        blocks = StreamedBlocks(self.streamed, self._reading("train"), self.room)
        return blocks, self.collate(self.train_set)

    @property
    def batching(self) -> Batching:
        """By padded tokens: full blocks, or as many of the shorter ones as make up for them."""
        size = self.config.block_size
        pad = PAD_MULTIPLE if size % PAD_MULTIPLE == 0 else 1
        count = self.config.batch_size
        return Batching(budget=count * size, pad_to_multiple=pad, size=count)

    def collate(self, dataset: TextDataset) -> Collate:
        """Return what pads tokens and targets."""
        multiple = self.batching.pad_to_multiple
        tokens = Pad(value=self.tokenizer.padding, multiple=multiple, mask="mask", full=False)
        return Collate({"tokens": tokens, "targets": Pad(value=IGNORE, multiple=multiple)})
