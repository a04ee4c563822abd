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

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from itertools import chain
from typing import Any, Self

from magneto.data.config import plain
from magneto.data.corpora.image.base import ImageExample, ImageReader
from magneto.data.image.dataset import ImageDataset
from magneto.data.image.module import ImageDataModule, image_settings
from magneto.data.image_text.build import CaptionedImages, CaptionedReader, build
from magneto.data.image_text.config import ImageTextConfig
from magneto.data.image_text.dataset import CaptionReading, ImageTextDataset, ImageTextInfo
from magneto.data.image_text.streaming import StreamedPairs, StreamedReader, held_out_images
from magneto.data.module import Batching
from magneto.data.prepared import Preparation
from magneto.data.streamed import HELD_OUT, StreamedDataModule
from magneto.data.tokenizers.text import TextTokenizer


class ImageTextDataModule(StreamedDataModule[ImageTextInfo, ImageTextConfig]):
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
        settings = image_settings(self.config) | {
            "masking": self.config.masking and self.config.masking.images
        }
        if self.config.streaming:
            settings |= {"streaming": False, "store": "files"}
            return CaptionedImages(self._streamed_readers(), **settings)
        corpora = {
            name: CaptionedReader(reader, self.config.languages, self.config.lowercase)
            for name, reader in self.corpora.items()
        }
        return CaptionedImages(corpora, **settings)

    def _streamed_readers(self) -> dict[str, StreamedReader]:
        config = self.config
        own = (config.languages, config.lowercase, config.fractions, config.max_held_out or HELD_OUT)
        return {name: StreamedReader(reader, *own) for name, reader in self.corpora.items()}

    # ------------------------------------------------------------------ preparing

    @cached_property
    def of_corpora(self) -> str:
        """The prepared images."""
        return self.images.key

    def settings(self) -> dict[str, Any]:
        """Return how captions become tokens, and of a streamed corpus how much is prepared."""
        own = {"tokenizer": self.config.tokenizer.fingerprint(), "max_tokens": self.config.max_tokens}
        return own | super().settings()

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
        if not self.config.streaming:
            return build(target, self.images)
        readers = self._streamed_readers().values()
        return build(target, self.images, chain.from_iterable(one.training_captions() for one in readers))

    def details(self) -> str:
        """Return the languages."""
        return f", languages {', '.join(self.info.languages)}{super().details()}"

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
        return ImageTextDataset(images, table, self._captions(images), (self.model or self.info).languages)

    def _captions(self, images: ImageDataset) -> CaptionReading:
        reading, config = images.reading, self.config
        tokenizer = TextTokenizer.from_json((self.model or self.info).tokenizer)
        return CaptionReading(
            split=reading.split, tokenizer=tokenizer, max_tokens=config.max_tokens, masking=config.masking, seed=reading.seed
        )  # fmt: skip

    @property
    def take(self) -> Callable[[ImageExample], tuple[ImageExample, int] | None]:
        """What returns a training image and its size: see `Streams.take`."""
        return next(iter(self._streamed_readers().values())).take  # their settings are the same

    def item_source(self) -> tuple[StreamedPairs, Callable[[Any], dict[str, Any]]]:
        """Return what decodes images and chooses captions, and what makes batches of these."""
        captions = self.train_set.captions
        held_out = held_out_images([self.images.table(split) for split in ("val", "test")])
        reading = self.train_set.images.reading
        pairs = StreamedPairs(self.streamed, reading, captions, self.info.languages, held_out)
        return pairs, pairs.collate

    @property
    def batching(self) -> Batching:
        """By pairs, whatever the length of their captions, which are short."""
        return self.images.batching
