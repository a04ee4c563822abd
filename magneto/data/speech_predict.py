"""Recordings to transcribe, prepared from a checkpoint's spec alone."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from magneto.data.features import AUDIO_SUFFIXES, BadAudio, FeatureSettings, load_audio, log_mel
from magneto.data.folders import walk
from magneto.data.sources import Skipped
from magneto.data.speech_store import SpeechSpec
from magneto.errors import UserError

log = logging.getLogger(__name__)


class PredictDataset(Dataset[dict[str, Any]]):
    """Audio files as items of a batch; `id` is the place in `paths`."""

    def __init__(self, paths: Sequence[Path], spec: SpeechSpec, skipped: Sequence[Skipped] = ()) -> None:
        self.paths, self.skipped = list(paths), list(skipped)
        self._settings = FeatureSettings.from_dict(spec.features)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> dict[str, Any]:
        waveform = _load_or_explain(self.paths[position], self._settings.sample_rate)
        features = log_mel(waveform, self._settings).numpy()
        return {"id": position, "features": features, "targets": [], "language": -1, "text": ""}


def _load_or_explain(path: Path, sample_rate: int) -> torch.Tensor:
    try:
        return load_audio(path, sample_rate)
    except BadAudio as bad:
        raise UserError(f"{path}: {bad}. Give a readable {', '.join(AUDIO_SUFFIXES)} file.") from bad


def predict_dataset(paths: Sequence[str | Path], spec: SpeechSpec) -> PredictDataset:
    """Files to transcribe, or folders (searched for audio files). Use it with `Collate(1)`.

    A file that was named and cannot be read is an error; one that was found in a folder is skipped and listed
    in `skipped`. Raises `UserError`.
    """
    chosen: list[Path] = []
    skipped: list[Skipped] = []
    for path in map(Path, paths):
        if path.is_dir():
            files = (place / name for place, names in walk(path) for name in names)
            found = sorted(file for file in files if file.suffix.lower() in AUDIO_SUFFIXES)
            if not found:
                raise UserError(f"{path}: no audio file in this folder ({', '.join(AUDIO_SUFFIXES)}).")
            for file in found:
                try:
                    load_audio(file, spec.sample_rate)
                    chosen.append(file)
                except BadAudio as bad:
                    skipped.append(Skipped(str(file), str(file), str(bad)))
        else:
            if not path.is_file():
                raise UserError(f"{path}: there is no such file or folder.")
            _load_or_explain(path, spec.sample_rate)
            chosen.append(path)
    if not chosen:
        raise UserError(
            f"None of the {len(skipped)} audio files can be read; the first: {skipped[0].file}: "
            f"{skipped[0].reason}."
        )
    if skipped:
        log.warning("%d of %d audio files cannot be read: %s", len(skipped), len(skipped) + len(chosen),
                    "; ".join(f"{item.file}: {item.reason}" for item in skipped))  # fmt: skip
    return PredictDataset(chosen, spec, skipped)
