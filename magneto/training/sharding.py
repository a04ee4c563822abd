"""Fully sharded data parallelism: each process keeps a part of every weight, of its gradient and of its optimizer state.

`fully_shard` of torch (FSDP2) by Lightning's `ModelParallelStrategy`. Each layer is a unit: its weights are gathered before
it runs and freed after it. What belongs to no layer (stem, head, norms, positions) is gathered for a whole `step`. Weights
and gradients travel in fp32; autocast alone decides about lower precision, so that the residual stream stays what it is.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Replicate
from torch.nn.utils import get_total_norm

from magneto.training import sharded_checkpoint


class ShardedStrategy(ModelParallelStrategy):
    """`trainer.strategy=fsdp`: all processes share the parameters, the batches are dealt to them as by DDP."""

    restore_checkpoint_after_setup = True
    lightning_restore_optimizer = True
    _written: tuple[int, Path] | None = None
    """The last checkpoint's step and folder: best.ckpt and last.ckpt of one step are the same one."""

    def setup_environment(self) -> None:
        """Make one group of all processes; Lightning's default would split each layer within a node."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return this process's parts of the weights, as `DTensor`."""
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return this process's parts of the optimizer's state."""
        own = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return own.state_dict()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a folder, to be called by all processes. Raises OSError in all of them where one cannot write."""
        step = checkpoint["global_step"]
        written = self._written[1] if self._written and self._written[0] == step else None
        self._written = step, sharded_checkpoint.save(checkpoint, Path(filepath), written)

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Return the content of a checkpoint with this process's parts. Any number of processes may have written it."""
        assert self.lightning_module is not None
        path = Path(checkpoint_path)
        like = _parts(self.lightning_module, self.optimizers)
        if path.is_dir():
            return sharded_checkpoint.load(path, like)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        tensors, rest = sharded_checkpoint.split(content)
        own = {name: own_part(value, like[name]) for name, value in tensors.items() if name in like}
        return sharded_checkpoint.join(tensors | own, rest)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Copy the weights of `load_checkpoint`."""
        assert self.lightning_module is not None
        load_parts(self.lightning_module, checkpoint["state_dict"])

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take over the state of the optimizers of `load_checkpoint`."""
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(state)


def _parts(module: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Return the sharded weight that each tensor of a checkpoint is laid out like, by its path in it."""
    weights = {name: value for name, value in module.state_dict().items() if isinstance(value, DTensor)}
    like: dict[str, Tensor] = {
        f"{group}/{name}": value
        for group in ("state_dict", "current_model_state")
        for name, value in weights.items()
    }
    for number, optimizer in enumerate(optimizers):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for index, parameter in enumerate(parameters):
            for kind in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer"):
                like[f"optimizer_states/{number}/state/{index}/{kind}"] = parameter.detach()
    return like


@contextlib.contextmanager
def empty_parameters(enabled: bool = True) -> Iterator[None]:
    """Make modules whose parameters have shapes and no values; buffers and metrics are as ever.

    For the processes that get their parts of the weights from the first one: it alone holds the whole model.
    """
    register = nn.Module.register_parameter

    def register_empty(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            param = nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
        register(module, name, param)

    if enabled:
        nn.Module.register_parameter = register_empty  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def shard(module: nn.Module, layers: list[nn.Module], mesh: DeviceMesh, device: torch.device) -> None:
    """Split the parameters of `module` among the processes, with the values that the first one has.

    Args:
        module: with the method `step`, the forward pass of its training.
        layers: units of the split, in the order of the forward pass.
        mesh: of all processes.
        device: of this process.
    """
    whole = dict(module.state_dict()) if dist.get_rank() == 0 else {}
    scalars = {one for one in module.parameters() if one.ndim == 0}  # which every process keeps
    for unit in (*layers, module):
        fully_shard(unit, mesh=mesh, ignored_params=scalars)
    register_fsdp_forward_method(module, "step")
    module._apply(  # type: ignore[no-untyped-call]
        lambda one: torch.empty_like(one, device=device) if one.is_meta else one.to(device)
    )
    for name, own in module.state_dict().items():
        full = whole[name].to(device) if whole else torch.empty(own.shape, dtype=own.dtype, device=device)
        full = full.contiguous()
        dist.broadcast(full, 0)
        local_part(own).copy_(local_part(own_part(full, own)))


def own_part(whole: Tensor, like: Tensor) -> Tensor:
    """Return this process's part of a tensor that it has whole, laid out as `like` is."""
    if not isinstance(like, DTensor) or whole.shape != like.shape:
        return whole
    replicated = DTensor.from_local(
        whole.to(like.device), like.device_mesh, [Replicate()] * like.device_mesh.ndim, run_check=False
    )
    return replicated.redistribute(placements=like.placements)


def local_part(tensor: Tensor) -> Tensor:
    """Return the elements of a tensor that this process has: all where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def with_part(like: Tensor, part: Tensor) -> Tensor:
    """Return a tensor that is shared among the processes as `like` is, of which this process has `part`."""
    if not isinstance(like, DTensor):
        return part
    shared: DTensor = DTensor.from_local(
        part, like.device_mesh, like.placements, shape=like.shape, stride=like.stride()
    )
    return shared


def whole_tensor(tensor: Tensor) -> Tensor:
    """Return a tensor with the parts of all processes, which all must call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_weights(module: nn.Module) -> dict[str, Tensor]:
    """Return the whole state dict on the CPU of the first process, and nothing in others, which all must call."""
    first = not dist.is_initialized() or dist.get_rank() == 0
    weights = {}
    for name, value in module.state_dict().items():  # one after the other: a GPU may not have room for all
        whole = whole_tensor(value)
        if first:
            weights[name] = whole.detach().cpu().contiguous()
    return weights


def load_parts(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights that are laid out as those of `module`."""
    with torch.no_grad():
        for name, own in module.state_dict().items():
            local_part(own).copy_(local_part(weights[name]))


@contextlib.contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Hold all weights whole, so that processes may call the layers as often as each needs: for decoding.

    To be entered by all processes alike. Nothing happens to a module that is not sharded.
    """
    units = [unit for unit in module.modules() if isinstance(unit, FSDPModule)]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.set_reshard_after_forward(unit is not module, recurse=False)
            unit.reshard()


def release(module: nn.Module) -> None:
    """Free what a forward pass without a backward pass has left gathered."""
    if isinstance(module, FSDPModule):
        module.reshard()


def average_unsharded(module: nn.Module) -> None:
    """Average the gradients of the parameters that a sharded module has whole in each process, its scalars."""
    if isinstance(module, FSDPModule):
        for parameter in module.parameters():
            if parameter.grad is not None and not isinstance(parameter.grad, DTensor):
                dist.all_reduce(parameter.grad)
                parameter.grad /= dist.get_world_size()


def total_norm(gradients: list[Tensor]) -> Tensor:
    """Return the norm of all gradients together, sharded ones by all processes, which all must call."""
    sharded = [gradient for gradient in gradients if isinstance(gradient, DTensor)]
    if not sharded:
        return get_total_norm(gradients)
    whole = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    norm = whole_tensor(get_total_norm(sharded))
    return torch.hypot(norm, get_total_norm(whole)) if whole else norm


def is_sharded(trainer: L.Trainer) -> bool:
    """Return whether the processes of `trainer` share the parameters."""
    return isinstance(trainer.strategy, ShardedStrategy)
