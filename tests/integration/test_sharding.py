"""Several processes that share each batch, with copies of the weights or with parts of them: the results of one process."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

import magneto
from magneto.config.groups import CONF
from magneto.errors import DataError
from magneto.training import checkpoint_io
from tests.integration.test_golden_curves import CASES
from tests.toys.processes import ROOT, free_port, run_jobs
from tests.toys.runs import drive, training_losses, values

STEPS = ("trainer.max_steps=6", "trainer.val_check_interval=3", "trainer.log_every_n_steps=1")
ALONE = {"visual_tokenizer": "", "vl_masked": "", "vl": "/loss"}
"""Cases and names where a process's own examples decide: the first centres of a codebook, which of a batch are texts, images
and pairs, and what a pair is compared with in an evaluation."""
STILL = ("backbone.dropout=0", "backbone.drop_path=0")
"""Each process would draw masks of its own."""


def shared(settings: Sequence[str]) -> list[str]:
    """The settings with the batch of one process as that of all together."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", list(settings))
    data = config.data
    key = next(key for key in ("batch_size", "batch_frames", "batch_tokens") if key in data)
    head = ["task.head_dropout=0"] if "head_dropout" in config.task else []
    return [*settings, *STEPS, *STILL, *head, f"data.global_batch={data[key]}"]


