"""Pieces of sharded training that need one process: parameters without values, and checkpoints taken apart."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from magneto.errors import ConfigError, DataError
from magneto.nn import BackboneConfig, Encoder
from magneto.training import checkpoint_io, reproducibility, sharded_checkpoint, sharding


@pytest.fixture
def one_process(tmp_path: Path) -> object:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_empty_parameters_have_shapes() -> None:
    """And buffers their values; what the modules share stays shared."""
    config = BackboneConfig(num_layers=1, d_model=16, num_heads=2, ffn_dim=32, position="rotary")
    with sharding.empty_parameters():
        empty = Encoder(config)
    full = Encoder(config)
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert {name: p.shape for name, p in empty.named_parameters()} == {
        name: p.shape for name, p in full.named_parameters()
    }
    buffers = dict(full.named_buffers())
    assert buffers and all(torch.equal(value, buffers[name]) for name, value in empty.named_buffers())
    with sharding.empty_parameters():
        one, other = nn.Linear(2, 2), nn.Linear(2, 2)
        other.weight = one.weight
    assert other.weight is one.weight
    assert not next(nn.Linear(2, 2).parameters()).is_meta, "the switch ends with its block"


def test_checkpoints_are_joined_again() -> None:
    """Whatever is nested in them."""
    content = {
        "state_dict": {"a.weight": torch.ones(2), "b": torch.zeros(())},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"betas": (0.9, 0.95)}]}],
        "text": "plain", "none": None,
    }  # fmt: skip
    tensors, rest = sharded_checkpoint.split(content)
    assert set(tensors) == {"state_dict/a.weight", "state_dict/b", "optimizer_states/0/state/0/step"}
    assert not any(isinstance(value, torch.Tensor) for value in rest["state_dict"].values())
    joined = sharded_checkpoint.join(tensors, rest)
    assert joined["optimizer_states"] == content["optimizer_states"]
    assert torch.equal(joined["state_dict"]["a.weight"], torch.ones(2)) and joined["text"] == "plain"


def test_a_write_that_fails_leaves_the_old(
    one_process: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The link goes on pointing to the checkpoint before; one written for a second name is not written again."""
    mesh = one_process
    weight = distribute_tensor(torch.arange(6.0).view(3, 2), mesh, [Shard(0)])  # type: ignore[arg-type]
    parameters = {"task": "x.Y", "backbone": {}, "info": {}, "total_steps": 9}
    content = {"state_dict": {"w": weight}, "global_step": 1, "hyper_parameters": parameters}
    last, best = tmp_path / "last.ckpt", tmp_path / "best.ckpt"
    folder = sharded_checkpoint.save(content, last)
    assert sharded_checkpoint.save(content, best, folder) == folder
    assert last.resolve() == best.resolve() == folder
    read = checkpoint_io.read_checkpoint(last)
    assert torch.equal(read["state_dict"]["w"], torch.arange(6.0).view(3, 2)) and read["global_step"] == 1
    assert checkpoint_io.read_checkpoint(last, weights=False)["state_dict"]["w"].is_meta
    loaded = sharded_checkpoint.load(folder, {"state_dict/w": weight})["state_dict"]["w"]
    assert isinstance(loaded, DTensor) and torch.equal(loaded.full_tensor(), weight.full_tensor())

    def full(*args: object, **kwargs: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="process 0: No space left on device"):
        sharded_checkpoint.save({**content, "global_step": 2}, last)
    assert last.resolve() == folder
    monkeypatch.undo()
    assert list(tmp_path.glob(".step-*.part")), "as a process that is killed leaves it"
    newer = sharded_checkpoint.save({**content, "global_step": 2}, last)
    assert not list(tmp_path.glob(".step-*.part"))
    assert last.resolve() == newer and folder.is_dir(), "best.ckpt still needs it"
    sharded_checkpoint.save({**content, "global_step": 2}, best, newer)
    assert not folder.exists()


@pytest.mark.parametrize("damage", ["shard", "rest", "cut"])
def test_damaged_shards_are_named(damage: str, one_process: object, tmp_path: Path) -> None:
    mesh = one_process
    weight = distribute_tensor(torch.ones(4, 2), mesh, [Shard(0)])  # type: ignore[arg-type]
    folder = sharded_checkpoint.save({"state_dict": {"w": weight}, "global_step": 1}, tmp_path / "last.ckpt")
    shard = next(folder.glob("shard-*"))
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-8])
    else:
        (shard if damage == "shard" else folder / "rest.pt").unlink()
    with pytest.raises(DataError, match="Use the other checkpoint of the run"):
        checkpoint_io.read_checkpoint(tmp_path / "last.ckpt")


def test_fewer_examples_than_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process without a batch would leave the others waiting for its part of the weights."""
    trainer = SimpleNamespace(world_size=4)
    data = SimpleNamespace(val_set=range(4), test_set=range(3))
    monkeypatch.setattr(reproducibility, "data_of", lambda trainer: data)
    with pytest.raises(ConfigError, match="The test split has 3 examples, fewer than the 4 processes"):
        reproducibility.ConfigureRun()._check_evaluations(trainer)  # type: ignore[arg-type]
