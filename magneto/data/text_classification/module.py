"""Labelled texts and pairs of texts: corpus -> token ids on disk -> batches for text_classification.

A batch is a dict: `id` (B,) int64; `tokens` (B, T) int64; `mask` (B, T) bool, True = real; `second` (B, T) bool, True in
the second text; `label` (B,) int64, or float32 for regression; `subset` (B,) int64, an index into `info.subsets`; and for
evaluation `text` and `pair`, lists of B strings.
"""

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from magneto.config.validate import from_mapping
from magneto.data.cache import prepare_once, short_hash
from magneto.data.corpora.base import SPLITS
from magneto.data.corpora.text_classification.base import (
    LabelledCorpus,
    LabelledReader,
    LabelledText,
    zero_digits,
)
from magneto.data.messages import counts, skipped
from magneto.data.module import Batching, BucketedDataModule
from magneto.data.text_classification.dataset import (
    PAD_TO_MULTIPLE,
    ClassificationDataset,
    Collate,
    TextClassificationInfo,
    TokenizerSettings,
)
from magneto.data.tokenizers.encode import Encoded, encode
from magneto.data.tokenizers.text import TextTokenizer
from magneto.errors import ConfigError, DataError

log = logging.getLogger(__name__)

FORMAT = 2  # of the prepared folder: raise it when the code below makes other files from the same settings


