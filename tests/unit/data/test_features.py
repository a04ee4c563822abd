"""Reading audio and log-mel features."""

import io
import struct

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from magneto.data.features import Audio, BadAudio, FeatureSettings, extract_shard, load_audio, log_mel
from magneto.errors import UserError
from tests.unit.data.recordings import tone

SETTINGS = FeatureSettings()


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_any_format_rate_and_channels_becomes_16_khz_mono(tmp_path, suffix, rate, channels):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, tone(1.0, rate, channels), rate)
    waveform = load_audio(path, 16_000)
    assert waveform.dtype == torch.float32 and waveform.ndim == 1
    assert abs(len(waveform) - 16_000) < 2_000  # MP3 pads
    assert 0.2 < waveform.abs().max() < 0.7


def test_channels_are_averaged_and_a_slice_of_a_container_is_read(tmp_path):
    left, right = tone(0.5, 16_000, seed=1)[:, 0], tone(0.5, 16_000, seed=2)[:, 0]
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], 1), 16_000, subtype="FLOAT")
    whole = load_audio(tmp_path / "a.wav", 16_000)
    torch.testing.assert_close(whole, torch.from_numpy((left + right) / 2))
    data = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "container").write_bytes(b"x" * 77 + data + b"y" * 30)
    torch.testing.assert_close(load_audio(Audio(tmp_path / "container", 77, len(data)), 16_000), whole)


def test_resampling_keeps_a_tone_where_it_is(tmp_path):
    time = np.arange(44_100) / 44_100
    soundfile.write(tmp_path / "a.wav", np.sin(2 * np.pi * 1000 * time), 44_100)
    spectrum = torch.fft.rfft(load_audio(tmp_path / "a.wav", 16_000)).abs()
    assert abs(spectrum.argmax() * 16_000 / 16_000 - 1000) <= 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not decodable"),
        (b"this is no audio at all" * 50, "not decodable"),
        (None, "missing file"),
        (np.zeros((0, 1)), "no samples"),
        (np.array([0.1, np.nan, 0.2] * 2_000), "not finite"),
    ],
)
def test_bad_audio_says_why(tmp_path, content, reason):
    path = tmp_path / "bad.wav"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        soundfile.write(path, content, 16_000, subtype="FLOAT")
    with pytest.raises(BadAudio, match=reason):
        load_audio(path, 16_000)


def header(rate: int, samples: int) -> bytes:
    """A WAV file of one channel and 16 bits whose header claims so much, with 100 samples of silence."""
    data = b"RIFF" + struct.pack("<I", 36 + 2 * samples) + b"WAVEfmt "
    data += struct.pack("<IHHIIHH", 16, 1, 1, rate, (2 * rate) % 2**32, 2, 16)
    return data + b"data" + struct.pack("<I", 2 * samples) + bytes(200)


def claimed_flac(samples: int) -> bytes:
    """A FLAC file whose header claims more samples (36 bits) than it has."""
    file = io.BytesIO()
    soundfile.write(file, tone(0.2, 16_000), 16_000, format="FLAC")
    data = bytearray(file.getvalue())
    data[21] = (data[21] & 0xF0) | (samples >> 32)
    data[22:26] = (samples & 0xFFFFFFFF).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize(
    ("name", "content", "longest", "reason"),
    [
        ("a.wav", header(1, 100), None, "sample rate of 1 Hz"),
        ("a.wav", header(2**30, 100), None, f"sample rate of {2**30} Hz"),
        ("a.raw", bytes(1000), None, "not decodable"),
        ("a.flac", claimed_flac(2**36 - 1), 30.0, "longer than 30 s"),
    ],
)
def test_headers_that_lie_are_found_before_anything_is_read(tmp_path, name, content, longest, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadAudio, match=reason):
        load_audio(tmp_path / name, 16_000, longest)


def test_log_mel_is_torchaudios_normalised_per_band():
    waveform = torch.from_numpy(tone(1.23, 16_000)[:, 0])
    features = log_mel(waveform, SETTINGS)
    assert features.shape == (len(waveform) // 160 + 1, 80)
    torch.testing.assert_close(features.mean(0), torch.zeros(80), atol=1e-4, rtol=0)
    mel = torchaudio.transforms.MelSpectrogram(16_000, n_fft=512, win_length=400, hop_length=160, n_mels=80)
    reference = (mel(waveform) + 1e-10).log().T
    reference = reference.clamp(min=reference.max() - 12)  # 52 dB below the loudest place is noise
    deviation, mean = reference.std(0, correction=0), reference.mean(0)
    torch.testing.assert_close(features, (reference - mean) / (deviation + 0.3), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(log_mel(0.1 * waveform, SETTINGS)[:, 20], features[:, 20], atol=0.05, rtol=0)


def test_the_shortest_recordings_have_features_too():
    assert log_mel(torch.randn(5), SETTINGS).isfinite().all()


def test_a_shard_holds_the_good_ones_and_names_the_bad_ones(tmp_path):
    for name, samples in {"good": tone(1, 16_000), "silent": np.zeros((16_000, 1)), "short": tone(0.05, 16_000),
                          "long": tone(4, 16_000), "last": tone(0.5, 16_000, seed=3)}.items():  # fmt: skip
        soundfile.write(tmp_path / f"{name}.wav", samples, 16_000)
    (tmp_path / "broken.wav").write_bytes(b"RIFF1234WAVE")
    names = ["good", "silent", "short", "long", "broken", "last"]
    threads = torch.get_num_threads()
    outcomes = extract_shard(
        [Audio(tmp_path / f"{n}.wav") for n in names], SETTINGS, (0.2, 3.0), tmp_path / "x.npy"
    )
    assert [o.reason for o in outcomes] == [
        None,
        "silent",
        "shorter than 0.2 s",
        "longer than 3 s",
        "not decodable as audio",
        None,
    ]
    assert [o.frames for o in outcomes] == [101, 0, 0, 0, 0, 51]
    shard = np.load(tmp_path / "x.npy")
    assert shard.shape == (152, 80) and shard.dtype == np.float16
    alone = log_mel(load_audio(tmp_path / "last.wav", 16_000), SETTINGS)
    np.testing.assert_allclose(shard[101:], alone.numpy(), atol=5e-3)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    "values", [{"sample_rate": 100}, {"num_mels": 0}, {"hop_ms": 30.0}, {"hop_ms": 0.0}, {"bands": 40}]
)
def test_impossible_feature_settings(values):
    with pytest.raises(UserError, match="features"):
        FeatureSettings.from_dict(values)
