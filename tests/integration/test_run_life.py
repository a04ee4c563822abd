"""The life of a run: begin, stop, resume, end; and what it says when its folder or its machine is not as it was."""

import errno
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from magneto.cli import literal
from magneto.commands import train
from magneto.commands.resolve import ResolvedRun
from magneto.config.groups import CONF
from magneto.data.batching import TokenBudgetSampler
from magneto.data.text.module import TextDataModule
from magneto.errors import MagnetoError
from magneto.tasks.asr import ASR
from magneto.tasks.causal_lm import CausalLM
from magneto.tasks.registry import load_task
from magneto.training import reproducibility
from magneto.training.result import RunResult
from magneto.training.run_folder import RunFolder
from tests.toys.runs import values

Run = Callable[..., dict[str, Any]]
Kill = Callable[..., AbstractContextManager[None]]
SLURM = {
    "SLURM_NTASKS": "1", "SLURM_JOB_ID": "1234", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
    "SLURM_JOB_NAME": "train",
}  # fmt: skip


@pytest.fixture
def run_lm(run_text: Run) -> Run:
    return lambda *overrides: run_text("task=causal_lm", "trainer.max_steps=8", *overrides)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `killed` keeps the run that it copies: one serves all tests."""
    return tmp_path_factory.mktemp("killed") / "one"


@pytest.fixture
def killed(run_lm: Run, kill_after_save: Kill, kept: Path, tmp_path: Path) -> Path:
    """The folder of the run `name=one`, which was killed after its third step."""
    folder = tmp_path / "runs/causal_lm/one"
    if not kept.exists():
        with kill_after_save(3):
            run_lm("name=one")
        folder.rename(kept)
    shutil.copytree(kept, folder)
    return folder


def signal_at(monkeypatch: pytest.MonkeyPatch, number: signal.Signals, step: int) -> None:
    original = CausalLM.training_step

    def training_step(self: CausalLM, batch: Any, batch_idx: int) -> Any:
        if batch_idx == step:
            signal.raise_signal(number)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(CausalLM, "training_step", training_step)


# ---------------------------------------------------------------------- the order of a run


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


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Preparing data is an error from the call on."""

    def prepare(self: TextDataModule) -> None:
        pytest.fail("data were prepared")

    return lambda: monkeypatch.setattr(TextDataModule, "prepare", prepare)


def test_finished_is_reported_before_data(run_lm: Run, no_data: Callable[[], None]) -> None:
    first = run_lm("name=one")
    no_data()
    assert run_lm("name=one")["metrics"] == first["metrics"]


# ---------------------------------------------------------------------- one process a run


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

    def refused(config: dict[str, Any], folder: RunFolder) -> None:
        for resume in ("auto", "never"):
            with pytest.raises(MagnetoError, match=f"process {os.getpid()} on {socket.gethostname()}"):
                RunFolder(folder.path).look(config, resume)
            seen.append(resume)

    fit, write = train._fit_and_test, RunFolder.write_result

    def training(run: ResolvedRun, folder: RunFolder, *arguments: Any) -> dict[str, Any]:
        refused(run.given, folder)
        return fit(run, folder, *arguments)

    def writing(self: RunFolder, result: RunResult) -> None:
        refused(result.config, self)
        write(self, result)

    with monkeypatch.context() as patch:
        patch.setattr(train, "_fit_and_test", training)
        patch.setattr(RunFolder, "write_result", writing)
        assert run_lm("name=one", "trainer.max_steps=1")["status"] == "finished"
    assert seen == ["auto", "never"] * 2
    assert run_lm("name=one", "trainer.max_steps=1", "resume=never")["status"] == "finished"


# ---------------------------------------------------------------------- signals


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


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"SLURM_NTASKS": "4"}, None),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4"}, "Use `--ntasks-per-node=4` instead"),
        (
            {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_STEP_NUM_TASKS": "2"},
            r"SLURM starts 2 processes, but trainer\.devices=1",
        ),
    ],
)
def test_slurm_tasks(
    run_lm: Run, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], error: str | None
) -> None:
    """A batch script's own process is one run, whatever --ntasks says; what srun multiplies must fit."""
    for key, value in {**SLURM, **settings}.items():
        monkeypatch.setenv(key, value)
    if error is None:
        assert run_lm("trainer.max_steps=1")["status"] == "finished"
    else:
        with pytest.raises(MagnetoError, match=error):
            run_lm("trainer.max_steps=1")


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


