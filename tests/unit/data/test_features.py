"""Reading audio and log-mel features."""

import io
import struct

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from magneto.data.io import audio
from magneto.data.io.audio import Audio, BadAudio, FeatureSettings, extract_shard, load_audio, log_mel
from tests.toys.recordings import tone

SETTINGS = FeatureSettings()


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_every_format_becomes_16_khz_mono(tmp_path, suffix, rate, channels):
    """Whatever its rate and number of channels."""
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, tone(1.0, rate, channels), rate)
    waveform = load_audio(path, 16_000)
    assert waveform.dtype == torch.float32 and waveform.ndim == 1
    assert abs(len(waveform) - 16_000) < 2_000  # MP3 pads
    assert 0.2 < waveform.abs().max() < 0.7


def test_channels_are_averaged(tmp_path):
    left, right = tone(0.5, 16_000, seed=1)[:, 0], tone(0.5, 16_000, seed=2)[:, 0]
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], 1), 16_000, subtype="FLOAT")
    whole = load_audio(tmp_path / "a.wav", 16_000)
    torch.testing.assert_close(whole, torch.from_numpy((left + right) / 2))


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
        (np.array([0.1, -1e20, 0.2] * 2_000), "too large"),
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
def test_wrong_headers_are_found_first(tmp_path, name, content, longest, reason):
    """Before samples are read."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadAudio, match=reason):
        load_audio(tmp_path / name, 16_000, longest)


# ------------------------------------------------------------------------------------------ lengths, joined files


def encoded(samples: np.ndarray, rate: int, **options) -> bytes:
    """The bytes of a file that soundfile writes."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, **options)
    return file.getvalue()


def first_frame(mp3: bytes) -> int:
    """Bytes of the first frame, which holds the Xing header (MPEG-1 and 2, layer III)."""
    lowest = mp3[1] >> 3 & 1  # 1: MPEG-1
    kbits = ((8, 16, 24, 32, 40, 48, 56, 64, 80), (32, 40, 48, 56, 64, 80, 96, 112, 128))[lowest]
    rate = ((22_050, 24_000, 16_000), (44_100, 48_000, 32_000))[lowest][mp3[2] >> 2 & 3]
    return (72, 144)[lowest] * 1000 * kbits[(mp3[2] >> 4) - 1] // rate + (mp3[2] >> 1 & 1)


