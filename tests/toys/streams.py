"""Tar shards of captioned images and of recordings, and the batches that a module streams."""

import io
import json
import tarfile
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from PIL import Image

from magneto.data.streamed import StreamedDataModule
from tests.toys.captions import squares
from tests.toys.recordings import tone

Batch = dict[str, Any]


def run(
    data: StreamedDataModule[Any, Any], state: Any = None, total: int = 60, rank: int = 0, world: int = 1
) -> tuple[list[Batch], list[dict[str, Any]]]:
    """The batches from a state on, and the state after each as a checkpoint has it."""
    data.configure_run(total, rank=rank, world_size=world)
    loader: Any = data.train_dataloader()
    if state is not None:
        loader.load_state_dict(state)
    batches, states = [], []
    for batch in loader:
        batches.append(batch)
        if world == 1:
            states.append(json.loads(json.dumps(loader.state_dict())))
    return batches, states


def equal(one: Sequence[Batch], other: Sequence[Batch]) -> bool:
    return len(one) == len(other) and all(
        a.keys() == b.keys()
        and all(
            torch.equal(a[key], b[key]) if isinstance(a[key], torch.Tensor) else a[key] == b[key] for key in a
        )
        for a, b in zip(one, other, strict=True)
    )


def write_tar(file: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    """An archive of members in this order."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return file


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def image_shards(folder: Path, shards: int = 8, images: int = 16) -> Path:
    """Shards of images with different captions; one image of each shard cannot be decoded, and one has no caption."""
    made = squares()
    for shard in range(shards):
        members = []
        for number, (english, _, pixels) in enumerate(islice(made, images)):
            content = png(pixels) if number != 5 else b"no image"
            text = f"{english} {shard} {number}" if number != 9 else ""
            members += [
                (f"{number:03d}.png", content),
                (f"{number:03d}.json", json.dumps({"caption": text}).encode()),
            ]
        write_tar(folder / f"shard-{shard}.tar", members)
    return folder


def transcript(shard: int, number: int) -> str:
    return f"{'abcdefgh'[shard]}{'ijklmnopqrstuvwxyz'[number]} tone"


def speech_shards(folder: Path, shards: int = 8, recordings: int = 12) -> Path:
    """Shards of recordings of different lengths; of each shard one cannot be decoded, and one has no transcript."""
    for shard in range(shards):
        members = []
        for number in range(recordings):
            sound = io.BytesIO()
            seconds = 0.5 + 0.25 * ((shard * 5 + number * 7) % 10)
            soundfile.write(sound, tone(seconds, 8000, seed=shard * 20 + number), 8000, format="WAV")
            content = sound.getvalue() if number != 5 else b"no sound"
            text = transcript(shard, number) if number != 9 else ""
            members += [(f"{number:03d}.wav", content), (f"{number:03d}.txt", text.encode())]
        write_tar(folder / f"shard-{shard}.tar", members)
    return folder
