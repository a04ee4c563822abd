"""The command line as a user meets it: separate processes, exit codes, messages without tracebacks."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from magneto.cli import literal
from magneto.config import schema
from magneto.config.groups import CONF
from magneto.training import run_folder
from tests.small_runs import SHORT, SMALL, folders
from tests.toy_captions import KINDS, caption_settings, write_squares

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


def losses(folder: Path) -> list[float]:
    with (folder / "metrics.csv").open() as file:
        return [float(value) for _, name, value in csv.reader(file) if name == "train/loss"]


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


@pytest.mark.parametrize(
    "arguments",
    [(), ("task=asr", "optimzer.lr=1"), ("task=asr", "+foo=1"), ("task=asr", "optimizer.lr=${x}")],
)
def test_cheap_refusal_imports_no_torch(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """torch, Lightning and torchmetrics take ten times as long as the answer."""
    done = without_torch(*arguments, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: "), done.stderr
    assert not list(tmp_path.iterdir())


def test_finished_run_is_told_without_torch(tmp_path: Path) -> None:
    """Only the run's folder is read: config.yaml, as this configuration would write it, and result.json."""
    arguments = ("task=asr", "seed=3", f"runs_dir={tmp_path}")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = schema.to_dict(compose("config", list(arguments)))
    folder = run_folder.run_folder(config, arguments)
    folder.path.mkdir(parents=True)
    folder.config.write_text(yaml.safe_dump(config))
    folder.write_result({"status": "finished", "primary_metric": "test/cer", "metrics": {"test/cer": 0.125}})
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


@pytest.mark.parametrize("where", ["--config-dir={}", "hydra.searchpath=[file://{}]"])
def test_own_configuration_folder(where: str, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text("# @package _global_\ntrainer: {max_steps: 77}\n")
    done = magneto(where.format(tmp_path), "task=asr", "+experiment=mine", "--cfg", "job", cwd=tmp_path)
    assert done.returncode == 0 and "max_steps: 77" in done.stdout, done.stderr


def test_help_lists_the_choices() -> None:
    done = magneto("--help")
    assert done.returncode == 0
    assert "backbone: deepnorm, magneto, normformer, post_ln, pre_ln" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "task= is missing. Choose from task=asr"),
        (("task=asr", "backbone=magnet0"), "Did you mean 'magneto'"),
        (("task=asr", "optimzer.lr=1"), "Did you mean 'optimizer.lr'"),
        (("task=asr", "optimizer.lrr=1"), "Did you mean 'optimizer.lr'"),
        (("task=asr", "data=librispech"), "Did you mean 'librispeech'"),
        (("task=asr", "backbone.num_heads=3"), "num_heads"),
        (("mode=predict", "checkpoint=nowhere.ckpt", "input=a.wav"), "nowhere.ckpt: no such file"),
        (("mode=predict", "input=a.wav"), "needs checkpoint="),
        (("task=asr", "size=null"), "size=null: leave it out"),
        (("-m", "task=asr", "trainer=ddp", "trainer.accelerator=cpu"), "without -m"),
        (("task=asr", "trainer.threads=two"), "trainer.threads=two: input should be a valid integer"),
        (("task=asr", "trainer.accumulate_grad_batches=0"), "greater than or equal to 1"),
        (("task=asr", "trainer.compile=maybe"), "trainer.compile=maybe: input should be a valid boolean"),
    ],
)
def test_a_mistake_ends_with_one_message_and_no_traceback(
    arguments: tuple[str, ...], message: str, overrides: list[str], tmp_path: Path
) -> None:
    small = [o for o in overrides if not o.startswith(("task=", "data=", "backbone.num_heads"))]
    use = [o for o in small if not o.startswith("data.")] if "data=" in " ".join(arguments) else []
    if "task=asr" in arguments and not use and "data=" not in " ".join(arguments):
        use = ["data=manifest", *small]
    done = magneto(*arguments, *use, cwd=tmp_path)
    assert done.returncode not in (0, None)
    assert message in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
def test_two_processes_give_the_curve_of_one_with_twice_the_batch(
    overrides: list[str], tmp_path: Path
) -> None:
    same = [*overrides, "backbone.dropout=0", "callbacks.probe_every=0"]
    one = magneto(*same, "name=one", "data.batch_frames=1600", cwd=tmp_path)
    assert one.returncode == 0, one.stderr
    two = magneto(
        *same, "name=two", "data.batch_frames=800", "trainer=ddp", "trainer.devices=2", cwd=tmp_path
    )
    assert two.returncode == 0, two.stderr
    run_folder = tmp_path / "runs/asr"
    assert losses(run_folder / "two") == pytest.approx(losses(run_folder / "one"), rel=1e-4)
    results = [
        json.loads((run_folder / name / "result.json").read_text())["metrics"] for name in ("one", "two")
    ]
    assert results[1]["test/cer"] == pytest.approx(results[0]["test/cer"])
    assert results[1]["test/loss"] == pytest.approx(results[0]["test/loss"], rel=1e-3)


