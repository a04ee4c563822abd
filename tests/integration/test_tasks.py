"""What every task does alike: train, resume bit by bit, predict from all that a run leaves, take every backbone."""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import magneto
from magneto.commands import build
from magneto.config.groups import CONF
from magneto.errors import MagnetoError
from magneto.nn import PLACEMENTS
from magneto.tasks.base import Task
from magneto.tasks.registry import task_class
from magneto.training.module import TrainingModule
from tests.integration.test_golden_curves import CASES
from tests.integration.test_old_exports import OLD, answers
from tests.toys.runs import drive, training_losses, values

Run = Callable[..., dict[str, Any]]
every_case = pytest.mark.parametrize("case", CASES)


@pytest.fixture(scope="module")
def kept() -> dict[str, Any]:
    """What the tests of a case share: its settings, with its prepared data, and a finished run."""
    return {}


@pytest.fixture
def run(
    case: str,
    kept: dict[str, Any],
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
) -> Run:
    """`run("seed=2", ...)`: a small, deterministic run of the case; each test has a folder of runs of its own."""
    if case not in kept:
        kept[case] = CASES[case](request, tmp_path_factory.mktemp(case))
    return partial(drive, [*kept[case], f"runs_dir={tmp_path / 'runs'}"])


@pytest.fixture
def trained(
    case: str, run: Run, kept: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The result of one run of twenty steps."""
    key = f"{case}, trained"
    if key not in kept:
        kept[key] = run("name=one", f"runs_dir={tmp_path_factory.mktemp('runs')}")
    return dict(kept[key])


def batch_of(result: dict[str, Any]) -> dict[str, Any]:
    """The first batch of the run's test split."""
    data = build.build_data(yaml.safe_load((Path(result["folder"]) / "config.yaml").read_text())["data"])
    data.setup("test")
    return next(iter(data.test_dataloader()))


@every_case
def test_run_leaves_results_and_samples(case: str, trained: dict[str, Any]) -> None:
    """All that the report and a user need."""
    folder = Path(trained["folder"])
    stored = json.loads((folder / "result.json").read_text())
    task = magneto.load(folder)
    assert stored["status"] == "finished" and stored["steps"] == 20
    assert stored["monitor"]["metric"] == task.monitor and stored["monitor"]["mode"] == task.mode
    assert stored["primary_metric"] in stored["metrics"]
    assert {"val/loss", "test/loss", task.monitor} <= stored["metrics"].keys()
    assert all(math.isfinite(value) for value in stored["metrics"].values())
    assert stored["throughput"]["model_flops_per_s"] > 0 and stored["throughput"]["examples_per_s"] > 0
    assert stored["parameters"] == task.num_parameters
    rows = values(folder)
    assert [step for step, name, _ in rows if name == "val/loss"] == ["8", "16", "20"]
    assert [step for step, name, _ in rows if name == "train/loss"] == [str(step) for step in range(2, 21, 2)]
    losses = training_losses(folder)
    assert min(losses[-3:]) < losses[0]
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    if task.monitor == "val/loss" or case != "vl_masked":
        assert {sample["split"] for sample in samples} == {"val", "test"}
    for sample in samples:
        assert sample["id"] and sample["kind"]
        assert "image" not in sample or (folder / sample["image"]).is_file()


AUGMENTED = "data.augment={crop_scale: [0.6, 1.0]}"
DROPPED = ("backbone.dropout=0.1", "backbone.drop_path=0.1")
PROBE = ("task.linear_probe=true", "task.layers=[0,1]", "task.pool_grid=2", "task.cache_features=true")
AVERAGED = ("callbacks.average_last=2", "trainer.accumulate_grad_batches=2")
RANDOM = {
    "asr_transducer": ("backbone.dropout=0.1", "task.predictor_dropout=0.1", "task.intermediate_losses=1"),
    "causal_lm": ("backbone.dropout=0.1",),
    "mlm": ("backbone.dropout=0.1", "data.masking.span=2"),
    "visual_tokenizer": ("task.revive_below=0.5", AUGMENTED),
    "beit": (*DROPPED, AUGMENTED),
    "image_classification": (
        "backbone.image_stem=convolutional",
        "task.mixup=0.8",
        "task.cutmix=1.0",
        "task.head_dropout=0.1",
        *DROPPED,
    ),
    "segmentation": (*DROPPED, "data.augment={scale: [0.5, 2.0], flip: true, color_jitter: 0.2}"),
    "vl": (*DROPPED, AUGMENTED),
    "vl_masked": (*DROPPED, AUGMENTED),
    "vl_classification": (*DROPPED, "data.augment={crop_scale: [0.7, 1.0], flip: true}"),
}
"""Whatever a case can draw at random."""
STOPS = [
    *((case, 4, RANDOM.get(case, ())) for case in CASES),
    ("asr", 8, ("callbacks.ema_decay=0.9",)),
    ("asr", 20, ("trainer.accumulate_grad_batches=2",)),
    ("mt", 8, AVERAGED),
    ("mt", 20, AVERAGED),
    ("image_classification", 12, PROBE),
    ("causal_lm", 8, ("optimizer=muon", "scheduler=wsd")),
    ("vl_classification", 12, ("optimizer=muon",)),
]
"""Between two validations, at one, and after the last step, before the test."""


@pytest.mark.parametrize(("case", "stop_at", "extra"), STOPS)
def test_killed_run_resumes_bit_identically(
    case: str, stop_at: int, extra: tuple[str, ...], run: Run, resumes_identically: Run
) -> None:
    """Metrics, curves, weights, samples and translations are those of a run that nobody killed."""
    parts = Path(resumes_identically(run, *extra, stop_at=stop_at)["folder"])
    whole = parts.with_name("whole")
    written = [path.name for path in whole.iterdir() if path.name.startswith("test.")]
    for name in ("samples.jsonl", "export/model.safetensors", *written):
        assert (parts / name).read_bytes() == (whole / name).read_bytes(), name
    kept = [
        sorted(path.name for path in (folder / "checkpoints").glob("weights-*")) for folder in (parts, whole)
    ]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("case", ["causal_lm"])
def test_a_longer_run_begins_before_the_decay(case: str, run: Run) -> None:
    """And is the run that was planned for its length: one stable part serves several horizons."""
    wsd = ("scheduler=wsd", "scheduler.warmup=2", "scheduler.decay=5")
    whole = run(*wsd, "name=whole")
    short = run(*wsd, "name=short", "trainer.max_steps=12")
    longer = run(*wsd, "name=longer", f"resume={Path(short['folder']) / 'checkpoints/stable.ckpt'}")
    assert longer["metrics"] == whole["metrics"] != short["metrics"]
    exports = [
        (Path(result["folder"]) / "export/model.safetensors").read_bytes() for result in (longer, whole)
    ]
    assert exports[0] == exports[1]


@every_case
def test_all_that_a_run_leaves_predicts_alike(
    case: str, run: Run, trained: dict[str, Any], tmp_path: Path
) -> None:
    """The run's folder, its best checkpoint and an export that was moved away, which is tested alike, too."""
    folder = Path(trained["folder"])
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder / "export", moved)
    expected = answers(case, moved)
    assert expected
    assert answers(case, folder) == answers(case, folder / "checkpoints/best.ckpt") == expected
    tested = run("mode=test", f"checkpoint={moved}")["metrics"]
    assert tested == pytest.approx(
        {name: value for name, value in trained["metrics"].items() if name.startswith("test/")}, rel=1e-5
    )


