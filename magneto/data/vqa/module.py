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

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, Self

from magneto.data.config import plain
from magneto.data.corpora.vqa.base import QuestionReader
from magneto.data.image.module import ImageDataModule, image_settings
from magneto.data.messages import counts
from magneto.data.module import Batching
from magneto.data.prepared import Preparation, PreparedDataModule
from magneto.data.vqa.build import build
from magneto.data.vqa.config import VqaConfig
from magneto.data.vqa.dataset import VqaDataset, VqaInfo
from magneto.errors import DataError


class VqaDataModule(PreparedDataModule[VqaInfo, VqaConfig]):
    """Questions about images from one or more corpora.

    Questions are in the split of their image. Training skips those of which no answer can be chosen; evaluation counts
    them as wrong.

    Args:
        corpora: name -> corpus.
        settings: fields of `VqaConfig`.
    """

    Info, Config = VqaInfo, VqaConfig
    kind, noun = "vqa", "question"
    FORMAT = 3
    reads = ("tokenizer", "labels")

    def __init__(self, corpora: Mapping[str, QuestionReader], **settings: Any) -> None:
        super().__init__(corpora, **settings)
        self.images = ImageDataModule(corpora, **image_settings(self.config))

    # ------------------------------------------------------------------ preparing

    @cached_property
    def of_corpora(self) -> str:
        """The prepared images; the fingerprint of a corpus covers its questions."""
        return self.images.key

    def settings(self) -> dict[str, Any]:
        """Return how questions become tokens, and the number of answers."""
        return {
            "tokenizer": self.config.tokenizer.fingerprint(),
            "answers": self.config.num_answers,
            **plain(self.config, "lowercase", "max_tokens"),
        }

    def info_of_settings(self) -> dict[str, Any]:
        """Return the info of the images (their classes are not the answers), and how questions are read."""
        images = self.images.info.to_dict()
        own = plain(self.config, "max_tokens", "lowercase")
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
        return build(target, self.images)

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
            yield f"{self.info.truncated} questions truncated to data.max_tokens={self.config.max_tokens}"

    def adapted(self, model: VqaInfo) -> Self:
        """Return a copy with images in the size, and questions of the length and letters, of the model's."""
        data = self.with_config(lowercase=model.lowercase, max_tokens=model.max_tokens)
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
        images = self.images.images_of(split, stored)
        return VqaDataset(images, self.table(stored), model, self.config.max_tokens, split == "train")

    @property
    def batching(self) -> Batching:
        """By questions, whatever their length: they are short."""
        return self.images.batching
