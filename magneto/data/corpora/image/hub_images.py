"""Images of data sets of the Hugging Face hub, by name, or local files through the same library (docs/data.md)."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from magneto.data.corpora.base import SPLITS, Skipped
from magneto.data.corpora.image.base import ImageCorpus, ImageExample, Lazily
from magneto.data.corpora.text.hub import FILE_BUILDERS, file_fingerprint, hub_dataset, plain
from magneto.errors import ConfigError

BUILDERS = (*FILE_BUILDERS, "imagefolder", "webdataset")  # of the library, for local files


class HubImagesReader:
    """Rows with a column of images, and columns of classes or captions.

    name, config, revision, data_files: see `hub_rows`. splits: ours -> the data set's; with `train` alone, the others
    are held out from it by a hash; with train and one other, that one serves for validation and test. image, label,
    caption: names of the columns; label and caption may be None, and caption a dict language -> column. Such a column has
    a text or a list of texts. language: of a single column's captions. limit: rows of each split.
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
        self.splits = dict(splits or {"train": "train", "val": "validation", "test": "test"})
        if "train" not in self.splits or self.splits.keys() - set(SPLITS):
            raise ConfigError(
                f"data: splits of {name} names {', '.join(self.splits)}; name train, and val and test where there are."
            )
        if name in FILE_BUILDERS and not data_files:
            raise ConfigError(f"data: name={name} reads local files: name them with data_files.")
        self.columns = {"image": image, "label": label}
        self.captions = {language: caption} if isinstance(caption, str) else dict(caption or {})
        self.limit = limit
        self.arguments: dict[str, Any] = {
            "name": name,
            "config": config,
            "revision": revision,
            "data_files": plain(data_files),
        }

    def fingerprint(self) -> dict[str, Any]:
        """All settings; of local files also sizes and times."""
        settings = {**self.arguments, "data_files": file_fingerprint(self.arguments["data_files"])}
        more = {
            "splits": self.splits,
            "columns": self.columns,
            "captions": self.captions,
            "limit": self.limit,
        }
        return {"corpus": "hub_images", "recipe": 1, **settings, **more}

    def load(self, data_dir: Path) -> ImageCorpus:
        """The rows of all splits, images not decoded."""
        sides = {side: self._open(split) for side, split in self.splits.items()}
        skipped: list[Skipped] = []
        label = self.columns["label"]
        names = None if label is None else getattr(sides["train"].features[label], "names", None)
        if label is not None and names is None:  # no ClassLabel: the values that there are
            values = {value for rows in sides.values() for value in rows.unique(label) if value is not None}
            names = [str(value) for value in sorted(values)]
            number = None
        else:
            number = names

        def examples() -> Iterator[ImageExample]:
            skipped.clear()
            for side, rows in sides.items():
                stated = self._stated(side)
                for place, row in enumerate(rows):
                    own = f"{self.splits[side]}:{place}"
                    image = _image(row[self.columns["image"]])
                    if image is None:
                        skipped.append(Skipped(own, own, "row without an image"))
                        continue
                    value = None if label is None else row[label]
                    unlabelled = value is None or (
                        number is not None and value == -1
                    )  # -1: the library's convention
                    yield ImageExample(
                        id=own,
                        image=image,
                        label=None if unlabelled else str(value) if number is None else number[value],
                        split=stated,
                        captions={
                            language: texts
                            for language, column in self.captions.items()
                            if (texts := _texts(row[column]))
                        },
                    )

        return ImageCorpus(
            examples=Lazily(examples, sum(len(rows) for rows in sides.values())),
            labels=tuple(names or ()),
            skipped=skipped,
            origin={"dataset": self.arguments["name"], "revision": self.arguments["revision"]},
        )

    def _stated(self, side: str) -> str | None:
        if len(self.splits) == 1:
            return None
        return "val" if side == "test" and "val" not in self.splits else side

    def _open(self, split: str) -> Any:
        import datasets

        rows = hub_dataset(split=split, **self.arguments)
        for name in (*self.columns.values(), *self.captions.values()):
            if name is not None and name not in rows.column_names:
                raise ConfigError(
                    f"data: {self.arguments['name']} has no column {name!r}; it has {', '.join(rows.column_names)}. Name "
                    "the right one (data.corpora...image, label, caption)."
                )
        rows = rows.select(range(min(self.limit or len(rows), len(rows))))
        image, label = self.columns["image"], self.columns["label"]
        assert image is not None
        if label is not None and not isinstance(rows.features[label], (datasets.ClassLabel, datasets.Value)):
            raise ConfigError(
                f"data: column {label!r} of {self.arguments['name']} has several values in a row, or a structure: name a "
                "column of one class each (data.corpora...label), or label=null."
            )
        if isinstance(rows.features[image], datasets.Image):
            rows = rows.cast_column(image, datasets.Image(decode=False))
        return rows


def _texts(value: Any) -> list[str]:
    """What is in a column of captions: a text, or several."""
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str) and text.strip()]


def _image(value: Any) -> bytes | Path | None:
    """What is in a column of images: bytes, a path, or both."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict) and value.get("bytes"):
        return bytes(value["bytes"])
    if isinstance(value, dict) and value.get("path"):
        return Path(value["path"])
    return None
