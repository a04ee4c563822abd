"""The life of a run: begin, stop, resume, end."""

import json
import logging
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from magneto.cli import literal
from magneto.commands import train
from magneto.data.batching import TokenBudgetSampler
from magneto.data.text.module import TextDataModule
from magneto.errors import MagnetoError
from magneto.tasks.asr import ASR
from magneto.tasks.causal_lm import CausalLM
from magneto.tasks.registry import load_task
from magneto.training.run_folder import RunFolder
from tests.conftest import Run
from tests.toys.runs import values

SLURM = {
    "SLURM_NTASKS": "1", "SLURM_JOB_ID": "1234", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
    "SLURM_JOB_NAME": "train",
}  # fmt: skip


def signal_at(monkeypatch: pytest.MonkeyPatch, number: signal.Signals, step: int) -> None:
    original = CausalLM.training_step

    def training_step(self: CausalLM, batch: Any, batch_idx: int) -> Any:
        if batch_idx == step:
            signal.raise_signal(number)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(CausalLM, "training_step", training_step)


def test_mistakes_leave_no_folder(run_lm: Run, tmp_path: Path) -> None:
    """What is found before training (a model, data, a trainer that cannot be) makes no run."""
    for mistake in ("backbone.num_heads=3", "data.corpora.text_files.path=/nowhere"):
        with pytest.raises(MagnetoError):
            run_lm("name=one", mistake)
        assert not (tmp_path / "runs/causal_lm/one").exists()


def test_log_holds_the_preparation(run_lm: Run, tmp_path: Path) -> None:
    """What was logged before the folder was there stands in log.txt, before what came after."""
    folder = Path(run_lm("name=one", f"data_dir={tmp_path / 'fresh'}")["folder"])
    log = (folder / "log.txt").read_text()
    assert 0 <= log.index("prepared ") < log.index("run ") < log.index(": magneto, ")


def test_finished_is_reported_before_data(run_lm: Run, no_data: Callable[[], None]) -> None:
    first = run_lm("name=one")
    no_data()
    assert run_lm("name=one")["metrics"] == first["metrics"]


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_busy_run_is_refused(run_lm: Run, tmp_path: Path, resume: str) -> None:
    """Another process, another host, or a lock without a word: told before data is touched, and nothing is renamed."""
    folder = tmp_path / "runs/causal_lm/one"
    folder.mkdir(parents=True)
    lock = folder.with_name(".one.lock")
    with FileLock(lock):
        lock.write_text("process 77 on another-host\n")
        with pytest.raises(MagnetoError, match=r"one is being trained by process 77 on another-host.*name="):
            run_lm("name=one", f"resume={resume}")
        lock.write_bytes(b"\xff")
        with pytest.raises(MagnetoError, match="being trained by another process"):
            run_lm("name=one", f"resume={resume}")
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == ["one"]