def curve(folder: Path) -> dict[str, float]:
    """Every logged number by step and name, but those of the clock and those that the first process measures of its part."""
    return {
        f"{step} {name}": float(value)
        for step, name, value in values(folder)[1:]
        if not name.startswith("probe/") or name.startswith(("probe/update_to_weight", "probe/grad"))
    }


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_processes_have_the_curve_of_one(count: int, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Every task, by copies and by parts of the weights; with parts as with copies."""
    jobs: list[list[str]] = []
    expected: dict[str, Path] = {}
    for case in CASES if count == 2 else ("causal_lm", "asr", "vl"):
        (tmp_path / case).mkdir()
        settings = [*shared(CASES[case](request, tmp_path / case)), f"runs_dir={tmp_path / case / 'runs'}"]
        expected[case] = Path(drive(settings, "name=one")["folder"]).parent
        jobs += [
            [*settings, f"name={strategy}", f"trainer.strategy={strategy}", f"trainer.devices={count}"]
            for strategy in ("ddp", "fsdp")
        ]
    run_jobs(count, jobs, tmp_path)
    differing = []
    for case, runs in expected.items():
        one, ddp, fsdp = (
            curve(runs / name) | json.loads((runs / name / "result.json").read_text())["metrics"]
            for name in ("one", "ddp", "fsdp")
        )
        skipped = ALONE.get(case)
        of_one = {
            name: value for name, value in one.items() if skipped is None or (skipped and skipped not in name)
        }
        for kind, found, wanted in (
            ("ddp", ddp, of_one),
            ("fsdp", fsdp, of_one),
            ("fsdp and ddp", fsdp, ddp),
        ):
            differing += [
                (case, kind, name, found.get(name), value)
                for name, value in wanted.items()
                if found.get(name) != pytest.approx(value, rel=1e-5, abs=1e-6, nan_ok=True)
            ]
    assert not differing, "\n".join(map(str, differing))


AVERAGES = {"adamw": "callbacks.ema_decay=0.8", "muon": "callbacks.average_last=2"}


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", AVERAGES)
def test_a_sharded_run_goes_on(
    optimizer: str, request: pytest.FixtureRequest, tmp_path: Path, text_overrides: list[str]
) -> None:
    """Stopped and repeated it has the same numbers to the last bit; with other processes, or copies, to rounding."""
    settings = [
        *shared(CASES["causal_lm"](request, tmp_path)), f"optimizer={optimizer}", AVERAGES[optimizer],
        "callbacks.save_every=1", "callbacks.probe_every=0",
    ]  # fmt: skip
    two = [*settings, "trainer.strategy=fsdp", "trainer.devices=2"]
    stopped = [["stop_at=4", *two, f"name={name}"] for name in ("parts", "one", "four", "copies")]
    run_jobs(2, [[*two, "name=whole"], *stopped, [*two, "name=parts"]], tmp_path)
    runs = tmp_path / "runs/causal_lm"
    content = checkpoint_io.read_checkpoint(runs / "four/checkpoints/last.ckpt")
    assert content["global_step"] == 5
    assert sorted(path.name for path in (runs / "four/checkpoints").glob("*.ckpt")) == [
        "best.ckpt",
        "last.ckpt",
    ]
    drive(settings, "name=one")
    run_jobs(4, [[*settings, "trainer.strategy=fsdp", "trainer.devices=4", "name=four"]], tmp_path)
    run_jobs(2, [[*settings, "trainer.strategy=ddp", "trainer.devices=2", "name=copies"]], tmp_path)
    assert values(runs / "parts") == values(runs / "whole")
    whole = json.loads((runs / "whole/result.json").read_text())["metrics"]
    for name in ("one", "four", "copies"):
        assert training_losses(runs / name) == pytest.approx(training_losses(runs / "whole"), rel=1e-6), name
        result = json.loads((runs / name / "result.json").read_text())
        assert result["metrics"] == pytest.approx(whole, rel=1e-5), name
    exported = [magneto.load(runs / name).state_dict() for name in ("one", "whole")]
    assert all(torch.allclose(exported[1][name], value, atol=1e-5) for name, value in exported[0].items())
    best = f"checkpoint={runs / 'whole/checkpoints/best.ckpt'}"
    export = drive([*settings, "mode=export", best, f"output={tmp_path / 'exported'}"])
    assert Path(export["folder"], "model.safetensors").is_file()
    tested = drive([*settings, "mode=test", best])
    assert Path(tested["file"]).parent == runs / "whole", "beside the run's own results"
    _holds_half(runs / "whole/checkpoints/last.ckpt")
    _names_missing_shards(runs / "whole/checkpoints/last.ckpt")


def _holds_half(folder: Path) -> None:
    """Each process has half of the weights and of the optimizer's state."""
    sizes = [path.stat().st_size for path in sorted(folder.glob("shard-*.safetensors"))]
    content = checkpoint_io.read_checkpoint(folder)
    state = [
        tensor
        for values_ in content["optimizer_states"][0]["state"].values()
        for tensor in values_.values()
        if isinstance(tensor, torch.Tensor)
    ]
    weights = [*content["state_dict"].values(), *content.get("current_model_state", {}).values()]
    whole = sum(tensor.numel() * tensor.element_size() for tensor in (*state, *weights))
    assert len(sizes) == 2 and max(sizes) < 0.6 * whole


def _names_missing_shards(folder: Path) -> None:
    (folder / "shard-00002-model-00001-of-00001.safetensors").unlink()
    with pytest.raises(DataError, match="a part of .* is missing.*Use the other checkpoint"):
        checkpoint_io.read_checkpoint(folder)
    (folder / "rest.pt").write_bytes(b"")
    with pytest.raises(DataError, match="cannot be read"):
        checkpoint_io.read_checkpoint(folder)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_killed_process_loses_nothing(
    strategy: str, request: pytest.FixtureRequest, tmp_path: Path, text_overrides: list[str]
) -> None:
    """Whichever process is killed within a step, the command repeated has the same numbers and weights to the last bit."""
    settings = [
        *shared(CASES["causal_lm"](request, tmp_path)), "callbacks.save_every=1",
        f"trainer.strategy={strategy}", "trainer.devices=2",
    ]  # fmt: skip
    for rank in (0, 1):
        with pytest.raises(AssertionError):
            run_jobs(2, [[f"kill_at={rank}:3", *settings, f"name=killed-{rank}"]], tmp_path)
    run_jobs(2, [[*settings, f"name={name}"] for name in ("whole", "killed-0", "killed-1")], tmp_path)
    runs = tmp_path / "runs/causal_lm"
    whole = checkpoint_io.read_checkpoint(runs / "whole/checkpoints/last.ckpt")["state_dict"]
    for name in ("killed-0", "killed-1"):
        assert "resuming from" in (runs / name / "log.txt").read_text(), "it went on"
        assert values(runs / name) == values(runs / "whole")
        weights = checkpoint_io.read_checkpoint(runs / name / "checkpoints/last.ckpt")["state_dict"]
        assert all(torch.equal(weights[key], value) for key, value in whole.items())


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_torchruns_are_two_nodes(
    strategy: str, request: pytest.FixtureRequest, tmp_path: Path, text_overrides: list[str]
) -> None:
    """The command of docs/cluster.md, each in a process group of its own, as two machines run it."""
    settings = [*shared(CASES["causal_lm"](request, tmp_path)), "callbacks.probe_every=0"]
    drive(settings, "name=one")
    port = free_port()
    nodes = [
        subprocess.Popen(
            [
                sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d",
                f"--rdzv-endpoint=localhost:{port}", str(ROOT / "run.py"), *settings, "name=nodes",
                f"trainer={strategy}", "trainer.devices=1", "trainer.num_nodes=2", "trainer.accelerator=cpu",
            ],
            cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]  # fmt: skip
    errors = [node.communicate(timeout=400)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], errors
    runs = tmp_path / "runs/causal_lm"
    assert training_losses(runs / "nodes") == pytest.approx(training_losses(runs / "one"), rel=1e-6)
    assert json.loads((runs / "nodes/result.json").read_text())["world_size"] == 2
