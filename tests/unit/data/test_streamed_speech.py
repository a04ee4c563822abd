"""Recordings that are read from tar shards: exact positions, batches by length, held-out ones, damaged shards, memory."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from magneto.data.corpora.speech.webdataset import WebDatasetSpeechReader
from magneto.data.io.audio import load_audio
from magneto.data.speech import streaming
from magneto.data.speech.module import SpeechDataModule
from magneto.data.streaming import Position, ShardError
from magneto.errors import ConfigError
from tests.toys.streams import equal, run, speech_shards, transcript, write_tar

USABLE = {transcript(shard, number) for shard in range(8) for number in range(12) if number not in (5, 9)}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return speech_shards(tmp_path_factory.mktemp("shards"))


def module(folder: Path, shards: Any = None, share: float = 0.1, **settings: Any) -> SpeechDataModule:
    given: dict[str, Any] = {
        "data_dir": str(folder / "data"), "features": {"num_mels": 8}, "batch_frames": 600, "prepare_workers": 1,
        "augment": {"speed": [0.9, 1.1]}, "num_workers": 0, "streaming": True, "streams": 4, "shuffle_window": 6, **settings,
    }  # fmt: skip
    reader = WebDatasetSpeechReader(shards or str(folder / "*.tar"), val_fraction=share, test_fraction=share)
    data = SpeechDataModule({"own": reader}, **given)
    data.prepare()
    data.setup()
    return data


def trained(data: SpeechDataModule, epoch: int = 0) -> Iterator[list[dict[str, Any]]]:
    """The batches of an epoch, of all streams."""
    source, _ = data.item_source()
    for stream in range(data.streamed.count):
        for item, position in source.items(stream, Position(epoch)):
            if position.epoch > epoch:
                break
            yield item["utterances"]


def texts(data: SpeechDataModule, epoch: int = 0) -> list[str]:
    return [one["text"] for batch in trained(data, epoch) for one in batch]


def test_a_run_of_speech_goes_on_at_any_step(shards: Path) -> None:
    """Bit for bit, within windows, shards and epochs, with workers or without."""
    data = module(shards)
    whole, states = run(data, total=70)
    assert max(position[0] for position in states[-1]["positions"]) > 0, "no second epoch to test"
    for step in (1, 2, 5, 17, 69):
        assert equal(run(data, states[step - 1], 70)[0], whole[step:]), step
    ahead = module(shards, num_workers=2)
    batches, own = run(ahead, total=70)
    assert equal(batches, whole) and own == states
    assert equal(run(ahead, states[40], 70)[0], whole[41:])
    for rank in range(2):
        assert equal(run(module(shards), total=12, rank=rank, world=2)[0], whole[rank:24:2])
    ids = [int(row) for batch in whole for row in batch["id"]]
    assert len(ids) == len(set(ids))


def test_no_held_out_recording_is_trained_on(shards: Path) -> None:
    """Each of the others is, once in an epoch, whatever number of held-out ones was prepared."""
    data, few = module(shards), module(shards, max_held_out=3)
    first, second = texts(data), texts(data, 1)
    out = {text for split in ("val", "test") for text in data.table(split).arrow["text"].to_pylist()}
    assert len(first) == len(set(first)) and sorted(first) == sorted(second) and first != second
    assert out and not out & set(first) and out | set(first) == USABLE
    assert few.info.utterances["val"] == few.info.utterances["test"] == 3 and texts(few) == first
    report = json.loads((data.folder / "prepare_report.json").read_text())["skipped_by_reason"]
    assert report["not decodable as audio"] > 0 and report["empty transcript"] > 0


def test_features_are_those_of_preparation(shards: Path) -> None:
    """Bit for bit; without streaming the same tar files are prepared, and a recording can be played."""
    streamed, prepared = module(shards, augment=None), module(shards, streaming=False, augment=None)
    kept = {
        item["text"]: item
        for item in map(
            prepared.train_set.example, *zip(*((0, n) for n in range(len(prepared.train_set))), strict=True)
        )
    }
    found = [one for batch in trained(streamed) for one in batch]
    assert {one["text"] for one in found} == set(kept)
    for one in found:
        assert np.array_equal(one["features"], kept[one["text"]]["features"])
        assert prepared.info.languages[one["language"]] == "und"
    audio = prepared.audio(3)
    assert audio is not None and len(load_audio(audio, 8000)) > 3000


def test_batches_are_of_similar_length(shards: Path) -> None:
    """Of a larger window less is padded; none holds more than data.batch_frames of recordings."""
    padded = {}
    for window in (2, 10):
        data = module(shards, shuffle_window=window, augment=None, pad_to_multiple=1)
        batches = [[len(one["features"]) for one in batch] for batch in trained(data)]
        assert all(max(batch) * len(batch) <= 600 for batch in batches)
        padded[window] = 1 - sum(map(sum, batches)) / sum(max(batch) * len(batch) for batch in batches)
    assert padded[10] < min(0.1, padded[2])
    assert len([*trained(module(shards, max_batch_size=1))]) == len(texts(module(shards)))


@pytest.mark.parametrize(
    ("damage", "workers"), [("missing", 0), ("empty", 0), ("truncated", 0), ("truncated", 2)]
)
def test_a_damaged_tar_of_speech_ends_the_run(tmp_path: Path, damage: str, workers: int) -> None:
    """With one message, after which the run goes on as if nothing had happened."""
    folder = speech_shards(tmp_path / "own")
    data = module(folder, num_workers=workers)
    whole, _ = run(data, total=40)
    file = folder / "shard-3.tar"
    content = file.read_bytes()
    _ = data.streamed
    size = {"empty": 0, "truncated": len(content) * 2 // 3}
    file.unlink() if damage == "missing" else file.write_bytes(content[: size[damage]])
    data.configure_run(40)
    batches, state = [], None
    loader: Any = data.train_dataloader()
    with pytest.raises(ShardError, match=r"^\S*shard-3.tar: this shard .*Fetch it again.*repeat"):
        for batch in loader:
            batches.append(batch)
            state = loader.state_dict()
    file.write_bytes(content)
    again = module(folder, num_workers=workers)
    assert equal(batches, whole[: len(batches)]) and equal(
        run(again, state, 40)[0] if state else run(again, total=40)[0], whole[len(batches) :]
    )


def test_recordings_of_a_window_are_not_decoded(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a batch are when it leaves the window, which holds where recordings are."""
    data = module(shards)
    source, _ = data.item_source()
    decoded: list[Any] = []
    features = streaming.features_of
    monkeypatch.setattr(
        streaming, "features_of", lambda audio, *more: (decoded.append(audio), features(audio, *more))[1]
    )
    items, given = source.items(0, Position()), 0
    for _ in range(3):
        given += len(next(items)[0]["utterances"])
        assert given <= len(decoded) <= given + 2  # some cannot be decoded
    assert all(audio.size for audio in decoded)


