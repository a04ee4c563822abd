"""Audio files to log-mel features. Without Lightning, so that the workers of `prepare` start fast."""

import contextlib
import functools
import io
import math
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import soundfile
import torch
import torchaudio
from annotated_types import Ge, Gt

from magneto.data.io.audio_streams import is_stream, split_streams
from magneto.data.io.tar import Slice
from magneto.errors import ConfigError

LOG_FLOOR = 1e-10  # keeps digital silence finite
DYNAMIC_RANGE = 12.0  # nats (52 dB): values further below the loudest one are room noise, not speech
LEAST_DEVIATION = 0.3  # nats: added to a band's deviation, so that a band of noise alone is not amplified
RATES = (1_000, 1_000_000)  # Hz: any other is of a damaged header
SILENCE_PEAK = 1e-3  # -60 dBFS: no recording of speech stays below it
LOUDEST = 2.0**31  # of 32-bit integers that were stored as they are; far above it the power overflows float32
KERNEL_SIZE = 1_000_000  # of a resampler: up phases x down factor, about the entries of its kernel
UNKNOWN_LENGTH = 1 << 62  # libsndfile has 2^63 - 1 samples where a header states no length
BLOCK = 65_536  # samples
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf", ".w64")


@dataclass(frozen=True, kw_only=True)
class FeatureSettings:
    """Settings of the feature matrix of a waveform."""

    sample_rate: Annotated[int, Ge(4_000)] = 16_000
    """Hz."""
    num_mels: Annotated[int, Ge(1)] = 80
    window_ms: float = 25.0
    hop_ms: Annotated[float, Gt(0)] = 10.0

    def __post_init__(self) -> None:
        if self.hop_ms > self.window_ms:
            raise ConfigError(
                f"data.features.hop_ms={self.hop_ms} must be at most data.features.window_ms={self.window_ms}."
            )

    @property
    def window(self) -> int:
        """Window length in samples."""
        return round(self.sample_rate * self.window_ms / 1000)

    @property
    def hop(self) -> int:
        """Distance of neighbouring frames in samples."""
        return round(self.sample_rate * self.hop_ms / 1000)


@dataclass(frozen=True)
class Audio:
    """The file of one recording, or a part of a file, such as a member of a tar archive."""

    path: Path
    start: int = 0
    size: int | None = None
    """Bytes of the part; None: the whole file."""

    def files(self) -> list[str | io.BytesIO]:
        """Return the files for soundfile in their order: one, or all that were joined. Raises OSError."""
        if self.size is not None:
            content = Slice(self.path, self.start, self.size).read()
            return [
                io.BytesIO(one) for one in (split_streams(content) if is_stream(content[:4]) else [content])
            ]
        with self.path.open("rb") as file:
            if not is_stream(file.read(4)):
                return [str(self.path)]
            file.seek(0)
            return [io.BytesIO(recording) for recording in split_streams(file.read())]


class BadAudio(Exception):
    """A recording that cannot be used; the message is the reason, as the report gives it."""


@functools.lru_cache(maxsize=32)
def _resampler(source_rate: int, target_rate: int) -> torchaudio.transforms.Resample:
    """Resample between two rates: exactly, or where that takes a kernel of gigabytes, by the nearest ratio.

    That ratio, and with it a tone's pitch, is less than 0.05 % off (44,101 Hz to 16,000 Hz: 0.0002 %).
    """
    # Building the kernel costs far more than using it: one per pair of rates and process.
    ratio = Fraction(source_rate, target_rate)
    if ratio.numerator * ratio.denominator > KERNEL_SIZE:
        ratio = ratio.limit_denominator(math.isqrt(int(KERNEL_SIZE / ratio)))
    return torchaudio.transforms.Resample(ratio.numerator, ratio.denominator)


@functools.lru_cache(maxsize=8)
def _mel(settings: FeatureSettings) -> torchaudio.transforms.MelSpectrogram:
    return torchaudio.transforms.MelSpectrogram(
        sample_rate=settings.sample_rate,
        n_fft=1 << (settings.window - 1).bit_length(),
        win_length=settings.window,
        hop_length=settings.hop,
        n_mels=settings.num_mels,
    )


def load_audio(audio: Audio | Path | str, sample_rate: int, longest: float | None = None) -> torch.Tensor:
    """Read a recording as mono float32 (samples,) in [-1, 1] at `sample_rate` Hz.

    wav, flac, ogg, mp3 and all other formats of libsndfile, in any rate; channels are averaged; joined files follow one
    another.

    Raises:
        BadAudio: the file is missing, unreadable, without samples, longer than `longest` seconds, or has values that are
            not finite or too large; the message is the reason.
    """
    audio = audio if isinstance(audio, Audio) else Audio(Path(audio))
    waveforms, seconds = [], 0.0
    try:
        for file in audio.files():
            with _quiet():
                samples, rate = _read(file, longest, seconds)
            seconds += len(samples) / rate
            if len(samples):
                waveforms.append(_mono(samples, rate, sample_rate))
    except FileNotFoundError as error:
        raise BadAudio("missing file") from error
    except OSError as error:
        raise BadAudio(f"cannot be read ({error.strerror or error})") from error
    # TypeError: a file without header (.raw). MemoryError: a header that claims more samples than there can be.
    except (soundfile.SoundFileError, RuntimeError, TypeError, ValueError, MemoryError) as error:
        raise BadAudio("not decodable as audio") from error
    if not waveforms:
        raise BadAudio("no samples")
    return waveforms[0] if len(waveforms) == 1 else torch.cat(waveforms)


