"""Text for language models: corpora -> token ids on disk -> blocks for causal or masked models.

    corpora --tokenizer, trained on the training documents--> one row of tokens a split (packing.py) --sampler-->
    blocks --masking, if any--> batch

A batch is a dict: `id` (B,) int64, the place of the block in its split; `tokens` (B, T) int64, what the model sees;
`targets` (B, T) int64, what is to be predicted at that place, IGNORE where nothing is scored; `mask` (B, T) bool,
True = real token, absent where all are; causal only: `bytes` (B,) int64, UTF-8 bytes of the scored targets (exact in
evaluation, whatever the tokenizer; in training from the mean of the split).

Causal: `tokens` are the targets moved by one; a document follows the `</s>` of the one before. Masked: `tokens` begin
with `<s>`, targets are the original tokens at the chosen places.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from magneto.config.validate import from_mapping
from magneto.data.cache import prepare_once, short_hash
from magneto.data.collate import IGNORE as IGNORE  # part of the batches described here
from magneto.data.corpora.base import SPLITS, Skipped, hash_split
from magneto.data.corpora.text.base import LINES, Document, TextReader, why_unusable
from magneto.data.messages import counts, skipped
from magneto.data.module import Batching, BucketedDataModule
from magneto.data.text.dataset import Collate, Reading, TextDataset, TextInfo
from magneto.data.text.packing import (
    MEASURED,
    ShardWriter,
    TokenRow,
    evaluation_pieces,
    token_dtype,
    training_pieces,
)
from magneto.data.tokenizers.text import TextTokenizer
from magneto.data.transforms.mask_tokens import Masking
from magneto.errors import ConfigError, DataError

log = logging.getLogger(__name__)

FORMAT = 1  # of the prepared folder: raise it when the code makes other files from the same settings
LISTED = 1000  # skipped documents in the report; all are counted
FEW = 20  # groups of documents, of which a hash may well give none to a split
PAD_MULTIPLE = 64  # padded lengths are rounded up to it, so that kernels and compiled graphs are reused


@dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """kind: byte_bpe, bpe or unigram, with vocab_size entries, trained on the training documents; or file: a given
    tokenizer.json (kind and vocab_size then say nothing). sample_mb: megabytes of each source's training text that it
    is trained on, from the source's beginning.
    """

    kind: str = "byte_bpe"
    vocab_size: int = 4096
    file: str | None = None
    sample_mb: float = 100.0

    def __post_init__(self) -> None:
        if self.sample_mb <= 0:
            raise ConfigError(f"data.tokenizer.sample_mb={self.sample_mb} must be above 0 (megabytes).")
        object.__setattr__(self, "sample_mb", float(self.sample_mb))  # 100 and 100.0 are one setting


class TextDataModule(BucketedDataModule):
    """Documents from one or more corpora.

    corpora: name -> corpus. tokenizer: TokenizerSettings as a dict. block_size: tokens of a block. documents: "pack"
    (blocks run over the ends of documents; no padding; they begin elsewhere in every epoch) or "separate" (a block
    holds one document or a part of it). batch_size: blocks of a batch on one rank; as many padded tokens are the
    budget where documents are separate. eval_stride: causal evaluation slides its window by so many tokens, and each
    token has at least block_size - eval_stride tokens of context; None: block_size, the cheapest. masking: Masking as
    a dict; None: for causal models. val_fraction, test_fraction: share of the documents that are held out, by a hash,
    where a corpus states no split.
    """

    Info = TextInfo

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
        super().__init__(data_dir=data_dir, num_workers=num_workers, seed=seed)
        if not corpora:
            raise ConfigError("data.corpora is empty: name at least one corpus.")
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
        self.corpora = dict(corpora)
        self.tokenizer_settings = from_mapping(TokenizerSettings, tokenizer or {}, "data.tokenizer")
        self.block_size, self.batch_size = block_size, batch_size
        self.separate = documents == "separate"
        self.eval_stride = eval_stride or block_size
        self.masking = None if masking is None else from_mapping(Masking, masking, "data.masking")
        self.fractions = (float(val_fraction), float(test_fraction))
        file = self.tokenizer_settings.file
        self._given = None if file is None else TextTokenizer.from_file(file)
        self._splits: Sequence[str] = SPLITS  # that must not be empty

    # ------------------------------------------------------------------ preparing

    @property
    def _fingerprint(self) -> dict[str, Any]:
        """All that the prepared folder depends on."""
        settings = {key: value for key, value in asdict(self.tokenizer_settings).items() if key != "file"}
        if self._given is not None:
            settings = {"given": hashlib.sha256(self._given.to_json().encode()).hexdigest()}
        return {
            "format": FORMAT,
            "corpora": {name: source.fingerprint() for name, source in self.corpora.items()},
            "tokenizer": settings,
            "fractions": list(self.fractions),
        }

    @cached_property
    def folder(self) -> Path:
        """The prepared folder; its name carries a hash of all that its contents depend on."""
        return self.data_dir / "prepared" / f"text-{'-'.join(self.corpora)}-{short_hash(self._fingerprint)}"

    def prepare(self) -> None:
        """Fetch the corpora, train the tokenizer and write the tokens, unless that is done. Says what was skipped."""
        built = prepare_once(self.folder, self._build)
        report = json.loads((self.folder / "prepare_report.json").read_text(encoding="utf-8"))
        if built:
            log.info("prepared %s", self.folder)
        tokens = report["tokens"]["train"]
        log.info("text: %s, %s training tokens", counts(report["documents"], "documents"), f"{tokens:,}")
        if report["skipped_by_reason"]:
            where = self.folder / "prepare_report.json"
            log.warning("text: %s", skipped(report["skipped_by_reason"], where))
        # The reports of before do not count what a tokenizer loses.
        if self.masking is None and (lossy := sum(report.get("lossy", {}).values())):
            log.warning(
                "text: of %d held-out documents the tokenizer loses something (capitals, white space, unknown characters), "
                "which the model is not asked for: bits per byte do not compare with those of a tokenizer that loses "
                "nothing, such as data.tokenizer.kind=byte_bpe",
                lossy,
            )
        self._check()

    def _check(self) -> None:
        if self.masking is not None:
            self.tokenizer.require("mask")
        self._require_documents(self.info.documents)
        training = "train" in self._splits
        if training and not self.separate and self.info.tokens["train"] < self.block_size:
            raise DataError(
                f"The training text has {self.info.tokens['train']} tokens, fewer than data.block_size="
                f"{self.block_size}: lower it, give more text, or set data.documents=separate."
            )

    def _documents(
        self, name: str, origin: dict[str, Any] | None = None, skipped: list[Skipped] | None = None
    ) -> Iterator[Document]:
        """The usable documents of a source with their splits; notes the rest in `skipped`."""
        corpus = self.corpora[name].load(self.data_dir)
        unusable: list[Skipped] = []
        for document in corpus.documents:
            reason = why_unusable(document.text)
            if reason is not None:
                unusable.append(Skipped(document.id, document.group, reason))
                continue
            val, test = self.fractions
            split = document.split or hash_split(document.group, val=val, test=test, kind="text")
            yield replace(document, id=f"{name}/{document.id}", split=split)
        if origin is not None and skipped is not None:
            origin[name] = corpus.origin
            skipped += [replace(item, id=f"{name}/{item.id}") for item in [*corpus.skipped, *unusable]]

    def _sample(self) -> Iterator[str]:
        """Training text for the tokenizer."""
        for name in self.corpora:
            room = self.tokenizer_settings.sample_mb * 1e6
            for document in self._documents(name):
                if document.split == "train":
                    yield document.text
                    room -= len(document.text.encode())
                if room <= 0:
                    break

    def _build(self, folder: Path) -> None:
        origin: dict[str, Any] = {}
        skipped: list[Skipped] = []
        settings = self.tokenizer_settings
        tokenizer = self._given
        if tokenizer is None:
            sample = list(self._sample())
            if not sample:
                found = Counter(
                    d.split for name in self.corpora for d in self._documents(name, origin, skipped)
                )
                self._require_documents({split: found[split] for split in SPLITS}, skipped)
            tokenizer = TextTokenizer.train(sample, kind=settings.kind, vocab_size=settings.vocab_size)
        with ShardWriter(folder, tokenizer) as writer:
            for name in self.corpora:
                for document in self._documents(name, origin, skipped):
                    writer.add(document)
        counts = writer.counts
        self._require_documents({split: counts[split].documents for split in SPLITS}, skipped)
        facts: dict[str, Any] = {
            name: {split: getattr(counts[split], name) for split in SPLITS}
            for name in ("documents", "tokens", "bytes", "unknown")
        }
        facts["corpus"] = origin
        report = {
            **facts,
            "lossy": {split: counts[split].lossy for split in MEASURED},
            "settings": self._fingerprint,
            "skipped_by_reason": dict(Counter(item.reason for item in skipped).most_common()),
            "skipped": [asdict(item) for item in skipped[:LISTED]],
        }
        (folder / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
        facts["key"] = short_hash(self._fingerprint)
        for name, values in (("facts.json", facts), ("prepare_report.json", report)):
            text = json.dumps(values, indent=1, ensure_ascii=False) + "\n"
            # A file's name need not be UTF-8; what is not is escaped.
            (folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")

    def _require_documents(self, counts: Mapping[str, int], skipped: Sequence[Skipped] = ()) -> None:
        """Raise `DataError` unless each split has a document, with the reasons of those skipped and what can be done."""
        missing = [split for split in self._splits if not counts[split]]
        if not missing:
            return
        reasons = Counter(item.reason for item in skipped).most_common(5)
        listed = "; ".join(f"{count} {reason}" for reason, count in reasons) or "none was skipped"
        total = sum(counts.values())
        groups, sides = set(), set()
        for document in (d for source in self.corpora.values() for d in source.load(self.data_dir).documents):
            groups.add(document.group)
            sides.add(document.split)
            if len(groups) >= FEW:
                break
        if not total:
            remedy = "Check the files: their format, their encoding, the key of the text."
        elif sides == {"test"}:
            remedy = "A test set alone is for the evaluation of a trained model: mode=test checkpoint=RUN."
        elif None in sides and len(groups) < FEW:
            remedy = (
                f"Their texts make {len(groups)} {'group' if len(groups) == 1 else 'groups'}, too few to divide: name the "
                "files of train, val and test each, or, where each line is a text, set per_line=true "
                f"(data.corpora.text_files.per_line=true; blocks of {LINES} lines stay together)."
            )
        else:
            remedy = (
                "Check the corpus and its splits; raise data.val_fraction and data.test_fraction, or name the files of "
                "each split."
            )
        raise DataError(
            f"No document is left for the {missing[0]} split ({total} are in the others; skipped: {listed}). {remedy}"
        )

    # ------------------------------------------------------------------ reading

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer of the prepared folder. Raises `DataError` when `prepare` has not been run."""
        if not (self.folder / "tokenizer.json").is_file():
            raise DataError(
                f"The text data is not prepared ({self.folder} is not there): run with mode=prepare first."
            )
        return TextTokenizer.from_file(self.folder / "tokenizer.json")

    @cached_property
    def info(self) -> TextInfo:
        """The facts of the prepared data."""
        tokenizer = self.tokenizer
        facts = json.loads((self.folder / "facts.json").read_text(encoding="utf-8"))
        return TextInfo(
            tokenizer=tokenizer.to_json(),
            vocab_size=tokenizer.vocab_size,
            block_size=self.block_size,
            **facts,
        )

    def documents(self, split: str) -> Iterator[Document]:
        """The documents of a split in the order of its tokens, read from the corpora again."""
        for name in self.corpora:
            yield from (document for document in self._documents(name) if document.split == split)

    def for_model(self, info: Mapping[str, Any]) -> None:
        """Blocks as long as those of a checkpoint, tokens by its tokenizer; a test split is enough."""
        self._splits = ("test",)
        if info["block_size"] != self.block_size:
            log.info("text: blocks of %d tokens, as the checkpoint's model has them", info["block_size"])
            whole = self.eval_stride == self.block_size
            self.block_size = info["block_size"]
            self.eval_stride = self.block_size if whole else min(self.eval_stride, self.block_size)
        if not (self.folder / "tokenizer.json").is_file() or self.tokenizer.to_json() != info["tokenizer"]:
            log.info("text: prepared with the tokenizer of the checkpoint's model")
            self._given = TextTokenizer.from_json(info["tokenizer"])
        for name in ("folder", "tokenizer", "info", "train_set"):
            self.__dict__.pop(name, None)  # what was read with other settings
        self.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Open the splits."""
        self.train_set, self.val_set, self.test_set = (self._dataset(split) for split in SPLITS)

    def _dataset(self, split: str) -> TextDataset:
        training = split == "train"
        row = TokenRow(self.folder, split, token_dtype(self.tokenizer))
        # A masked block begins with <s>, where the tokenizer has one.
        room = self.block_size - (self.masking is not None and self.tokenizer.bos_id is not None)
        if training:
            pieces = training_pieces(row, room, self.separate)
        else:
            stride = room if self.masking is not None else self.eval_stride
            pieces = evaluation_pieces(row, room, stride, self.separate)
        reading = Reading(
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
        """Padded batches."""
        pad = self.tokenizer.pad_id if self.tokenizer.pad_id is not None else self.tokenizer.require("eos")
        return Collate(pad, self.batching.pad_to_multiple)
