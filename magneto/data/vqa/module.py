"""Questions about images: corpora -> decoded pixels and token ids on disk -> batches for `task=vl_classification`.

    corpora --their images--> prepared images (data/image.py)
            --their questions, those about a usable image--> token ids by a tokenizer that is trained on the training
              questions, and how many people gave each of the most frequent answers --sampler--> batch

A batch is a dict of B questions, each about P images: `id` (B,) int64, the line of the prepared folder's questions.jsonl;
`image` (B, P, C, S, S) float32, normalised; `tokens` (B, T) int64, `<s> ... </s>`; `mask` (B, T) bool, True = real token;
`counts` (B, A) float32, how many people gave each of the answers `info.labels`; `people` (B,) float32, how many were asked;
`kind` (B,) int64, the question's place in `info.kinds`, -1 where it has none; `group` (B,) int64, equal where one statement
is made of several pairs of images, -1 where it stands alone; in evaluation `text`, the questions.
"""

import json
import logging
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from magneto.config.validate import from_mapping
from magneto.data.cache import prepare_once, short_hash
from magneto.data.corpora.base import SPLITS
from magneto.data.corpora.vqa.base import QuestionReader
from magneto.data.image.dataset import ImageDataset
from magneto.data.image.module import ImageDataModule
from magneto.data.messages import counts, skipped
from magneto.data.module import Batching, BucketedDataModule
from magneto.data.text_classification.dataset import TokenizerSettings
from magneto.data.tokenizers.text import TextTokenizer
from magneto.data.vqa.dataset import (
    PreparedQuestions,
    QuestionBuilder,
    QuestionReading,
    VqaDataset,
    VqaInfo,
)
from magneto.errors import ConfigError, DataError

log = logging.getLogger(__name__)

FORMAT = 3  # of the prepared folder: raise it when the code makes other files from the same settings


