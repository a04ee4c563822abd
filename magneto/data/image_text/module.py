"""Images with captions: corpora -> decoded pixels and token ids on disk -> batches for vision-language models.

    corpora --those with a caption--> prepared images (data/image.py) --tokenizer, trained on the training captions-->
    token ids --sampler--> augmented images, one caption each --> masks of both, if any --> batch

A batch is a dict: `id` (B,) int64, the image's row in the prepared folder's images.jsonl; `image` (B, C, S, S)
float32, normalised; `image_id` (B,) int64, equal for copies of an image, the row of the first; `caption` (B,) int64, equal
for equal captions; `language` (B,) int64, its place in the model's
`info.languages`, -1 where it has none; `tokens` (B, T) int64, `<s> ... </s>`; `mask` (B, T) bool, True = real token; in
evaluation `text`, the captions.

With masking also `masked` (B, N) bool, True = this patch is hidden; `masked_tokens` (B, T) int64, the caption as the model
sees it alone, and `targets` (B, T) int64, the original tokens at chosen places and IGNORE elsewhere; `pair_tokens` and
`pair_targets`, the same beside the image, where more of it can be guessed and more is hidden.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from magneto.config.validate import from_mapping
from magneto.data.cache import prepare_once, short_hash
from magneto.data.corpora.image.base import ImageReader, each_caption
from magneto.data.image.dataset import ImageDataset, image_lines
from magneto.data.image.module import ImageDataModule
from magneto.data.image_text.captioned import CaptionedImages, CaptionedReader
from magneto.data.image_text.dataset import (
    ImageTextDataset,
    ImageTextInfo,
    PreparedCaptions,
    TextReading,
    write_captions,
)
from magneto.data.messages import counts
from magneto.data.module import Batching, BucketedDataModule
from magneto.data.tokenizers.settings import TokenizerSettings
from magneto.data.tokenizers.text import TextTokenizer
from magneto.data.transforms.mask_tokens import Masking
from magneto.errors import ConfigError, DataError

log = logging.getLogger(__name__)

FORMAT = 1  # of the prepared folder: raise it when the code makes other files from the same settings


@dataclass(frozen=True, kw_only=True)
class PairMasking:
    """What is hidden of images (`BlockMasking`), of captions alone and of captions beside their image (`Masking`).

    By default the shares of BEiT-3 (arXiv 2208.10442, 3): 40 % of the patches, 15 % of the words, 50 % of those of pairs.
    """

    images: Mapping[str, Any] = field(default_factory=dict)
    texts: Mapping[str, Any] = field(default_factory=dict)
    pairs: Mapping[str, Any] = field(default_factory=lambda: {"probability": 0.5})


class ImageTextDataModule(BucketedDataModule):
    """Images with captions from one or more corpora.

    corpora: name -> corpus of images; those without a usable caption are skipped. languages: of the captions; None: all
    that there are. lowercase: captions in small letters. tokenizer: `TokenizerSettings` as a dict. max_tokens: of a
    caption, `<s>` and `</s>` included; longer ones lose their end. masking: `PairMasking` as a dict; None: nothing is
    hidden. The other settings: see `ImageDataModule`. Images with an equal caption, in any of the languages, stand on
    one side of the split, unless the corpus states it.
    """

    Info = ImageTextInfo

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
        super().__init__(data_dir=data_dir, num_workers=num_workers, seed=seed)
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
        self._given: TextTokenizer | None = None  # of a checkpoint
        self._model: ImageTextInfo | None = None  # of a checkpoint
        self.masking = None if masking is None else from_mapping(PairMasking, masking, "data.masking")
        self._masking: dict[str, Masking] = {}
        if self.masking is not None:
            self._masking = {
                key: from_mapping(Masking, getattr(self.masking, key), f"data.masking.{key}")
                for key in ("texts", "pairs")
            }
        self._corpora = dict(corpora)
        self._settings: dict[str, Any] = {
            **images,
            "masking": None if self.masking is None else self.masking.images,
            "data_dir": data_dir,
            "num_workers": num_workers,
            "seed": seed,
        }
        self.images = self._images()

    def _images(self) -> ImageDataModule:
        corpora = {
            name: CaptionedReader(source, self.languages, self.lowercase)
            for name, source in self._corpora.items()
        }
        try:
            return CaptionedImages(corpora, **self._settings)
        except TypeError as error:  # of an unknown key
            raise ConfigError(f"data: {error}") from error

    # ------------------------------------------------------------------ preparing

    @cached_property
    def folder(self) -> Path:
        """The prepared folder of the captions; its name carries a hash of all that its contents depend on."""
        return self.data_dir / "prepared" / f"captions-{'-'.join(self._corpora)}-{self._key}"

    @property
    def _key(self) -> str:
        given = self._given
        return short_hash(
            {
                "format": FORMAT,
                "images": self.images.folder.name,
                "tokenizer": self.tokenizer_settings.fingerprint() if given is None else given.to_json(),
                "max_tokens": self.max_tokens,
            }
        )

    def prepare(self) -> None:
        """Fetch, read and encode, unless that is done. Says what was skipped.

        Raises `MagnetoError` for data that is for evaluation only.
        """
        self.images.prepare()
        self.images.require_training()
        self._prepare_captions()

    def _prepare_captions(self) -> None:
        if prepare_once(self.folder, self._build):
            log.info("prepared %s", self.folder)
        facts = PreparedCaptions(self.folder).facts
        languages = ", ".join(facts["languages"])
        log.info("captions: %s, languages %s", counts(facts["captions"], "captions"), languages)
        if facts["truncated"]:
            log.warning("captions: %d truncated to max_tokens", facts["truncated"])
        if self._masking:
            self.tokenizer.require("mask")

    def _build(self, folder: Path) -> None:
        images = self.images.folder
        tokenizer = self._given or self.tokenizer_settings.make(
            [
                text
                for line in image_lines(images)
                for _, text in each_caption(line["captions"])
                if line["split"] == "train"
            ]
        )
        write_captions(folder, images, tokenizer, self.max_tokens, self.languages)

    # ------------------------------------------------------------------ reading

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer of the prepared folder. Raises `DataError` when `prepare` has not been run."""
        if not (self.folder / "tokenizer.json").is_file():
            raise DataError(
                f"The captions are not prepared ({self.folder} is not there): run with mode=prepare first."
            )
        return TextTokenizer.from_file(self.folder / "tokenizer.json")

    @cached_property
    def info(self) -> ImageTextInfo:
        """The facts of the prepared data."""
        tokenizer = self.tokenizer
        facts = PreparedCaptions(self.folder).facts
        return ImageTextInfo(
            **{**self.images.info.to_dict(), "key": self._key},
            tokenizer=tokenizer.to_json(),
            vocab_size=tokenizer.vocab_size,
            max_tokens=self.max_tokens,
            lowercase=self.lowercase,
            **{name: facts[name] for name in ("languages", "captions", "truncated")},
        )

    def for_model(self, info: Mapping[str, Any]) -> Self:
        """Images in the size, and captions by the tokenizer, of a checkpoint's model."""
        model = ImageTextInfo.from_dict(info)
        if self.lowercase != model.lowercase:
            self.lowercase = model.lowercase
            self.images = self._images()
        self.images.for_model(info)
        self.max_tokens = model.max_tokens
        self._given = TextTokenizer.from_json(model.tokenizer)
        self._model = model
        for name in ("folder", "tokenizer", "info", "train_set"):
            self.__dict__.pop(name, None)  # what was read with other settings
        self._prepare_captions()
        return self

    def setup(self, stage: str | None = None) -> None:
        """Open the splits."""
        self.images.setup(stage)
        captions = PreparedCaptions(self.folder)
        images = (self.images.train_set, self.images.val_set, self.images.test_set)
        self.train_set, self.val_set, self.test_set = (self._dataset(one, captions) for one in images)

    def _dataset(self, images: Any, captions: PreparedCaptions) -> ImageTextDataset:
        assert isinstance(images, ImageDataset)
        split = images.reading.split
        masking = {
            name: one if split == "train" else one.for_evaluation() for name, one in self._masking.items()
        }
        own = captions.facts["languages"]
        known = own if self._model is None else self._model.languages
        reading = TextReading(
            split=split,
            tokenizer=self.tokenizer,
            max_tokens=self.max_tokens,
            languages=np.array([known.index(name) if name in known else -1 for name in own]),
            texts=masking.get("texts"),
            pairs=masking.get("pairs"),
            seed=images.reading.seed,
        )
        return ImageTextDataset(images, captions, reading)

    @property
    def batching(self) -> Batching:
        """By pairs, whatever the length of their captions, which are short."""
        return self.images.batching

    def collate(self, dataset: ImageTextDataset) -> Callable[[Any], dict[str, Any]]:
        """Nothing is left to do: the data set gives whole batches."""
        return _as_it_is


def _as_it_is(batch: dict[str, Any]) -> dict[str, Any]:
    return batch
