"""Images with masks of data sets of the Hugging Face hub, by name, or local files through the same library."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from magneto.data.corpora.base import SPLITS, Skipped, lazy
from magneto.data.corpora.hub import HubData
from magneto.data.corpora.image.hub_images import image_of
from magneto.data.corpora.segmentation.base import ClassIds, SegmentationCorpus, SegmentationExample
from magneto.errors import ConfigError


@dataclass(kw_only=True)
class HubMasksReader(HubData):
    """Rows with a column of images and one of masks.

    With train and one other split, that one is validation and test.

    Args:
        config: the data set's configuration.
        image: the column of the images.
        mask: the column of the masks.
        classes: number of the classes.
        labels: their names; None: they are called by their ids.
        first: the id in masks of the first class.
        ignored: ids whose pixels are neither learnt nor scored.
        others: see `HubData`.
    """

    allowed = (("train",), ("train", "val"), ("train", "test"), SPLITS)

    config: str | None = None
    image: str = "image"
    mask: str = "annotation"
    classes: int = 150
    labels: Sequence[str] | None = None
    first: int = 1
    ignored: Sequence[int] = (0,)
    streaming: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.ids = ClassIds(self.classes, self.first, tuple(self.ignored))
        if self.labels is not None and len(set(self.labels)) != self.classes:
            raise ConfigError(
                f"data: labels names {len(set(self.labels))} classes, and classes={self.classes}. Give each one name."
            )

    def fingerprint(self) -> dict[str, Any]:
        """See `Reader`; of local files also sizes and times."""
        settings = {
            "config": self.config, "columns": [self.image, self.mask], "labels": self._labels(),
            "ids": [self.classes, self.first, list(self.ignored)],
        }  # fmt: skip
        return {"corpus": "hub_masks", "recipe": 1, **super().fingerprint(), **settings}

    def _labels(self) -> list[str]:
        return list(self.ids.names() if self.labels is None else self.labels)

    def load(self, data_dir: Path) -> SegmentationCorpus:
        """Return the rows of all splits, not decoded."""
        tables = {side: self._open(side) for side in self.sides}

        def examples() -> Iterator[SegmentationExample | Skipped]:
            for side, rows in tables.items():
                split = "val" if side == "test" and "val" not in tables else self.stated(side)
                for number, row in enumerate(rows):
                    own = f"{self.sides[side]}:{number}"
                    image, mask = image_of(row[self.image]), image_of(row[self.mask])
                    if image is None or mask is None:
                        yield Skipped(own, own, f"row without {'an image' if image is None else 'a mask'}")
                    else:
                        yield SegmentationExample(id=own, image=image, mask=mask, split=split)

        found, skipped = lazy(examples, sum(map(len, tables.values())))
        return SegmentationCorpus(
            examples=found,
            labels=tuple(self._labels()),
            first=self.first,
            ignored=tuple(self.ignored),
            skipped=skipped,
            origin=self.origin(),
        )

    def _open(self, side: str) -> Any:
        import datasets

        rows = self.open(side, self.config)
        for column in (self.image, self.mask):
            if column not in rows.column_names:
                raise self.no_column("image, mask", column, rows.column_names)
        rows = rows.select(range(min(self.limit or len(rows), len(rows))))
        for column in (self.image, self.mask):
            if isinstance(rows.features[column], datasets.Image):
                rows = rows.cast_column(column, datasets.Image(decode=False))
        return rows
