"""The spine, end to end through `magneto.commands.run`: learn, resume, refuse, predict, export."""

import errno
import itertools
import json
import signal
from pathlib import Path

import pytest
import soundfile
import torch

from magneto.errors import MagnetoError
from magneto.inference.asr import recognise
from magneto.tasks.asr import ASR
from magneto.tasks.registry import load_task
from magneto.training.loggers import CSVLogger

LEARN = ("trainer.max_steps=220", "trainer.val_check_interval=220", "optimizer.lr=4e-3", "backbone.dropout=0")


@pytest.fixture
def values(rows_of):
    return rows_of


@pytest.mark.slow
def test_it_learns_to_read_tones_it_never_heard(run) -> None:
    result = run(*LEARN)
    assert result["status"] == "finished"
    assert result["metrics"]["test/cer"] < 0.1
    assert set(result["metrics"]) >= {"test/wer", "test/cer/xx", "test/cer/yy", "val/cer", "test/loss"}


def test_run_is_measured_in_seconds_and_probed(run, values) -> None:
    """Throughput counts sound; every value stands at the step that it was measured at."""
    result = run("name=one")
    assert result["throughput"]["audio_seconds_per_s"] > 0
    rows = values(result["folder"])
    steps = [step for step, name, _ in rows if name == "probe/activation_rms/layer_01"]
    assert steps == ["1", "5", "10", "15", "20"]


def test_probe_of_accumulated_batches(run, values) -> None:
    """The probe looks at one batch of those that a step accumulates."""
    folder = run("trainer.accumulate_grad_batches=2")["folder"]
    for name in ("probe/activation_rms/layer_01", "probe/update_to_weight/all"):
        assert [step for step, metric, _ in values(folder) if metric == name] == ["1", "5", "10", "15", "20"]


def test_the_same_command_again_does_nothing(run, values) -> None:
    first = run()
    before = values(first["folder"], leave_out="nothing")
    second = run()
    assert second["metrics"] == first["metrics"]
    assert values(first["folder"], leave_out="nothing") == before


@pytest.mark.parametrize(
    ("number", "hook", "at"),
    [
        (signal.SIGTERM, "training_step", 5),
        (signal.SIGTERM, "validation_step", 1),
        (signal.SIGINT, "validation_step", 2),
        (signal.SIGTERM, "test_step", 0),
        (signal.SIGINT, "test_step", 0),
    ],
)
def test_run_resumes_after_a_signal(
    run, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, hook: str, at: int, values
) -> None:
    """A signal at any moment leaves a run that goes on."""
    whole = run("name=whole")
    original, calls = getattr(ASR, hook), itertools.count()

    def step_and_signal(self, batch, batch_idx: int):
        if next(calls) == at:
            signal.raise_signal(number)
        return original(self, batch, batch_idx)

    before = signal.getsignal(number)
    monkeypatch.setattr(ASR, hook, step_and_signal)
    parts = run("name=parts")
    monkeypatch.undo()
    assert parts["status"] == "interrupted" and signal.getsignal(number) is before
    assert (Path(parts["folder"]) / "checkpoints/last.ckpt").exists()
    parts = run("name=parts")
    assert parts["status"] == "finished" and parts["metrics"] == whole["metrics"]
    assert values(parts["folder"]) == values(whole["folder"])


def test_layers_read_what_earlier_ones_transcribe(run) -> None:
    """h + W softmax(CTC of h) after each layer with a loss of its own, in training as in use; 0 for W changes nothing."""
    result = run(
        "trainer.max_steps=2",
        "backbone.num_layers=3",
        "task.self_conditioning=true",
        "task.intermediate_losses=2",
    )
    task = load_task(Path(result["folder"]) / "export")
    assert task.intermediate_layers == (0, 1)
    features, lengths = torch.randn(2, 64, 80), torch.tensor([64, 50])
    hidden, mask = task.stem(features, lengths)

    def condition(x: torch.Tensor) -> torch.Tensor:
        return x + task.condition(task.head(task.backbone.final_norm(x)).softmax(-1))

    expected = task.head(task.backbone(hidden, mask, between={0: condition, 1: condition})).log_softmax(-1)
    log_probs, _ = task(features, lengths)
    torch.testing.assert_close(log_probs, expected)
    torch.nn.init.zeros_(task.condition.weight), torch.nn.init.zeros_(task.condition.bias)
    plain = task.head(task.backbone(hidden, mask)).log_softmax(-1)
    torch.testing.assert_close(task(features, lengths)[0], plain)
    assert not torch.allclose(log_probs, plain, atol=1e-4)
    with pytest.raises(MagnetoError, match="Set task.intermediate_losses to 1"):
        run("task.self_conditioning=true", "task.intermediate_losses=0")


