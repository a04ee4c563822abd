"""Checkpoints that appear whole or not at all."""

import errno
import tempfile
from pathlib import Path

import pytest
import torch

from magneto.training.checkpoint_io import AtomicCheckpointIO


def test_checkpoints_replace_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint is written beside the old one, in the same folder, and replaces it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))  # no other folder is needed
    path = tmp_path / "checkpoints/last.ckpt"
    for step in (1, 2):
        AtomicCheckpointIO().save_checkpoint({"step": step, "weights": torch.ones(3)}, path)
        assert AtomicCheckpointIO().load_checkpoint(path, weights_only=True)["step"] == step
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_failed_writes_keep_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails in the middle keeps the old checkpoint."""
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)

    def half(content, file) -> None:
        file.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="No space"):
        AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]
