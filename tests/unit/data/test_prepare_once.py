"""Folders that are prepared once: atomic, locked, rebuilt when damaged."""

import errno
import multiprocessing
import time
from pathlib import Path

import pytest

from magneto.data.cache import is_complete, prepare_once, short_hash
from magneto.data.rng import random_stream
from magneto.errors import MagnetoError


def build(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "data").write_text("four")


def test_it_is_built_once_and_only_if_it_is_whole(tmp_path):
    folder = tmp_path / "a" / "b"
    assert prepare_once(folder, build) and is_complete(folder)
    assert not prepare_once(folder, build)
    (folder / "sub" / "data").write_text("cut")
    assert prepare_once(folder, build) and (folder / "sub" / "data").read_text() == "four"
    (folder / "complete.json").write_text("{")
    assert prepare_once(folder, build) and is_complete(folder)


def test_failed_build_leaves_nothing(tmp_path):
    """A failed build leaves nothing and the next one works."""

    def fail(folder: Path) -> None:
        build(folder)
        raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        prepare_once(tmp_path / "x", fail)
    assert [p.name for p in tmp_path.iterdir()] in ([], [".x.lock"])
    assert prepare_once(tmp_path / "x", build)


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path):
    def fill(folder: Path) -> None:
        build(folder)
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    with pytest.raises(MagnetoError, match=r"No space left.*free space"):
        prepare_once(tmp_path / "x", fill)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


@pytest.mark.parametrize(
    ("place", "what"), [("own/text.txt", "read"), ("data/raw/text.txt", "written"), (".", "written")]
)
def test_missing_permission_is_named(tmp_path, place, what):
    """As root, whom permissions do not bind, only what the system would say can be tested."""

    def refuse(folder: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / place))

    with pytest.raises(MagnetoError, match=rf"{tmp_path / place} cannot be {what} \(Permission denied\)"):
        prepare_once(tmp_path / "data/prepared/x", refuse)


def test_what_a_killed_build_left_is_removed(tmp_path):
    (tmp_path / ".x-123.tmp").mkdir()
    (tmp_path / ".x-123.tmp" / "half").touch()
    assert prepare_once(tmp_path / "x", build)
    assert not (tmp_path / ".x-123.tmp").exists()


def slow_build(folder: Path) -> None:
    time.sleep(0.5)
    (folder / "data").write_text(str(time.time()))


def prepare_and_tell(folder: Path, results) -> None:
    results.put(prepare_once(folder, slow_build))


def test_one_process_builds(tmp_path):
    """Of several processes one builds and the others wait."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=prepare_and_tell, args=(tmp_path / "x", results)) for _ in range(3)]
    for process in processes:
        process.start()
    assert sorted(results.get(timeout=60) for _ in processes) == [False, False, True]
    for process in processes:
        process.join()


def test_fingerprint_ignores_order():
    """Fingerprint depends on values not on order."""
    assert short_hash({"a": 1, "b": [2, None]}) == short_hash({"b": [2, None], "a": 1})
    assert short_hash({"a": 1}) != short_hash({"a": 2})


def test_random_streams():
    """Random streams are independent and repeatable."""
    arguments = [(0, "x", 0, 0), (1, "x", 0, 0), (0, "y", 0, 0), (0, "x", 1, 0), (0, "x", 0, 1)]
    draws = [tuple(random_stream(*a).random(4)) for a in arguments]
    assert len(set(draws)) == len(draws)
    assert draws == [tuple(random_stream(*a).random(4)) for a in arguments]
