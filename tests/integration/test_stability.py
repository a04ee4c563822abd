"""The stability probe: what it logs, against the same numbers from plain torch."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from magneto.nn import Linear
from magneto.nn.attention import SelfAttention
from magneto.tasks.causal_lm import CausalLM
from magneto.training.module import TrainingModule
from magneto.training.stability import largest_score
from tests.integration.test_golden_curves import CASES
from tests.toys.runs import drive, training_losses, values


@pytest.mark.parametrize("masked", ["none", "causal", "bool", "float"])
def test_largest_score(masked: str) -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 2, 3, 5, 8).unbind(0)  # (B, heads, T, head_dim)
    scores = (q @ k.mT) / math.sqrt(8)
    scores[0, 0, 0, 4] = 50.0  # of a later token, which only some masks hide
    q[0, 0, 0] = k[0, 0, 4] * 50 * math.sqrt(8) / k[0, 0, 4].square().sum()
    scores = (q @ k.mT) / math.sqrt(8)
    past = torch.ones(5, 5, dtype=torch.bool).tril()
    bias: dict[str, Tensor | None] = {"none": None, "causal": None, "bool": past[None, None]}
    bias["float"] = torch.where(past, 1.0, -1e9)[None, None]
    seen = scores if masked == "none" else scores.masked_fill(~past, -math.inf) + (masked == "float")
    found = largest_score(q, k, bias[masked], causal=masked == "causal")
    assert found == pytest.approx(float(seen.max()))


def test_measures_of_a_step(run_text: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step of a model of two layers; weights before and after it from hooks of the test's own."""
    seen: dict[str, Any] = {}
    step = CausalLM.step

    def watched(self: CausalLM, batch: dict[str, Any]) -> Any:
        if not self.training:
            return step(self, batch)
        layers = self.backbone.layers
        attention = layers[0].self_attention.branch
        assert isinstance(attention, SelfAttention)
        with torch.no_grad():
            x = self.stem(batch["tokens"])
            _, features = self.backbone.run(x, None, causal=True, return_layers=range(len(layers)))
            seen.update(first=x, last=features[-1])
        seen["weights"] = {name: p.detach().clone() for name, p in self.named_parameters()}
        seen["task"] = self
        return step(self, batch)

    monkeypatch.setattr(CausalLM, "step", watched)
    result = run_text(
        "task=causal_lm", "data.eval_stride=16", "task.sample={max_new_tokens: 4}", "trainer.max_steps=1",
        "callbacks.probe_every=1", "backbone.dropout=0", "optimizer.gradient_clip=null",
    )  # fmt: skip
    logged = {name: float(value) for _, name, value in values(result["folder"]) if name.startswith("probe/")}
    first, last = seen["first"], seen["last"]
    cosine = (first * last).sum(-1) / (first.norm(dim=-1) * last.norm(dim=-1))
    assert logged["probe/input_share"] == pytest.approx(float(cosine.square().mean()), rel=1e-4)
    mean = last.mean(dim=1)
    share = mean.square().sum(-1) / last.square().sum(-1).mean(1)
    assert logged["probe/token_similarity"] == pytest.approx(float(share.mean()), rel=1e-4)
    assert logged["probe/gradient_ratio"] > 0 and -20 < logged["probe/attention_logit_max"] < 20
    task = seen["task"]
    for role in ("q", "k", "v", "out", "fc1", "fc2"):
        change = size = 0.0
        for path, linear in task.named_modules():
            if isinstance(linear, Linear) and role in linear.roles:
                block = linear.roles.index(role)
                before = seen["weights"][f"{path}.weight"].chunk(len(linear.roles))[block]
                after = linear.weight.detach().chunk(len(linear.roles))[block]
                change += float((after - before).square().sum())
                size += float(before.square().sum())
        assert logged[f"probe/update_to_weight/{role}"] == pytest.approx(math.sqrt(change / size), rel=1e-3)
    assert "attention" not in vars(task.backbone.layers[0].self_attention.branch)


def test_two_stacks_are_measured_apart(translation_overrides: list[str]) -> None:
    """And with activation checkpointing, which runs the layers a second time."""
    more = ("backbone.activation_checkpointing=true", "trainer.max_steps=1", "callbacks.probe_every=1")
    result = drive(["task=mt", *translation_overrides, *more])
    names = {name for _, name, _ in values(result["folder"])}
    for measure in ("input_share", "token_similarity", "gradient_ratio"):
        assert {f"probe/{measure}/encoder", f"probe/{measure}/decoder"} <= names
    assert "probe/attention_logit_max" in names


@pytest.mark.parametrize("case", ["causal_lm", "visual_tokenizer"])
def test_probe_leaves_the_step_alone(
    case: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With it losses are equal to the last bit (dropout, a codebook that learns), and the step may be compiled."""
    settings = [*CASES[case](request, tmp_path), f"runs_dir={tmp_path / 'runs'}", "trainer.max_steps=4"]
    settings += ["trainer.log_every_n_steps=1", "backbone.dropout=0.1"]
    stances = []
    step = TrainingModule.training_step

    def watched(self: TrainingModule, batch: dict[str, Any], batch_idx: int) -> Tensor:
        stances.append(torch._dynamo.eval_frame._stance.stance)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(TrainingModule, "training_step", watched)
    runs = [Path(drive(settings, f"callbacks.probe_every={n}", f"name={n}")["folder"]) for n in (0, 1)]
    assert training_losses(runs[0]) == training_losses(runs[1]) and len(training_losses(runs[0])) == 4
    results = [json.loads((run / "result.json").read_text())["metrics"] for run in runs]
    assert results[0] == results[1]
    assert set(stances) == {"default"}
    assert any("probe/update_to_weight" in name for _, name, _ in values(runs[1]))
