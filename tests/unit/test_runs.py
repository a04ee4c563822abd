"""Names and folders of runs, and the append-only metrics file."""

import subprocess
from pathlib import Path

import pytest

from magneto import runs
from magneto.engine import _follow
from magneto.errors import UserError
from magneto.loggers import CSVLogger, read_metrics
from magneto.runs import RunFolder, Start, difference, flatten, git_revision, run_name, slug

CONFIG = {"name": None, "backbone": {"placement": "magneto"}, "size_name": "tiny", "seed": 3}


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "magneto-tiny-seed3"),
        (["task=asr", "backbone=magneto", "seed=3", "resume=never", "runs_dir=/x"], "magneto-tiny-seed3"),
        (["optimizer.lr=1e-3"], "magneto-tiny-seed3-optimizer.lr=1e-3"),
        (["trainer.max_steps=5", "data=fotaq"], "magneto-tiny-seed3-data=fotaq-trainer.max_steps=5"),
        (["logger=csv", "trainer.threads=2", "data.num_workers=2"], "magneto-tiny-seed3"),
        (["data.sources.stamps.folder=/a/b"], "magneto-tiny-seed3-data.sources.stamps.folder=_a_b"),
        (
            ["data.sources.stamps.languages=[es,fr]"],
            "magneto-tiny-seed3-data.sources.stamps.languages=_es,fr",
        ),
    ],
)
def test_a_run_is_named_by_what_it_is(overrides: list[str], name: str) -> None:
    assert run_name(CONFIG, overrides) == name
    assert run_name(CONFIG, overrides[::-1]) == name, "the order of the command line does not matter"


def test_a_name_given_wins_and_cannot_leave_the_folder() -> None:
    assert run_name({**CONFIG, "name": "mine"}, ["optimizer.lr=1"]) == "mine"
    assert "/" not in run_name({**CONFIG, "name": "../../etc"}, [])


def test_long_names_are_cut_and_stay_distinct() -> None:
    one, two = (slug([f"key{n}=value" for n in range(40)] + [last]) for last in ("a=1", "a=2"))
    assert len(one) <= 120 and one != two


def test_differences_leave_out_what_does_not_change_results() -> None:
    old = {"seed": 1, "optimizer": {"lr": 1.0}, "trainer": {"threads": None, "max_steps": 5}}
    new = {"seed": 1, "optimizer": {"lr": 2.0}, "trainer": {"threads": 2, "max_steps": 5}, "extra": 1}
    assert difference(old, new) == ["extra: (absent) -> 1", "optimizer.lr: 1.0 -> 2.0"]
    assert flatten({"a": {"b": {}, "c": 2}}) == {"a.b": {}, "a.c": 2}


def test_a_run_that_never_saved_anything_may_be_given_another_configuration(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.begin({"lr": 1}, "auto")
    folder.begin({"lr": 2}, "auto")
    folder.last.write_bytes(b"")
    with pytest.raises(UserError, match="lr: 2 -> 3"):
        folder.begin({"lr": 3}, "auto")


def test_a_checkpoint_from_elsewhere_does_not_overwrite_a_run(tmp_path: Path) -> None:
    other, own = tmp_path / "other.ckpt", RunFolder(tmp_path / "run")
    other.write_bytes(b"")
    assert own.begin({"lr": 1}, str(other)).checkpoint == other
    own.last.write_bytes(b"")
    with pytest.raises(UserError, match=r"other\.ckpt: .*run holds a run already.*name="):
        own.begin({"lr": 1}, str(other))
    assert own.begin({"lr": 1}, str(own.last)).checkpoint == own.last
    own.last.unlink()
    own.write_result({"status": "finished", "metrics": {}})
    with pytest.raises(UserError, match="holds a run already"):
        own.begin({"lr": 1}, str(other))


def test_further_processes_decide_as_the_first_one_does(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.begin({"lr": 1}, "auto")
    assert _follow(folder, "auto") == _follow(folder, "never") == Start()
    folder.last.write_bytes(b"")
    assert _follow(folder, "auto") == folder.begin({"lr": 1}, "auto") == Start(checkpoint=folder.last)
    assert _follow(folder, "never") == Start()
    assert _follow(folder, str(folder.best)) == Start(checkpoint=folder.best)
    folder.write_result({"status": "finished", "metrics": {}})
    assert (
        _follow(folder, "auto")
        == folder.begin({"lr": 1}, "auto")
        == Start(result={"status": "finished", "metrics": {}})
    )


def test_damaged_files_of_a_run_are_named(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.begin({"lr": 1}, "auto")
    folder.result.write_text("{")
    with pytest.raises(UserError, match=r"result\.json: not readable"):
        folder.begin({"lr": 1}, "auto")
    folder.config.write_text("a: [")
    with pytest.raises(UserError, match=r"config\.yaml: not readable"):
        folder.begin({"lr": 1}, "auto")


def test_metrics_are_rewound_to_the_checkpoint_and_an_unfinished_line_is_dropped(tmp_path: Path) -> None:
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


def test_a_commit_of_the_users_own_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel in a virtual environment within the user's repository, until that repository holds magneto itself."""
    package = tmp_path / "venv" / "magneto"
    package.mkdir(parents=True)
    (package / "runs.py").write_text("")
    (tmp_path / "own.py").write_text("")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    for command in (["init", "-q"], ["add", "own.py"], ["commit", "-qm", "own"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(runs, "__file__", str(package / "runs.py"))
    assert git_revision() is None
    for command in (["add", "-f", "venv"], ["commit", "-qm", "vendored"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    revision = git_revision()
    assert revision is not None and head.startswith(revision)