def test_lock_is_held_while_training(run_lm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the time that the folder is laid out until the result is written; then the run can be made again."""
    seen = []

    def watched(call: Callable[..., Any], owner: Any) -> None:
        def refused(*arguments: Any) -> Any:
            (folder,) = (one for one in arguments if isinstance(one, RunFolder))
            for resume in ("auto", "never"):
                with pytest.raises(MagnetoError, match=f"process {os.getpid()} on {socket.gethostname()}"):
                    RunFolder(folder.path).look(folder.read_given(), resume)
                seen.append(call.__name__)
            return call(*arguments)

        patch.setattr(owner, call.__name__, refused)

    with monkeypatch.context() as patch:
        watched(train._fit_and_test, train)
        watched(RunFolder.write_result, RunFolder)
        assert run_lm("name=one", "trainer.max_steps=1")["status"] == "finished"
    assert seen == ["_fit_and_test"] * 2 + ["write_result"] * 2
    assert run_lm("name=one", "trainer.max_steps=1", "resume=never")["status"] == "finished"


@pytest.mark.parametrize("array", [False, True])
def test_usr1_saves_and_requeues(
    run_lm: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, array: bool
) -> None:
    """As SLURM sends it: last.ckpt is saved, the job is queued again; Lightning writes and reads none of its own."""
    whole = run_lm("name=whole")
    scontrol, calls = tmp_path / "bin/scontrol", tmp_path / "calls"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    for key, value in {**SLURM, "SLURM_STEP_NUM_TASKS": "1"}.items():
        monkeypatch.setenv(key, value)
    if array:
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "77")
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    with monkeypatch.context() as patch:
        signal_at(patch, signal.SIGUSR1, 4)
        assert run_lm("name=one")["status"] == "interrupted"
    assert calls.read_text() == ("requeue 77_3\n" if array else "requeue 1234\n")
    folder = tmp_path / "runs/causal_lm/one"
    assert torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 5
    assert not list(folder.rglob("hpc_ckpt*"))
    # What an older version let Lightning write there is neither trained on nor tested.
    shutil.copy(folder / "checkpoints/last.ckpt", folder / "hpc_ckpt_1.ckpt")
    again = run_lm("name=one")
    assert again["metrics"] == whole["metrics"] and values(folder) == values(whole["folder"])
    exported, best = load_task(folder / "export").state_dict(), load_task(folder / "checkpoints/best.ckpt")
    assert all(torch.equal(value, exported[name]) for name, value in best.state_dict().items())


def test_failed_requeue_is_reported(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("PATH", "/nowhere")
    with caplog.at_level(logging.WARNING):
        train._requeue()
    assert "job 12 cannot be queued again" in caplog.text and "repeat the command" in caplog.text


def test_second_signal_during_a_save(run_lm: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It stops at once, as an interruption: torch's writer makes a RuntimeError of it, as of a full disk."""
    signal_at(monkeypatch, signal.SIGINT, 4)
    original = torch.save

    def save(content: Any, file: Any) -> None:
        if content["global_step"] != 5:
            return original(content, file)
        try:
            signal.raise_signal(signal.SIGINT)
        except BaseException:
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos")  # noqa: B904

    monkeypatch.setattr(torch, "save", save)
    assert run_lm("name=one")["status"] == "interrupted"
    monkeypatch.undo()
    last = tmp_path / "runs/causal_lm/one/checkpoints/last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 3, "the one before it"
    assert [path.name for path in last.parent.iterdir()] == ["last.ckpt"]
    assert run_lm("name=one")["status"] == "finished"


def test_minutes_and_memory_go_on(run_lm: Run, killed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are those of the whole run, whatever the clock on the wall did."""
    file = killed / "checkpoints/last.ckpt"
    content = torch.load(file, weights_only=True)
    before = content["callbacks"]["Usage"]
    assert 0 < before["fit_s"] < before["wall_s"] and before["peak_memory_bytes"] > 0
    content["callbacks"]["Usage"] = {"wall_s": 2e6, "fit_s": 1e6, "peak_memory_bytes": 2**50}
    torch.save(content, file)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    result = run_lm("name=one")
    assert 2e6 < result["time"]["wall_s"] < 2.1e6 and 1e6 < result["time"]["fit_s"] < 1.1e6
    assert result["time"]["fit_s"] - 1e6 < result["time"]["wall_s"] - 2e6
    assert 2**49 < result["run_peak_memory_bytes"] < 2**50


def test_killed_before_its_result(run_lm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was killed after its test makes the test again: no row and no sample stands there twice."""
    whole = run_lm("name=whole")
    folder = Path(whole["folder"]).with_name("one")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="killed"):
        patch.setattr(train.checkpoint_io, "export", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        run_lm("name=one")
    assert "test/" in (folder / "metrics.csv").read_text()
    assert run_lm("name=one")["metrics"] == whole["metrics"]
    assert values(folder) == values(whole["folder"])
    assert (folder / "samples.jsonl").read_text() == (folder.with_name("whole") / "samples.jsonl").read_text()


def test_older_configuration_is_resumed(run_lm: Run, killed: Path) -> None:
    """Keys that an older version did not have or had beside, and those that change no result, are no difference."""
    file = killed / "config.yaml"
    text = file.read_text()
    for line in ("  min_new_tokens: null\n", "  ema_decay: null\n", "  qk_norm: false\n"):
        assert line in text
        text = text.replace(line, "")
    text = text.replace("\npredict:\n", "\npredict:\n  captions: null\n")
    assert "  captions: null\n" in text
    file.write_text(text)
    result = run_lm("name=one", "callbacks.save_every=2", "trainer.num_sanity_val_steps=1")
    assert result["status"] == "finished"


def test_other_accumulation_is_refused(run_lm: Run, killed: Path, tmp_path: Path) -> None:
    last = f"resume={killed / 'checkpoints/last.ckpt'}"
    with pytest.raises(MagnetoError, match=r"step 3 after 3 batches.*Set trainer\.accumulate_grad_batches=1"):
        run_lm("name=two", last, "trainer.accumulate_grad_batches=4")
    for steps in ("2", "3"):
        with pytest.raises(MagnetoError, match=rf"is at step 3, and trainer\.max_steps={steps}"):
            run_lm("name=two", last, f"trainer.max_steps={steps}")
    assert not list(tmp_path.glob("runs/causal_lm/two/checkpoints/*"))
    assert run_lm("name=three", last, "trainer.max_steps=5")["steps"] == 5


def test_other_world_size_is_refused(run_lm: Run, killed: Path) -> None:
    file = killed / "checkpoints/last.ckpt"
    content = torch.load(file, weights_only=True)
    assert content["callbacks"]["ConfigureRun"] == {"world_size": 1, "micro_batches": None}
    content["callbacks"]["ConfigureRun"]["world_size"] = 8
    torch.save(content, file)
    with pytest.raises(MagnetoError, match=r"by 8 processes.*Set trainer\.devices.*so that there are 8"):
        run_lm("name=one")
    del content["callbacks"]["ConfigureRun"]  # of an older version
    torch.save(content, file)
    assert run_lm("name=one")["status"] == "finished"


def test_log_lines_plan_nothing(run_lm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planning sorts the corpus: once for the run, however many lines are logged."""
    original, planned = TokenBudgetSampler.__init__, []

    def count(self: Any, *arguments: Any, **options: Any) -> None:
        planned.append(options["total_batches"])
        original(self, *arguments, **options)

    monkeypatch.setattr(TokenBudgetSampler, "__init__", count)
    run_lm("trainer.log_every_n_steps=1")
    assert planned == [8]


def test_names_that_are_no_utf8(run_lm: Run, babble: Path, tmp_path: Path) -> None:
    """A folder with a Latin-1 name, in the data's path and in the run's name: the run comes to its end."""
    folder = tmp_path / os.fsdecode(b"t\xe9xts")
    shutil.copytree(babble, folder)
    path = literal(f"data.corpora.text_files.path={folder}")
    result = run_lm(path)
    assert result["status"] == "finished"
    stored = json.loads((Path(result["folder"]) / "result.json").read_text())
    assert stored["config"]["data"]["corpora"]["text_files"]["path"] == str(folder)
    assert run_lm(path)["metrics"] == result["metrics"]


def test_home_is_expanded(run_lm: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    result = run_lm("name=one", literal("runs_dir=~/mine"), "trainer.max_steps=1")
    assert Path(result["folder"]) == tmp_path / "mine/causal_lm/one"
    (tmp_path / "in.txt").write_text("baku cedo\n")
    run_lm(
        "mode=predict", "predict.max_new_tokens=2",
        *map(literal, ("checkpoint=~/mine/causal_lm/one", "input=~/in.txt", "output=~/out.jsonl")),
    )  # fmt: skip
    assert (tmp_path / "out.jsonl").exists() and not (tmp_path / "~").exists()


def test_mode_test_writes_its_result(run_lm: Run, tmp_path: Path, capsys: Any) -> None:
    """Beside the run's own result, in an export that lies elsewhere, or in output=."""
    folder = Path(run_lm("name=one", "trainer.max_steps=2")["folder"])
    tested = run_lm("mode=test", f"checkpoint={folder}")
    stored = json.loads((folder / "test-text_files.json").read_text())
    assert stored["metrics"] == tested["metrics"] and stored["data"] == "text_files"
    assert stored["config"]["data"]["block_size"] == 32
    shutil.copytree(folder / "export", tmp_path / "mine")
    for source, file in (
        (folder / "checkpoints/best.ckpt", folder / "test-text_files.json"),
        (folder / "export", folder / "test-text_files.json"),
        (tmp_path / "mine", tmp_path / "mine/test-text_files.json"),
    ):
        file.unlink(missing_ok=True)
        assert run_lm("mode=test", f"checkpoint={source}")["file"] == str(file)
        assert json.loads(file.read_text())["metrics"] == tested["metrics"]
    output = f"output={tmp_path / 'new/there.json'}"
    run_lm("mode=test", f"checkpoint={folder}", output)
    assert (tmp_path / "new/there.json").exists()
    with pytest.raises(MagnetoError, match=r"there\.json: exists already"):
        run_lm("mode=test", f"checkpoint={folder}", output)


def test_load_from_checkpoint(run_lm: Run) -> None:
    """Lightning's way to load a model does what `load_task` does."""
    best = Path(run_lm("trainer.max_steps=2")["folder"]) / "checkpoints/best.ckpt"
    task = CausalLM.load_from_checkpoint(best)
    assert isinstance(task, CausalLM) and not task.training
    for name, value in load_task(best).state_dict().items():
        assert torch.equal(task.state_dict()[name], value), name
    with pytest.raises(MagnetoError, match="of task=causal_lm, not of ASR"):
        ASR.load_from_checkpoint(best)


def test_signal_before_training(run_lm: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The job of a cluster is queued again, and there is no folder."""
    queued = []

    def stop(self: TextDataModule) -> None:
        signal.raise_signal(signal.SIGUSR1)

    monkeypatch.setattr(TextDataModule, "prepare", stop)
    monkeypatch.setattr(train, "_requeue", lambda: queued.append(1))
    assert run_lm("name=one")["status"] == "interrupted" and queued
    assert not (tmp_path / "runs/causal_lm/one").exists()


def test_signal_in_the_last_lines(run_lm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is finished is written down as finished."""
    original = RunFolder.write_result

    def write(self: Any, result: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        original(self, result)

    monkeypatch.setattr(RunFolder, "write_result", write)
    result = run_lm("name=one", "trainer.max_steps=1")
    assert json.loads((Path(result["folder"]) / "result.json").read_text())["status"] == "finished"