def test_failed_collective_is_not_a_full_disk(run_lm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, *arguments: Any, **options: Any) -> None:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:5")

    monkeypatch.setattr("lightning.Trainer.save_checkpoint", broken)
    with pytest.raises(
        MagnetoError, match="Another process of this run has ended.*repeat the command"
    ) as told:
        run_lm("name=one")
    assert "free space" not in str(told.value)


# ---------------------------------------------------------------------- resuming


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


def test_odd_lines_stop_no_resume(run_lm: Run, killed: Path) -> None:
    """Samples with U+2028, U+2029 and U+0085 are kept; what a crash of the machine or two writers left is dropped."""
    whole = Path(run_lm("name=whole")["folder"])
    odd = {"step": 2, "split": "val", "id": "a", "text": "one\u2028two\u2029three\u0085four\x0bfive"}
    kept = json.dumps(odd, ensure_ascii=False) + "\n"
    damaged = '{"step": 2, "spl\n[3]\n{"id": 3}\n{"step": "x", "split": "val"}\n\x00\x00\x00\n'
    (killed / "samples.jsonl").write_bytes(
        (kept + damaged).encode() + b'{"step": 1, "text": "\xff"}\n{"step": 2'
    )
    with (killed / "metrics.csv").open("ab") as file:
        file.write(
            b'\x00\x00\x00\n2,train/lo2,val/loss,1\n"\n7\n2,x\ny,train/loss,1\n2,train/loss,abc\n2,\xff,1\n2,a\x00,1\n'
        )
    assert run_lm("name=one")["status"] == "finished"
    assert values(killed) == values(whole)
    assert (killed / "samples.jsonl").read_text() == kept + (whole / "samples.jsonl").read_text()


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
    assert content["callbacks"]["ConfigureRun"] == {"world_size": 1}
    content["callbacks"]["ConfigureRun"]["world_size"] = 8
    torch.save(content, file)
    with pytest.raises(MagnetoError, match=r"by 8 processes.*Set trainer\.devices.*so that there are 8"):
        run_lm("name=one")
    del content["callbacks"]["ConfigureRun"]  # of an older version
    torch.save(content, file)
    assert run_lm("name=one")["status"] == "finished"