@pytest.mark.parametrize(
    ("depth", "losses", "layers"), [(6, 2, (1, 3)), (6, 0, ()), (18, 2, (5, 11)), (2, 2, (0,)), (1, 2, ())]
)
def test_intermediate_losses_are_spread(run, depth: int, losses: int, layers: tuple[int, ...]) -> None:
    """And they enter the training loss alone: the validation loss is that of the last layer."""
    task = load_task(
        Path(
            run("trainer.max_steps=1", f"backbone.num_layers={depth}", f"task.intermediate_losses={losses}")[
                "folder"
            ]
        )
        / "export"
    )
    assert task.intermediate_layers == layers
    generator = torch.Generator().manual_seed(0)
    batch = {
        "features": torch.randn(2, 64, 80, generator=generator), "feature_lengths": torch.tensor([64, 50]),
        "targets": torch.tensor([[1, 2], [3, 0]]), "target_lengths": torch.tensor([2, 1]),
    }  # fmt: skip
    last = task.step(batch).loss_sum
    training = task.train().step(batch)
    if not layers:
        torch.testing.assert_close(training.loss_sum, last)
        return
    torch.testing.assert_close(training.logs["ctc_loss_last_layer"], last)
    lengths = batch["feature_lengths"]
    hidden, mask = task.stem(batch["features"], lengths)
    _, outputs = task.backbone(hidden, mask, return_layers=layers)
    means = [
        torch.nn.functional.ctc_loss(
            task.head(task.backbone.final_norm(output)).log_softmax(-1).transpose(0, 1),
            batch["targets"], task.stem.output_lengths(lengths), batch["target_lengths"], reduction="sum",
        )
        for output in outputs
    ]  # fmt: skip
    torch.testing.assert_close(training.loss_sum, 0.5 * last + 0.5 * sum(means) / len(means))


def test_second_signal_does_not_wait(run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second signal does not wait for the step."""

    def signal_twice(self, batch, batch_idx: int):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the second signal came to nothing")

    monkeypatch.setattr(ASR, "training_step", signal_twice)
    assert run()["status"] == "interrupted"


def test_folder_is_transcribed(run, tones: Path, tmp_path: Path) -> None:
    """Each recording is a result and a line of the output."""
    folder, output = run("name=one")["folder"], tmp_path / "out.jsonl"
    many = run("mode=predict", f"checkpoint={folder}", f"input={tones.parent}", f"output={output}")
    assert [Path(result["path"]).suffix for result in many["results"]] == [".wav"] * 72
    assert len(output.read_text().splitlines()) == 72


def test_long_recordings_are_taken_in_windows(run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What each frame gets is what it would get without windows, where no layer looks further than their overlap."""
    task = load_task(Path(run("trainer.max_steps=1")["folder"]) / "export")

    class Local(torch.nn.Module):
        def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return hidden

    task.backbone = Local()
    lengths, forward = [], task.forward
    monkeypatch.setattr(task, "forward", lambda x, n: lengths.append(x.shape[1]) or forward(x, n))
    generator = torch.Generator().manual_seed(0)
    for frames in (777, 6000, 6001, 11_000, 11_001, 17_234):
        features = torch.randn(1, frames, 80, generator=generator)
        expected, _ = forward(features, torch.tensor([frames]))
        lengths.clear()
        found, (length,) = recognise(task, features, "a.wav")
        torch.testing.assert_close(found, expected)
        assert length == expected.shape[1] and max(lengths) <= 6000
        assert sum(lengths) <= 1.2 * frames + 1000  # linear


def test_odd_recordings_are_transcribed(run, tones: Path, tmp_path: Path) -> None:
    """GSM and joined Ogg in a folder, as well as a checkpoint's test on a manifest of test lines alone."""
    folder = run("name=one")["folder"]
    samples, rate = soundfile.read(tones.parent / "3.wav")
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in/gsm.wav", samples, rate, subtype="GSM610")
    soundfile.write(tmp_path / "in/one.ogg", samples, rate)
    one = (tmp_path / "in/one.ogg").read_bytes()
    (tmp_path / "in/two.ogg").write_bytes(one + one)
    results = run("mode=predict", f"checkpoint={folder}", f"input={tmp_path / 'in'}")["results"]
    assert [Path(result["path"]).name for result in results] == ["gsm.wav", "one.ogg", "two.ogg"]
    lines = [json.loads(line) for line in tones.read_text().splitlines()]
    own = [
        line | {"audio_filepath": str(tones.parent / line["audio_filepath"])}
        for line in lines
        if line["split"] == "test"
    ]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in own))
    expected = run("mode=test", f"checkpoint={folder}")["metrics"]
    found = run(
        "mode=test", f"checkpoint={folder}", f"data.corpora.manifest.manifest={tmp_path / 'test.jsonl'}",
        f"data_dir={tmp_path / 'data'}",
    )["metrics"]  # fmt: skip
    assert found == pytest.approx(expected)