def growing(seconds: float, rate: int) -> np.ndarray:
    """Nearly silent at first: the frames of variable bit rate are small there and large later."""
    samples = tone(seconds, rate)
    samples[: len(samples) // 2] *= 1e-3
    return samples


VBR = {"format": "MP3", "bitrate_mode": "VARIABLE", "compression_level": 0.3}


def without_xing(mp3: bytes) -> bytes:
    return mp3[first_frame(mp3) :]


def without_count(mp3: bytes) -> bytes:
    place = mp3.index(b"Xing") + 8
    return mp3[:place] + bytes(4) + mp3[place + 4 :]


@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("damage", [without_xing, without_count])
def test_vbr_mp3_without_a_length_is_read_whole(tmp_path, damage, rate):
    """An MP3 of variable bit rate whose header is missing or says 0 frames gives all of its sound."""
    whole = encoded(growing(6, rate), rate, **VBR)
    (tmp_path / "whole.mp3").write_bytes(whole)
    (tmp_path / "a.mp3").write_bytes(damage(whole))
    assert soundfile.info(tmp_path / "a.mp3").duration < 5  # what libsndfile makes of it
    expected, waveform = (load_audio(tmp_path / name, rate) for name in ("whole.mp3", "a.mp3"))
    delay = 576  # of the encoder: what the Xing header says and the decoder then cuts off
    torch.testing.assert_close(waveform[delay : delay + len(expected)], expected, atol=1e-4, rtol=0)
    assert delay <= len(waveform) - len(expected) < delay + 3 * 1152  # the padding of the last frames
    with pytest.raises(BadAudio, match="longer than 5"):
        load_audio(tmp_path / "a.mp3", 16_000, longest=5)


@pytest.mark.parametrize("options", [
    VBR,
    {"format": "MP3", "bitrate_mode": "CONSTANT"},
    {"format": "OGG", "subtype": "VORBIS"},
    {"format": "OGG", "subtype": "OPUS"},
    {"format": "FLAC"},
])  # fmt: skip
@pytest.mark.parametrize("tags", [b"", b"ID3\4\0\0\0\0\2\x44" + b"\xff\xfb\x90\x00" * 81])
def test_joined_files_follow_one_another(tmp_path, options, tags):
    """`cat a b` gives the samples of a and then those of b, also where their rates and channels differ."""
    if tags and options["format"] != "MP3":
        pytest.skip("ID3 tags stand in MP3 files")
    parts = [
        encoded(tone(1.5, 16_000, 1, 1), 16_000, **options),
        encoded(tone(1, 48_000, 2, 2), 48_000, **options),
    ]
    for number, part in enumerate(parts):
        (tmp_path / str(number)).write_bytes(part)
    (tmp_path / "a").write_bytes(tags + parts[0] + tags + parts[1])
    expected = torch.cat([load_audio(tmp_path / str(number), 16_000) for number in range(2)])
    assert abs(len(expected) - 2.5 * 16_000) < 2_500
    torch.testing.assert_close(load_audio(tmp_path / "a", 16_000), expected, atol=0, rtol=0)
    with pytest.raises(BadAudio, match="longer than 2 s"):
        load_audio(tmp_path / "a", 16_000, longest=2)


def test_flac_without_a_length_is_read_whole(tmp_path):
    """Encoders that write to a pipe leave 0 samples in STREAMINFO."""
    samples = tone(5.03, 16_000)
    data = bytearray(encoded(samples, 16_000, format="FLAC"))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    (tmp_path / "a.flac").write_bytes(data)
    waveform = load_audio(tmp_path / "a.flac", 16_000, longest=6)
    np.testing.assert_allclose(waveform, samples[:, 0], atol=2**-15)
    with pytest.raises(BadAudio, match="longer than 3 s"):
        load_audio(tmp_path / "a.flac", 16_000, longest=3)
    (tmp_path / "a.flac").write_bytes(data[:200])
    with pytest.raises(BadAudio, match="not decodable"):
        load_audio(tmp_path / "a.flac", 16_000)


@pytest.mark.parametrize("subtype", ["GSM610", "G721_32", "NMS_ADPCM_16"])
def test_telephone_wav_that_cannot_seek(tmp_path, subtype):
    soundfile.write(tmp_path / "a.wav", tone(1, 8_000), 8_000, subtype=subtype)
    assert abs(len(load_audio(tmp_path / "a.wav", 16_000)) - 16_000) < 700  # whole blocks
    assert not soundfile.SoundFile(tmp_path / "a.wav").seekable()


@pytest.mark.parametrize("options", [
    {"format": "FLAC"}, {"format": "OGG"}, {"format": "MP3"}, VBR, {"format": "MP3", "bitrate_mode": "AVERAGE"}
])  # fmt: skip
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_ordinary_files_stay_bit_identical(tmp_path, options, rate):
    """Bit for bit, so that features that were prepared earlier stay."""
    (tmp_path / "a").write_bytes(encoded(growing(1.7, rate), rate, **options))
    with soundfile.SoundFile(tmp_path / "a") as file:
        expected = torch.from_numpy(file.read(dtype="float32"))
    if rate != 16_000:
        expected = torchaudio.transforms.Resample(rate, 16_000)(expected)
    torch.testing.assert_close(load_audio(tmp_path / "a", 16_000), expected, atol=0, rtol=0)


def test_mp3_decoder_writes_nothing_on_screen(tmp_path, capfd):
    """A truncated MP3 makes libmpg123 write warnings to the standard error itself."""
    whole = encoded(growing(6, 16_000), 16_000, **VBR)
    (tmp_path / "a.mp3").write_bytes(whole[: len(whole) // 2])
    soundfile.read(tmp_path / "a.mp3")
    assert "Xing" in capfd.readouterr().err
    load_audio(tmp_path / "a.mp3", 16_000)
    print("after", file=open(2, "w", closefd=False))  # noqa: SIM115
    assert capfd.readouterr().err == "after\n"


@pytest.mark.parametrize("rate", [11_127, 22_254, 44_101, 999_983])
def test_resampling_of_odd_rates_is_bounded(tmp_path, rate):
    """The kernel stays below a million entries, and a tone below 0.05 % from where it is."""
    audio._resampler.cache_clear()
    seconds = 2**18 / 16_000 if rate < 100_000 else 1.0
    time = np.arange(int(seconds * rate)) / rate
    soundfile.write(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 3000 * time), rate, subtype="FLOAT")
    assert audio._resampler(rate, 16_000).kernel.numel() < 1_000_000
    waveform = load_audio(tmp_path / "a.wav", 16_000)
    assert abs(len(waveform) / 16_000 - seconds) < 5e-4 * seconds + 1e-3
    spectrum = torch.fft.rfft(waveform * torch.hann_window(len(waveform))).abs()
    peak = spectrum.argmax() * 16_000 / len(waveform)
    assert abs(peak / 3000 - 1) < 5e-4
    spectrum[spectrum.argmax() - 20 : spectrum.argmax() + 21] = 0
    assert spectrum.max() < 1e-2 * 0.25 * len(waveform)  # no images: 40 dB below the tone


def test_log_mel_is_that_of_torchaudio():
    """Normalised over the frames of each band."""
    waveform = torch.from_numpy(tone(1.23, 16_000)[:, 0])
    audio = log_mel(waveform, SETTINGS)
    assert audio.shape == (len(waveform) // 160 + 1, 80)
    torch.testing.assert_close(audio.mean(0), torch.zeros(80), atol=1e-4, rtol=0)
    mel = torchaudio.transforms.MelSpectrogram(16_000, n_fft=512, win_length=400, hop_length=160, n_mels=80)
    reference = (mel(waveform) + 1e-10).log().T
    reference = reference.clamp(min=reference.max() - 12)  # 52 dB below the loudest place is noise
    deviation, mean = reference.std(0, correction=0), reference.mean(0)
    torch.testing.assert_close(audio, (reference - mean) / (deviation + 0.3), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(log_mel(0.1 * waveform, SETTINGS)[:, 20], audio[:, 20], atol=0.05, rtol=0)


def test_short_recordings_have_features():
    assert log_mel(torch.randn(5), SETTINGS).isfinite().all()


def test_a_shard_of_features(tmp_path):
    """It has the good recordings, and the reasons of the others."""
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
