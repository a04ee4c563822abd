"""Refusals before a run: by key and remedy, with nothing fetched and nothing left on the disk."""

import logging
import zipfile
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from magneto.commands import preflight, trainer
from magneto.config import groups, schema
from magneto.data.corpora.speech.librispeech import LibriSpeechReader
from magneto.data.module import DataModule
from magneto.errors import MagnetoError
from magneto.training import devices
from tests.toys.runs import drive

TORCHRUN = {
    "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0",
    "MASTER_ADDR": "localhost", "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "none",
}  # fmt: skip
SLURM = {
    "SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
}  # fmt: skip
SRUN = SLURM | {"SLURM_STEP_NUM_TASKS": "1"}


@pytest.fixture
def settings(text_overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Overrides of a small language model; preparing its data is an error."""

    def prepare(self: DataModule) -> None:
        raise AssertionError("data was prepared")

    monkeypatch.setattr("magneto.data.text.module.TextDataModule.prepare", prepare)
    return [*text_overrides, "task=causal_lm"]


def refusal(settings: list[str], *overrides: str) -> str:
    with pytest.raises(MagnetoError) as caught:
        drive(settings, *overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.accelerator=gpu", "trainer.accelerator=gpu: torch finds no GPU"),
        ("trainer.accelerator=abacus", "trainer: You selected an invalid accelerator name"),
        ("trainer.devices=1.5", "trainer.devices=1.5: input should be a valid integer"),
        ("trainer.max_steps=abc", "trainer.max_steps=abc: input should be a valid integer"),
        ("trainer.precision=16-mixed", "trainer.precision=16-mixed: must be one of auto"),
        ("trainer.precision=bf16-true", "trainer.precision=bf16-true is not supported: weights and the residual stream"),
        ("trainer.limit_val_batches=0", "trainer.limit_val_batches=0: input should be greater than or equal to 1 or"),
        ("trainer.limit_test_batches=1.5", "invalid value 1.5 for limit_test_batches"),
        ("trainer.deterministic=maybe", "trainer.deterministic=maybe: input should be a valid boolean or 'warn'"),
        ("~trainer.max_steps", "trainer.max_steps: this key is missing"),
        ("~backbone.placement", "backbone.placement: this key is missing"),
        ("~optimizer.lr", "optimizer.lr: this key is missing"),
        ("+trainer.foo=1", "trainer.foo: there is no such key"),
        ("+trainer.strateg=ddp", "Did you mean 'trainer.strategy'?"),
        ("+trainer.gradient_clip_val=1e-9", "Use optimizer.gradient_clip."),
        ("+trainer.max_time=00:00:00:02", "Use budget=10min or trainer.max_steps"),
        ("budget=10", "budget=10: is no time. Set budget to a number with a unit: 90s, 10min or 2h."),
        ("budget=0min", "budget=0min: is no time"),
        ("+trainer.fast_dev_run=true", "Use debug=default"),
        ("+trainer.max_epochs=2", "Use trainer.max_steps"),
        ("+trainer.profiler=simpl", "trainer: When passing string value for the `profiler`"),
        ("trainer.strategy=nonsense", "trainer.strategy=nonsense is not supported: there is no such strategy"),
        ("trainer.strategy=deepspeed_stage_2", "weight decay, gradient clipping and the export would be wrong"),
        ("trainer.strategy=ddp_spawn", "the metrics and the trained weights would stay in the child processes"),
        ("trainer.strategy=single_device", "it is not tested with magneto"),
        ("seed=-1", "seed=-1: input should be greater than or equal to 0"),
        ("optimizer.lr=${nokey}", "optimizer.lr: Interpolation key 'nokey' not found"),
        ("optimizer.lr=???", "optimizer.lr: Missing mandatory value"),
        ("optimizer.betas=[0.9]", "optimizer.betas=[0.9]: too few values"),
        ("optimizer.name=lion", "optimizer.name=lion: must be one of adamw, adam, sgd, muon"),
        ("scheduler.warmup=5000", "scheduler.warmup=5000 is longer than the run"),
        ("logger.wandb=nonsense", "logger.wandb=nonsense: must be one of"),
        ("backbone.num_layers=0", "backbone.num_layers=0: input should be greater than or equal to 1"),
        ("backbone.num_heads=3", "backbone: d_model=32 does not divide by num_heads=3"),
        ("+task.foo=1", "task.foo: there is no such key"),
        ("task.name=foo", "task.name=foo: the task's name is causal_lm"),
        ("+data.foo=1", "data.foo: there is no such key"),
        ("+data.corpora.text_files.foo=1", "data.corpora.text_files.foo: there is no such key"),
        ("+data.corpora.foo=1", "data.corpora.foo=1: this is no corpus"),
        ("data.corpora.text_files.path=3", "data.corpora.text_files.path=3: input should be a valid string"),
        ("data.block_size=abc", "data.block_size=abc: input should be a valid integer"),
        ("init_from=hf:", "init_from=hf:: there is nothing with this name"),
        ("resume=/nowhere.ckpt", "resume=/nowhere.ckpt: no such file"),
        ("checkpoint=RUN", "checkpoint=RUN has no effect with mode=train. Use init_from="),
        ("input=a.txt", "input=a.txt has no effect with mode=train"),
        ("predict.top_k=4", "predict.top_k=4 has no effect with mode=train"),
        ("+optimzer.lr=1", "optimzer: there is no such key. Did you mean 'optimizer'?"),
    ],
)  # fmt: skip
def test_refused_before_anything(override: str, message: str, settings: list[str], tmp_path: Path) -> None:
    """Each has one message; there is no run folder, no data folder, nothing."""
    assert message in refusal(settings, override)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+trainer.foo=1", "trainer.foo: there is no such key"),
        ("input=a.txt", "input=a.txt has no effect with mode=test"),
        ("predict.top_k=4", "predict.top_k=4 has no effect with mode=test"),
        ("checkpoint=/nowhere.ckpt", "checkpoint /nowhere.ckpt: no such file"),
        ("checkpoint=null", "mode=test needs checkpoint="),
    ],
)
def test_mode_test_is_checked_too(override: str, message: str, settings: list[str], tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "model.ckpt", "w"):
        pass
    assert message in refusal([*settings, "mode=test", f"checkpoint={tmp_path / 'model.ckpt'}"], override)


@pytest.mark.parametrize(
    ("overrides", "environment", "processes"),
    [
        (["trainer.num_nodes=2"], {}, "without torchrun or srun"),
        ([], {"NODE_RANK": "1"}, "without torchrun or srun"),
        ([], TORCHRUN, "torchrun starts 2 processes, but trainer.devices=1"),
        (["trainer.devices=4", "trainer.strategy=ddp"], TORCHRUN, "torchrun starts 2 processes"),
        ([], SRUN | {"SLURM_NTASKS": "4"}, "Use `--ntasks-per-node=4` instead"),
        ([], SRUN | {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4"}, "SLURM starts 4 processes"),
        (["trainer.devices=2"], SRUN | {"SLURM_NTASKS": "1"}, "SLURM starts 1 processes, but trainer.devices=2"),
        ([], {}, 1),
        (["trainer=ddp"], {}, 2),
        (["trainer=ddp"], TORCHRUN, 2),
        ([], SLURM | {"SLURM_NTASKS": "4"}, 1),  # the batch script itself
        ([], SRUN | {"SLURM_NTASKS": "1"}, 1),
        (["trainer=ddp"], SRUN | {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}, 2),
    ],
)  # fmt: skip
def test_processes_are_those_of_the_trainer(
    overrides: list[str], environment: dict[str, str], processes: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each process would train alone and write into the same folder."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with initialize_config_dir(str(groups.CONF), version_base="1.3"):
        config = schema.to_dict(compose("config", ["task=asr", "trainer.accelerator=cpu", *overrides]))
    settings = trainer.trainer_config(config["trainer"])
    if isinstance(processes, int):
        assert trainer.lightning_trainer(settings, logger=False).world_size == processes
    else:
        with pytest.raises(MagnetoError, match=processes):
            trainer.lightning_trainer(settings, logger=False)


def test_limit_below_one_batch_is_one_message(text_overrides: list[str]) -> None:
    """How many batches there are is known only with the data."""
    message = refusal([*text_overrides, "task=causal_lm"], "trainer.limit_val_batches=0.001")
    assert message.startswith("trainer: ") and "limit_val_batches" in message


@pytest.mark.parametrize(
    ("key", "folder"),
    [("runs_dir", "/proc/nowhere"), ("data_dir", "FILE/below"), ("output", "/proc/nowhere/x")],
)
def test_unwritable_folder(key: str, folder: str, settings: list[str], tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "file", "w") as file:
        file.writestr("a", "b")
    folder = folder.replace("FILE", str(tmp_path / "file"))
    mode = ["mode=export", f"checkpoint={tmp_path / 'file'}"] if key == "output" else []
    message = refusal(settings, *mode, f"{key}={folder}")
    assert message.startswith(f"{key}: {folder}") and "cannot be written" in message
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_free_space_for_librispeech(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """960 hours: archives of 6.3, 23, 30, 0.33 and 0.33 GB (59.96), and as much for the features."""
    usage = type("Usage", (), {"free": 40 * 10**9})
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: usage)
    train = "data.corpora.librispeech.train=[train-clean-100,train-clean-360,train-other-500]"
    asr = ["task=asr", "data=librispeech", f"data_dir={tmp_path}/data", f"runs_dir={tmp_path}/runs"]
    assert "needs about 119.9 GB, and 40.0 GB are free" in refusal(asr, train)
    assert not list(tmp_path.iterdir())


def test_bytes_that_are_there_are_not_needed(tmp_path: Path) -> None:
    """100 hours: 6.3 + 2 x 0.33 GB, as much for features; the archive is removed before they are computed."""
    source = LibriSpeechReader()
    assert source.missing_bytes(tmp_path) == 2 * 6_960 * 10**6
    (tmp_path / "raw/LibriSpeech/train-clean-100").mkdir(parents=True)
    assert source.missing_bytes(tmp_path) == (2 * 330 + 6_960) * 10**6
    assert LibriSpeechReader(folder=str(tmp_path)).missing_bytes(tmp_path) == 6_960 * 10**6


def test_gpu_that_torch_cannot_use_is_named(
    settings: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A driver that is too old for torch's CUDA must not mean a silent run on the CPU."""
    monkeypatch.setattr(devices.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with (
        caplog.at_level(logging.WARNING, "magneto"),
        pytest.raises(AssertionError, match="data was prepared"),
    ):
        drive(settings, "trainer.accelerator=auto")
    assert f"torch {torch.__version__} cannot use it" in caplog.text
    assert "cannot use it" in refusal(settings, "trainer.accelerator=gpu")


def test_emulated_bf16_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A T4 says that it supports bf16, by emulation, which is slower than fp32."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert devices.precision("auto", "gpu") == "32-true"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert devices.precision("auto", "gpu") == "bf16-mixed"


def test_compute_settings_end_with_their_block() -> None:
    before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    with devices.compute_settings(1, "high"):
        assert torch.get_num_threads() == 1 and torch.get_float32_matmul_precision() == "high"
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == before


@pytest.mark.parametrize(("setting", "enabled"), [("auto", False), ("32-true", False), ("bf16-mixed", True)])
def test_predictions_on_a_cpu_are_in_fp32(setting: str, enabled: bool) -> None:
    """Unless bf16 is asked for."""
    with devices.prediction_autocast(setting, "cpu"):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert (product.dtype == torch.bfloat16) == enabled
