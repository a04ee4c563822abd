"""Optimizers with parameter groups by role, and learning-rate schedules as pure functions of the step.

`OptimizerConfig` and `SchedulerConfig` (magneto/config/parts.py) describe them.

Weight decay is meant for weights that multiply features, those of the modules in DECAYED. Biases, norms,
embeddings, position tables, and whatever else a module owns, stay free of it. Two methods add what types
do not say:

- `no_weight_decay() -> set[str]`: further parameters without decay, by name within the module (as in timm);
- `layer_modules() -> list[nn.Module]` of the top module, for `layer_decay`: its layers from the input to the
  output, the stem first. What is in no layer belongs to the head and has the full learning rate.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR

from magneto.config.parts import Duration, OptimizerConfig, SchedulerConfig
from magneto.errors import ConfigError
from magneto.training.muon import MuonAdamW, hidden_matrices

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "muon": MuonAdamW,
}

# Modules that multiply features by their weights: only these weights are decayed. _ConvNd: all convolutions.
DECAYED = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd, nn.RNNBase, nn.MultiheadAttention)


def build_optimizer(
    module: nn.Module, config: OptimizerConfig, *, bf16: bool = False
) -> torch.optim.Optimizer:
    """Return the optimizer of all trainable parameters of `module`, in groups by weight decay and learning rate.

    It uses torch's fused kernels, also on the CPU, where they are several times as fast as the others and
    give the same bits in every run and with any number of threads. (Lightning's own gradient clipping
    refuses them under mixed precision; `torch.nn.utils.clip_grad_norm_` does not.)

    Args:
        module: the model.
        config: what to build.
        bf16: whether the model is trained in bf16: then Muon's products are, too.

    Raises:
        ConfigError: `layer_decay` is set and the module has no `layer_modules()`, or there is no matrix for Muon.
    """
    betas = None if config.betas is None else tuple(config.betas)  # YAML has lists only
    given = {"betas": betas, "eps": config.eps, "momentum": config.momentum}
    settings: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if config.name == "muon":
        settings["bf16"] = bf16
    common: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    blocks = hidden_matrices(module) if config.name == "muon" else {}
    if config.name == "muon" and not blocks:
        raise ConfigError(
            f"optimizer.name=muon: {type(module).__name__} has no trainable matrix inside a layer of magneto.nn. "
            "Set optimizer=adamw."
        )
    groups = parameter_groups(module, **common, layer_decay=config.layer_decay, blocks=blocks)
    return OPTIMIZERS[config.name](groups, **common, fused=True, **settings)


def parameter_groups(
    module: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    layer_decay: float | None = None,
    blocks: Mapping[nn.Parameter, int] = {},
) -> list[dict[str, Any]]:
    """Return groups `{"params", "name", "lr", "weight_decay"}` that hold every trainable parameter exactly once.

    A parameter is decayed if it has two or more dimensions and all modules that own it (a tied one has
    several) are in DECAYED, unless one excludes it by `no_weight_decay()`. With `layer_decay`, layer k of the
    L of `layer_modules()` has the learning rate lr * layer_decay ** (L - k), k from 0, and the head has lr.
    The parameters in `blocks` are in groups of their own with the further key `blocks`, their values in it.

    The order of groups and parameters depends on the module alone, so that optimizer states can be reloaded.
    """
    undecayed = _undecayed(module)
    depth_of, num_layers = _depths(module, layer_decay) if layer_decay is not None else ({}, 0)

    groups: dict[tuple[int, bool, bool, bool], dict[str, Any]] = {}
    for parameter in module.parameters():
        if not parameter.requires_grad:
            continue
        depth = depth_of.get(id(parameter), num_layers)
        decays = id(parameter) not in undecayed
        muon = parameter in blocks
        # A kernel for many parameters takes no mixture of sharded ones and others (scalars).
        key = depth, decays, muon, isinstance(parameter, DTensor)
        if key not in groups:
            name = ("muon_" if muon else "") + ("decay" if decays else "no_decay")
            if layer_decay is not None:
                name = (f"layer_{depth:02d}/" if depth < num_layers else "head/") + name
            groups[key] = {
                "params": [],
                "name": name,
                "lr": lr * (1.0 if layer_decay is None else layer_decay) ** (num_layers - depth),
                "weight_decay": weight_decay if decays else 0.0,
            } | ({"blocks": []} if muon else {})
        groups[key]["params"].append(parameter)
        if muon:
            groups[key]["blocks"].append(blocks[parameter])

    grouped = [id(parameter) for group in groups.values() for parameter in group["params"]]
    trainable = {id(parameter) for parameter in module.parameters() if parameter.requires_grad}
    assert len(grouped) == len(trainable) and set(grouped) == trainable, "the groups are no partition"
    assert grouped, "the module has no trainable parameter"
    return list(groups.values())


def build_scheduler(optimizer: torch.optim.Optimizer, config: SchedulerConfig, total_steps: int) -> LambdaLR:
    """Return the schedule of a run of `total_steps` optimizer steps; call `.step()` after each of them.

    The learning rate is a function of the step alone, so a reloaded `state_dict` continues exactly.

    Raises:
        MagnetoError: the durations do not fit into the run.
    """
    factor = schedule(config, total_steps)
    return LambdaLR(optimizer, factor)


def schedule(config: SchedulerConfig, total_steps: int) -> Callable[[int], float]:
    """Return the factor of the peak learning rate as a function of the step, the number of updates made before.

    Landmarks, W being the warmup and T the run: init + (1 - init) / (W + 1) at step 0, so that no update is
    void; 1.0 at step W; the final ratio at step T, where the run is over, and after it.

    Raises:
        ConfigError: the warmup, or for wsd warmup and decay together, are longer than the run.
    """
    assert total_steps >= 1, "a run has steps"
    warmup = steps_of(config.warmup, total_steps)
    if warmup > total_steps:
        raise ConfigError(
            f"scheduler.warmup={config.warmup} is longer than the run of {total_steps} steps, which would "
            "never reach its learning rate. Set trainer.max_steps to more steps, or the warmup to a fraction such as 0.1."
        )
    decay = 0 if config.decay is None else steps_of(config.decay, total_steps)
    if warmup + decay > total_steps:
        raise ConfigError(
            f"scheduler.warmup={config.warmup} and scheduler.decay={config.decay} are {warmup + decay} steps "
            f"and more than the run of {total_steps}: set trainer.max_steps to more, or use fractions such as 0.1 and 0.2."
        )
    shape = SCHEDULES[config.name]
    init = config.warmup_init_ratio

    def factor(step: int) -> float:
        if step < warmup:
            return init + (1.0 - init) * (step + 1) / (warmup + 1)
        return shape(min(step, total_steps), warmup, total_steps, config)

    return factor


def steps_of(duration: Duration, total_steps: int) -> int:
    """Return a duration in steps: an int as it is, a float as a fraction of the run, rounded."""
    return duration if isinstance(duration, int) else round(duration * total_steps)


def decay_start(config: SchedulerConfig, total_steps: int) -> int | None:
    """Return the step at which the decay of wsd begins; None: no other schedule has one.

    Up to this step a run does not depend on its length (with a warmup in steps): a longer one may begin there.
    """
    return None if config.decay is None else total_steps - steps_of(config.decay, total_steps)


def _constant(step: int, warmup: int, total: int, config: SchedulerConfig) -> float:
    return 1.0


def _inverse_sqrt(step: int, warmup: int, total: int, config: SchedulerConfig) -> float:
    return math.sqrt(max(warmup, 1) / max(step, 1))


def _linear(step: int, warmup: int, total: int, config: SchedulerConfig) -> float:
    return _between(1.0 - _progress(step, warmup, total), config)


def _cosine(step: int, warmup: int, total: int, config: SchedulerConfig) -> float:
    return _between(0.5 * (1.0 + math.cos(math.pi * _progress(step, warmup, total))), config)


def _polynomial(step: int, warmup: int, total: int, config: SchedulerConfig) -> float:
    assert config.power is not None
    return _between((1.0 - _progress(step, warmup, total)) ** config.power, config)


def _wsd(step: int, warmup: int, total: int, config: SchedulerConfig) -> float:
    start = decay_start(config, total)
    assert start is not None
    return 1.0 if step < start else _between(1.0 - math.sqrt(_progress(step, start, total)), config)


def _progress(step: int, start: int, end: int) -> float:
    """Return the share of the way from `start` to `end` that is done at `step`, 0.0 to 1.0."""
    return (step - start) / (end - start) if end > start else 1.0


def _between(height: float, config: SchedulerConfig) -> float:
    """Return the factor of a height from 1.0 (the peak) to 0.0 (the end)."""
    final = config.final_ratio or 0.0
    return final + (1.0 - final) * height


# By name: the factor from the end of the warmup on.
SCHEDULES: dict[str, Callable[[int, int, int, SchedulerConfig], float]] = {
    "constant": _constant,
    "linear": _linear,
    # Half a cosine wave: Loshchilov & Hutter 2017, eq. 5, without restarts.
    "cosine": _cosine,
    # sqrt(warmup / step), for a run of any length: Vaswani et al. 2017, eq. 3 ("noam", with lr for its peak).
    "inverse_sqrt": _inverse_sqrt,
    # (1 - progress) ** power; the default of fairseq's `polynomial_decay` is power 1, a straight line.
    "polynomial": _polynomial,
    # Warmup, stable, decay: 1 - sqrt(progress) over the last `decay` steps (Hägele et al., arXiv 2405.18392).
    "wsd": _wsd,
}


def _undecayed(module: nn.Module) -> set[int]:
    """Ids of the parameters that any of their owners keeps from weight decay."""
    undecayed = set()
    for owner in module.modules():
        whole = not isinstance(owner, DECAYED)
        undecayed |= {id(p) for p in owner.parameters(recurse=False) if whole or p.ndim < 2}
        named: Callable[[], set[str]] | None = getattr(owner, "no_weight_decay", None)
        if named is not None:
            undecayed |= {id(owner.get_parameter(name)) for name in named()}
    return undecayed


def _depths(module: nn.Module, layer_decay: float) -> tuple[dict[int, int], int]:
    """Layer index by id of parameter (of a tied one: the lowest), and the number of layers."""
    layer_modules: Callable[[], list[nn.Module]] | None = getattr(module, "layer_modules", None)
    if layer_modules is None:
        raise ConfigError(
            f"optimizer.layer_decay={layer_decay} is not possible: {type(module).__name__} does not name its "
            "layers. Set it to null, or give the module a method layer_modules()."
        )
    layers = layer_modules()
    depths: dict[int, int] = {}
    for depth, layer in enumerate(layers):
        for parameter in layer.parameters():
            depths.setdefault(id(parameter), depth)
    return depths, len(layers)
