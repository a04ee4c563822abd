"""Builds the prepared folder of images: each decoded once, bad ones listed, splits made, mean and deviation measured."""

import hashlib
import io
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from magneto.data.cache import short_hash
from magneto.data.corpora.base import SPLITS, Skipped
from magneto.data.corpora.image.base import (
    ImageCorpus,
    ImageExample,
    ImageReader,
    assign_splits,
    caption_key,
    each_caption,
)
from magneto.data.image.dataset import WHOLE, channels_first
from magneto.data.io.image import SVG_SIDE, BadImage, Slice, read_bytes, read_image, square
from magneto.errors import DataError

SHARD_LIMIT = 4 * 10**9  # bytes of decoded pixels up to which `store: auto` keeps them
LISTED = 1000  # skipped images in the report; all are counted
CHUNK = 256  # images in memory at once
LEFT_OUT = -1  # split of an image that is not used


@dataclass(frozen=True)
class Look:
    """What an image turned out to be."""

    digest: bytes  # of its bytes
    pixels: np.ndarray | None = None  # (C, S, S) uint8 where they are stored
    moments: np.ndarray | None = None  # (2, C) mean of the values and of their squares, 0 to 1
    reason: str | None = None  # why it cannot be used


def look(example: ImageExample, *, size: int | None, channels: int, fit: str) -> Look:
    """Decode an image. size: of the stored square; None: it stays in its file, and is only checked and measured."""
    try:
        data = read_bytes(example.image)
        digest = hashlib.sha256(data).digest()
        image = read_image(
            example.image if isinstance(example.image, np.ndarray) else data,
            channels,
            svg_side=2 * size if size else SVG_SIDE,
        )
    except BadImage as bad:
        return Look(b"", reason=str(bad))
    pixels = channels_first(image if size is None or image.size == (size, size) else square(image, size, fit))
    values = pixels.reshape(channels, -1).astype(np.float32) / 255
    moments = np.stack((values.mean(1, dtype=np.float64), np.square(values).mean(1, dtype=np.float64)))
    return Look(digest, None if size is None else pixels, moments)


class Rows:
    """What is known of the usable images, and where they are kept.

    Decoded pixels are appended to images.u8. Without them, an image in a file stays there, and one that is in
    memory only is appended to encoded.bin.
    """

    def __init__(self, folder: Path, stored: bool) -> None:
        self.folder, self.stored = folder, stored
        self.examples: list[ImageExample] = []
        self.lost: set[str] = set()
        """Classes of images that cannot be used."""
        self.digests: list[bytes] = []
        self.moments: list[np.ndarray] = []
        self._names: dict[bytes, int] = {}
        self._slices: list[tuple[int, int, int]] = []
        self._file: BinaryIO = (folder / ("images.u8" if stored else "encoded.bin")).open("wb")

    def add(self, example: ImageExample, seen: Look) -> None:
        """Keep a usable image."""
        assert seen.moments is not None
        if seen.pixels is not None:
            self._file.write(seen.pixels.tobytes())
        else:
            self._slices.append(self._slice(example))
        self.examples.append(replace(example, image=b""))
        self.digests.append(seen.digest)
        self.moments.append(seen.moments)

    def _slice(self, example: ImageExample) -> tuple[int, int, int]:
        image = example.image
        if isinstance(image, Path):
            return self._name(image), 0, WHOLE
        if isinstance(image, Slice):
            return self._name(image.path), image.start, image.size
        if isinstance(image, np.ndarray):
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "PNG")
            image = buffer.getvalue()
        start = self._file.tell()
        self._file.write(image)
        return self._names.setdefault(b"encoded.bin", len(self._names)), start, len(image)

    def _name(self, path: Path) -> int:
        return self._names.setdefault(os.fsencode(path.absolute()), len(self._names))

    def close(self) -> None:
        """Write what is left."""
        empty = self._file.tell() == 0
        self._file.close()
        if self.stored:
            return
        if empty:
            (self.folder / "encoded.bin").unlink()
        np.save(self.folder / "names.npy", np.array(list(self._names)))
        np.save(self.folder / "slices.npy", np.array(self._slices, np.int64).reshape(-1, 3))