@every_case
def test_files_hold_tensors_and_plain_values(case: str, trained: dict[str, Any]) -> None:
    """An export is safetensors and JSON, and a checkpoint is read without unpickling anything else."""
    folder = Path(trained["folder"])
    config = json.loads((folder / "export/config.json").read_text())
    weights = load_file(folder / "export/model.safetensors")
    task = magneto.load(folder / "export")
    assert weights.keys() == task.state_dict().keys() and not task.training
    assert config["hyper_parameters"]["info"] == json.loads(json.dumps(task.info.to_dict()))
    assert (folder / "export/tokenizer.json").is_file() == (OLD / case / "tokenizer.json").is_file()
    torch.load(folder / "checkpoints/last.ckpt", weights_only=True)


@every_case
def test_unknown_options_are_refused(case: str, run: Run) -> None:
    """And so is a backbone that the task cannot use."""
    with pytest.raises(MagnetoError, match=r"task\.colour: there is no such key"):
        run("+task.colour=red")
    config = yaml.safe_load((CONF / f"task/{case.removesuffix('_masked')}.yaml").read_text())
    others = {
        "encoder": "decoder",
        "decoder": "encoder",
        "encoder_decoder": "encoder",
        "none": "feed_forward",
    }
    plain = (
        "backbone.decoder_layers=null",
        "backbone.multiway=none",
        "backbone.fusion_layers=0",
        "backbone.position=rotary",
    )
    for key, value in task_class(config["task"]["_target_"]).requires.items():
        other = "learned" if key == "position" else others[value]
        with pytest.raises(MagnetoError, match=f"backbone.{key}={other}: task=.* needs {key}={value}. Set"):
            run(*(plain if key == "architecture" else ()), f"backbone.{key}={other}")


