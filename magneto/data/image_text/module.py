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

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from magneto.config.validate import from_mapping
from magneto.data.corpora.image.base import ImageReader
from magneto.data.image.module import ImageDataModule
from magneto.data.image_text.build import CaptionedImages, CaptionedReader, build
from magneto.data.image_text.dataset import CaptionReading, ImageTextDataset, ImageTextInfo
from magneto.data.module import Batching
from magneto.data.prepared import Preparation, PreparedDataModule
from magneto.data.tokenizers.settings import TokenizerSettings
from magneto.data.tokenizers.text import TextTokenizer
from magneto.data.transforms.mask_tokens import Masking
from magneto.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PairMasking:
    """What is hidden of images (`BlockMasking`), of captions alone and of captions beside their image (`Masking`).

    The defaults are the shares of BEiT-3 (arXiv 2208.10442, section 3): 40 % of the patches, 15 % of the words, 50 % of
    those of pairs.
    """

    images: Mapping[str, Any] = field(default_factory=dict)
    texts: Mapping[str, Any] = field(default_factory=dict)
    pairs: Mapping[str, Any] = field(default_factory=lambda: {"probability": 0.5})


class ImageTextDataModule(PreparedDataModule[ImageTextInfo]):
    """Images with captions from one or more corpora.

    Images with an equal caption, in any of the languages, are on one side of the split, unless the corpus states it.

    Args:
        corpora: name -> corpus of images; those without a usable caption are skipped.
        tokenizer: `TokenizerSettings` as a dict.
        languages: of the captions; None: all that there are.
        lowercase: captions in small letters.
        max_tokens: of a caption, `<s>` and `</s>` included; longer ones are cut at the end.
        masking: `PairMasking` as a dict; None: nothing is hidden.
        images: the other settings of `ImageDataModule`.
        data_dir, num_workers, seed: see `PreparedDataModule`.
    """

    Info = ImageTextInfo
    kind, noun = "image_text", "caption"
    FORMAT = 2

    def __init__(
        self,
        corpora: Mapping[str, ImageReader],
        *,
        tokenizer: Mapping[str, Any],
        languages: Sequence[str] | None = ("en",),
        lowercase: bool = False,
        max_tokens: int = 32,
        masking: Mapping[str, Any] | None = None,
        data_dir: str = "data",
        num_workers: int = 0,
        seed: int = 0,
        **images: Any,
    ) -> None:
        super().__init__(corpora, data_dir=data_dir, num_workers=num_workers, seed=seed)
        if languages is not None and not languages:
            raise ConfigError(
                f"data.languages={languages!r} must be a list such as [en, fr], or null for all."
            )
        if max_tokens < 3:
            raise ConfigError(
                f"data.max_tokens={max_tokens}: a caption needs 3 at least, <s>, a word and </s>."
            )
        self.languages = None if languages is None else tuple(languages)
        self.lowercase, self.max_tokens = lowercase, max_tokens
        self.tokenizer_settings = from_mapping(TokenizerSettings, tokenizer, "data.tokenizer")
        self.masking = None if masking is None else from_mapping(PairMasking, masking, "data.masking")
        self._masking: dict[str, Masking] = {}
        if self.masking is not None:
            self._masking = {
                key: from_mapping(Masking, getattr(self.masking, key), f"data.masking.{key}")
                for key in ("texts", "pairs")
            }
        self._image_settings: dict[str, Any] = {
            **images,
            "masking": None if self.masking is None else self.masking.images,
            "data_dir": data_dir,
            "num_workers": num_workers,
            "seed": seed,
        }
        self.images = self._images()

    def _images(self) -> ImageDataModule:
        corpora = {
            name: CaptionedReader(reader, self.languages, self.lowercase)
            for name, reader in self.corpora.items()
        }
        try:
            return CaptionedImages(corpora, **self._image_settings)
        except TypeError as error:  # of an unknown key
            raise ConfigError(f"data: {error}") from error

    # ------------------------------------------------------------------ preparing

    @cached_property
    def of_corpora(self) -> str:
        """The prepared images."""
        return self.images.key

    def settings(self) -> dict[str, Any]:
        """Return how captions become tokens."""
        return {"tokenizer": self.tokenizer_settings.fingerprint(), "max_tokens": self.max_tokens}

    def info_of_settings(self) -> dict[str, Any]:
        """Return the info of the images, and how captions are read."""
        images = {name: value for name, value in self.images.info.to_dict().items() if name != "key"}
        return {**images, "max_tokens": self.max_tokens, "lowercase": self.lowercase}

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
        given = None if self.given is None else TextTokenizer.from_json(self.given.tokenizer)
        return build(target, self.images, given or self.tokenizer_settings, self.max_tokens, self.languages)

    def details(self) -> str:
        """Return the languages."""
        return f", languages {', '.join(self.info.languages)}"

    def warnings(self, report: Mapping[str, Any]) -> Iterator[str]:
        """Warn of captions that were cut."""
        if self.info.truncated:
            yield f"{self.info.truncated} captions truncated to data.max_tokens={self.max_tokens}"

    def check(self) -> None:
        """Raise `MagnetoError` for a tokenizer without a mask, where words are hidden."""
        if self._masking:
            self.tokenizer.require("mask")

    def adapted(self, model: ImageTextInfo) -> Self:
        """Return a copy with images in the size, and captions of the length and letters, of the model's."""
        data = self.copy()
        data.lowercase, data.max_tokens = model.lowercase, model.max_tokens
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
        known = (self.model or self.info).languages
        languages = pc.index_in(table.arrow["language"], pa.array(known, pa.string())).fill_null(-1)
        masking = {
            name: one if split == "train" else one.for_evaluation() for name, one in self._masking.items()
        }
        reading = CaptionReading(
            split=split,
            tokenizer=self.tokenizer,
            max_tokens=self.max_tokens,
            texts=masking.get("texts"),
            pairs=masking.get("pairs"),
            seed=images.reading.seed,
        )
        return ImageTextDataset(images, table, languages.to_numpy().astype(np.int64), reading)

    @property
    def batching(self) -> Batching:
        """By pairs, whatever the length of their captions, which are short."""
        return self.images.batching