def test_beam_search_is_a_word_away(run) -> None:
    result = run("task.decoder=beam", "task.beam_width=4", "trainer.max_steps=4")
    assert result["status"] == "finished"


def test_a_run_that_diverges_is_a_result(run) -> None:
    result = run(
        "optimizer.lr=1e6", "optimizer.gradient_clip=null", "scheduler=constant", "scheduler.warmup=0"
    )
    assert result["status"] == "diverged"
    assert "step" in result["message"]
    assert (
        run("optimizer.lr=1e6", "optimizer.gradient_clip=null", "scheduler=constant", "scheduler.warmup=0")[
            "status"
        ]
        == "diverged"
    )


def test_changed_configuration_is_refused(run, values) -> None:
    """Another configuration under the same name is refused with the difference."""
    folder = Path(run("name=one")["folder"])
    before = values(folder, leave_out="nothing")
    with pytest.raises(MagnetoError, match=r"optimizer\.lr: \S+ -> 0\.5"):
        run("name=one", "optimizer.lr=0.5")
    assert values(folder, leave_out="nothing") == before


def test_resume_never_keeps_the_old_folder(run) -> None:
    first = Path(run("name=one")["folder"])
    run("name=one", "resume=never")
    assert (first.parent / "one.old1" / "result.json").exists()
    assert (first / "result.json").exists()


def test_resume_must_wants_a_checkpoint(run) -> None:
    with pytest.raises(MagnetoError, match="resume=must"):
        run("resume=must")


def test_truncated_checkpoint_is_kept(run, kill_after_save, tmp_path: Path) -> None:
    """A truncated checkpoint is named and nothing is overwritten."""
    with kill_after_save():
        run("name=one")
    (last,) = tmp_path.glob("runs/asr/one/checkpoints/last.ckpt")
    last.write_bytes(last.read_bytes()[:1000])
    with pytest.raises(MagnetoError, match=r"last\.ckpt: truncated"):
        run("name=one")
    assert last.stat().st_size == 1000


def test_a_checkpoint_of_another_model_is_refused(run) -> None:
    folder = Path(run("name=one")["folder"])
    with pytest.raises(MagnetoError, match="does not fit this model"):
        run("name=two", "backbone.d_model=64", f"resume={folder / 'checkpoints/last.ckpt'}")


def test_a_checkpoint_of_another_task_is_refused(run, run_text) -> None:
    text = Path(run_text("task=causal_lm", "name=text")["folder"])
    with pytest.raises(MagnetoError, match=r"of another task \(magneto\.tasks\.causal_lm"):
        run("name=two", f"resume={text / 'checkpoints/last.ckpt'}")
    with pytest.raises(MagnetoError, match=r"is of task 'causal_lm', and the command has task=asr"):
        run("mode=test", f"checkpoint={text / 'export'}")


