"""Runs on data that is streamed from shards: learn, resume bit for bit, several processes, a shard that breaks."""

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard

from magneto.data.streaming import ShardError
from tests.conftest import Run
from tests.toys.babble import sentence
from tests.toys.processes import run_jobs
from tests.toys.runs import SHORT, SMALL, drive, folders, training_losses, values
from tests.toys.streams import image_shards, speech_shards

TAR = {
    "vl": (
        "data=webdataset_captions", "data.shuffle_window=5", "data.tokenizer={kind: byte_bpe, vocab_size: 280}",
        "data.image_size=16", "data.patch_size=4", "data.batch_size=8", "data.val_fraction=0.1", "data.test_fraction=0.1",
    ),
    "asr": (
        "data=webdataset_speech", "data.shuffle_window=6", "data.corpora.webdataset.val_fraction=0.1",
        "data.corpora.webdataset.test_fraction=0.1", "data.features.num_mels=16", "data.batch_frames=600",
        "trainer.max_steps=40",
    ),
}  # fmt: skip


def tar_settings(task: str, folder: Path) -> list[str]:
    """A small streamed run on tar shards."""
    shards = {"vl": image_shards, "asr": speech_shards}[task](folder / f"shards of {task}")
    return [
        f"task={task}", *SHORT, *TAR[task], f"data.corpora.webdataset.shards={shards}/*.tar", "data.streaming=true",
        "data.streams=4", "data.prepare_workers=1", *folders(folder / "data", folder), *SMALL, "callbacks.probe_every=0",
    ]  # fmt: skip


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A folder of eight shards of 40 sentences."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(8):
        random = np.random.default_rng(number)
        lines = [json.dumps({"text": sentence(random, int(random.integers(30, 60)))}) for _ in range(40)]
        (folder / f"{number}.jsonl.zst").write_bytes(zstandard.compress("\n".join(lines).encode()))
    return folder


@pytest.fixture
def settings(shards: Path, tmp_path: Path) -> list[str]:
    return [
        "data=text_files", "data.streaming=true", f"data.corpora.text_files.path={shards}", "data.streams=4",
        *folders(tmp_path / "data", tmp_path), "data.tokenizer={kind: byte_bpe, vocab_size: 280}",
        "data.block_size=32", "data.batch_size=4", "data.shuffle_window=4", "data.val_fraction=0.1",
        "data.test_fraction=0.1", "callbacks.probe_every=0", *SMALL, *SHORT,
    ]  # fmt: skip


@pytest.fixture
def run(settings: list[str]) -> Run:
    return lambda *more: drive(settings, *more)


@pytest.mark.slow
@pytest.mark.parametrize(("task", "workers", "stop_at"), [("causal_lm", 2, 3), ("mlm", 0, 11)])
def test_it_resumes_exactly(
    run: Run, resumes_identically: Callable[..., Any], task: str, workers: int, stop_at: int
) -> None:
    """Through two epochs of the shards, with workers that run ahead."""
    given = (
        f"task={task}",
        f"data.num_workers={workers}",
        "trainer.accumulate_grad_batches=4",
        "data.streams=2",
        "data.batch_size=16",
    )
    result = resumes_identically(run, *given, stop_at=stop_at)
    epochs = [float(value) for _, name, value in values(result["folder"]) if name == "epoch"]
    assert epochs == sorted(epochs) and epochs[-1] > 1
    losses = training_losses(result["folder"])
    assert losses[-1] < losses[0]


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "stop_at"), [(0, 9), (2, 3)])
@pytest.mark.parametrize("task", ["vl", "asr"])
def test_tar_shards_resume_exactly(
    resumes_identically: Callable[..., Any], tmp_path: Path, task: str, workers: int, stop_at: int
) -> None:
    """Through two epochs; evaluation finds the held-out images and recordings in the prepared folder."""
    run = partial(drive, tar_settings(task, tmp_path))
    result = resumes_identically(run, f"data.num_workers={workers}", stop_at=stop_at)
    epochs = [float(value) for _, name, value in values(result["folder"]) if name == "epoch"]
    assert epochs == sorted(epochs) and epochs[-1] > 1
    assert np.isfinite(result["metrics"][{"vl": "test/r1", "asr": "test/cer"}[task]])


