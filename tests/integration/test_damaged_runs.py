"""Folders, checkpoints and exports that are not as a run left them: one message, or the run continues."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from magneto.errors import MagnetoError
from magneto.tasks.registry import load_task
from tests.conftest import Run
from tests.toys.runs import values


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
        (_edit(lambda c: c["hyper_parameters"].pop("info")), "last.ckpt"),
        (_edit(lambda c: c.pop("global_step")), "last.ckpt"),
        (_edit(lambda c: c.update(state_dict=[1])), "last.ckpt"),
        (_edit(lambda c: c["state_dict"].update({"stem.embedding.weight": 3})), "last.ckpt"),
        (_edit(lambda c: c.pop("optimizer_states")), "last.ckpt"),
        (_edit(lambda c: c.pop("lr_schedulers")), "last.ckpt"),
        (_edit(lambda c: c.pop("loops")), "last.ckpt"),
        (_edit(lambda c: c.update(callbacks=[])), "last.ckpt"),
        (_edit(lambda c: c["callbacks"]["Monitor"].pop("totals")), "last.ckpt"),
        (_edit(lambda c: c["callbacks"].update(Usage={"wall_s": "long"})), "last.ckpt"),
        (_edit(lambda c: c.update(window=[3])), "last.ckpt"),
        (_replace("checkpoints/last.ckpt", b"PK\x05\x06" + bytes(18)), "last.ckpt"),
        (_replace("config.yaml", b"a: \xff"), "config.yaml"),
        (_replace("result.json", b'{"status": "finished"}'), "result.json"),
        (_replace("result.json", _result(metrics={"a": "b"})), "result.json"),
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
    """Permissions (also where root runs the tests), files in the way, and a disk that refuses after the look at it."""

    def refuse(path: Path, *arguments: Any, **options: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        with pytest.raises(MagnetoError, match=r"cannot be (made|written) \(Permission denied\)"):
            run_lm("name=new")
    blocked = killed.with_name("blocked")
    blocked.mkdir(exist_ok=True)
    (blocked / "checkpoints").write_text("a file")
    with pytest.raises(MagnetoError, match="checkpoints cannot be written"):
        run_lm("name=blocked")
    no_data()
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        with pytest.raises(MagnetoError, match=r"one: is not a folder that can be written\. Change"):
            run_lm("name=one")
    killed.with_name("two").write_text("")
    with pytest.raises(MagnetoError, match=r"two: is not a folder that can be written\. Change"):
        run_lm("name=two")