@dataclass(frozen=True, kw_only=True)
class ImageBuilder:
    """Settings of `ImageDataModule` under which `builder(folder)` fills a folder.

    Writes facts.json, prepare_report.json, images.jsonl and index.npz; images.u8 with the decoded pixels, or
    names.npy and slices.npy that tell where the files are. Raises `MagnetoError` when a split is left empty.
    """

    corpora: Mapping[str, ImageReader]
    data_dir: Path
    image_size: int
    channels: int
    fit: str
    store: str
    fractions: tuple[float, float]
    workers: int
    fingerprint: Mapping[str, Any]
    captioned: bool = False
    """Keep captions, and images with equal ones on one side of the split."""

    def __call__(self, folder: Path) -> None:
        loaded = {name: source.load(self.data_dir) for name, source in self.corpora.items()}
        skipped: list[Skipped] = []
        rows = self._collect(loaded, folder, skipped)
        val, test = self.fractions
        examples = rows.examples
        splits = assign_splits(
            [example.split for example in examples],
            [example.group for example in examples],
            rows.digests,
            val=val,
            test=test,
            captions=[_captions(example) for example in examples] if self.captioned else None,
        )
        for example, split in zip(examples, splits, strict=True):
            if split is None:
                skipped.append(Skipped(example.id, "", "copy of an image on another side of the split"))
        evaluation_only = all(corpus.evaluation_only for corpus in loaded.values())
        _require_splits(splits, evaluation_only, skipped)
        lost = rows.lost - {example.label for example in examples}
        skipped += [Skipped(label, "", "class without a usable image") for label in sorted(lost)]
        stated = dict.fromkeys(label for corpus in loaded.values() for label in corpus.labels)
        labels = [label for label in stated if label not in lost]
        number = {label: place for place, label in enumerate(labels)}
        first: dict[bytes, int] = {}
        np.savez(
            folder / "index.npz",
            first=np.array(
                [first.setdefault(digest, row) for row, digest in enumerate(rows.digests)], np.int64
            ),
            split=np.array([LEFT_OUT if s is None else SPLITS.index(s) for s in splits], np.int8),
            label=np.array([-1 if p.label is None else number[p.label] for p in examples], np.int32),
        )
        with (folder / "images.jsonl").open("w", encoding="utf-8", errors="backslashreplace") as file:
            for example, split in zip(examples, splits, strict=True):
                line: dict[str, Any] = {"id": example.id, "label": example.label, "split": split}
                if self.captioned:
                    line["captions"] = example.captions
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._write_facts(folder, rows, splits, labels, loaded, skipped, evaluation_only)

    def _collect(self, loaded: Mapping[str, ImageCorpus], folder: Path, skipped: list[Skipped]) -> Rows:
        """Look at all images; ids carry the corpus's name."""
        total = sum(len(corpus.examples) for corpus in loaded.values())
        size = total * self.channels * self.image_size**2
        stored = self.store == "shards" or (self.store == "auto" and size <= SHARD_LIMIT)
        rows = Rows(folder, stored)
        examine = partial(
            look, size=self.image_size if stored else None, channels=self.channels, fit=self.fit
        )
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, TimeRemainingColumn()) as progress, ThreadPoolExecutor(self.workers) as pool:
            bar = progress.add_task("reading images", total=total)
            for name, corpus in loaded.items():
                for chunk in _chunks(iter(corpus.examples)):
                    # Decoders let other threads run; what is decoded already would only be handed about.
                    plain = self.workers == 1 or isinstance(chunk[0].image, np.ndarray)
                    for example, seen in zip(
                        chunk, (map if plain else pool.map)(examine, chunk), strict=True
                    ):
                        named = replace(example, id=f"{name}/{example.id}")
                        if seen.reason is None:
                            rows.add(named, seen)
                        else:
                            skipped.append(Skipped(named.id, _file(example), seen.reason))
                            if example.label is not None:
                                rows.lost.add(example.label)
                    progress.advance(bar, len(chunk))
                skipped += [replace(item, id=f"{name}/{item.id}") for item in corpus.skipped]
        rows.close()
        return rows

    def _write_facts(
        self,
        folder: Path,
        rows: Rows,
        splits: Sequence[str | None],
        labels: Sequence[str],
        loaded: Mapping[str, ImageCorpus],
        skipped: Sequence[Skipped],
        evaluation_only: bool,
    ) -> None:
        measured = "test" if evaluation_only else "train"
        moments = [m for m, split in zip(rows.moments, splits, strict=True) if split == measured]
        mean, square_mean = np.mean(moments, axis=0)
        std = np.sqrt(np.maximum(square_mean - mean**2, 0))
        counts = {split: Counter[str]() for split in SPLITS}
        for example, split in zip(rows.examples, splits, strict=True):
            if split is not None and example.label is not None:
                counts[split][example.label] += 1
        shape = [len(rows.examples), self.channels, self.image_size, self.image_size]
        facts: dict[str, Any] = {
            "examples": {split: splits.count(split) for split in SPLITS},
            "labels": list(labels),
            "label_counts": {s: {name: counts[s][name] for name in labels} for s in SPLITS if labels},
            "mean": [round(value, 6) for value in mean.tolist()],
            "std": [
                round(value, 6) if value > 1e-3 else 1.0 for value in std.tolist()
            ],  # of one colour all over
            "corpus": {name: corpus.origin for name, corpus in loaded.items()},
            "shape": shape if rows.stored else None,
            "evaluation_only": evaluation_only,
            "key": short_hash(self.fingerprint),
        }
        report = {
            **facts,
            "settings": self.fingerprint,
            "skipped_by_reason": dict(Counter(item.reason for item in skipped).most_common()),
            "skipped": [asdict(item) for item in skipped[:LISTED]],
        }
        for name, values in (("facts.json", facts), ("prepare_report.json", report)):
            text = json.dumps(values, indent=1, ensure_ascii=False) + "\n"
            # A file's name need not be UTF-8; what is not is escaped.
            (folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")


def _chunks(examples: Iterator[ImageExample]) -> Iterator[list[ImageExample]]:
    while chunk := list(itertools.islice(examples, CHUNK)):
        yield chunk


def _captions(example: ImageExample) -> set[str]:
    """In all languages, as far as letters and digits tell them apart."""
    return {caption_key(text) for _, text in each_caption(example.captions)}


def _file(example: ImageExample) -> str:
    if isinstance(example.image, Slice):
        return str(example.image.path)
    return str(example.image) if isinstance(example.image, Path) else ""


def _require_splits(splits: Sequence[str | None], evaluation_only: bool, skipped: Sequence[Skipped]) -> None:
    """Test images may be missing: those of validation then serve for both."""
    for split in ("test",) if evaluation_only else ("train", "val"):
        if split not in splits:
            reasons = Counter(item.reason for item in skipped).most_common(5)
            listed = "; ".join(f"{count} {reason}" for reason, count in reasons) or "none was skipped"
            raise DataError(
                f"No usable image is left for the {split} split ({len(splits)} can be read; skipped: {listed}). Check "
                "data.corpora, and data.val_fraction and data.test_fraction if the corpus states no splits."
            )
