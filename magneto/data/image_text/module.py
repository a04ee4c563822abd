"""Images with captions: corpora -> decoded pixels and token ids on disk -> batches for vision-language models.

    corpora --those with a caption--> prepared images (data/image) --tokenizer, trained on the training captions-->
    token ids (build.py) --sampler--> augmented images, one caption each --> masks of both, if any --> batch

A batch is a dict: `id` (B,) int64, the image's `row` in its tables; `image` (B, C, S, S) float32, normalised; `image_id`
(B,) int64, equal for copies of an image, the row of the first; `caption` (B,) int64, equal for equal captions; `language`
(B,) int64, its index in the model's `info.languages`, -1 where it has none; `tokens` (B, T) int64, `<s> ... </s>`; `mask`
(B, T) bool, True = real token; in evaluation `text`, the captions.

With masking also `masked` (B, N) bool, True = this patch is hidden; `masked_tokens` (B, T) int64, the caption as the model
sees it alone, and `targets` (B, T) int64, the original tokens at chosen positions and IGNORE elsewhere; `pair_tokens` and
`pair_targets`, the same beside the image, where more of it can be guessed and more is hidden.
"""

from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any, Self

from magneto.data.config import plain
from magneto.data.corpora.image.base import ImageReader
from magneto.data.image.module import ImageDataModule, image_settings
from magneto.data.image_text.build import CaptionedImages, CaptionedReader, build
from magneto.data.image_text.config import ImageTextConfig
from magneto.data.image_text.dataset import ImageTextDataset, ImageTextInfo
from magneto.data.module import Batching
from magneto.data.prepared import Preparation, PreparedDataModule
from magneto.data.tokenizers.text import TextTokenizer


class ImageTextDataModule(PreparedDataModule[ImageTextInfo, ImageTextConfig]):
    """Images with captions from one or more corpora.

    Images with an equal caption, in any of the languages, are on one side of the split, unless the corpus states it.

    Args:
        corpora: name -> corpus of images; those without a usable caption are skipped.
        settings: fields of `ImageTextConfig`.
    """

    Info, Config = ImageTextInfo, ImageTextConfig
    kind, noun = "image_text", "caption"
    FORMAT = 2

    def __init__(self, corpora: Mapping[str, ImageReader], **settings: Any) -> None:
        super().__init__(corpora, **settings)
        self.images = self._images()

    def _images(self) -> ImageDataModule:
        config = self.config
        languages, masking = config.languages, config.masking and config.masking.images
        corpora = {
            name: CaptionedReader(reader, languages, config.lowercase)
            for name, reader in self.corpora.items()
        }
        return CaptionedImages(corpora, **image_settings(config) | {"masking": masking})

    # ------------------------------------------------------------------ preparing

    @cached_property
    def of_corpora(self) -> str:
        """The prepared images."""
        return self.images.key

    def settings(self) -> dict[str, Any]:
        """Return how captions become tokens."""
        return {"tokenizer": self.config.tokenizer.fingerprint(), "max_tokens": self.config.max_tokens}

    def info_of_settings(self) -> dict[str, Any]:
        """Return the info of the images, and how captions are read."""
        images = {name: value for name, value in self.images.info.to_dict().items() if name != "key"}
        return {**images, **plain(self.config, "max_tokens", "lowercase")}

    @property
    def splits(self) -> tuple[str, ...]:
        """Test images may be missing: those of validation then serve for both."""
        return ("train", "val") if self.model is None else (self._stored("test"),)

    def _stored(self, split: str) -> str:
        """Return the split of the tables that serves as `split`."""
        return split if self.images.info.examples["test"] or split != "test" else "val"

    def prepare(self) -> None:
        """Prepare the images, then their captions. Raises `MagnetoError` for data that is for evaluation only."""
        if self.model is None:  # otherwise `adapted` has done it
            self.images.prepare()
            self.images.require_training()
        super().prepare()

    def build(self, target: Preparation) -> dict[str, Any]:
        """Train the tokenizer, unless it is given, and write the captions."""
        return build(target, self.images)

    def details(self) -> str:
        """Return the languages."""
        return f", languages {', '.join(self.info.languages)}"

    def warnings(self, report: Mapping[str, Any]) -> Iterator[str]:
        """Warn of captions that were cut."""
        if self.info.truncated:
            yield f"{self.info.truncated} captions truncated to data.max_tokens={self.config.max_tokens}"

    def check(self) -> None:
        """Raise `MagnetoError` for a tokenizer without a mask, where words are hidden."""
        if self.config.masking is not None:
            self.tokenizer.require("mask")

    def adapted(self, model: ImageTextInfo) -> Self:
        """Return a copy with images in the size, and captions of the length and letters, of the model's."""
        data = self.with_config(lowercase=model.lowercase, max_tokens=model.max_tokens)
        data.images = data._images().for_model(model.to_dict())
        return data

    # ------------------------------------------------------------------ reading

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer of the prepared captions."""
        return TextTokenizer.from_json(self.info.tokenizer)

    def open(self, split: str) -> ImageTextDataset:
        """Return the pairs of a split; without a test split those of validation serve as the test."""
        images, table = self.images.open(split), self.table(self._stored(split))
        return ImageTextDataset(
            images, table, self.model or self.info, self.config.max_tokens, self.config.masking
        )

    @property
    def batching(self) -> Batching:
        """By pairs, whatever the length of their captions, which are short."""
        return self.images.batching
