"""Questions about images: corpora -> decoded pixels and token ids on disk -> batches for `task=vl_classification`.

    corpora --their images--> prepared images (data/image)
            --their questions, those about a usable image (build.py)--> token ids by a tokenizer that is trained on the
              training questions, and how many people gave each of the most frequent answers --sampler--> batch

A batch is a dict of B questions, each about P images: `id` (B,) int64, the question's `row` in the tables; `image` (B, P,
C, S, S) float32, normalised; `tokens` (B, T) int64, `<s> ... </s>`; `mask` (B, T) bool, True = real token; `counts` (B, A)
float32, how many people gave each of the answers `info.labels`; `people` (B,) float32, how many were asked; `kind` (B,)
int64, its index in `info.kinds`, -1 where it has none; `group` (B,) int64, equal where one statement is made of several
pairs of images, -1 where it is made of one; in evaluation `text`, the questions.
"""

import logging
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from magneto.config.validate import from_mapping
from magneto.data.corpora.vqa.base import QuestionReader
from magneto.data.image.module import ImageDataModule
from magneto.data.messages import counts
from magneto.data.module import Batching
from magneto.data.prepared import Preparation, PreparedDataModule
from magneto.data.tokenizers.settings import TokenizerSettings
from magneto.data.tokenizers.text import TextTokenizer
from magneto.data.vqa.build import QuestionBuilder
from magneto.data.vqa.dataset import QuestionReading, VqaDataset, VqaInfo
from magneto.errors import ConfigError, DataError

log = logging.getLogger(__name__)


class VqaDataModule(PreparedDataModule[VqaInfo]):
    """Questions about images from one or more corpora.

    Questions are in the split of their image. Training skips those of which no answer can be chosen; evaluation counts
    them as wrong.

    Args:
        corpora: name -> corpus.
        tokenizer: `TokenizerSettings` as a dict.
        num_answers: how many answers there are to choose from, the most frequent of the training questions; None: all.
        lowercase: questions in small letters.
        max_tokens: of a question, `<s>` and `</s>` included; longer ones are cut at the end.
        images: the other settings of `ImageDataModule`.
        data_dir, num_workers, seed: see `PreparedDataModule`.
    """

    Info = VqaInfo
    kind, noun = "vqa", "question"
    FORMAT = 3
    reads = ("tokenizer", "labels")

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
        super().__init__(corpora, data_dir=data_dir, num_workers=num_workers, seed=seed)
        if max_tokens < 3:
            raise ConfigError(
                f"data.max_tokens={max_tokens}: a question needs 3 at least, <s>, a word and </s>."
            )
        if num_answers is not None and num_answers < 2:
            raise ConfigError(
                f"data.num_answers={num_answers}: there must be 2 at least to choose from, or null for all."
            )
        self.num_answers, self.lowercase, self.max_tokens = num_answers, lowercase, max_tokens
        self.tokenizer_settings = from_mapping(TokenizerSettings, tokenizer, "data.tokenizer")
        try:
            self.images = ImageDataModule(
                corpora, data_dir=data_dir, num_workers=num_workers, seed=seed, **images
            )
        except TypeError as error:  # of an unknown key
            raise ConfigError(f"data: {error}") from error

    # ------------------------------------------------------------------ preparing

    @cached_property
    def of_corpora(self) -> str:
        """The prepared images; the fingerprint of a corpus covers its questions."""
        return self.images.key

    def settings(self) -> dict[str, Any]:
        """Return how questions become tokens, and the number of answers."""
        return {
            "tokenizer": self.tokenizer_settings.fingerprint(),
            "answers": self.num_answers,
            "lowercase": self.lowercase,
            "max_tokens": self.max_tokens,
        }

    def info_of_settings(self) -> dict[str, Any]:
        """Return the info of the images (their classes are not the answers), and how questions are read."""
        images = self.images.info.to_dict()
        own = {"max_tokens": self.max_tokens, "lowercase": self.lowercase}
        return {name: value for name, value in images.items() if name not in ("key", "labels")} | own

    @property
    def splits(self) -> tuple[str, ...]:
        """Test questions may be missing: those of validation then serve for both."""
        return ("train", "val")

    def prepare(self) -> None:
        """Prepare the images, then the questions."""
        if self.model is None:  # otherwise `adapted` has done it
            self.images.prepare()
        super().prepare()

    def build(self, target: Preparation) -> dict[str, Any]:
        """Choose answers and train the tokenizer, unless they are given, and write the questions."""
        return QuestionBuilder(
            corpora=self.corpora,
            data_dir=self.data_dir,
            images=self.images,
            tokenizer=self.tokenizer_settings,
            given=self.given,
            num_answers=self.num_answers,
            max_tokens=self.max_tokens,
            lowercase=self.lowercase,
        )(target)

    def details(self) -> str:
        """Return the number of answers, and of the questions that have none of them."""
        missing = self.info.unanswerable
        unanswerable = f"; {counts(missing, 'questions')} have none of these" if any(missing.values()) else ""
        return f", {len(self.info.labels)} different answers{unanswerable}"

    def warnings(self, report: Mapping[str, Any]) -> Iterator[str]:
        """Warn of a test split that is missing, and of questions that were cut."""
        if not report["used"]["test"]:
            yield "there is no test split; the validation questions serve as the test too"
        if self.info.truncated:
            yield f"{self.info.truncated} questions truncated to data.max_tokens={self.max_tokens}"

    def adapted(self, model: VqaInfo) -> Self:
        """Return a copy with images in the size, and questions of the length and letters, of the model's."""
        data = self.copy()
        data.lowercase, data.max_tokens = model.lowercase, model.max_tokens
        data.images = self.images.for_model({**model.to_dict(), "labels": []})
        return data

    def check(self) -> None:
        """Raise `DataError` if the questions are about one image and the model takes two, or the reverse."""
        if self.model is not None and self.info.images != self.model.images:
            raise DataError(
                f"This data has {self.info.images} images for each question, and the checkpoint's model takes "
                f"{self.model.images}."
            )

    # ------------------------------------------------------------------ reading

    def open(self, split: str) -> VqaDataset:
        """Return the questions of a split; without a test split those of validation serve as the test."""
        model = self.model or self.info
        stored = split if self.info.questions["test"] or split != "test" else "val"
        table = self.table(stored)
        positions = np.arange(len(table))
        if split == "train":
            positions = positions[np.diff(table.bounds("labels")) > 0]
        tokenizer = TextTokenizer.from_json(model.tokenizer)
        kinds = pc.index_in(table.arrow["kind"], pa.array(model.kinds, pa.string())).fill_null(-1)
        reading = QuestionReading(
            split=split,
            pad_id=tokenizer.require("eos") if tokenizer.pad_id is None else tokenizer.pad_id,
            max_tokens=self.max_tokens,
            num_labels=len(model.labels),
            kinds=kinds.to_numpy().astype(np.int64),
        )
        return VqaDataset(self.images.images_of(split, stored), table, positions, reading)

    @property
    def batching(self) -> Batching:
        """By questions, whatever their length: they are short."""
        return self.images.batching
