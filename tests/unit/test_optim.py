"""Parameter groups, optimizers, schedules at their landmarks and after a reload, and the config files."""

import math
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from magneto.config.parts import SCHEDULE_KEYS, OptimizerConfig, SchedulerConfig
from magneto.config.validate import from_mapping
from magneto.errors import MagnetoError, nearest
from magneto.nn.config import BackboneConfig
from magneto.nn.init import Linear
from magneto.nn.transformer import build_backbone
from magneto.training.optim import (
    OPTIMIZERS,
    SCHEDULES,
    build_optimizer,
    build_scheduler,
    parameter_groups,
    schedule,
    steps_of,
)

CONF = Path(__file__).parents[2] / "conf"


class Block(nn.Module):
    """A layer with one parameter of each kind that a group has to tell apart."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm([2, 4])  # a norm with a weight of two dimensions
        self.fc = nn.Linear(4, 4)
        self.table = nn.Parameter(torch.zeros(3, 4))
        self.attention = nn.MultiheadAttention(4, 2)
        self.frozen = nn.Parameter(torch.zeros(4, 4), requires_grad=False)


class Model(nn.Module):
    """Embedding, convolution, two blocks, and a head tied to the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.conv = nn.Conv1d(4, 4, 3)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.inner = nn.ModuleDict({"scale": nn.Linear(4, 4, bias=False)})
        self.out = nn.Linear(4, 5)
        self.out.weight = self.embedding.weight

    def no_weight_decay(self) -> set[str]:
        return {"inner.scale.weight"}

    def layer_modules(self) -> list[nn.Module]:
        return [nn.ModuleList([self.embedding, self.conv]), *self.blocks]


def names_of(model: nn.Module, group) -> set[str]:
    ids = {id(p) for p in group["params"]}
    return {name for name, p in model.named_parameters() if id(p) in ids}


def test_groups_partition_by_role():
    model = Model()
    groups = {g["name"]: g for g in parameter_groups(model, lr=0.1, weight_decay=0.5)}
    kinds = ["fc.weight", "attention.in_proj_weight", "attention.out_proj.weight"]
    assert names_of(model, groups["decay"]) == {
        "conv.weight",
        *(f"blocks.{i}.{kind}" for i in (0, 1) for kind in kinds),
    }
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert names_of(model, groups["no_decay"]) == trainable - names_of(model, groups["decay"])
    assert (groups["decay"]["weight_decay"], groups["no_decay"]["weight_decay"]) == (0.5, 0.0)
    assert sum(len(g["params"]) for g in groups.values()) == len(trainable)


@pytest.mark.parametrize("position", ["learned", "relative", "convolutional"])
def test_groups_of_the_backbone(position):
    config = BackboneConfig(
        architecture="encoder",
        placement="normformer",
        num_layers=1,
        d_model=8,
        num_heads=2,
        position=position,
    )
    backbone = build_backbone(config)
    groups = {g["name"]: g for g in parameter_groups(backbone, lr=0.1, weight_decay=0.5)}
    decayed, others = names_of(backbone, groups["decay"]), names_of(backbone, groups["no_decay"])
    assert all(name.endswith("weight") for name in decayed)
    assert not any(word in name for name in decayed for word in ("norm", "table", "scale"))
    matrices = {name for name in others if backbone.get_parameter(name).ndim > 1}
    assert all("table" in name or "scale" in name for name in matrices)
    assert any("scale" in name for name in matrices)


def test_unknown_name_in_no_weight_decay():
    model = Model()
    model.no_weight_decay = lambda: {"inner.scael.weight"}
    with pytest.raises(AttributeError, match="scael"):
        parameter_groups(model, lr=0.1, weight_decay=0.5)


def test_layer_decay_by_depth():
    model = Model()
    model.blocks[1].attention = model.blocks[0].attention
    groups = parameter_groups(model, lr=1.0, weight_decay=0.5, layer_decay=0.5)
    lr_of = {name: g["lr"] for g in groups for name in names_of(model, g)}
    assert lr_of["embedding.weight"] == lr_of["conv.bias"] == 0.5**3  # the tied head, too, is in the stem
    assert lr_of["blocks.0.fc.weight"] == lr_of["blocks.0.table"] == 0.5**2
    assert lr_of["blocks.0.attention.in_proj_weight"] == 0.5**2  # shared: the lower of its layers
    assert lr_of["blocks.1.norm.weight"] == 0.5
    assert lr_of["out.bias"] == lr_of["inner.scale.weight"] == 1.0
    assert {g["name"] for g in groups} >= {"layer_00/decay", "layer_02/no_decay", "head/no_decay"}
    assert len({g["name"] for g in groups}) == len(groups)


