"""Names and folders of runs, and the append-only metrics file."""

import json
import math
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from magneto.errors import MagnetoError
from magneto.training import provenance
from magneto.training.files import read_metrics
from magneto.training.loggers import CSVLogger
from magneto.training.provenance import git_revision
from magneto.training.result import RunResult
from magneto.training.resume import follow
from magneto.training.run_config import difference, flatten, run_name
from magneto.training.run_folder import RunFolder, Start

FINISHED = RunResult(task="asr", name="run", seed=1, config={}, status="finished")
CONFIG = {"name": None, "backbone": {"placement": "magneto"}, "size_name": "tiny", "seed": 3}


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "magneto-tiny-seed3"),
        (["task=asr", "backbone=magneto", "seed=3", "resume=never", "runs_dir=/x"], "magneto-tiny-seed3"),
        (["optimizer.lr=1e-3"], "magneto-tiny-seed3-optimizer.lr=1e-3"),
        # Of a repeated key the last one counts, as for Hydra; `+key` and `key` are one key.
        (["a.x=1", "+b.y=2", "a.x=3"], "magneto-tiny-seed3-a.x=3-b.y=2"),
        (
            ["trainer.max_steps=5", "data=librispeech"],
            "magneto-tiny-seed3-data=librispeech-trainer.max_steps=5",
        ),
        (["logger=csv", "trainer.threads=2", "data.num_workers=2"], "magneto-tiny-seed3"),
        (["data.corpora.stamps.folder=/a/b"], "magneto-tiny-seed3-data.corpora.stamps.folder=_a_b"),
        (
            ["data.corpora.stamps.languages=[es,fr]"],
            "magneto-tiny-seed3-data.corpora.stamps.languages=_es,fr",
        ),
    ],
)
def test_runs_are_named_by_what_they_are(overrides: list[str], name: str) -> None:
    assert run_name(CONFIG, overrides) == name
    assert run_name({**CONFIG, "name": "mine"}, overrides) == "mine"


def test_unsaved_runs_take_another_config(tmp_path: Path) -> None:
    """A run that never saved anything may be given another configuration."""
    folder = RunFolder(tmp_path / "run")
    folder.begin({"lr": 1}, "auto")
    folder.begin({"lr": 2}, "auto")
    folder.last.write_bytes(b"")
    with pytest.raises(MagnetoError, match="lr: 2 -> 3"):
        folder.begin({"lr": 3}, "auto")


def test_foreign_checkpoints_overwrite_no_run(tmp_path: Path) -> None:
    """A checkpoint from elsewhere starts a new run, and overwrites none."""
    other, own = tmp_path / "other.ckpt", RunFolder(tmp_path / "run")
    other.write_bytes(b"")
    assert own.begin({"lr": 1}, str(other)).checkpoint == other
    own.last.write_bytes(b"")
    with pytest.raises(MagnetoError, match=r"other\.ckpt: .*run holds a run already.*name="):
        own.begin({"lr": 1}, str(other))
    assert own.begin({"lr": 1}, str(own.last)).checkpoint == own.last
    own.last.unlink()
    own.write_result(FINISHED)
    with pytest.raises(MagnetoError, match="holds a run already"):
        own.begin({"lr": 1}, str(other))


def test_further_processes_decide_as_the_first(tmp_path: Path) -> None:
    """By what they find in the folder."""
    folder = RunFolder(tmp_path / "run")
    folder.begin({"lr": 1}, "auto")
    assert follow(folder, "auto") == follow(folder, "never") == Start()
    folder.last.write_bytes(b"")
    assert follow(folder, "auto") == folder.begin({"lr": 1}, "auto") == Start(checkpoint=folder.last)
    assert follow(folder, "never") == Start()
    assert follow(folder, str(folder.best)) == Start(checkpoint=folder.best)
    folder.write_result(FINISHED)
    assert follow(folder, "auto") == folder.begin({"lr": 1}, "auto") == Start(result=FINISHED)


def test_metrics_are_rewound(tmp_path: Path) -> None:
    """To the checkpoint; an unfinished line is dropped."""
    logger = CSVLogger(tmp_path / "metrics.csv")
    logger.log_metrics({"train/loss": 0.1 + 0.2, "lr": 1e-30}, step=1)
    logger.log_metrics({"train/loss": float("nan")}, step=2)
    with logger.path.open("a") as file:
        file.write("3,train/loss,0.12")  # killed in the middle of 0.1234
    assert [row[:2] for row in read_metrics(logger.path)] == [(1, "train/loss"), (1, "lr"), (2, "train/loss")]
    assert read_metrics(logger.path)[0][2] == 0.1 + 0.2, "every bit survives"
    logger.rewind(1)
    logger.log_metrics({"train/loss": 5.0}, step=2)
    assert [row for row in read_metrics(logger.path) if row[0] == 2] == [(2, "train/loss", 5.0)]


