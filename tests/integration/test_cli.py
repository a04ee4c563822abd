"""The command line: exit codes, messages without tracebacks, signals, several processes."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from magneto.cli import literal, main
from magneto.config import schema
from magneto.config.groups import CONF
from magneto.errors import MagnetoError
from magneto.training import run_folder
from magneto.training.result import RunResult
from tests.toys.runs import drive, training_losses

ROOT = CONF.parent


def magneto(*arguments: str, cwd: Path | None = None, **kwargs) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
    return subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *arguments],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=500, check=False, **kwargs,
    )  # fmt: skip


def without_torch(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys; sys.modules['torch'] = None;"  # importing it fails
        f"sys.path.insert(0, {str(ROOT)!r}); from magneto.cli import main; main()"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )


Call = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("argument", "meant"),
    [
        ("prompt=The [MASK] of the Union.", "The [MASK] of the Union."),
        ("prompt=[MASK] fellow Americans, we", "[MASK] fellow Americans, we"),
        (r"prompt=isn't it; (a)? x=1 {b} \\", r"isn't it; (a)? x=1 {b} \\"),
        ("prompt='tis the season", "'tis the season"),
        ("prompt=it costs ${name}, or 1.5e3", "it costs ${name}, or 1.5e3"),
        ("prompt=1.50", "1.50"),
        ("prompt=['one, two','three']", ["one, two", "three"]),
        ("prompt='quoted, already'", "quoted, already"),
        ("prompt=null", None),
        ("input=recordings/a (1), take=2.wav", "recordings/a (1), take=2.wav"),
        ("runs_dir=~/my images (1)", "~/my images (1)"),
        ("predict.query=a red, round apple?", "a red, round apple?"),
        ("optimizer.lr=2e-3", 2e-3),
    ],
)
def test_sentences_and_paths_mean_what_they_say(argument: str, meant: object) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", [literal(argument)])
    assert OmegaConf.select(config, argument.partition("=")[0]) == meant


@pytest.mark.parametrize("arguments", [("task=asr", "optimzer.lr=1"), ("task=asr", "optimizer.lr=${x}")])
def test_cheap_refusal_imports_no_torch(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """torch, Lightning and torchmetrics take ten times as long as the answer."""
    done = without_torch(*arguments, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: "), done.stderr
    assert not list(tmp_path.iterdir())


def test_finished_run_needs_no_torch(tmp_path: Path) -> None:
    """Only the run's folder is read: config.yaml, as this configuration would write it, and result.json."""
    arguments = ("task=asr", "seed=3", f"runs_dir={tmp_path}")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = schema.to_dict(compose("config", list(arguments)))
    folder = run_folder.run_folder(config, arguments)
    folder.path.mkdir(parents=True)
    folder.config.write_text(yaml.safe_dump(config))
    result = RunResult.of_config(config, folder.path.name, status="finished", metrics={"test/cer": 0.125})
    folder.write_result(replace(result, primary_metric="test/cer"))
    done = without_torch(*arguments)
    assert done.returncode == 0 and "already" in done.stdout and "0.125" in done.stdout, done.stderr


def test_completion_installs_and_completes() -> None:
    """As --hydra-help prints it: eval "$(python run.py -sc install=bash)"."""
    done = magneto("-sc", "install=bash")
    assert done.returncode == 0 and "hydra_bash_completion" in done.stdout
    environment = {**os.environ, "COMP_LINE": "run.py task=asr backbone=", "COMP_POINT": "25"}
    query = [sys.executable, str(ROOT / "run.py"), "-sc", "query=bash"]
    done = subprocess.run(query, env=environment, capture_output=True, text=True, check=True)
    assert "backbone=magneto" in done.stdout.split()


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """`call("task=asr", ...)`: exit code, output and errors of the command line, in this process and an empty folder."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
        try:
            code = main()
        except SystemExit as end:
            code = end.code
        screen = capsys.readouterr()
        return code or 0, screen.out, screen.err

    return run


def test_help_lists_the_choices(call: Call) -> None:
    code, out, _ = call("--help")
    assert (
        code == 0 and "backbone: complete_p, deepnorm, hybrid_norm" in out and "optimizer: adam, adamw" in out
    )


@pytest.mark.parametrize("arguments", ["--help", "task=asr --cfg job"])
def test_output_into_an_ended_pipe(arguments: str) -> None:
    """`python run.py --help | head` ends without a traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *arguments.split()],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, "")


def test_unwritable_runs_dir_of_a_sweep(tmp_path: Path, call: Call) -> None:
    (tmp_path / "file").write_text("in the way")
    code, _, errors = call("-m", "task=asr", "seed=1,2", f"runs_dir={tmp_path / 'file'}")
    assert code == 2 and errors.startswith(f"error: runs_dir={tmp_path / 'file'}: cannot be written")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "task= is missing. Choose from task=asr"),
        (("task=asr", "backbone=magnet0"), "Did you mean 'magneto'"),
        (("task=asr", "backbone={a:", "b}"), "b}: not of the form KEY=VALUE. Quote a value"),
        (("task=asr", "optimzer.lr=1"), "Did you mean 'optimizer.lr'"),
        (("mode=predict", "checkpoint=nowhere.ckpt", "input=a.wav"), "nowhere.ckpt: no such file"),
        (("mode=predict", "input=a.wav"), "needs checkpoint="),
        (("task=asr", "size=null"), "size=null: leave it out"),
        (("-m", "task=asr", "trainer=ddp", "trainer.accelerator=cpu"), "without -m"),
    ],
)
def test_mistakes_end_with_one_message(
    arguments: tuple[str, ...], message: str, overrides: list[str], call: Call
) -> None:
    """And without a traceback."""
    use = [one for one in overrides if one != "task=asr"] if "task=asr" in arguments else []
    code, out, errors = call(*arguments, *use)
    assert code and message in errors
    assert "Traceback" not in out + errors


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_signals_leave_a_run_that_continues(
    overrides: list[str], tmp_path: Path, number: signal.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    """To metrics and losses that are identical to those of an unbroken run."""
    long = [*overrides, "trainer.max_steps=300", "trainer.val_check_interval=125"]
    whole = drive(long, "name=whole")
    folder = tmp_path / "runs/asr/parts"
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), *long, "name=parts"],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not ((folder / "metrics.csv").exists() and len(training_losses(folder)) >= 6):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130, errors
        assert "repeat the command to resume" in errors
        assert json.loads((folder / "result.json").read_text())["status"] == "interrupted"
    with caplog.at_level("INFO", "magneto"):
        again = drive(long, "name=parts")
    assert "resuming from" in caplog.text
    assert again["metrics"] == whole["metrics"]
    assert training_losses(folder) == training_losses(whole["folder"])


def test_full_disk_keeps_the_last_checkpoint(overrides: list[str], tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes writes of more than 50 kB fail as a full disk does: the message says what to do."""
    drive(overrides, "mode=prepare")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(MagnetoError, match="cannot be written.*repeat the command"):
            drive(overrides, "name=full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "runs/asr/full/checkpoints").iterdir()), "no half-written checkpoint"
    assert drive(overrides, "name=full")["status"] == "finished"
