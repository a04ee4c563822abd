"""Recordings to transcribe, prepared from a checkpoint's info alone."""

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from magneto.data.io.audio import AUDIO_SUFFIXES, BadAudio, FeatureSettings, load_audio, log_mel
from magneto.data.io.folders import walk
from magneto.data.speech.dataset import SpeechInfo
from magneto.errors import ConfigError

log = logging.getLogger(__name__)


def user_recordings(path: str | Path, info: SpeechInfo) -> Iterator[tuple[Path, torch.Tensor]]:
    """Yield a file and its features (frames, num_mels), or all recordings below a folder in the order of their names.

    Raises:
        ConfigError: there is no such file or folder; the named file, or every one of the folder, cannot be read. Single
            bad recordings of a folder are skipped with a warning, and files with other endings are counted.
    """
    path = Path(path).expanduser()
    settings = FeatureSettings.from_dict(info.features)
    if not path.is_dir():
        if not path.is_file():
            raise ConfigError(f"input={path}: there is no such file or folder.")
        try:
            yield path, log_mel(load_audio(path, settings.sample_rate), settings)
        except BadAudio as bad:
            raise ConfigError(
                f"input={path}: {bad}. Give a readable {', '.join(AUDIO_SUFFIXES)} file."
            ) from bad
        return
    found, others = [], Counter[str]()
    for file in sorted(folder / name for folder, names in walk(path) for name in names):
        suffix = file.suffix.lower()
        if suffix in AUDIO_SUFFIXES:
            found.append(file)
        else:
            others[suffix or "without one"] += 1
    if others:
        listed = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(8))
        log.warning("%s: left out for their endings: %s", path, listed)
    if not found:
        raise ConfigError(f"input={path}: no audio file in this folder ({', '.join(AUDIO_SUFFIXES)}).")
    bad_ones: list[str] = []
    for file in found:
        try:
            waveform = load_audio(file, settings.sample_rate)
        except BadAudio as bad:
            bad_ones.append(f"{file}: {bad}")
            log.warning("skipped: %s", bad_ones[-1])
            continue
        yield file, log_mel(waveform, settings)
    if len(bad_ones) == len(found):
        raise ConfigError(
            f"input={path}: none of the {len(found)} audio files can be read; the first: {bad_ones[0]}."
        )
