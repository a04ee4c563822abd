"""Muon: which weights it updates, blocks of a fused weight, its scale, its cost, and groups that cannot be."""

import pytest
import torch
from torch import nn

from magneto.config.parts import OptimizerConfig
from magneto.errors import ConfigError
from magneto.nn.config import BackboneConfig
from magneto.nn.init import Linear
from magneto.nn.transformer import build_backbone
from magneto.training import muon
from magneto.training.muon import hidden_matrices, newton_schulz_flops
from magneto.training.optim import build_optimizer


class Projection(nn.Module):
    """q, k and v of one layer, in one weight or in three, with a norm before them and a head after them."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        roles = ("q", "k", "v")
        maps = [Linear(8, 24, roles=roles)] if fused else [Linear(8, 8, roles=(role,)) for role in roles]
        self.norm, self.maps, self.head = nn.LayerNorm(8), nn.ModuleList(maps), Linear(24, 5, roles=("head",))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        return self.head(torch.cat([linear(x) for linear in self.maps], dim=-1))


def config_of(**changes) -> OptimizerConfig:
    return OptimizerConfig(**{"name": "muon", "lr": 1e-2, "weight_decay": 0.1, **changes})


def test_fused_and_split_weights_step_alike():
    torch.manual_seed(1)
    fused, split = Projection(True), Projection(False)
    for name in ("weight", "bias"):
        for linear, block in zip(split.maps, getattr(fused.maps[0], name).chunk(3), strict=True):
            getattr(linear, name).data.copy_(block)
    split.head.load_state_dict(fused.head.state_dict())
    optimizers = [build_optimizer(model, config_of()) for model in (fused, split)]
    for _ in range(4):
        x = torch.randn(6, 8)
        for model, optimizer in zip((fused, split), optimizers, strict=True):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    whole = torch.cat([linear.weight for linear in split.maps])
    torch.testing.assert_close(fused.maps[0].weight, whole, rtol=0, atol=1e-6)
    torch.testing.assert_close(fused.head.weight, split.head.weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("bf16", [False, True])
def test_updates_are_those_of_torch(monkeypatch, bf16):
    """Matrices follow torch's Muon, in bf16 or both in fp32, the rest torch's AdamW; an update has AdamW's size, 0.2 lr."""
    if not bf16:
        monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    torch.manual_seed(1)
    model, twin = Projection(False), Projection(False)
    twin.load_state_dict(model.state_dict())
    optimizer = build_optimizer(model, config_of(), bf16=bf16)
    hidden = [linear.weight for linear in twin.maps]
    others = [p for p in twin.parameters() if all(p is not weight for weight in hidden)]
    references = [
        torch.optim.Muon(hidden, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([p for p in others if p.ndim == 2], lr=1e-2, weight_decay=0.1),
        torch.optim.AdamW([p for p in others if p.ndim == 1], lr=1e-2, weight_decay=0.0),
    ]
    before = model.maps[0].weight.detach().clone()
    for step in range(3):
        for p, other in zip(model.parameters(), twin.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            other.grad = p.grad.clone()
        for each in (optimizer, *references):
            each.step()
        for p, other in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p, other, rtol=1e-5, atol=1e-5 if bf16 else 1e-6)
        if step == 0:
            rms = (model.maps[0].weight - before).square().mean().sqrt()
            assert 0.1e-2 < rms < 0.3e-2


@pytest.mark.parametrize("shape", [(8, 8), (8, 32), (32, 8)])
@pytest.mark.parametrize("batch", [1, 2**20])
def test_singular_values_become_equal(shape, batch, monkeypatch):
    """Of tall and wide matrices, in batches of any size: between 0.5 and 1.5 of the scale, vectors unchanged."""
    monkeypatch.setattr(muon, "BATCH_ELEMENTS", batch)
    torch.manual_seed(1)
    weights = [nn.Parameter(torch.zeros(shape)) for _ in range(3)]
    for weight in weights:
        weight.grad = torch.randn(shape)
    groups = [
        {"params": weights, "blocks": [1, 1, 1], "weight_decay": 0.0},
        {"params": [nn.Parameter(torch.zeros(1))]},
    ]
    muon.MuonAdamW(groups, lr=1.0, weight_decay=0.0).step()
    for weight in weights:
        u, _, v = torch.linalg.svd(weight.grad, full_matrices=False)
        found = -(u.T @ weight @ v.T) / (0.2 * max(shape) ** 0.5)
        diagonal = found.diagonal()
        assert diagonal.min() > 0.5 and diagonal.max() < 1.5
        torch.testing.assert_close(found, torch.diag(diagonal), rtol=0, atol=1e-4)


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
@pytest.mark.parametrize("architecture", ["decoder", "encoder_decoder"])
def test_every_matrix_of_a_layer_is_found(architecture, activation):
    config = BackboneConfig(
        architecture=architecture,
        placement="magneto",
        num_layers=2,
        d_model=8,
        num_heads=2,
        activation=activation,
    )
    backbone = build_backbone(config)
    head = Linear(8, 3, roles=("head",))
    found = hidden_matrices(nn.ModuleList([backbone, head]))
    expected = {name for name, module in backbone.named_modules() if isinstance(module, nn.Linear)}
    assert {name.removesuffix(".weight") for name, p in backbone.named_parameters() if p in found} == expected
    assert head.weight not in found
    blocks = {name.split(".")[-2]: found[p] for name, p in backbone.named_parameters() if p in found}
    assert blocks["qkv"] == 3 and blocks["out"] == blocks["fc2"] == 1
    assert blocks["fc1"] == (2 if activation == "swiglu" else 1)
    assert blocks.get("kv") == (2 if architecture == "encoder_decoder" else None)


def test_shared_and_frozen_weights_are_not_muons():
    model = Projection(False)
    model.embedding = nn.Embedding(8, 8)
    model.embedding.weight = model.maps[0].weight
    model.maps[1].weight.requires_grad_(False)
    assert list(hidden_matrices(model)) == [model.maps[2].weight]


def test_layers_have_their_own_rates():
    model = Projection(True)
    model.layer_modules = lambda: [model.norm, model.maps]
    groups = build_optimizer(model, config_of(lr=1.0, layer_decay=0.5)).param_groups
    assert {group["name"]: group["lr"] for group in groups} == {
        "layer_00/no_decay": 0.25,
        "layer_01/muon_decay": 0.5,
        "layer_01/no_decay": 0.5,
        "head/decay": 1.0,
        "head/no_decay": 1.0,
    }


def test_without_hidden_matrices_refused():
    with pytest.raises(
        ConfigError, match=r"optimizer.name=muon: Linear has no trainable matrix .* optimizer=adamw"
    ):
        build_optimizer(nn.Linear(4, 4), config_of())


def test_flops_of_the_orthogonalization():
    """Counted by torch itself on the five steps of one matrix, transposed or not."""
    from torch.utils.flop_counter import FlopCounterMode

    for shape in ((8, 8), (8, 32), (32, 8)):
        weight = nn.Parameter(torch.zeros(shape))
        weight.grad = torch.randn(shape)
        with FlopCounterMode(display=False) as counter:
            torch.optim.Muon([weight]).step()
        assert newton_schulz_flops(*shape) == counter.get_total_flops()
    optimizer = build_optimizer(Projection(True), config_of())
    assert optimizer.flops == 3 * newton_schulz_flops(8, 8)