def _read(file: str | io.BytesIO, longest: float | None, before: float) -> tuple[np.ndarray, int]:
    """Return all samples (samples, channels), and their rate. before: seconds that also count towards `longest`."""
    with soundfile.SoundFile(file) as opened:
        rate = opened.samplerate
        if not RATES[0] <= rate <= RATES[1]:
            raise BadAudio(f"a sample rate of {rate} Hz")
        most = math.inf if longest is None else (longest - before) * rate
        if opened.frames < UNKNOWN_LENGTH:
            if opened.frames > most:  # before its samples fill the memory
                raise BadAudio(f"longer than {longest:g} s")
            # The number of frames is needed for formats that cannot seek, such as GSM.
            return opened.read(frames=opened.frames, dtype="float32", always_2d=True), rate
        blocks, count, total = [], BLOCK, 0
        while count == BLOCK:
            block = np.full((BLOCK, opened.channels), np.nan, np.float32)
            try:
                count = len(opened.read(out=block))
            except soundfile.SoundFileError:
                # The end of a FLAC file without length is an error for libsndfile; the samples before it are read.
                count = int(np.isfinite(block[:, 0]).sum())
                if total + count == 0:
                    raise
            blocks.append(block[:count])
            total += count
            if total > most:
                raise BadAudio(f"longer than {longest:g} s")
        return np.concatenate(blocks), rate


def _mono(samples: np.ndarray, rate: int, sample_rate: int) -> torch.Tensor:
    if not np.isfinite(samples).all():
        raise BadAudio("samples that are not finite")
    if max(samples.max(), -samples.min()) > LOUDEST:
        raise BadAudio("samples that are too large")
    channels = samples.shape[1]
    waveform = torch.from_numpy(samples @ np.full(channels, 1 / channels, np.float32))
    resampled: torch.Tensor = waveform if rate == sample_rate else _resampler(rate, sample_rate)(waveform)
    return resampled


_STDERR = threading.Lock()  # two threads that replace it could not both restore it


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the messages that the MP3 decoder within libsndfile writes to the standard error itself."""
    with _STDERR:
        try:
            kept = os.dup(2)
        except OSError:  # it is closed
            yield
            return
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def log_mel(waveform: torch.Tensor, settings: FeatureSettings) -> torch.Tensor:
    """Return log-mel features of a waveform, with mean 0 and variance 1 over the frames of each band.

    Normalising each recording by itself removes level and microphone and needs no statistics of the corpus, so a
    checkpoint transcribes a file without them.

    Shape:
        waveform (samples,) -> (frames, num_mels), frames = samples // hop + 1
    """
    # Reflection at the edges needs more samples than half an FFT window.
    shortest = (1 << (settings.window - 1).bit_length()) // 2 + 1
    if waveform.numel() < shortest:
        waveform = torch.nn.functional.pad(waveform, (0, shortest - waveform.numel()))
    features = (_mel(settings)(waveform) + LOG_FLOOR).log().T
    features = features.clamp(min=features.max() - DYNAMIC_RANGE)
    deviation, mean = torch.std_mean(features, dim=0, correction=0)
    normalised: torch.Tensor = (features - mean) / (deviation + LEAST_DEVIATION)
    return normalised


@dataclass(frozen=True)
class Outcome:
    """The result for one recording: `frames` > 0, or the `reason` why it cannot be used."""

    frames: int = 0
    seconds: float = 0.0
    reason: str | None = None


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def features_of(
    audio: Audio, settings: FeatureSettings, seconds: tuple[float, float]
) -> tuple[np.ndarray, float]:
    """Return the features of a recording, (frames, num_mels) float16, and its duration; the same with any number of threads.

    Raises:
        BadAudio: it cannot be used, or its duration does not lie between those of `seconds`.
    """
    with _one_thread():
        waveform = load_audio(audio, settings.sample_rate, longest=seconds[1])
        duration = waveform.numel() / settings.sample_rate
        if duration < seconds[0]:
            raise BadAudio(f"shorter than {seconds[0]:g} s")
        if waveform.abs().max() < SILENCE_PEAK:
            raise BadAudio("silent")
        return log_mel(waveform, settings).to(torch.float16).numpy(), duration


def seconds_of(audio: Audio) -> float | None:
    """Return the duration that a recording's header states; None: none, or it cannot be read."""
    try:
        with _quiet():
            headers = [soundfile.info(file) for file in audio.files()]
    except (OSError, soundfile.SoundFileError, RuntimeError, TypeError, ValueError, MemoryError):
        return None
    known = all(header.frames < UNKNOWN_LENGTH for header in headers)
    return sum(header.frames / header.samplerate for header in headers) if known else None


def extract_shard(
    recordings: Sequence[Audio], settings: FeatureSettings, seconds: tuple[float, float], path: Path
) -> list[Outcome]:
    """Write the features of many recordings, one after another, as one float16 array (all frames, num_mels).

    Args:
        recordings: in the order of the array. Unusable ones have no frames, and a reason in their outcome.
        settings: of the features.
        seconds: the shortest and the longest duration that is used.
        path: of the array.
    """
    with _one_thread():  # one process per core does the work; more threads would only compete
        outcomes, parts = [], [np.empty((0, settings.num_mels), np.float16)]
        for audio in recordings:
            try:
                features, duration = features_of(audio, settings, seconds)
                parts.append(features)
                outcomes.append(Outcome(frames=len(features), seconds=duration))
            except BadAudio as bad:
                outcomes.append(Outcome(reason=str(bad)))
        np.save(path, np.concatenate(parts))
        return outcomes


FEATURES = "features.npy"


def extract_part(
    job: tuple[Sequence[Audio], FeatureSettings, tuple[float, float]], folder: Path
) -> list[dict[str, Any]]:
    """Write features into FEATURES of a folder; return the outcomes as plain values. job: see `extract_shard`."""
    return [asdict(outcome) for outcome in extract_shard(*job, folder / FEATURES)]
