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


def save_image(row: Sample, folder: Path, name: str) -> Sample:
    """Write `row["image"]`, if there is one, as a PNG file below `folder`; the row then holds its relative path."""
    if "image" not in row:
        return row
    file = Path("samples") / (re.sub(r"[^\w.-]+", "_", name) + ".png")
    (folder / file).parent.mkdir(exist_ok=True)
    Image.fromarray(row["image"]).save(folder / file)
    return {**row, "image": file.as_posix()}
