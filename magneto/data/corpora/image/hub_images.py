"""Images of data sets of the Hugging Face hub, by name, or local files through the same library (docs/data.md)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from magneto.data.corpora.base import SPLITS, Skipped, lazy
from magneto.data.corpora.hub import HubData
from magneto.data.corpora.image.base import ImageCorpus, ImageExample
from magneto.errors import ConfigError


@dataclass(kw_only=True)
class HubImagesReader(HubData):
    """Rows with a column of images, and columns of classes or captions.

    With train and one other split, that one is validation and test.

    Args:
        config: the data set's configuration.
        image: the column of the images.
        label: the column of the classes; None: there are no classes.
        caption: the column of captions, or language -> column; a row has a text or a list of texts.
        language: of a single column's captions.
        others: see `HubData`; `name` is also imagefolder or webdataset, for local files.
    """

    allowed = (("train",), ("train", "val"), ("train", "test"), SPLITS)

    config: str | None = None
    image: str = "image"
    label: str | None = "label"
    caption: str | Mapping[str, str] | None = None
    language: str = "en"
    streaming: bool = field(default=False, init=False)

    @property
    def _captions(self) -> Mapping[str, str]:
        """Language -> column."""
        return {self.language: self.caption} if isinstance(self.caption, str) else self.caption or {}

    def fingerprint(self) -> dict[str, Any]:
        """See `Reader`; of local files also sizes and times."""
        columns = {"image": self.image, "label": self.label, "captions": dict(self._captions)}
        settings = {"config": self.config, "columns": columns}
        return {"corpus": "hub_images", "recipe": 1, **super().fingerprint(), **settings}

    def load(self, data_dir: Path) -> ImageCorpus:
        """Return the rows of all splits, images not decoded."""
        tables = {side: self._open(side) for side in self.sides}
        # Names of a ClassLabel, whose values are indices; of any other column the values are the classes.
        names = None if self.label is None else getattr(tables["train"].features[self.label], "names", None)
        labels = names or []
        if self.label is not None and names is None:
            values = {value for rows in tables.values() for value in rows.unique(self.label)} - {None}
            labels = [str(value) for value in sorted(values)]

        def label_of(row: Mapping[str, Any]) -> str | None:
            value = None if self.label is None else row[self.label]
            if value is None or (names is not None and value == -1):  # the library's convention for no class
                return None
            return str(value if names is None else names[value])

        def examples() -> Iterator[ImageExample | Skipped]:
            for side, rows in tables.items():
                split = "val" if side == "test" and "val" not in tables else self.stated(side)
                for number, row in enumerate(rows):
                    own = f"{self.sides[side]}:{number}"
                    image = image_of(row[self.image])
                    if image is None:
                        yield Skipped(own, own, "row without an image")
                        continue
                    texts = {language: _texts(row[column]) for language, column in self._captions.items()}
                    captions = {language: found for language, found in texts.items() if found}
                    yield ImageExample(
                        id=own, image=image, label=label_of(row), split=split, captions=captions
                    )

        images, skipped = lazy(examples, sum(map(len, tables.values())))
        return ImageCorpus(examples=images, labels=tuple(labels), skipped=skipped, origin=self.origin())

    def _open(self, side: str) -> Any:
        import datasets

        rows = self.open(side, self.config)
        for column in (self.image, self.label, *self._captions.values()):
            if column is not None and column not in rows.column_names:
                raise self.no_column("image, label, caption", column, rows.column_names)
        rows = rows.select(range(min(self.limit or len(rows), len(rows))))
        features = rows.features
        if self.label and not isinstance(features[self.label], (datasets.ClassLabel, datasets.Value)):
            raise ConfigError(
                f"data: column {self.label!r} of {self.name} has several values in a row, or a structure: name a column "
                "of one class each (data.corpora...label), or label=null."
            )
        if isinstance(features[self.image], datasets.Image):
            rows = rows.cast_column(self.image, datasets.Image(decode=False))
        return rows


def _texts(value: Any) -> list[str]:
    """Return the captions in a column of a row: a text, or several."""
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str) and text.strip()]


def image_of(value: Any) -> bytes | Path | None:
    """Return the image in a column of a row: bytes, a path, or both."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict) and value.get("bytes"):
        return bytes(value["bytes"])
    if isinstance(value, dict) and value.get("path"):
        return Path(value["path"])
    return None