def test_samples_of_a_speech_shard(tmp_path: Path) -> None:
    """KEY.json says more than KEY.txt; what cannot be used is listed."""
    values = {"text": "Hello there", "lang": "en", "speaker": "anna", "duration": 2.5}
    members = [
        ("a.flac", b"1"), ("a.json", json.dumps(values).encode()), ("b.wav", b"2"), ("c.json", b"{}"), ("d.wav", b"3"),
        ("d.json", b"{"), ("e.mp3", b"45"), ("e.txt", b"plain"),
    ]  # fmt: skip
    corpus = WebDatasetSpeechReader(str(write_tar(tmp_path / "x.tar", members))).load(tmp_path)
    first, second = corpus.examples
    assert (first.id, first.text, first.language, first.speaker, first.duration) == (
        "x.tar/a",
        "Hello there",
        "en",
        "anna",
        2.5,
    )
    assert (second.text, second.language, second.audio.size) == ("plain", "und", 2)
    assert [(one.id, one.reason) for one in corpus.skipped] == [
        ("x.tar/b", "no text: neither KEY.txt nor 'text' in KEY.json"), ("x.tar/c", "sample without a recording"),
        ("x.tar/d", "damaged .json or .txt"),
    ]  # fmt: skip


def test_a_global_batch_of_streamed_speech(shards: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.global_batch needs the lengths .*batch_frames"):
        module(shards, global_batch=100)