def test_resume_from_another_folder(run, kill_after_save, values) -> None:
    """A run goes on from another folders checkpoint."""
    whole = run("name=whole")
    with kill_after_save(8):
        run("name=one")
    source = Path(whole["folder"]).parent / "one/checkpoints/last.ckpt"
    parts = run("name=parts", f"resume={source}")
    assert parts["metrics"] == whole["metrics"] and parts["steps"] == 20
    losses = [row for row in values(whole["folder"]) if row[1] == "train/loss"]
    assert [row for row in values(parts["folder"]) if row[1] == "train/loss"] == losses[4:]


def test_data_that_have_changed_since_are_refused(run, kill_after_save, tones: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "mine.jsonl"
    lines = [json.loads(line) for line in tones.read_text().splitlines()]
    for line in lines:
        line["audio_filepath"] = str(tones.parent / line["audio_filepath"])
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    mine = f"data.corpora.manifest.manifest={manifest}"
    with kill_after_save():
        run(mine, "name=one")
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines[1:]))
    with pytest.raises(MagnetoError, match=r"trained on other data .* key.* differ.*resume=never"):
        run(mine, "name=one")
    assert run(mine, "name=one", "resume=never")["status"] == "finished"


def test_run_resumes_after_a_full_disk(run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that cannot grow is one message and the run goes on later."""
    whole = run("name=whole")
    write = CSVLogger.log_metrics

    def full(self, metrics, step=None) -> None:
        if step and step > 10:
            raise OSError(errno.ENOSPC, "No space left on device", str(self.path))
        write(self, metrics, step)

    with monkeypatch.context() as patch:
        patch.setattr(CSVLogger, "log_metrics", full)
        with pytest.raises(MagnetoError, match=r"metrics\.csv cannot be written .*repeat the command"):
            run("name=parts")
    assert run("name=parts")["metrics"] == whole["metrics"]


def test_an_export_overwrites_nothing(run, tmp_path: Path) -> None:
    folder = Path(run("name=one")["folder"])
    last = f"checkpoint={folder / 'checkpoints/last.ckpt'}"
    with pytest.raises(MagnetoError, match=r"export: exists already. Set output to a new folder"):
        run("mode=export", last)
    assert run("mode=export", last, f"output={tmp_path / 'mine'}")["folder"] == str(tmp_path / "mine")
    weights, last_weights = (
        load_task(path).state_dict() for path in (tmp_path / "mine", folder / "checkpoints/last.ckpt")
    )
    assert all(torch.equal(weights[name], last_weights[name]) for name in last_weights)


def test_subwords_train_and_transcribe(run, tones: Path) -> None:
    result = run("name=subwords", "data.tokenizer.kind=bpe", "data.tokenizer.vocab_size=24")
    assert result["status"] == "finished" and result["data_facts"]["utterances"]["train"] > 0
    found = run("mode=predict", f"checkpoint={result['folder']}/export", f"input={tones.parent / '0.wav'}")
    assert isinstance(found["results"][0], dict)


@pytest.mark.slow
def test_compiled_layers_train_alike(run, values) -> None:
    """Compiled layers train as others and leave the same names."""
    results = [run(f"name=compile_{on}", f"trainer.compile={on}") for on in ("false", "default")]
    plain, compiled = (
        [float(value) for _, name, value in values(result["folder"]) if name == "train/loss"]
        for result in results
    )
    assert compiled == pytest.approx(plain, rel=1e-3)
    assert {name for _, name, _ in values(results[1]["folder"])} == {
        name for _, name, _ in values(results[0]["folder"])
    }
    first, second = (load_task(f"{result['folder']}/checkpoints/last.ckpt") for result in results)
    assert first.state_dict().keys() == second.state_dict().keys()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("backbone.num_heads=3", "num_heads"),
        ("optimizer.name=adamx", "adamw"),
        ("trainer.limit_val_batches=0", "limit_val_batches"),
        ("data.corpora.manifest.manifest=nowhere.jsonl", "nowhere.jsonl"),
        ("+trainer.max_stepz=3", "max_stepz"),
    ],
)
def test_mistake_has_one_message(run, override: str, message: str) -> None:
    """A mistake gets one message with its remedy."""
    with pytest.raises(MagnetoError, match=message):
        run(override)


def test_a_missing_checkpoint_is_named(run) -> None:
    with pytest.raises(MagnetoError, match=r"nowhere\.ckpt"):
        run("checkpoint=nowhere.ckpt", "mode=predict", "input=a.wav")
