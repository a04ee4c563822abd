"""The user's own recordings: the convention, and what happens to those who break it."""

import json
from collections import Counter
from pathlib import Path

import pytest

from magneto.data.corpora.speech.manifest import ManifestReader
from magneto.errors import MagnetoError
from tests.toys.corpora import lines, write
from tests.toys.recordings import read_manifest, write_manifest


def test_lines_become_utterances(corpus, tmp_path):
    folder = corpus(20)
    found = ManifestReader(manifest=str(folder / "manifest.jsonl")).load(tmp_path).examples
    lines = read_manifest(folder / "manifest.jsonl")
    assert [u.text for u in found] == [line["text"] for line in lines]
    assert [u.split for u in found] == [line["split"] for line in lines]
    assert [u.language for u in found] == [line["lang"] for line in lines]
    assert [u.duration for u in found] == [line["duration"] for line in lines]
    assert all(u.audio.path.is_file() and u.audio.path.parent == folder / "clips" for u in found)


def test_odd_lines_of_a_manifest(corpus, tmp_path):
    """Absolute paths, a byte-order mark, blank lines and defaults."""
    folder = corpus(4)
    line = json.dumps(
        {"audio_filepath": str(folder / "clips/000.wav"), "text": "été", "split": "test"}, ensure_ascii=False
    )
    (tmp_path / "m.jsonl").write_bytes(b"\xef\xbb\xbf" + line.encode() + b"\n\n")
    (only,) = ManifestReader(manifest=str(tmp_path / "m.jsonl"), language="de").load(tmp_path).examples
    assert (only.text, only.language, only.duration, only.split) == ("été", "de", None, "test")


def test_one_manifest_is_divided_by_a_hash(corpus, tmp_path):
    """Lines with equal texts or groups have one split."""
    folder = corpus(8)
    lines = [
        {
            "audio_filepath": f"clips/00{n % 8}.{('wav', 'flac', 'ogg', 'mp3')[n % 4]}",
            "text": f"text {n // 4}",
        }
        for n in range(8)
    ]
    lines += [
        {"audio_filepath": f"gone/{n}.wav", "text": f"word {n}", "group": f"g{n // 2}"} for n in range(400)
    ]
    write_manifest(folder / "m.jsonl", lines)
    reader = ManifestReader(manifest=str(folder / "m.jsonl"), val_fraction=0.1, test_fraction=0.2)
    from magneto.data.corpora.speech import manifest

    parsed = list(manifest._lines(folder / "m.jsonl"))
    splits, groups = reader._divide(parsed, folder)
    assert (splits, groups) == reader._divide(parsed, folder) and groups == 202
    assert len(set(splits[:4])) == len(set(splits[4:8])) == 1
    assert all(splits[8 + n] == splits[9 + n] for n in range(0, 400, 2))
    counts = Counter(splits)
    assert 15 < counts["val"] < 80 and 40 < counts["test"] < 130


def test_three_manifests(corpus, tmp_path):
    rows = [{**line, "split": ""} for line in read_manifest(corpus(12) / "manifest.jsonl")]
    files = {}
    for side, part in {"train": rows[:6], "val": rows[6:9], "test": rows[9:]}.items():
        write_manifest(tmp_path / f"corpus/{side}.jsonl", part)
        files[side] = str(tmp_path / f"corpus/{side}.jsonl")
    found = ManifestReader(**files).load(tmp_path).examples
    assert Counter(u.split for u in found) == {"train": 6, "val": 3, "test": 3}
    assert len({u.id for u in found}) == 12


def word_list(folder: Path, words: int, recordings: int) -> ManifestReader:
    """A manifest without `split`: each of the recordings says one of the words, the first word most often."""
    lines = []
    for number in range(recordings):
        (folder / f"{number}.wav").touch()
        lines.append(
            {"audio_filepath": f"{number}.wav", "text": f"word {max(0, number - recordings + words)}"}
        )
    write_manifest(folder / "m.jsonl", lines)
    return ManifestReader(manifest=str(folder / "m.jsonl"))


@pytest.mark.parametrize(("words", "recordings"), [(3, 12), (10, 200), (12, 12)])
def test_no_side_of_a_small_set_is_empty(tmp_path, words, recordings):
    """A hash may leave a side of few groups empty: it gets the smallest group; equal texts stay together."""
    reader = word_list(tmp_path, words, recordings)
    found = reader.load(tmp_path).examples
    assert found == reader.load(tmp_path).examples
    counts = Counter(u.split for u in found)
    assert set(counts) == {"train", "val", "test"} and max(counts, key=lambda one: counts[one]) == "train"
    sides = {(u.text, u.split) for u in found}
    assert len(sides) == words


def test_unusable_lines_do_not_fill_a_side(tmp_path):
    reader = word_list(tmp_path, 3, 12)
    lines = read_manifest(tmp_path / "m.jsonl")
    lines += [{"audio_filepath": f"gone{n}.wav", "text": f"gone {n}"} for n in range(60)]
    write_manifest(tmp_path / "m.jsonl", lines)
    assert {u.split for u in reader.load(tmp_path).examples} == {"train", "val", "test"}


def test_explicit_splits_are_not_touched(tmp_path):
    word_list(tmp_path, 4, 4)
    lines = [line | {"split": "test"} for line in read_manifest(tmp_path / "m.jsonl")]
    write_manifest(tmp_path / "m.jsonl", lines)
    reader = ManifestReader(manifest=str(tmp_path / "m.jsonl"))
    assert [u.split for u in reader.load(tmp_path).examples] == ["test"] * 4


GOOD = {"audio_filepath": "a.wav", "text": "hello"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"audio_filepath": "a.wav"}, "the key 'text' is missing.*A line looks like"),
        ({"text": "hello"}, "the key 'audio_filepath' is missing"),
        (b'{"audio_filepath": "a.wav", "text": "hello"', "not valid JSON .*column"),
        (["a.wav", "hello"], "not a JSON object"),
        (GOOD | {"text": None}, "'text' must be text"),
        (GOOD | {"duration": "long"}, "'duration' must be a number"),
        (GOOD | {"duration": True}, "'duration' must be a number"),
        (GOOD | {"offset": 3.5}, "'offset' .* not supported"),
        (GOOD | {"split": "dev"}, "'split' is 'dev'; .*train, val, test"),
        (b'{"audio_filepath": "a.wav", "text": "\xe9t\xe9"}', "not UTF-8"),
    ],
)
def test_a_wrong_line_is_named_with_its_number(tmp_path, line, message):
    """And the message shows a correct line."""
    file = write(tmp_path / "m.jsonl", lines(GOOD, line))
    with pytest.raises(MagnetoError, match=rf"m\.jsonl:2: {message}"):
        ManifestReader(manifest=str(file)).load(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "set `manifest`, .* or all of train, val and test.*Set are: none"),
        ({"manifest": "a", "train": "b"}, "Set are: manifest, train"),
        ({"train": "a", "test": "b"}, "Set are: train, test"),
        ({"manifest": "a", "val_fraction": 0.6, "test_fraction": 0.5}, "together below 1"),
    ],
)
def test_arguments_that_contradict_each_other(arguments, message):
    with pytest.raises(MagnetoError, match=message):
        ManifestReader(**arguments)