@pytest.mark.slow
def test_two_processes_read_tar_shards(tmp_path: Path) -> None:
    """They resume bit for bit."""
    jobs = []
    for task in ("vl", "asr"):
        two = [
            *tar_settings(task, tmp_path),
            "trainer.strategy=ddp",
            "trainer.devices=2",
            "trainer.max_steps=8",
        ]
        two += ["trainer.log_every_n_steps=1", "data.num_workers=1"]
        jobs += [[*two, "name=whole"], [*two, "name=parts", "stop_at=3"], [*two, "name=parts"]]
    run_jobs(2, jobs, tmp_path)
    for runs in (tmp_path / "runs/vl", tmp_path / "runs/asr"):
        assert values(runs / "parts") == values(runs / "whole") and len(training_losses(runs / "whole")) == 8


@pytest.mark.slow
def test_a_broken_shard_loses_nothing(run: Run, shards: Path) -> None:
    """What was learned before is saved, and with the shard replaced the run is that which nothing has broken."""
    given = (
        "task=causal_lm",
        "callbacks.save_every=null",
        "trainer.val_check_interval=20",
        "backbone.dropout=0.1",
    )
    given += ("trainer.accumulate_grad_batches=2", "data.batch_size=16", "data.streams=2")
    whole = run("name=whole", *given)
    contents = {file: file.read_bytes() for file in shards.iterdir()}
    for file, content in contents.items():
        file.write_bytes(content[: len(content) // 2])
        with pytest.raises(ShardError, match=rf"{file.name}: this shard .*the run continues"):
            run("name=parts", *given)
        file.write_bytes(content)
        result = json.loads((Path(whole["folder"]).parent / "parts/result.json").read_text())
        last = Path(whole["folder"]).parent / "parts/checkpoints/last.ckpt"
        if last.exists():  # another file may be read in the first step already
            break
    assert result["status"] == "failed" and torch.load(last, weights_only=True)["global_step"] > 0
    parts = run("name=parts", *given)
    assert parts["metrics"] == whole["metrics"] and values(parts["folder"]) == values(whole["folder"])


@pytest.mark.slow
def test_two_processes_stream(settings: list[str], tmp_path: Path) -> None:
    """Two processes resume bit for bit; with a global batch, one process continues where two have stopped."""
    two = ["task=causal_lm", *settings, "trainer.strategy=ddp", "trainer.devices=2", "trainer.max_steps=8"]
    two += ["trainer.log_every_n_steps=1", "data.num_workers=1"]
    fixed = ["data.global_batch=16", "data.streams=8", "backbone.dropout=0"]
    jobs = [
        [*two, "name=whole"], [*two, "name=parts", "stop_at=3"], [*two, "name=parts"],
        [*two, *fixed, "name=two"], [*two, *fixed, "name=elastic", "stop_at=3"],
    ]  # fmt: skip
    run_jobs(2, jobs, tmp_path)
    runs = tmp_path / "runs/causal_lm"
    assert values(runs / "parts") == values(runs / "whole") and len(training_losses(runs / "whole")) == 8
    content = torch.load(runs / "elastic/checkpoints/last.ckpt", weights_only=True)
    assert 3 <= content["global_step"] < 8
    drive([one for one in [*two, *fixed] if "strategy" not in one and "devices" not in one], "name=elastic")
    assert training_losses(runs / "elastic") == pytest.approx(training_losses(runs / "two"), rel=1e-5)


@pytest.mark.slow
def test_every_process_ends_at_a_broken_shard(settings: list[str], shards: Path, tmp_path: Path) -> None:
    """The one that reads it says which; the other says that it has lost that one."""
    from tests.integration.test_processes import two_processes

    for file in shards.iterdir():
        os.truncate(file, file.stat().st_size * 2 // 3) if file.name == "5.jsonl.zst" else None
    given = [*settings, "task=causal_lm", "name=one", "data.max_held_out=1", "trainer.max_steps=200"]
    process = two_processes(tmp_path, given)
    _, errors = process.communicate(timeout=300)
    assert process.returncode != 0 and "5.jsonl.zst: this shard cannot be read" in errors
    assert "Traceback" not in errors
