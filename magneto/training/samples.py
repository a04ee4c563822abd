"""Samples of an evaluation: files of their images, rows and captions for the loggers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

Sample = dict[str, Any]


def log_samples(logger: Any, key: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
    """Send examples to a logger that has media: images and recordings with captions, everything else as a table.

    Args:
        logger: Lightning's `WandbLogger`, or one with its methods; others are left alone.
        key: what W&B shows them as.
        rows: one mapping an example; `image` is a uint8 array, `audio` the path of a recording.
        step: the number of optimizer steps done.
    """
    if not hasattr(logger, "log_table"):
        return
    if "image" in rows[0]:
        captions = [_caption(row) for row in rows]
        logger.log_image(key=key, images=[row["image"] for row in rows], caption=captions, step=step)
        return
    played = [row for row in rows if "audio" in row]
    if played:
        files, captions = [str(row["audio"]) for row in played], [_caption(row) for row in played]
        logger.log_audio(key=f"{key}_audio", audios=files, caption=captions, step=step)
    columns = [column for column in rows[0] if column != "audio"]
    table = [[row.get(column) for column in columns] for row in rows]
    logger.log_table(key=key, columns=columns, data=table, step=step)


_NOT_IN_CAPTION = ("step", "split", "kind", "image", "audio")


def _caption(row: Mapping[str, Any]) -> str:
    texts = {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for key, value in row.items()
        if key not in _NOT_IN_CAPTION
    }
    return "\n".join(f"{key}: {text}" for key, text in texts.items())[:1000]


def save_images(row: Sample, folder: Path, name: str) -> Sample:
    """Write `row["image"]` and `row["mask"]`, if any, as PNG files below `folder`; the row then has their paths."""
    files: dict[str, Any] = {}
    for key in ("image", "mask"):
        if key in row:
            suffix = "" if key == "image" else f"-{key}"
            files[key] = (Path("samples") / (re.sub(r"[^\w.-]+", "_", name) + f"{suffix}.png")).as_posix()
            (folder / files[key]).parent.mkdir(exist_ok=True)
            Image.fromarray(row[key]).save(folder / files[key])
    return {**row, **files}
