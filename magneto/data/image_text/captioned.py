"""Images that have captions: those of any image source, cleaned, the others listed; kept with the prepared images."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from magneto.data.corpora.base import Skipped
from magneto.data.corpora.image.base import ImageCorpus, ImageExample, ImageReader, LazyImages, each_caption
from magneto.data.corpora.text.base import why_unusable
from magneto.data.image.module import ImageDataModule
from magneto.data.transforms.text import clean_caption


class CaptionedImages(ImageDataModule):
    """Images whose captions are kept in images.jsonl, and equal captions on one side of the split."""

    captioned = True


@dataclass(frozen=True)
class CaptionedReader:
    """The images of a source that have a caption in one of `languages` (None: in any), without their classes."""

    source: ImageReader
    languages: Sequence[str] | None
    lowercase: bool

    def fingerprint(self) -> dict[str, Any]:
        """That of the source, and how captions are read."""
        languages = None if self.languages is None else list(self.languages)
        return {
            **self.source.fingerprint(),
            "captions": {"languages": languages, "lowercase": self.lowercase},
        }

    def load(self, data_dir: Path) -> ImageCorpus:
        """The source's images with clean captions. What is skipped is known once they were gone through."""
        corpus = self.source.load(data_dir)
        skipped: list[Skipped] = []
        wanted = "any language" if self.languages is None else " or ".join(self.languages)

        def examples() -> Iterator[ImageExample]:
            skipped.clear()
            for example in corpus.examples:
                captions = self._clean(example, skipped)
                if captions:
                    yield replace(example, captions=captions, label=None)
                else:
                    skipped.append(Skipped(example.id, "", f"no caption in {wanted}"))
            skipped.extend(corpus.skipped)

        return replace(
            corpus, examples=LazyImages(examples, len(corpus.examples)), labels=(), skipped=skipped
        )

    def _clean(self, example: ImageExample, skipped: list[Skipped]) -> Mapping[str, list[str]]:
        """Language -> captions that can be used, each once; notes the others."""
        clean: dict[str, list[str]] = {}
        for language, text in each_caption(example.captions):
            if self.languages is not None and language not in self.languages:
                continue
            reason = why_unusable(text) or why_unusable(language)
            if reason is not None:
                skipped.append(Skipped(example.id, "", f"caption: {reason}"))
                continue
            text = clean_caption(text, self.lowercase)
            if text not in clean.setdefault(language, []):
                clean[language].append(text)
        return clean