def test_log_lines_plan_nothing(run_lm: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planning sorts the corpus: once to count an epoch's batches, once for the run, however many lines are logged."""
    original, planned = TokenBudgetSampler.__init__, []

    def count(self: Any, *arguments: Any, **options: Any) -> None:
        planned.append(options["total_batches"])
        original(self, *arguments, **options)

    monkeypatch.setattr(TokenBudgetSampler, "__init__", count)
    run_lm("trainer.log_every_n_steps=1")
    assert sorted(planned) == [0, 8]


# ---------------------------------------------------------------------- damaged folders and checkpoints


def _edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = folder / "checkpoints/last.ckpt"
        content = torch.load(file, weights_only=True)
        change(content)
        torch.save(content, file)

    return damage


def _replace(name: str, content: bytes | None) -> Callable[[Path], None]:
    """The file is a folder instead (None), or holds something else."""

    def damage(folder: Path) -> None:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        if content is None:
            path.mkdir()
        else:
            path.write_bytes(content)

    return damage


def _result(**values: Any) -> bytes:
    result = {"schema": 1, "status": "finished", "task": "a", "name": "b", "seed": 1, "config": {}}
    return json.dumps(result | values).encode()


@pytest.mark.parametrize(
    ("damage", "file"),
    [
        (_edit(lambda c: c["hyper_parameters"].pop("total_steps")), "last.ckpt"),
        (_edit(lambda c: c["hyper_parameters"].update(total_steps="many")), "last.ckpt"),
        (_edit(lambda c: c["hyper_parameters"].pop("info")), "last.ckpt"),
        (_edit(lambda c: c.update(hyper_parameters=3)), "last.ckpt"),
        (_edit(lambda c: c.pop("global_step")), "last.ckpt"),
        (_edit(lambda c: c.pop("state_dict")), "last.ckpt"),
        (_edit(lambda c: c.update(state_dict=[1])), "last.ckpt"),
        (_edit(lambda c: c["state_dict"].update({"stem.embedding.weight": 3})), "last.ckpt"),
        (_edit(lambda c: c.pop("optimizer_states")), "last.ckpt"),
        (_edit(lambda c: c["optimizer_states"][0].pop("param_groups")), "last.ckpt"),
        (_edit(lambda c: c.pop("lr_schedulers")), "last.ckpt"),
        (_edit(lambda c: c.pop("loops")), "last.ckpt"),
        (_edit(lambda c: c["loops"].pop("fit_loop")), "last.ckpt"),
        (_edit(lambda c: c.update(callbacks=[])), "last.ckpt"),
        (_edit(lambda c: c["callbacks"]["Monitor"].pop("totals")), "last.ckpt"),
        (_edit(lambda c: c["callbacks"].update(Usage={"wall_s": "long"})), "last.ckpt"),
        (_edit(lambda c: c.update(window=[3])), "last.ckpt"),
        (_replace("checkpoints/last.ckpt", b"PK\x05\x06" + bytes(18)), "last.ckpt"),
        (_replace("checkpoints/last.ckpt", None), "last.ckpt"),
        (_replace("config.yaml", b"a: \xff"), "config.yaml"),
        (_replace("config.yaml", None), "config.yaml"),
        (_replace("result.json", b'{"status": "finished"}'), "result.json"),
        (_replace("result.json", _result(metrics=None)), "result.json"),
        (_replace("result.json", _result(metrics={"a": "b"})), "result.json"),
        (_replace("result.json", b"[]"), "result.json"),
        (_replace("result.json", b"\xff"), "result.json"),
        (_replace("result.json", None), "result.json"),
        (_replace("export", b"a file"), "export"),
        (_replace("log.txt", None), "log.txt"),
        (_replace("metrics.csv", None), "metrics.csv"),
        (_replace("samples.jsonl", None), "samples.jsonl"),
    ],
)  # fmt: skip
def test_damage_is_named(run_lm: Run, killed: Path, damage: Callable[[Path], None], file: str) -> None:
    """Whatever a folder holds, one message names the file, what is wrong with it and the remedy."""
    damage(killed)
    with pytest.raises(MagnetoError) as told:
        run_lm("name=one")
    assert file in str(told.value)
    assert any(word in str(told.value) for word in ("Use ", "emove", "resume to never", "hange")), told.value
    assert "\n" not in str(told.value).strip()


def test_folder_in_place_of_checkpoints(run_lm: Run, tmp_path: Path) -> None:
    folder = tmp_path / "runs/causal_lm/one"
    folder.mkdir(parents=True)
    (folder / "checkpoints").write_text("a file")
    with pytest.raises(MagnetoError, match="checkpoints cannot be written"):
        run_lm("name=one")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "[]", "format None"),
        ("config.json", '{"format": "magneto-export-1"}', "hyper_parameters is missing"),
        ("config.json", '{"format": "magneto-export-1", "hyper_parameters": {}}', "task is missing"),
        ("config.json", "info={}", "the model cannot be built"),
        ("model.safetensors", "nothing", "damaged export"),
    ],
)
def test_damaged_exports_are_named(run_lm: Run, name: str, content: str, message: str) -> None:
    export = Path(run_lm("name=one", "trainer.max_steps=1")["folder"]) / "export"
    if content == "info={}":
        config = json.loads((export / name).read_text())
        config["hyper_parameters"]["info"] = {}
        content = json.dumps(config)
    (export / name).write_text(content)
    with pytest.raises(MagnetoError, match=message) as told:
        load_task(export)
    assert str(export) in str(told.value)


def test_unwritable_folders(
    run_lm: Run, killed: Path, monkeypatch: pytest.MonkeyPatch, no_data: Callable[[], None]
) -> None:
    """Before data is prepared: a run's folder without permission (also where root runs the tests), a file in its place."""
    no_data()
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        with pytest.raises(MagnetoError, match=r"one: is not a folder that can be written\. Change"):
            run_lm("name=one")
    killed.with_name("two").write_text("")
    with pytest.raises(MagnetoError, match=r"two: is not a folder that can be written\. Change"):
        run_lm("name=two")