def halves(batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Two micro-batches with the examples of the batch."""
    rows = len(batch["id"])
    for part in (slice(0, rows // 2), slice(rows // 2, rows)):
        yield {key: value[part] if len(value) == rows else value for key, value in batch.items()}


def gradients(task: Task) -> dict[str, torch.Tensor]:
    """The gradient of each parameter that is trained."""
    trained = [(name, parameter) for name, parameter in task.named_parameters() if parameter.requires_grad]
    missing = [name for name, parameter in trained if parameter.grad is None]
    assert not missing, f"other processes would wait for them: {missing}"
    return {name: parameter.grad.clone() for name, parameter in trained if parameter.grad is not None}


@pytest.mark.parametrize(
    "case", [case for case in CASES if not case.startswith("vl") or case == "vl_classification"]
)
def test_two_micro_batches_are_one_batch(case: str, trained: dict[str, Any]) -> None:
    """Losses are sums and so are gradients, whatever is padding. (Contrastive learning compares within a batch.)"""
    batch, task = batch_of(trained), magneto.load(trained["folder"])
    whole = task.step(batch)
    whole.loss_sum.backward()
    expected = gradients(task)
    task.zero_grad()
    parts = [task.step(part) for part in halves(batch)]
    torch.stack([part.loss_sum for part in parts]).sum().backward()
    torch.testing.assert_close(sum(part.loss_sum for part in parts), whole.loss_sum, rtol=1e-4, atol=1e-4)
    assert float(sum(part.weight for part in parts)) == float(whole.weight)
    for name, gradient in gradients(task).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-2, atol=1e-3, msg=name)


@every_case
def test_every_placement_composes(case: str, trained: dict[str, Any]) -> None:
    """A training step of each: every parameter that is trained has a finite gradient."""
    batch, settings = batch_of(trained), dict(magneto.load(trained["folder"]).hparams)
    cls = task_class(settings.pop("task"))
    for placement in PLACEMENTS:
        torch.manual_seed(0)
        task = cls(**{**settings, "backbone": {**settings["backbone"], "placement": placement}}).train()
        loss = task.step(batch).loss_sum
        loss.backward()
        assert loss.isfinite()
        assert all(gradient.isfinite().all() for gradient in gradients(task).values()), placement


LEARNT: dict[str, tuple[float, tuple[str, ...]]] = {
    "asr": (0.35, ("backbone.dropout=0", "optimizer.lr=4e-3")),
    "asr_transducer": (0.1, ("backbone.dropout=0",)),
    "causal_lm": (0.2, ("optimizer.lr=1e-2",)),
    "mlm": (0.1, ()),
    "mt": (0.1, ("data.max_batch_size=16", "optimizer.lr=1e-2", "backbone.dropout=0", "task.label_smoothing=0",
                 "task.val_sentences=0", "task.beam=1")),
    "text_classification": (0.1, ("backbone.dropout=0", "task.head_dropout=0")),
    "visual_tokenizer": (0.5, ()),
    "beit": (0.1, ("data.batch_size=4",)),
    "image_classification": (0.1, ("task.label_smoothing=0", "backbone.drop_path=0")),
    "segmentation": (0.1, ("backbone.drop_path=0", "task.head_dropout=0", "task.auxiliary_weight=0", "optimizer.lr=1e-2")),
    "vl": (0.1, ("data.batch_size=6", "backbone.drop_path=0")),
    "vl_masked": (0.2, ("data.batch_size=6", "backbone.drop_path=0")),
    "vl_classification": (0.1, ("backbone.drop_path=0", "optimizer.lr=6e-3")),
}  # fmt: skip
"""Share of the first loss that is left at most, and overrides without which nothing else is learnt."""


@every_case
def test_one_batch_is_learnt_by_heart(case: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Learning is tested by learning: the loss of one batch, seen again and again, falls to almost nothing."""
    seen: dict[str, Any] = {}
    step = TrainingModule.training_step

    def same_batch(self: TrainingModule, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        return step(self, seen.setdefault("batch", batch), batch_idx)

    monkeypatch.setattr(TrainingModule, "training_step", same_batch)
    share, overrides = LEARNT[case]
    length = ("trainer.max_steps=100", "trainer.val_check_interval=100", "callbacks.probe_every=0")
    losses = training_losses(run("optimizer.lr=5e-3", *length, *overrides)["folder"])
    assert losses[-1] < share * losses[0], losses
