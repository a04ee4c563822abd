"""What a transducer does otherwise than CTC: its texts, its batches, its parts."""

from functools import partial
from pathlib import Path

import pytest
import torch

import magneto
from magneto.errors import MagnetoError
from magneto.inference.asr import recognise
from magneto.tasks.asr_transducer import AsrTransducer
from tests.integration.test_tasks import batch_of, halves
from tests.toys.runs import drive


class Identity(torch.nn.Module):
    """A stack without layers."""

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        return hidden


@pytest.fixture
def run(overrides: list[str]) -> partial:
    """A small, deterministic run on recordings of tones."""
    return partial(drive, ["task=asr_transducer", *(one for one in overrides if one != "task=asr")])


@pytest.mark.slow
def test_it_learns_to_read_tones(run: partial) -> None:
    """By both searches; the wider one is not worse by more than a character."""
    length = ("trainer.max_steps=150", "trainer.val_check_interval=150", "optimizer.lr=5e-3")
    result = run("name=one", *length)
    assert result["status"] == "finished" and result["metrics"]["test/cer"] < 0.1
    model = Path(result["folder"]) / "export"
    beam = run("mode=test", f"checkpoint={model}", "task.decoder=beam")
    assert beam["metrics"]["test/cer"] < 0.12


def test_an_utterance_alone_is_as_in_a_batch(run: partial) -> None:
    """Its loss and its transcripts by both searches, whatever is padded beside it; also with a VGG front end."""
    result = run("trainer.max_steps=12", "backbone.vgg_stem=true", "optimizer.lr=1e-2")
    task, batch = magneto.load(result["folder"]), batch_of(result)
    assert len(set(batch["feature_lengths"].tolist())) > 1
    with torch.no_grad():
        whole = task.step(batch)
        total, alone = 0.0, []
        for row in range(len(batch["id"])):
            frames, tokens = int(batch["feature_lengths"][row]), int(batch["target_lengths"][row])
            one = {
                key: value[row : row + 1] if len(value) == len(batch["id"]) else value
                for key, value in batch.items()
            }
            one |= {"features": one["features"][:, :frames], "targets": one["targets"][:, :tokens]}
            output = task.step(one)
            total += float(output.loss_sum)
            alone.append([task.transcripts(*output.outputs, how, 3)[0] for how in ("greedy", "beam")])
    assert total == pytest.approx(float(whole.loss_sum), rel=1e-4)
    for column, how in enumerate(("greedy", "beam")):
        assert task.transcripts(*whole.outputs, how, 3) == [texts[column] for texts in alone]
    assert any(texts[1] for texts in alone)


def test_long_recordings_are_encoded_in_windows(run: partial) -> None:
    """And searched as one: where no layer looks further than their overlap, the states are those of the whole."""
    task: AsrTransducer = magneto.load(run("trainer.max_steps=4")["folder"])
    task.backbone = Identity()
    features = torch.randn(1, 7001, 80, generator=torch.Generator().manual_seed(0))
    whole, _ = task(features, torch.tensor([7001]))
    parts, length = recognise(task, features, "noise.wav")
    torch.testing.assert_close(parts, whole)
    assert int(length) == whole.shape[1]
    for how in ("greedy", "beam"):
        assert task.transcripts(parts[:, :40], length.clamp(max=40), how, 2) == task.transcripts(
            whole[:, :40], length.clamp(max=40), how, 2
        )


def test_ctc_is_optional(run: partial) -> None:
    """Without it there is no head, and no layer transcribes on the way."""
    with pytest.raises(
        MagnetoError, match=r"task\.intermediate_losses=2: these are CTC losses.*task\.ctc_weight=0"
    ):
        run("task.ctc_weight=0", "task.intermediate_losses=2")
    plain = magneto.load(run("task.ctc_weight=0", "trainer.max_steps=4")["folder"])
    assert plain.head is None and not any(name.startswith("head") for name in plain.state_dict())
    helped = magneto.load(run("task.intermediate_losses=1", "trainer.max_steps=4")["folder"])
    assert helped.intermediate_layers and helped.head is not None


def test_micro_batches_share_a_long_batch(run: partial, monkeypatch: pytest.MonkeyPatch) -> None:
    """The joint network's scores are made in parts where they are many: the same loss and gradients."""
    result = run("trainer.max_steps=4")
    task, batch = magneto.load(result["folder"]), next(halves(batch_of(result)))
    found = []
    for limit in (2**24, 500):
        monkeypatch.setattr(task.joint, "loss", partial(type(task.joint).loss, task.joint, max_scores=limit))
        task.zero_grad()
        task.step(batch).loss_sum.backward()
        found.append([parameter.grad.clone() for parameter in task.parameters()])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