def test_failed_writes_are_named(run_lm: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that refuses the run's folder after the look at it."""

    def refuse(path: Path, *arguments: Any, **options: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        with pytest.raises(MagnetoError, match=r"cannot be (made|written) \(Permission denied\)"):
            run_lm("name=one")


# ---------------------------------------------------------------------- names, places, other modes


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


# ---------------------------------------------------------------------- several processes


def two_processes(
    folder: Path, overrides: list[str], script: Path = CONF.parent / "run.py"
) -> subprocess.Popen[str]:
    arguments = ["task=causal_lm", *overrides, "trainer.devices=2", "trainer.strategy=ddp"]
    return subprocess.Popen(
        [sys.executable, str(script), *arguments], cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(CONF.parent)}, start_new_session=True,
    )  # fmt: skip


@pytest.mark.slow
def test_two_processes_resume_exactly(text_overrides: list[str], tmp_path: Path) -> None:
    """Stopped between two logged steps: the loss logged next has the sums of each process, not twice the first's."""
    settings = [
        *text_overrides,
        "trainer.max_steps=12",
        "callbacks.save_every=1",
        "trainer.log_every_n_steps=4",
    ]
    whole = two_processes(tmp_path, [*settings, "name=whole"])
    assert whole.wait(300) == 0, whole.communicate()
    script = tmp_path / "stop.py"
    script.write_text(
        "from magneto.training import checkpointing; from magneto.cli import main\n"
        "save = checkpointing.Checkpoints._save\n"
        "def stop(self, trainer, name):\n"
        "    save(self, trainer, name)\n"
        "    self.signals.received = trainer.global_step >= 5\n"
        "checkpointing.Checkpoints._save = stop\nmain()\n"
    )
    first = two_processes(tmp_path, [*settings, "name=parts"], script)
    assert first.wait(300) == 130, first.communicate()
    runs = tmp_path / "runs/causal_lm"
    content = torch.load(runs / "parts/checkpoints/last.ckpt", weights_only=True)
    assert content["global_step"] == 6 and len(content["window"]) == 2
    assert content["callbacks"]["ConfigureRun"] == {"world_size": 2}
    second = two_processes(tmp_path, [*settings, "name=parts"])
    assert second.wait(300) == 0, second.communicate()
    assert values(runs / "parts") == values(runs / "whole")


@pytest.mark.slow
def test_lost_processes_are_reported(text_overrides: list[str], tmp_path: Path) -> None:
    process = two_processes(
        tmp_path, [*text_overrides, "trainer.max_steps=5000", "trainer.val_check_interval=5000", "name=one"]
    )
    deadline = time.monotonic() + 300
    while not (tmp_path / "runs/causal_lm/one/metrics.csv").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid), "-f", "run.py"], capture_output=True, text=True, check=True
    )
    os.kill(int(children.stdout.split()[0]), signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    assert "Another process of this run has ended" in errors and "repeat the command" in errors
    assert "Traceback" not in errors
    result = json.loads((tmp_path / "runs/causal_lm/one/result.json").read_text())
    assert result["status"] == "failed"


def _meet(rank: int, file: str, steps: tuple[int, ...]) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    trainer: Any = type("Trainer", (), {"world_size": 2})()
    start = reproducibility.SameStart({"folder": "one", "step": steps[rank]})
    if steps[0] == steps[1]:
        start.setup(trainer, None, "fit")  # type: ignore[arg-type]
    else:
        with pytest.raises(MagnetoError, match="step: 40 in process 0, 0 in process 1.*runs_dir"):
            start.setup(trainer, None, "fit")  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [(40, 40), (40, 0)])
def test_processes_agree_where_to_begin(tmp_path: Path, steps: tuple[int, ...]) -> None:
    """A run's folder on a disk of its own in each machine: every process refuses, and none waits."""
    torch.multiprocessing.start_processes(
        _meet, (str(tmp_path / "meet"), steps), nprocs=2, start_method="fork"
    )
