"""Transcribe recordings of any length."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge
from rich.console import Console
from rich.progress import track
from torch import Tensor

from magneto.data.io.audio import FeatureSettings, log_mel
from magneto.data.speech.dataset import SpeechInfo, user_recordings
from magneto.errors import DataError
from magneto.inference.inputs import PredictInput

Decoder = Literal["greedy", "beam"]
"""Best path, or beam search."""
WINDOW, CONTEXT = 60, 5  # seconds: of what is computed at once, and of what a window's edges lack


@dataclass(frozen=True, kw_only=True)
class AsrPredictOptions:
    """Options of `mode=predict`, `conf/predict/asr.yaml`; None: as the task was trained."""

    decoder: Decoder | None = None
    beam_width: Annotated[int, Ge(1)] | None = None
    """Hypotheses kept by the beam search."""


def transcribe(
    model: Any, inputs: PredictInput, decoder: Decoder, beam_width: int
) -> Iterator[dict[str, Any]]:
    """Transcribe audio files, the audio files of a folder, or waveforms.

    Yields:
        `path` (of a waveform its index, `[0]`) and `transcript`.

    Raises:
        MagnetoError: texts are given; there is no such file, or it cannot be read.
    """
    for path, features in _recordings(inputs, model.info):
        outputs, lengths = recognise(model, features[None].to(model.device), Path(path).name)
        (transcript,) = model.transcripts(outputs, lengths, decoder, beam_width)
        yield {"text": f"{path}\t{transcript}", "path": path, "transcript": transcript}


def _recordings(inputs: PredictInput, info: SpeechInfo) -> Iterator[tuple[str, Tensor]]:
    """Yield a name and features (T, mels)."""
    for index, item in enumerate(inputs.files()):
        if not isinstance(item, np.ndarray | Tensor):
            yield from ((str(path), features) for path, features in user_recordings(item, info))
            continue
        waveform = torch.as_tensor(item, dtype=torch.float32)
        if waveform.ndim != 1 or not len(waveform) or not waveform.isfinite().all():
            raise DataError(
                f"recording {index}: an array of shape {tuple(waveform.shape)}. Give a waveform (samples,) of finite "
                "numbers in [-1, 1]."
            )
        yield f"[{index}]", log_mel(waveform, FeatureSettings(**info.features))


def recognise(model: Any, features: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Run the model on one recording (1, T, mels) of any length, in time that grows with the length alone.

    A recording above `WINDOW` seconds is taken in windows, with a progress bar, called `name`, on a terminal. Each overlaps
    the next by two times `CONTEXT` seconds, and its outermost `CONTEXT` seconds, which lack their context, are left to its
    neighbour.

    Returns:
        What the model makes of the frames, (1, T', ...), and their length (1,).
    """
    subsampling = model.info.subsampling
    second = subsampling * round(1000 / (model.info.features["hop_ms"] * subsampling))
    frames, window, context = features.shape[1], WINDOW * second, CONTEXT * second
    if frames <= window:
        outputs, lengths = model(features, torch.tensor([frames], device=model.device))
        return outputs, lengths
    starts = range(0, frames - 2 * context, window - 2 * context)
    screen = Console(stderr=True)
    parts = []
    for start in track(starts, name, console=screen, transient=True, disable=not screen.is_terminal):
        part = features[:, start : start + window]
        outputs, _ = model(part, torch.tensor([part.shape[1]], device=model.device))
        first = context // subsampling if start > 0 else 0
        last = (window - context) // subsampling if start != starts[-1] else None
        parts.append(outputs[:, first:last])
    whole = torch.cat(parts, dim=1)
    return whole, torch.tensor([whole.shape[1]], device=model.device)