def test_layer_decay_without_layers_is_refused():
    with pytest.raises(MagnetoError, match=r"optimizer.layer_decay=0.5 .* Linear"):
        build_optimizer(nn.Linear(2, 2), OptimizerConfig(lr=0.1, layer_decay=0.5))


SETTINGS = {
    "adamw": {"lr": 1e-2, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.1},
    "adam": {"lr": 1e-2, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.1},
    "sgd": {"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.1},
    "muon": {"lr": 1e-2, "momentum": 0.9, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.1},
}


def train(model, optimizer, scheduler=None, steps=5, seed=0):
    """Some steps with gradients that depend on the step's seed alone."""
    for step in range(seed, seed + steps):
        generator = torch.Generator().manual_seed(step)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
        if scheduler:
            scheduler.step()
    return [p.detach().clone() for p in model.parameters()]


def linear(seed=0):
    """A hidden matrix and a head, so that both parts of Muon have work."""
    torch.manual_seed(seed)
    return nn.Sequential(Linear(16, 8, roles=("out",), bias=False), nn.Linear(8, 4, bias=False))


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])  # muon: test_muon.py
def test_optimizer_is_that_of_torch(name):
    found = train(model := linear(), build_optimizer(model, OptimizerConfig(name=name, **SETTINGS[name])))
    reference = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}[name]
    expected = train(model := linear(), reference(model.parameters(), foreach=False, **SETTINGS[name]))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fused_steps_repeat_bit_by_bit(name):
    first, second = (
        train(
            model := linear(), build_optimizer(model, OptimizerConfig(name=name, **SETTINGS[name])), steps=20
        )
        for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_reloaded_states_continue_exactly(name, tmp_path):
    def build():
        model = linear()
        optimizer = build_optimizer(model, OptimizerConfig(name=name, **SETTINGS[name]))
        scheduler = build_scheduler(
            optimizer, SchedulerConfig(name="cosine", warmup=0.3, final_ratio=0.1), total_steps=12
        )
        return model, optimizer, scheduler

    whole = train(*build(), steps=12)
    parts = build()
    train(*parts, steps=5)
    torch.save([part.state_dict() for part in parts], tmp_path / "state.pt")
    resumed = build()
    for part, state in zip(resumed, torch.load(tmp_path / "state.pt", weights_only=True), strict=True):
        part.load_state_dict(state)
    continued = train(*resumed, steps=7, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(whole, continued, strict=True))


def factor(total=100, **config):
    return schedule(from_mapping(SchedulerConfig, config, "scheduler"), total)


def test_warmup_landmarks():
    """All schedules rise in the same way."""
    for name, (needed, _) in SCHEDULE_KEYS.items():
        extra = {key: {"power": 2.0, "decay": 0.2}[key] for key in needed}
        f = factor(name=name, warmup=10, warmup_init_ratio=0.2, **extra)
        assert f(0) == pytest.approx(0.2 + 0.8 / 11)
        assert f(4) == pytest.approx(0.2 + 0.8 * 5 / 11)
        assert f(10) == 1.0
        assert f(9) < 1.0
        assert all(f(step) > 0 for step in range(100)), "an update without effect"


@pytest.mark.parametrize(
    ("config", "landmarks"),
    [
        ({"name": "constant"}, {0: 1, 55: 1, 100: 1, 130: 1}),
        ({"name": "linear", "warmup": 20, "final_ratio": 0.1}, {20: 1, 60: 0.55, 100: 0.1, 130: 0.1}),
        ({"name": "cosine", "warmup": 20}, {20: 1, 40: (1 + math.sqrt(0.5)) / 2, 60: 0.5, 100: 0, 130: 0}),
        ({"name": "cosine", "warmup": 20, "final_ratio": 0.2}, {20: 1, 60: 0.6, 100: 0.2}),
        ({"name": "polynomial", "power": 2.0, "warmup": 20, "final_ratio": 0.2}, {20: 1, 60: 0.4, 100: 0.2}),
        ({"name": "inverse_sqrt", "warmup": 20}, {20: 1, 80: 0.5, 100: math.sqrt(0.2)}),
        ({"name": "inverse_sqrt"}, {0: 1, 1: 1, 4: 0.5}),
        (
            {"name": "wsd", "warmup": 0.1, "decay": 0.4, "final_ratio": 0.2},
            {10: 1, 59: 1, 60: 1, 70: 0.6, 100: 0.2, 130: 0.2},
        ),
        ({"name": "wsd", "decay": 0}, {0: 1, 99: 1}),
        ({"name": "linear", "warmup": 100}, {99: 100 / 101, 100: 0}),
    ],
)
def test_schedule_landmarks(config, landmarks):
    f = factor(**config)
    for step, value in landmarks.items():
        assert f(step) == pytest.approx(value, abs=1e-12), step


def test_scheduler_sets_the_rate_of_every_group():
    model = Model()
    optimizer = build_optimizer(model, OptimizerConfig(lr=1.0, layer_decay=0.5))
    scheduler = build_scheduler(optimizer, SchedulerConfig(name="linear", warmup=2), total_steps=4)
    peaks = [g["initial_lr"] for g in optimizer.param_groups]
    seen = []
    for _ in range(5):
        seen.append([g["lr"] for g in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    assert seen == [pytest.approx([r * p for p in peaks]) for r in (1 / 3, 2 / 3, 1.0, 0.5, 0.0)]


def test_durations():
    assert steps_of(7, 100) == 7
    assert steps_of(0.25, 10) == 2
    assert steps_of(0.1, 1234) == 123


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"warmup": 101}, "scheduler.warmup=101 is longer than the run of 100 steps"),
        ({"name": "wsd", "warmup": 0.5, "decay": 51}, "warmup=0.5 and scheduler.decay=51 .* run of 100"),
        ({"warmup": 1.5}, "scheduler.warmup=1.5: input should be a valid integer or less than 1"),
        ({"warmup": -1}, "scheduler.warmup=-1: input should be greater than or equal to 0"),
        ({"warmup": True}, "scheduler.warmup=True: input should"),
        ({"warmup": None}, "scheduler.warmup=None: input should"),
        ({"final_ratio": 1.5}, "scheduler.final_ratio=1.5: input should be less than or equal to 1"),
        ({"warmup_init_ratio": "0.1"}, "scheduler.warmup_init_ratio=0.1: input should be a valid number"),
        ({"name": "cosin"}, "scheduler.name=cosin: must be one of .* Did you mean 'cosine'"),
        ({"name": "constant", "final_ratio": 0.1}, "scheduler.final_ratio has no effect .*constant"),
        ({"power": 2.0}, "scheduler.power has no effect .*linear"),
        ({"name": "polynomial"}, "needs scheduler.power"),
        ({"name": "wsd"}, "needs scheduler.decay"),
    ],
)
def test_impossible_schedules_are_refused(config, message):
    with pytest.raises(MagnetoError, match=message):
        factor(**{"name": "linear", **config})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "adamx"}, "optimizer.name=adamx: must be one of .* Did you mean 'adam"),
        ({"lr": 0}, "optimizer.lr=0: input should be greater than 0"),
        ({"lr": "fast"}, "optimizer.lr=fast: input should be a valid number"),
        ({"lr": math.nan}, "optimizer.lr=nan: input should"),
        ({"betas": [0.9]}, r"optimizer.betas=\[0.9\]: too few values"),
        ({"betas": [0.9, 1.0]}, r"optimizer.betas=\[0.9, 1.0\]: input should be less than 1"),
        ({"eps": 0.0}, "optimizer.eps=0.0: input should"),
        ({"weight_decay": -0.1}, "optimizer.weight_decay=-0.1: input should"),
        ({"layer_decay": 1.5}, "optimizer.layer_decay=1.5: input should"),
        ({"gradient_clip": 0}, "optimizer.gradient_clip=0: input should"),
        ({"momentum": 0.9}, "optimizer.momentum has no effect .*adamw"),
        ({"name": "sgd", "betas": [0.9, 0.98]}, "optimizer.betas has no effect .*sgd"),
        ({"name": "sgd", "momentum": 1.0}, "optimizer.momentum=1.0: input should be less than 1"),
    ],
)
def test_impossible_optimizers_are_refused(config, message):
    with pytest.raises(MagnetoError, match=message):
        from_mapping(OptimizerConfig, {"lr": 1e-3, **config}, "optimizer")


def test_nearest():
    assert nearest("wieght_decay", ["lr", "weight_decay"]) == " Did you mean 'weight_decay'?"
    assert nearest("x", ["lr", "weight_decay"]) == ""


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_files(name):
    values = OmegaConf.to_container(OmegaConf.load(CONF / "optimizer" / f"{name}.yaml"))
    config = from_mapping(OptimizerConfig, values, "optimizer")
    assert config.name == name
    train(model := linear(), build_optimizer(model, config))


@pytest.mark.parametrize("name", SCHEDULES)
def test_scheduler_files(name):
    values = OmegaConf.to_container(OmegaConf.load(CONF / "scheduler" / f"{name}.yaml"))
    config = from_mapping(SchedulerConfig, values, "scheduler")
    assert config.name == name and schedule(config, 1000)(100) == 1.0


def test_each_choice_has_its_file():
    for group, names in {"optimizer": OPTIMIZERS, "scheduler": SCHEDULES}.items():
        assert {file.stem for file in (CONF / group).glob("*.yaml")} == set(names)
    assert set(SCHEDULES) == set(SCHEDULE_KEYS)
