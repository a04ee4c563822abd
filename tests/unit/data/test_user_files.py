"""A user's own images and recordings: files, folders, links, endings, damage."""

from pathlib import Path

import pytest
import soundfile
import torch
from PIL import Image

from magneto.data.image.dataset import user_images
from magneto.data.io.audio import FeatureSettings, load_audio, log_mel
from magneto.data.speech.dataset import SpeechInfo, user_recordings
from magneto.errors import MagnetoError
from tests.toys.recordings import tone

INFO = SpeechInfo(
    key="",
    features={},
    tokenizer={},
    languages=[],
    subsampling=4,
    utterances={},
    hours={},
    per_language={},
    corpora={},
)


def sound(path: Path, seconds: float = 0.5, **options: str) -> Path:
    soundfile.write(path, tone(seconds, 16_000), 16_000, **options)
    return path


def test_recordings_of_files_and_folders(tmp_path: Path) -> None:
    files = [sound(tmp_path / f"{number}.wav", number / 2) for number in (1, 2)]
    found = list(user_recordings(tmp_path, INFO))
    assert [path for path, _ in found] == files
    expected = log_mel(load_audio(files[0], 16_000), FeatureSettings())
    ((path, features),) = user_recordings(files[0], INFO)
    assert path == files[0] and torch.equal(features, expected) and torch.equal(found[0][1], expected)


def test_endings_links_and_hidden_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Links to folders are followed, loops not; what is left out for its ending is counted, hidden files are not."""
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "input"
    elsewhere.mkdir()
    (folder / "inner").mkdir(parents=True)
    sound(elsewhere / "z.wav")
    for name, options in {"a.OPUS": {"format": "OGG", "subtype": "OPUS"}, "b.oga": {"format": "OGG"},
                          "c.aiff": {}, "inner/d.au": {}, "e.caf": {}, "f.w64": {}}.items():  # fmt: skip
        sound(folder / name, **options)
    for name in ("x.m4a", "y.m4a", "inner/z.txt", "._a.wav", "LIST"):
        (folder / name).write_bytes(b"x")
    (folder / "linked").symlink_to(elsewhere)
    (folder / "inner/loop").symlink_to(folder)
    found = [path.relative_to(folder).as_posix() for path, _ in user_recordings(folder, INFO)]
    assert found == ["a.OPUS", "b.oga", "c.aiff", "e.caf", "f.w64", "inner/d.au", "linked/z.wav"]
    assert "left out for their endings: 2 .m4a, " in caplog.text and "1 .txt" in caplog.text
    Image.new("RGB", (9, 9)).save(folder / "inner/b.jfif", "JPEG")
    assert [path.name for path, _ in user_images(folder)] == ["b.jfif"]


def test_files_that_cannot_be_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They are errors when they are named, and skipped when they are found in a folder beside good ones."""
    bad, empty, nowhere = tmp_path / "bad.png", tmp_path / "folder", tmp_path / "none"
    empty.mkdir()
    bad.write_bytes(b"")
    for path, message in (
        (bad, "empty file. Give a readable file"),
        (tmp_path, "none of the 1 image files can be read; the first: .*bad.png: empty file"),
        (nowhere, "^input=.*no such file or folder"),
        (empty, "no image file in this folder"),
    ):
        with pytest.raises(MagnetoError, match=message):
            list(user_images(path))
    with pytest.raises(MagnetoError, match="^predict.second=.*no such file"):
        list(user_images(nowhere, key="predict.second"))
    Image.new("RGB", (9, 9)).save(tmp_path / "good.png")
    assert [path.name for path, _ in user_images(tmp_path)] == ["good.png"]
    assert f"skipped: {bad}: empty file" in caplog.text
    (empty / "a.wav").write_bytes(b"x")
    with pytest.raises(
        MagnetoError, match="none of the 1 audio files can be read; the first: .*not decodable"
    ):
        list(user_recordings(empty, INFO))