class VqaDataModule(BucketedDataModule):
    """Questions about images from one or more corpora.

    corpora: name -> corpus. num_answers: how many answers there are to choose from, the most frequent of the training
    questions; None: all. lowercase: questions in small letters. tokenizer: `TokenizerSettings` as a dict. max_tokens: of a
    question, `<s>` and `</s>` included; longer ones lose their end. The other settings: see `ImageDataModule`. Questions
    stand on the side of their image. Training passes over those none of whose answers can be chosen; evaluation counts
    them as wrong.
    """

    Info = VqaInfo

    def __init__(
        self,
        corpora: Mapping[str, QuestionReader],
        *,
        tokenizer: Mapping[str, Any],
        num_answers: int | None = None,
        lowercase: bool = False,
        max_tokens: int = 32,
        data_dir: str = "data",
        num_workers: int = 0,
        seed: int = 0,
        **images: Any,
    ) -> None:
        super().__init__(data_dir=data_dir, num_workers=num_workers, seed=seed)
        if max_tokens < 3:
            raise ConfigError(
                f"data.max_tokens={max_tokens}: a question needs 3 at least, <s>, a word and </s>."
            )
        if num_answers is not None and num_answers < 2:
            raise ConfigError(
                f"data.num_answers={num_answers}: there must be 2 at least to choose from, or null for all."
            )
        self.corpora, self.num_answers = dict(corpora), num_answers
        self.lowercase, self.max_tokens = lowercase, max_tokens
        self.tokenizer_settings = from_mapping(TokenizerSettings, tokenizer, "data.tokenizer")
        self._model: VqaInfo | None = None  # of a checkpoint
        try:
            self.images = ImageDataModule(
                corpora, data_dir=data_dir, num_workers=num_workers, seed=seed, **images
            )
        except TypeError as error:  # of an unknown key
            raise ConfigError(f"data: {error}") from error

    # ------------------------------------------------------------------ preparing

    @cached_property
    def folder(self) -> Path:
        """The prepared folder of the questions; its name carries a hash of all that its contents depend on."""
        return self.data_dir / "prepared" / f"questions-{'-'.join(self.corpora)}-{self._key}"

    @property
    def _key(self) -> str:
        model = self._model
        return short_hash(
            {
                "format": FORMAT,
                "images": self.images.folder.name,
                "tokenizer": self.tokenizer_settings.fingerprint() if model is None else model.tokenizer,
                "answers": self.num_answers if model is None else model.labels,
                "lowercase": self.lowercase,
                "max_tokens": self.max_tokens,
            }
        )

    def prepare(self) -> None:
        """Fetch, read and encode, unless that is done. Says what was skipped."""
        self.images.prepare()
        self._prepare_questions()

    def _prepare_questions(self) -> None:
        model = self._model
        builder = QuestionBuilder(
            corpora=self.corpora,
            data_dir=self.data_dir,
            images=self.images.folder,
            info=self.images.info,
            tokenizer=self.tokenizer_settings,
            given=None if model is None else TextTokenizer.from_json(model.tokenizer),
            labels=None if model is None else model.labels,
            num_answers=self.num_answers,
            max_tokens=self.max_tokens,
            lowercase=self.lowercase,
        )
        if prepare_once(self.folder, builder):
            log.info("prepared %s", self.folder)
        report = json.loads((self.folder / "prepare_report.json").read_text(encoding="utf-8"))
        answers = len(report["labels"])
        log.info("questions: %s, %d different answers", counts(report["questions"], "questions"), answers)
        if not report["questions"]["test"]:
            log.warning("questions: there is no test split; the validation questions serve as the test too")
        if any(report["unanswerable"].values()):
            log.info("questions: %s have none of these answers", counts(report["unanswerable"], "questions"))
        if report["skipped_by_reason"]:
            where = self.folder / "prepare_report.json"
            log.warning("questions: %s", skipped(report["skipped_by_reason"], where))
        if report["truncated"]:
            log.warning("questions: %d truncated to max_tokens", report["truncated"])

    # ------------------------------------------------------------------ reading

    @cached_property
    def prepared(self) -> PreparedQuestions:
        """The prepared folder. Raises `DataError` when `prepare` has not been run."""
        if not (self.folder / "facts.json").is_file():
            raise DataError(
                f"The questions are not prepared ({self.folder} is not there): run with mode=prepare first."
            )
        return PreparedQuestions(self.folder)

    @cached_property
    def info(self) -> VqaInfo:
        """The facts of the prepared data."""
        tokenizer = TextTokenizer.from_file(self.prepared.folder / "tokenizer.json")
        return VqaInfo(
            **{**self.images.info.to_dict(), "key": self._key, **self.prepared.facts},
            tokenizer=tokenizer.to_json(),
            vocab_size=tokenizer.vocab_size,
            max_tokens=self.max_tokens,
            lowercase=self.lowercase,
        )

    def for_model(self, info: Mapping[str, Any]) -> None:
        """Images in the size, and questions and answers as the model of a checkpoint knows them.

        Raises `DataError` when the one takes one image and the other two.
        """
        model = VqaInfo.from_dict(info)
        self.images.for_model(info)
        self.lowercase, self.max_tokens = model.lowercase, model.max_tokens
        self._model = model
        for name in ("folder", "prepared", "info", "train_set"):
            self.__dict__.pop(name, None)  # what was read with other settings
        self._prepare_questions()
        if self.info.images != model.images:
            raise DataError(
                f"This data has {self.info.images} images for each question, and the checkpoint's model takes "
                f"{model.images}."
            )

    def setup(self, stage: str | None = None) -> None:
        """Open the splits."""
        self.images.setup(stage)
        images = (self.images.train_set, self.images.val_set, self.images.test_set)
        self.train_set, self.val_set, self.test_set = (
            self._dataset(split, one) for split, one in zip(SPLITS, images, strict=True)
        )

    def _dataset(self, split: str, images: Any) -> VqaDataset:
        assert isinstance(images, ImageDataset)
        arrays, model = self.prepared.arrays, self._model or self.info
        rows = np.flatnonzero(arrays["split"] == SPLITS.index(split))
        if split == "test" and not len(rows):
            rows = np.flatnonzero(arrays["split"] == SPLITS.index("val"))
        if split == "train":
            rows = rows[np.diff(arrays["answer_start"])[rows] > 0]
        tokenizer = TextTokenizer.from_json(model.tokenizer)
        kinds = [model.kinds.index(kind) if kind in model.kinds else -1 for kind in self.info.kinds]
        reading = QuestionReading(
            split=split,
            pad_id=tokenizer.require("eos") if tokenizer.pad_id is None else tokenizer.pad_id,
            max_tokens=self.max_tokens,
            num_labels=len(model.labels),
            kinds=np.array(kinds, np.int64),
        )
        every = np.arange(len(images.prepared.index["split"]))
        whole = ImageDataset(images.prepared, every, np.full(len(every), -1), images.reading)
        return VqaDataset(whole, self.prepared, rows, reading)

    @property
    def batching(self) -> Batching:
        """By questions, whatever their length: they are short."""
        return self.images.batching

    def collate(self, dataset: VqaDataset) -> Callable[[Any], dict[str, Any]]:
        """Nothing is left to do: the data set gives whole batches."""
        return _as_it_is


def _as_it_is(batch: dict[str, Any]) -> dict[str, Any]:
    return batch
