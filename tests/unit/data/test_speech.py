"""From recordings to batches: preparation, features on disk, sampling, augmentation, prediction."""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from magneto.data.corpora.speech.manifest import ManifestReader
from magneto.data.io.audio import FeatureSettings, load_audio, log_mel
from magneto.data.speech.dataset import padding, tempo_of
from magneto.data.speech.module import SpeechDataModule
from magneto.data.tokenizers.ctc import CTCTokenizer, repeats
from magneto.data.transforms.speech import SpecAugment
from magneto.errors import MagnetoError
from tests.toys.recordings import read_manifest, tone, write_manifest


def module(folder: Path, data_dir: Path | None = None, **options) -> SpeechDataModule:
    options = {"batch_frames": 600, "prepare_workers": 1, **options}
    source = ManifestReader(manifest=str(folder / "manifest.jsonl"))
    return SpeechDataModule({"own": source}, data_dir=str(data_dir or folder / "data"), **options)


def ready(folder: Path, **options) -> SpeechDataModule:
    data = module(folder, **options)
    data.prepare()
    data.setup()
    return data


def report(data: SpeechDataModule) -> dict:
    return json.loads((data.folder / "prepare_report.json").read_text())


# ------------------------------------------------------------------------------------------------ preparation


def test_every_recording_is_prepared(corpus):
    """Prepare gives every recording with its text and language."""
    folder = corpus(20)
    data = ready(folder)
    info, lines = data.info, read_manifest(folder / "manifest.jsonl")
    assert info.utterances == {"train": 12, "val": 4, "test": 4}
    assert sum(info.hours.values()) == pytest.approx(sum(line["duration"] for line in lines) / 3600, rel=0.1)
    assert (
        info.languages == ["en", "fr"]
        and info.per_language["en"]["train"] + info.per_language["fr"]["train"] == 12
    )
    assert (info.feature_dim, info.sample_rate, info.seconds_per_frame) == (80, 16_000, 0.01)
    tokenizer = CTCTokenizer.from_dict(info.tokenizer)
    assert info.vocab_size == tokenizer.vocab_size
    seen = 0
    for batch in [*data.val_dataloader(), *data.test_dataloader()]:
        for row, fingerprint in enumerate(batch["id"].tolist()):
            line = lines[fingerprint]
            length, units = batch["feature_lengths"][row], batch["target_lengths"][row]
            expected = log_mel(load_audio(folder / line["audio_filepath"], 16_000), FeatureSettings())
            torch.testing.assert_close(batch["features"][row, :length], expected, atol=5e-3, rtol=0)
            assert not batch["features"][row, length:].any() and not batch["targets"][row, units:].any()
            assert batch["text"][row] == line["text"] == tokenizer.decode(batch["targets"][row, :units])
            assert info.languages[batch["language"][row]] == line["lang"]
            seen += 1
        assert batch["features"].shape[1] % 32 == 0 and batch["features"].dtype == torch.float32
    assert seen == 8


def test_broken_files_are_listed(corpus, caplog):
    """Of 200 files with 20 broken ones 180 are used and 20 are listed."""
    folder = corpus(200)
    lines = read_manifest(folder / "manifest.jsonl")
    damage = {
        "not decodable as audio": lambda path: path.write_bytes(b"garbage" * 100),
        "missing file (named in manifest.jsonl)": lambda path: path.unlink(),
        "silent": lambda path: soundfile.write(path, np.zeros(16_000), 16_000, format="WAV"),
        "no samples": lambda path: soundfile.write(path, np.zeros((0, 1)), 16_000, format="WAV"),
        "shorter than 0.2 s": lambda path: soundfile.write(path, tone(0.05, 16_000), 16_000, format="WAV"),
        "longer than 30 s": lambda path: soundfile.write(path, tone(31, 8_000), 8_000, format="WAV"),
        "duration differs from the stated one": lambda path: soundfile.write(
            path, tone(5, 8_000), 8_000, format="WAV"
        ),
    }
    broken = {}
    for number, (reason, spoil) in enumerate((list(damage.items()) * 3)[:16]):
        line = lines[number * 11]
        spoil(folder / line["audio_filepath"])
        broken[str(number * 11 + 1)] = reason
    for number, text in zip(
        (3, 14, 25, 36),
        ("", "?! ...", "   ", "a long transcript that no one can say so soon" * 3),
        strict=True,
    ):
        lines[number]["text"] = text
        broken[str(number + 1)] = (
            "transcript too long for its audio" if text.startswith("a") else "empty transcript"
        )
    write_manifest(folder / "manifest.jsonl", lines)
    with caplog.at_level("INFO"):
        data = ready(folder)
    assert sum(data.info.utterances.values()) == 180
    listed = report(data)
    assert {item["id"].removeprefix("own/"): item["reason"] for item in listed["skipped"]} == broken
    assert (
        listed["skipped_by_reason"] == dict(Counter(broken.values()))
        and listed["used"] == data.info.utterances
    )
    assert "speech: 20 skipped" in caplog.text and "prepare_report.json" in caplog.text