class TextClassificationDataModule(BucketedDataModule):
    """A labelled corpus.

    corpus: its reader. tokenizer: see `TokenizerSettings`. max_tokens: longer examples are truncated, and counted.
    batch_size: examples of a training batch on one rank, of about one length; eval_batch_size: None: the same.
    """

    Info = TextClassificationInfo

    def __init__(
        self,
        corpus: LabelledReader,
        *,
        data_dir: str = "data",
        tokenizer: Mapping[str, Any] | None = None,
        max_tokens: int = 128,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(data_dir=data_dir, num_workers=num_workers, seed=seed)
        for key, value, least in (
            ("max_tokens", max_tokens, 8),
            ("batch_size", batch_size, 1),
            ("eval_batch_size", eval_batch_size, 1),
        ):
            if value is not None and value < least:
                raise ConfigError(f"data.{key}={value} must be at least {least}.")
        self.corpus = corpus
        self.tokenizer = from_mapping(TokenizerSettings, tokenizer or {}, "data.tokenizer")
        self.max_tokens, self.batch_size = max_tokens, batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self._model: TextClassificationInfo | None = None  # of a checkpoint, in evaluation
        self._given: TextClassificationInfo | None = (
            None  # the same, where the data is not prepared as it reads
        )

    # ------------------------------------------------------------------ preparing

    @cached_property
    def _fingerprint(self) -> dict[str, Any]:
        """All that the prepared folder depends on."""
        return {
            "format": FORMAT,
            "source": self.corpus.fingerprint(),
            "tokenizer": self.tokenizer.fingerprint()
            if self._given is None
            else {"given": self._given.tokenizer, "zero_digits": self._given.zero_digits},
            "max_tokens": self.max_tokens,
        }

    @cached_property
    def folder(self) -> Path:
        """The prepared folder; its name carries a hash of all that its contents depend on."""
        return (
            self.data_dir / "prepared" / f"classification-{self.corpus.name}-{short_hash(self._fingerprint)}"
        )

    def prepare(self) -> None:
        """Read the corpus, write it as GLUE-style tables and as token ids, unless that is done."""
        if prepare_once(self.folder, self._build):
            log.info("prepared %s", self.folder)
        info = self.info
        report = json.loads((self.folder / "prepare_report.json").read_text(encoding="utf-8"))
        labels = f"labels {', '.join(info.labels)}" if info.labels else f"scores {info.range}"
        log.info("classification: %s, %s", counts(info.examples, "examples"), labels)
        if "f1" in info.metrics and len(info.labels) == 2 and self._model is None:
            log.info("classification: f1 is that of the label %s", info.labels[1])
        if info.truncated:
            log.warning("classification: %d examples truncated to %d tokens", info.truncated, info.max_tokens)
        if reasons := report["skipped_by_reason"]:
            where = self.folder / "prepare_report.json"
            log.warning("classification: %s", skipped(reasons, where))

    def _build(self, folder: Path) -> None:
        corpus = self.corpus.load(self.data_dir)
        by_split = {split: [e for e in corpus.examples if e.split == split] for split in SPLITS}
        for split in SPLITS if self._model is None else ("test",):
            if not by_split[split]:
                reasons = Counter(item.reason for item in corpus.skipped).most_common(5)
                listed = "; ".join(f"{count} {reason}" for reason, count in reasons) or "none was skipped"
                remedy = (
                    "A test set alone is for the evaluation of a trained model: mode=test checkpoint=RUN."
                    if by_split["test"] and not (by_split["train"] or by_split["val"])
                    else "Check data.corpus and its files."
                )
                raise DataError(
                    f"No usable example is left for the {split} split ({len(corpus.skipped)} were skipped: {listed}). "
                    f"{remedy}"
                )
        examples = [example for members in by_split.values() for example in members]
        training = [text for e in by_split["train"] for text in (e.text, e.pair) if text is not None]
        given = self._given
        tokenizer = (
            self.tokenizer.make(training) if given is None else TextTokenizer.from_json(given.tokenizer)
        )
        texts = [(e.text, e.pair) for e in examples]
        if zeros := corpus.zero_digits or (given is not None and given.zero_digits):
            texts = [(zero_digits(text), pair and zero_digits(pair)) for text, pair in texts]
        firsts, seconds = zip(*texts, strict=True)
        encoded = encode(tokenizer, firsts, seconds, self.max_tokens)
        subsets = list(dict.fromkeys(e.subset or "" for split in ("val", "test") for e in by_split[split]))
        known = {label: number for number, label in enumerate(corpus.labels)}
        label = np.array([known[str(e.label)] if known else float(e.label) for e in examples])
        np.save(folder / "tokens.npy", encoded.tokens)
        np.savez(
            folder / "index.npz",
            start=encoded.start,
            second=encoded.second,
            label=label,
            subset=np.array([subsets.index(e.subset or "") if e.split != "train" else 0 for e in examples]),
            split=np.array([SPLITS.index(e.split) for e in examples]),
        )
        for split, members in by_split.items():
            _write_table(folder / f"{split}.tsv", members)
        info = TextClassificationInfo(
            tokenizer=tokenizer.to_json(),
            vocab_size=tokenizer.vocab_size,
            max_tokens=self.max_tokens,
            labels=list(corpus.labels),
            metrics=list(corpus.metrics),
            subsets=subsets,
            pairs=any(e.pair is not None for e in examples),
            range=[] if known else _range([float(e.label) for e in by_split["train"] or examples]),
            examples={split: len(members) for split, members in by_split.items()},
            label_counts=_count(corpus, by_split),
            truncated=encoded.truncated,
            corpus=corpus.origin,
            key=short_hash(self._fingerprint),
            zero_digits=zeros,
        )
        report = {
            "settings": self._fingerprint,
            "examples": info.examples,
            "label_counts": info.label_counts,
            "skipped_by_reason": dict(Counter(item.reason for item in corpus.skipped).most_common()),
            "skipped": [asdict(item) for item in corpus.skipped],
        }
        for name, values in (("info.json", info.to_dict()), ("prepare_report.json", report)):
            text = json.dumps(values, indent=1, ensure_ascii=False) + "\n"
            (folder / name).write_text(text, encoding="utf-8")

    # ------------------------------------------------------------------ reading

    @cached_property
    def info(self) -> TextClassificationInfo:
        """The facts of the prepared data."""
        file = self.folder / "info.json"
        if not file.is_file():
            raise DataError(
                f"The labelled text is not prepared ({self.folder} is not there): run with mode=prepare first."
            )
        return TextClassificationInfo.from_dict(json.loads(file.read_text(encoding="utf-8")))

    def for_model(self, info: Mapping[str, Any]) -> None:
        """Tokens and labels as a checkpoint's model has them; a test split is enough, and it may lack classes.

        Raises `DataError` for labels, pairs or evaluation sets that the model does not know.
        """
        model = self._model = TextClassificationInfo.from_dict(info)
        self.max_tokens = model.max_tokens
        self._forget()
        if not (self.folder / "info.json").is_file() or (self.info.tokenizer, self.info.zero_digits) != (
            model.tokenizer,
            model.zero_digits,
        ):
            self._given = model
            self._forget()
        self.prepare()
        own = self.info
        if bool(own.labels) != bool(model.labels) or not set(own.labels) <= set(model.labels):
            theirs, ours = (", ".join(labels) or "numbers" for labels in (model.labels, own.labels))
            raise DataError(
                f"The checkpoint's model tells apart {theirs}; this data has the labels {ours}. Choose the data that "
                "the model was trained for."
            )
        if own.pairs != model.pairs:
            theirs, ours = ("pairs of texts" if one.pairs else "single texts" for one in (model, own))
            raise DataError(
                f"The checkpoint's model reads {theirs}; this data has {ours}. Choose the data that the model was trained "
                "for, or set data.corpus.pair."
            )
        if own.subsets != [""] and not set(own.subsets) <= set(model.subsets):
            raise DataError(
                f"This data has the evaluation sets {', '.join(own.subsets)}; the checkpoint's model knows "
                f"{', '.join(model.subsets)}. Choose the data that the model was trained for."
            )

    def _forget(self) -> None:
        """What was read with other settings."""
        for name in ("_fingerprint", "folder", "info"):
            self.__dict__.pop(name, None)

    def setup(self, stage: str | None = None) -> None:
        """Open the splits."""
        with np.load(self.folder / "index.npz") as arrays:
            index = dict(arrays)
        own, model = self.info, self._model or self.info
        if own.labels:
            index["label"] = np.array([model.labels.index(name) for name in own.labels])[index["label"]]
        # Where an evaluation set has no name, it is the main one.
        known = [model.subsets.index(name) if name in model.subsets else 0 for name in own.subsets]
        index["subset"] = np.array(known)[index["subset"]]
        texts = {split: _read_table(self.folder / f"{split}.tsv") for split in ("val", "test")}
        tokens = np.load(self.folder / "tokens.npy", mmap_mode="r")
        encoded = Encoded(tokens, index["start"], index["second"])
        self.pad_id = TextTokenizer.from_json(model.tokenizer).pad_id or 0
        rows = {split: np.flatnonzero(index["split"] == SPLITS.index(split)) for split in SPLITS}
        self.train_set = ClassificationDataset(model, encoded, index, rows["train"])
        self.val_set = ClassificationDataset(model, encoded, index, rows["val"], texts["val"])
        self.test_set = ClassificationDataset(model, encoded, index, rows["test"], texts["test"])

    @property
    def batching(self) -> Batching:
        """By examples: the budgets are never what limits a batch."""
        longest = max(
            self.max_tokens, *(int(one.lengths.max(initial=0)) for one in (self.val_set, self.test_set))
        )
        room = longest + PAD_TO_MULTIPLE
        return Batching(
            budget=self.batch_size * room,
            eval_budget=self.eval_batch_size * room,
            pad_to_multiple=PAD_TO_MULTIPLE,
            max_batch_size=self.batch_size,
            eval_max_batch_size=self.eval_batch_size,
        )

    def collate(self, dataset: ClassificationDataset) -> Collate:
        """Padded batches."""
        return Collate(self.pad_id)


_HEADER = ("id", "sentence1", "sentence2", "label")


def _write_table(file: Path, examples: Sequence[LabelledText]) -> None:
    """In GLUE's style, for people and other programs: names in the first line, no quoting, one example a line."""
    with file.open("w", encoding="utf-8", newline="\n") as table:
        table.write("\t".join(_HEADER) + "\n")
        for e in examples:
            values = (e.id, e.text, e.pair or "", str(e.label))
            table.write("\t".join(" ".join(value.split()) for value in values) + "\n")


def _read_table(file: Path) -> list[tuple[str, str]]:
    """(text, second text) of each example; the second is empty where there is none."""
    rows = [line.split("\t") for line in file.read_text(encoding="utf-8").split("\n")[1:-1]]
    return [(row[1], row[2]) for row in rows]


def _range(numbers: Sequence[float]) -> list[float]:
    return [min(numbers), max(numbers)]


def _count(
    corpus: LabelledCorpus, by_split: Mapping[str, Sequence[LabelledText]]
) -> dict[str, dict[str, int]]:
    """Split -> label -> examples."""
    if not corpus.labels:
        return {}
    counts = {split: Counter(str(e.label) for e in members) for split, members in by_split.items()}
    return {split: {label: count[label] for label in corpus.labels} for split, count in counts.items()}