def test_commits_of_the_user_are_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel in a virtual environment within the user's repository, until that repository holds magneto itself."""
    package = tmp_path / "venv" / "magneto"
    package.mkdir(parents=True)
    (package / "runs.py").write_text("")
    (tmp_path / "own.py").write_text("")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    for command in (["init", "-q"], ["add", "own.py"], ["commit", "-qm", "own"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(provenance, "__file__", str(package / "runs.py"))
    assert git_revision() is None
    for command in (["add", "-f", "venv"], ["commit", "-qm", "vendored"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    revision = git_revision()
    assert revision is not None and head.startswith(revision)


def test_names_keep_letters_of_all_scripts() -> None:
    kept = {
        "実験一": "実験一",
        "e\u0301te\u0301-1": "été-1",
        "हिन्दी": "हिन्दी",
        "my run/1": "my_run_1",
        "../../etc": ".._.._etc",
    }
    assert {name: run_name({**CONFIG, "name": name}, []) for name in kept} == kept


def test_replaced_characters_leave_names_distinct() -> None:
    """Also bytes that are no UTF-8, which Python keeps as surrogates; and no name is too long for a file system."""
    names = [
        run_name({**CONFIG, "name": name}, [])
        for name in ("☃1", "☂1", "a\udce9", "a\udcea", "長" * 99, "長" * 98, "a" * 200 + "1", "a" * 200 + "2")
    ]
    assert len(set(names)) == 8
    assert all(len(name.encode()) <= 120 for name in names)


@pytest.mark.parametrize("name", [".", "..", "...", "!!!", "/", " "])
def test_names_of_no_folder_are_refused(name: str) -> None:
    with pytest.raises(MagnetoError, match="no name for a folder"):
        run_name({**CONFIG, "name": name}, [])


def test_keys_of_other_versions() -> None:
    """Where it is switched off. A value that was changed, or a key that is switched on, is one."""
    old = {"task": {"smoothing": 0.1}, "predict": {"beam": 4}, "trainer": {"accelerator": "cpu"}}
    new = {
        "task": {"smoothing": 0.1, "new": None, "off": False, "none": "none", "list": []},
        "predict": {"beam": 5, "captions": None}, "trainer": {"accelerator": "auto", "num_sanity_val_steps": 2},
        "callbacks": {"save_every": 7}, "prompt": "x",
    }  # fmt: skip
    assert difference(old, new) == difference(new, old) == []
    assert difference(old, {**new, "task": {"smoothing": 0.1, "on": 0.5}}) == ["task.on: (absent) -> 0.5"]
    assert difference(old, {**new, "task": {"smoothing": 0}}) == ["task.smoothing: 0.1 -> 0"]
    assert flatten({"a": {"b": {}, "c": 2}}) == {"a.b": {}, "a.c": 2}


def test_results_are_strict_json(tmp_path: Path) -> None:
    """Numbers that are not finite become null, and not a number again; bytes that are no UTF-8 come back."""
    folder = RunFolder(tmp_path)
    values = {"a": float("nan"), "b": float("inf"), "c": 1.5}
    folder.write_result(replace(FINISHED, status="diverged", metrics=values, config={"path": "t\udce9xt"}))
    stored = json.loads(folder.result.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert stored["metrics"] == {"a": None, "b": None, "c": 1.5}
    read = folder.read_result()
    assert read is not None and math.isnan(read.metrics["a"]) and read.config["path"] == "t\udce9xt"


def test_an_attempt_that_goes_on_has_no_result(tmp_path: Path) -> None:
    """The status of the one before would be taken for its own."""
    folder = RunFolder(tmp_path / "run")
    folder.begin({"lr": 1}, "auto")
    folder.last.write_bytes(b"")
    folder.write_result(replace(FINISHED, status="interrupted"))
    assert folder.look({"lr": 1}, "auto") == Start(checkpoint=folder.last) and folder.result.exists()
    assert folder.begin({"lr": 1}, "auto") == Start(checkpoint=folder.last) and not folder.result.exists()


def test_looking_changes_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "task/run")
    assert folder.look({"lr": 1}, "auto") == Start() and not folder.path.parent.exists()
    folder.begin({"lr": 1}, "auto")
    before = sorted(tmp_path.rglob("*"))
    assert folder.look({"lr": 2}, "never") == folder.look({"lr": 2}, "auto") == Start()
    folder.last.write_bytes(b"")
    with pytest.raises(MagnetoError, match="lr: 1 -> 2"):
        folder.look({"lr": 2}, "auto")
    assert sorted(tmp_path.rglob("*")) == sorted([*before, folder.last])


def test_the_lock_ends_with_its_process(tmp_path: Path) -> None:
    """A killed process holds nothing, nor do the loader's workers that outlive it for a moment."""
    folder = RunFolder(tmp_path / "run")
    held = os.pipe()
    process = os.fork()
    if process == 0:
        with folder.lock():
            if os.fork() == 0:
                time.sleep(30)
                os._exit(0)
            os.write(held[1], b"x")
            time.sleep(30)
    os.read(held[0], 1)
    with pytest.raises(MagnetoError, match=f"by process {process} on"), folder.lock():
        pass
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    with folder.lock():
        pass
    for end in held:
        os.close(end)