def test_long_transcripts_of_a_transducer(corpus, tmp_path):
    """It learns texts of more tokens than frames, as they are and after any change of tempo."""
    folder = corpus(20)
    lines = read_manifest(folder / "manifest.jsonl")
    for line in lines[::4]:
        line["text"] = "a long transcript that no one can say so soon " * 3
    write_manifest(folder / "manifest.jsonl", lines)
    options = {"augment": SpecAugment(speed=(2.0, 2.0))}
    skipping = ready(folder, data_dir=tmp_path / "skips", **options)
    keeping = ready(folder, data_dir=tmp_path / "keeps", keep_long_transcripts=True, **options)
    assert sum(skipping.info.utterances.values()) == 15 and sum(keeping.info.utterances.values()) == 20
    dataset = keeping.train_set
    examples = [dataset.example(0, position) for position in range(len(dataset.lengths))]
    assert [len(one["features"]) for one in examples] == [round(length / 2) for length in dataset.lengths]
    assert sum(len(one["targets"]) > len(one["features"]) // 4 for one in examples) >= 3


@pytest.mark.slow
def test_processes_make_the_same_files_as_one(corpus, tmp_path):
    folder = corpus(150, sides=("train", "train", "val", "test"))
    one, two = (module(folder, tmp_path / str(n), prepare_workers=n) for n in (1, 2))
    for data in (one, two):
        data.prepare()
    names = sorted(str(path.relative_to(one.folder)) for path in one.folder.rglob("*") if path.is_file())
    assert len(one.train_set.table.values("features").parts) == 3
    assert names == sorted(
        str(path.relative_to(two.folder)) for path in two.folder.rglob("*") if path.is_file()
    )
    for name in names:
        assert (one.folder / name).read_bytes() == (two.folder / name).read_bytes(), name


def test_tokenizer_sees_training_text_only(corpus):
    """The tokenizer is trained on the training text alone."""
    folder = corpus(20)
    lines = read_manifest(folder / "manifest.jsonl")
    for line in lines:
        if line["split"] != "train":
            line["text"] += " zebra"
    write_manifest(folder / "manifest.jsonl", lines)
    data = ready(folder)
    assert "z" not in data.info.tokenizer["alphabet"]
    batch = next(iter(data.val_dataloader()))
    assert all(text.endswith("zebra") for text in batch["text"])  # the reference keeps what cannot be emitted
    subwords = ready(folder, tokenizer={"kind": "bpe", "vocab_size": 30})
    assert subwords.info.vocab_size == 30


def test_digits_can_be_dropped(corpus):
    folder = corpus(20)
    lines = read_manifest(folder / "manifest.jsonl")
    lines[0]["text"] = "route 66"
    write_manifest(folder / "manifest.jsonl", lines)
    assert sum(ready(folder).info.utterances.values()) == 20
    dropped = ready(folder, digits="drop")
    assert report(dropped)["skipped_by_reason"] == {"digits in its transcript": 1}


def test_ctc_must_be_feasible_repeats_included(corpus):
    folder = corpus(8)
    lines = read_manifest(folder / "manifest.jsonl")
    frames = 16  # 0.65 s -> 66 feature frames -> 16 output frames
    soundfile.write(folder / "clips/000.wav", tone(0.65, 16_000), 16_000)
    soundfile.write(folder / "clips/001.flac", tone(0.65, 16_000), 16_000)
    lines[0] |= {"text": "ab" * (frames // 2), "duration": 0.65, "split": "train"}
    lines[1] |= {"text": "ab" * (frames // 2 - 1) + "bb", "duration": 0.65, "split": "train"}
    write_manifest(folder / "manifest.jsonl", lines)
    data = ready(folder)
    assert [item["id"] for item in report(data)["skipped"]] == ["own/2"]
    for batch in data.train_set, data.val_set:
        for position in range(len(batch)):
            item = batch[0, position]
            targets = list(item["targets"])
            assert len(targets) + repeats(targets) <= len(item["features"]) // 4


def test_empty_split_gives_reasons(corpus):
    folder = corpus(6, sides=("train", "val", "test"))
    with pytest.raises(MagnetoError, match=r"6 shorter than 9 s.*data\.min_seconds"):
        module(folder, min_seconds=9.0).prepare()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("spoil", "reason"), [
    (lambda line: line | {"audio_filepath": f"elsewhere/{line['audio_filepath']}"}, "6 missing file.*elsewhere/clips"),
    (lambda line: line | {"text": "..."}, "6 empty transcript"),
    (lambda line: line | {"text": "route 66"}, r"6 digits in its transcript.*Set data\.digits to keep"),
    (None, "none was skipped"),
])  # fmt: skip
def test_manifest_without_a_usable_line(corpus, spoil, reason, workers):
    """What is wrong with all lines is counted and told, and no process is started for nothing."""
    folder = corpus(6, sides=("train", "val", "test"))
    lines = read_manifest(folder / "manifest.jsonl")
    write_manifest(folder / "manifest.jsonl", [] if spoil is None else [spoil(line) for line in lines])
    with pytest.raises(MagnetoError, match=f"train and val and test splits.*{reason}"):
        module(folder, digits="drop", prepare_workers=workers).prepare()


def test_empty_split_is_refused_before_features(corpus, monkeypatch):
    """The remedy names the keys that divide a manifest."""
    folder = corpus(8)
    lines = [{"audio_filepath": f"clips/00{n}.wav", "text": f"word {n // 4}"} for n in (0, 4)]
    write_manifest(folder / "manifest.jsonl", lines)
    monkeypatch.setattr("magneto.data.speech.build._extract", None)
    with pytest.raises(
        MagnetoError, match=r"`split`, or raise data\.corpora\.manifest\.val_fraction.*2 groups"
    ):
        module(folder).prepare()


def test_small_splits_and_shared_files_warn(corpus, caplog):
    folder = corpus(40, sides=("train", "train", "train", "val"))
    lines = read_manifest(folder / "manifest.jsonl")
    lines += [line | {"split": "test"} for line in lines[:2]]
    write_manifest(folder / "manifest.jsonl", lines)
    with caplog.at_level("INFO"):
        module(folder).prepare()
    assert "only 2 test utterances" in caplog.text  # not the 10 of val
    assert "2 audio files stand on several sides" in caplog.text
    assert "train 30 · val 10 · test 2 utterances" in caplog.text


# ------------------------------------------------------------------------------------------------ batches


# ------------------------------------------------------------------------------------------------ augmentatio


def test_mask_widths():
    """Masks have the width that was asked for and scale with the length."""
    features = np.ones((200, 80), np.float16)
    bands, frames = [], []
    for number in range(200):
        augmented = SpecAugment(freq_masks=1, freq_width=10, time_masks=0)(
            features, np.random.default_rng(number)
        )
        bands.append(int((augmented == 0).all(0).sum()))
        augmented = SpecAugment(freq_masks=0, time_masks=1, time_ratio=0.1)(
            features, np.random.default_rng(number)
        )
        frames.append(int((augmented == 0).all(1).sum()))
    assert (min(bands), max(bands), min(frames), max(frames)) == (0, 10, 0, 20)
    assert (features == 1).all()  # the stored features stay as they are


def test_tempo_keeps_ctc_feasible():
    """Tempo stretches in time and keeps ctc feasible."""
    ramp = np.repeat(np.arange(100, dtype=np.float16)[:, None], 4, 1)
    quiet = {"freq_masks": 0, "time_masks": 0}
    augment = SpecAugment(**quiet, speed=[0.9, 1.1])
    slow = augment(ramp, np.random.default_rng(0), tempo=0.5)
    assert slow.shape == (200, 4) and slow[0, 0] == 0 and slow[-1, 0] == 99
    assert np.allclose(np.diff(slow[:, 0]), 99 / 199, atol=1e-4)
    assert len(augment(ramp, np.random.default_rng(0), tempo=2.0)) == 50
    assert len(augment(ramp, np.random.default_rng(0), least_frames=80, tempo=2.0)) == 80
    tempi = [augment.tempo(np.random.default_rng(n)) for n in range(200)]
    assert 0.9 <= min(tempi) < 0.91 and 1.09 < max(tempi) <= 1.1
    assert SpecAugment().tempo(np.random.default_rng(0)) == 1.0


def test_tempo_by_length_and_epoch(corpus):
    """Like lengths have like tempi which change with the epoch."""
    data = ready(corpus(20), augment={"freq_masks": 0, "time_masks": 0, "speed": [0.5, 2.0]})
    augment = data.config.augment
    tempi = np.array(
        [[tempo_of(augment, frames, data.seed, epoch) for frames in range(20, 800)] for epoch in range(3)]
    )
    assert np.abs(np.diff(tempi, axis=1)).max() <= 1.5 / 64 + 1e-9
    assert tempi.min() < 0.7 and tempi.max() > 1.7
    assert np.abs(tempi[0] - tempi[1]).max() > 0.3
    frames = int(data.train_set.lengths[3])
    stretched = len(data.train_set[1, 3]["features"])
    assert abs(stretched - frames / tempo_of(augment, frames, data.seed, 1)) <= 0.5


def test_collate_rounds_up_the_length():
    items = [
        {"id": n, "features": np.ones((n + 31, 2)), "targets": [1] * n, "language": 0, "text": "x"}
        for n in (1, 2)
    ]
    assert padding(32)(items)["features"].shape == (2, 64, 2)
    assert padding(1)(items)["features"].shape == (2, 33, 2)


# ------------------------------------------------------------------------------------------------ other model


def test_other_data_for_a_checkpoint(corpus):
    """A checkpoints tokenizer and languages are used on other data."""
    model = ready(corpus(20)).info
    values = {**model.to_dict(), "languages": ["xx", "fr", "en"]}
    values["tokenizer"] = CTCTokenizer.train(["zyx one two three four five six seven"]).to_dict()
    data = module(corpus(20, name="other"))
    data.prepare()
    data = data.for_model(values)
    tokenizer = CTCTokenizer.from_dict(values["tokenizer"])
    for batch in data.test_dataloader():
        for row, text in enumerate(batch["text"]):
            assert tokenizer.decode(batch["targets"][row, : batch["target_lengths"][row]]) == text
            assert batch["language"][row] in (1, 2)
    with pytest.raises(MagnetoError, match="utterances in en, fr"):
        data.for_model({**values, "languages": ["xx"]})
    with pytest.raises(MagnetoError, match=r"data\.features"):
        data.for_model({**values, "features": asdict(FeatureSettings(num_mels=40))})


@pytest.mark.parametrize("alone", [True, False])
def test_checkpoint_is_tested_on_test_lines_alone(corpus, caplog, alone):
    """A manifest of test lines, or `test=` by itself: no other split is asked for, nothing is prepared twice."""
    model = ready(corpus(20)).info
    folder = corpus(6, name="other", sides=("test",))
    lines = read_manifest(folder / "manifest.jsonl")
    lines[0]["text"] = "ωμέγα"  # of which the model can write nothing: it counts as an error
    write_manifest(folder / "manifest.jsonl", lines)
    path = str(folder / "manifest.jsonl")
    source = ManifestReader(test=path) if alone else ManifestReader(manifest=path)
    data = SpeechDataModule(
        {"own": source}, data_dir=str(folder / "data"), batch_frames=600, prepare_workers=1
    )
    caplog.clear()
    data = data.for_model(model.to_dict())
    assert data.info.utterances == {"train": 0, "val": 0, "test": 6}
    assert data.info.tokenizer == model.tokenizer and "several sides" not in caplog.text
    texts = [text for batch in data.test_dataloader() for text in batch["text"]]
    assert sorted(texts) == sorted(line["text"] for line in lines)
    assert len([p for p in (folder / "data/prepared").iterdir() if p.is_dir()]) == 1
    with pytest.raises(MagnetoError, match="train and val splits"):
        SpeechDataModule({"own": source}, data_dir=str(folder / "more")).prepare()


def test_unknown_language_refused_before_features(corpus, monkeypatch):
    model = ready(corpus(20)).info
    data = module(corpus(6, name="other", sides=("test",)))
    monkeypatch.setattr("magneto.data.speech.build._extract", None)
    with pytest.raises(MagnetoError, match="utterances in fr; .*knows en"):
        data.for_model({**model.to_dict(), "languages": ["en"]})


# ------------------------------------------------------------------------------------------------ prediction