@pytest.mark.slow
def test_two_processes_train_vision_and_language_with_both_losses(prepared_dir: Path, tmp_path: Path) -> None:
    """Pairs are compared over both processes, and every expert of the Multiway stack gets its gradient in each."""
    same = [
        "task=vl", *caption_settings(write_squares(tmp_path / "squares")), *folders(prepared_dir, tmp_path), *SMALL, *SHORT,
        "trainer.max_steps=8", "data.batch_size=12", "task.losses={masked: 1, contrastive: 1}", "data.masking={}",
        "task.target=random_projection", "task.random_codes=32", "backbone.fusion_layers=1", "backbone.drop_path=0",
    ]  # fmt: skip
    two = magneto(*same, "name=two", "trainer=ddp", cwd=tmp_path)
    assert two.returncode == 0, two.stderr
    result = json.loads((tmp_path / "runs/vl/two/result.json").read_text())
    assert result["status"] == "finished" and result["steps"] == 8
    assert result["data_facts"]["evaluation"]["test"]["images"] == KINDS, (
        "both processes' parts are one gallery"
    )
    curve = losses(tmp_path / "runs/vl/two")
    assert curve[-1] < curve[0]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_leaves_a_run_that_goes_on_to_identical_metrics(
    overrides: list[str], tmp_path: Path, number: signal.Signals
) -> None:
    long = [*overrides, "trainer.max_steps=300", "trainer.val_check_interval=125"]
    whole = magneto(*long, "name=whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    folder = tmp_path / "runs/asr/parts"
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), *long, "name=parts"],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not ((folder / "metrics.csv").exists() and len(losses(folder)) >= 6):
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
    again = magneto(*long, "name=parts", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "resuming from" in again.stderr
    metrics = [
        json.loads((tmp_path / f"runs/asr/{name}/result.json").read_text())["metrics"]
        for name in ("whole", "parts")
    ]
    assert metrics[0] == metrics[1]
    assert losses(folder) == losses(tmp_path / "runs/asr/whole")


@pytest.mark.slow
def test_a_sweep_survives_a_failing_job_and_ends_with_a_report(overrides: list[str], tmp_path: Path) -> None:
    sweep = [o for o in overrides if not o.startswith("backbone.num_heads")]
    done = magneto("-m", *sweep, "backbone=pre_ln,magneto", "backbone.num_heads=2,3", "seed=1", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("backbone.num_heads=3") >= 2, "the failed jobs are named"
    (report,) = (tmp_path / "runs/asr/reports").glob("*/report.md")
    text = report.read_text()
    assert "magneto" in text and "pre_ln" in text
    jobs = [line for line in done.stdout.splitlines() if line.startswith("job ")]
    assert jobs[0] == "job 1 of 4: backbone=pre_ln backbone.num_heads=2" and jobs[-1].startswith(
        "job 4 of 4: "
    )
    assert (report.parent / "report.html").exists()
    again = magneto("-m", *sweep, "backbone=pre_ln,magneto", "backbone.num_heads=2", "seed=1", cwd=tmp_path)
    assert again.returncode == 0, "finished runs are found again"
    assert "already finished" in again.stdout


def test_a_full_disk_keeps_the_last_checkpoint_and_says_what_to_do(
    overrides: list[str], tmp_path: Path
) -> None:
    """RLIMIT_FSIZE makes writes of more than 50 kB fail as a full disk does."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000));"
        f"sys.argv = ['run.py', *sys.argv[1:]]; sys.path.insert(0, {str(ROOT)!r});"
        "from magneto.cli import main; main()"
    )
    prepared = magneto("mode=prepare", *overrides, cwd=tmp_path)
    assert prepared.returncode == 0, prepared.stderr
    done = subprocess.run(
        [sys.executable, "-c", code, *overrides, "name=full"], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "cannot be written" in done.stderr and "repeat the command" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "runs/asr/full/checkpoints").iterdir()), "no half-written checkpoint"
    assert magneto(*overrides, "name=full", cwd=tmp_path).returncode == 0
