"""When a run writes its checkpoints, how often, and in the background."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from magneto.errors import MagnetoError
from magneto.training import checkpointing, sharded_checkpoint
from tests.conftest import Run
from tests.toys.runs import values


def test_saves_by_the_clock(run_lm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between validations, when the minutes are over; without a number of steps, not before."""
    saved: list[tuple[str, int]] = []
    save = checkpointing.Checkpoints._save

    def note(self: checkpointing.Checkpoints, trainer: Any, name: str) -> None:
        saved.append((name, trainer.global_step))
        save(self, trainer, name)

    monkeypatch.setattr(checkpointing.Checkpoints, "_save", note)
    validated = ["callbacks.save_every=null", "trainer.val_check_interval=4"]
    run_lm("name=seldom", *validated, "callbacks.save_minutes=60")
    assert [step for name, step in saved if name == "last"] == [4, 8]
    saved.clear()
    run_lm("name=often", *validated, "callbacks.save_minutes=1e-9")
    assert [step for name, step in saved if name == "last"] == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("links", [True, False])
def test_best_and_last_are_one_file(
    run_lm: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    """A checkpoint of one moment is written once, or copied on a disk that has no links."""
    if not links:

        def refuse(*paths: Path) -> None:
            raise OSError("no links here")

        monkeypatch.setattr(os, "link", refuse)
    run_lm("name=one")
    best, last = (tmp_path / f"runs/causal_lm/one/checkpoints/{name}.ckpt" for name in ("best", "last"))
    assert best.samefile(last) == links and best.read_bytes() == last.read_bytes()
    assert len(list(best.parent.iterdir())) == 2, "no part is left"


def test_checkpoints_in_the_background(run_lm: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They hold what was there when they were asked for, although training goes on while they are written."""
    run_lm("name=one")
    written: list[int] = []
    write = torch.save

    def slow(content: Any, file: Any) -> None:
        time.sleep(0.3)
        written.append(content["global_step"])
        write(content, file)

    monkeypatch.setattr(torch, "save", slow)
    run_lm("name=two", "callbacks.save_async=true", "callbacks.save_every=2")
    assert written == [2, 4, 6, 8]
    folders = [tmp_path / f"runs/causal_lm/{name}" for name in ("one", "two")]
    assert values(folders[0]) == values(folders[1])
    one, two = (
        sharded_checkpoint.split(torch.load(folder / "checkpoints/last.ckpt", weights_only=True))[0]
        for folder in folders
    )
    assert one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())
    assert (folders[1] / "checkpoints/best.ckpt").samefile(folders[1] / "checkpoints/last.ckpt")


def test_a_background_write_that_fails(run_lm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(content: Any, file: Any) -> None:
        raise RuntimeError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(MagnetoError, match="cannot be written .*No space left.*repeat the command"):
        run_lm("name=one", "callbacks.save_async=true")


def test_a_failed_background_write_keeps_last(
    run_lm: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name `last` does not go to the older best.ckpt where the newer one cannot be written."""
    write = torch.save

    def full(content: Any, file: Any) -> None:
        if content["global_step"] == 8:
            time.sleep(0.3)  # the second name is asked for meanwhile
            raise RuntimeError("No space left on device")
        write(content, file)

    monkeypatch.setattr(torch, "save", full)
    settings = ["callbacks.save_async=true", "callbacks.save_every=3", "trainer.val_check_interval=4"]
    with pytest.raises(MagnetoError, match="cannot be written"):
        run_lm("name=one", *settings)
    folder = tmp_path / "runs/causal_lm/one/checkpoints"
    steps = [
        torch.load(folder / f"{name}.ckpt", weights_only=True)["global_step"] for name in ("best", "last")
    ]
    assert steps == [4, 6]
