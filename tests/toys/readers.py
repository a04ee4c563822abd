"""Readers of corpora on tiny files, and what is to be expected of them: those of images with masks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from magneto.data.corpora.segmentation.ade20k import Ade20kReader
from magneto.data.corpora.segmentation.hub_masks import HubMasksReader
from magneto.data.corpora.segmentation.stamp_scenes import StampScenesReader
from tests.toys.corpora import outlined, png, write


@dataclass
class Case:
    """A reader of files below `root`, as `make` makes it; `others` makes readers with other settings."""

    make: Callable[[Path], Any]
    file: str  # whose change is noticed
    others: Sequence[Callable[[Path], Any]] = ()
    skipped: dict[str, str] = field(default_factory=dict)  # id -> reason
    fatal: str = ""  # a bad line is an error with this message
    hides_macos: bool = True  # the hidden files of macOS change nothing


def ade20k(root: Path) -> Case:
    for side in ("training", "validation"):
        for name in ("a", "b"):
            write(root / f"images/{side}/{name}.png", png(ord(name)))
            write(root / f"annotations/{side}/{name}.png", png(ord(name)))
    write(root / "images/training/c.png", png(1))
    write(root / "annotations/training/d.png", png(1))
    write(root / "images/training/a.webp", png(2))  # read after a.png
    make = lambda r, **more: Ade20kReader(str(r), **more)
    others = (
        lambda r: make(r, validation=0.5),
        lambda r: make(r, classes=3),
        lambda r: make(r, first=0, ignored=()),
    )
    skipped = {
        "training/c": "image without a mask",
        "training/d": "mask without an image",
        "a.webp": "another file of this name but for its ending",
    }
    return Case(make, "annotations/training/a.png", others, skipped)


def hub_masks(root: Path) -> Case:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "annotation": datasets.Image()})
    images = [{"bytes": png(number), "path": None} for number in range(3)]
    rows = {"image": images, "annotation": [*images[:2], None]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(root / "a.parquet")
    make = lambda r, **more: HubMasksReader(
        name="parquet", data_files=str(r / "a.parquet"), splits={"train": "train"}, **more
    )
    others = (lambda r: make(r, classes=3), lambda r: make(r, limit=1), lambda r: make(r, ignored=[255, 0]))
    return Case(make, "a.parquet", others, {"train:2": "row without a mask"})


def stamp_scenes(root: Path) -> Case:
    for number in range(30):
        write(root / f"{('animals', 'food')[number % 2]}/{number}.png", outlined(number))
    write(root / "food/opaque.png", png(99))
    make = lambda r, **more: StampScenesReader(
        **{"folder": str(r), "size": 16, "scenes": {"train": 4, "test": 2}, "min_stamps": 5, **more}
    )
    others = (
        lambda r: make(r, stamps=[2, 2]),
        lambda r: make(r, size=24),
        lambda r: make(r, scenes={"train": 4}),
    )
    skipped = {"food/opaque": "a stamp without transparency, whose outline is not known"}
    return Case(make, "animals/0.png", others, skipped)
