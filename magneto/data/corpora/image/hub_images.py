"""Images of data sets of the Hugging Face hub, by name, or local files through the same library (docs/data.md)."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from magneto.data.corpora.base import SPLITS, Skipped
from magneto.data.corpora.hub import HubData
from magneto.data.corpora.image.base import ImageCorpus, ImageExample, LazyImages
from magneto.errors import ConfigError


class HubImagesReader:
    """Rows with a column of images, and columns of classes or captions.

    With `train` alone in `splits`, the others are held out from it by a hash; with train and one other, that one is
    validation and test.

    Args:
        name: see `HubData`, as for splits, revision, data_files and limit; also imagefolder and webdataset, for local files.
        config: the data set's configuration.
        splits: ours -> the data set's.
        image: the column of the images.
        label: the column of the classes; None: there are no classes.
        caption: the column of captions, or language -> column; a row has a text or a list of texts.
        language: of a single column's captions.
        revision: of the data set.
        data_files: local files.
        limit: rows of each split, at most.
    """

    def __init__(
        self,
        name: str | None = None,
        config: str | None = None,
        *,
        splits: Mapping[str, str] | None = None,
        image: str = "image",
        label: str | None = "label",
        caption: str | Mapping[str, str] | None = None,
        language: str = "en",
        revision: str | None = None,
        data_files: Any = None,
        limit: int | None = None,
    ) -> None:
        if name is None:
            raise ConfigError(
                "data: name a data set of the hub (data.corpora.hub_images.name=uoft-cs/cifar10)."
            )
        allowed = (("train",), ("train", "val"), ("train", "test"), SPLITS)
        self.data = HubData(
            name, splits, allowed=allowed, revision=revision, data_files=data_files, limit=limit
        )
        self.config, self.image, self.label = config, image, label
        self.captions = {language: caption} if isinstance(caption, str) else dict(caption or {})

    def fingerprint(self) -> dict[str, Any]:
        """See `Reader`; of local files also sizes and times."""
        columns = {"image": self.image, "label": self.label, "captions": self.captions}
        settings = {"config": self.config, "columns": columns}
        return {"corpus": "hub_images", "recipe": 1, **self.data.fingerprint(), **settings}

    def load(self, data_dir: Path) -> ImageCorpus:
        """Return the rows of all splits, images not decoded."""
        sides = {side: self._open(side) for side in self.data.splits}
        skipped: list[Skipped] = []
        label = self.label
        # Names of a ClassLabel, whose values are indices; of any other column the values are the classes.
        names = None if label is None else getattr(sides["train"].features[label], "names", None)
        labels = names or []
        if label is not None and names is None:
            values = {value for rows in sides.values() for value in rows.unique(label) if value is not None}
            labels = [str(value) for value in sorted(values)]

        def label_of(row: Mapping[str, Any]) -> str | None:
            value = None if label is None else row[label]
            if value is None or (
                names is not None and value == -1
            ):  # -1: the library's convention for no class
                return None
            return str(value) if names is None else str(names[value])

        def examples() -> Iterator[ImageExample]:
            skipped.clear()
            for side, rows in sides.items():
                for number, row in enumerate(rows):
                    own = f"{self.data.splits[side]}:{number}"
                    image = _image(row[self.image])
                    if image is None:
                        skipped.append(Skipped(own, own, "row without an image"))
                        continue
                    texts = {language: _texts(row[column]) for language, column in self.captions.items()}
                    yield ImageExample(
                        id=own,
                        image=image,
                        label=label_of(row),
                        split="val" if side == "test" and "val" not in sides else self.data.stated(side),
                        captions={language: found for language, found in texts.items() if found},
                    )

        return ImageCorpus(
            examples=LazyImages(examples, sum(map(len, sides.values()))),
            labels=tuple(labels),
            skipped=skipped,
            origin=self.data.origin(),
        )

    def _open(self, side: str) -> Any:
        import datasets

        rows = self.data.open(side, self.config)
        for name in (self.image, self.label, *self.captions.values()):
            if name is not None and name not in rows.column_names:
                raise ConfigError(
                    f"data: {self.data.name} has no column {name!r}; it has {', '.join(rows.column_names)}. Name "
                    "the right one (data.corpora...image, label, caption)."
                )
        rows = rows.select(range(min(self.data.limit or len(rows), len(rows))))
        if self.label is not None and not isinstance(
            rows.features[self.label], (datasets.ClassLabel, datasets.Value)
        ):
            raise ConfigError(
                f"data: column {self.label!r} of {self.data.name} has several values in a row, or a structure: name a "
                "column of one class each (data.corpora...label), or label=null."
            )
        if isinstance(rows.features[self.image], datasets.Image):
            rows = rows.cast_column(self.image, datasets.Image(decode=False))
        return rows


def _texts(value: Any) -> list[str]:
    """Return the captions in a column of a row: a text, or several."""
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str) and text.strip()]


def _image(value: Any) -> bytes | Path | None:
    """Return the image in a column of a row: bytes, a path, or both."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict) and value.get("bytes"):
        return bytes(value["bytes"])
    if isinstance(value, dict) and value.get("path"):
        return Path(value["path"])
    return None
