"""Optimizers with parameter groups by role, and learning-rate schedules as pure functions of the step.

Both are described by frozen dataclasses of plain values, the contents of `conf/optimizer/*.yaml` and
`conf/scheduler/*.yaml`. A value without effect on the chosen optimizer or schedule is refused, not ignored.

Weight decay is meant for weights that multiply features, those of the modules in DECAYED. Biases, norms,
embeddings, position tables, and whatever else a module owns, stay free of it. Two methods add what types
do not say:

- `no_weight_decay() -> set[str]`: further parameters without decay, by name within the module (as in timm);
- `layer_modules() -> list[nn.Module]` of the top module, for `layer_decay`: its layers from the input to the
  output, the stem first. What is in no layer belongs to the head and has the full learning rate.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from magneto.errors import ConfigError, nearest

Duration = int | float

# By name: the class, and those of the optional settings that it takes.
OPTIMIZERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], tuple[str, ...]]] = {
    "adamw": (torch.optim.AdamW, ("betas", "eps")),
    "adam": (torch.optim.Adam, ("betas", "eps")),
    "sgd": (torch.optim.SGD, ("momentum",)),
}

# Modules that multiply features by their weights: only these weights are decayed. _ConvNd: all convolutions.
DECAYED = (nn.Linear, nn.Bilinear, nn.modules.conv._ConvNd, nn.RNNBase, nn.MultiheadAttention)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """What `conf/optimizer/*.yaml` holds. Raises ConfigError on values that cannot be meant."""

    name: str = "adamw"
    """A key of OPTIMIZERS. `adamw` decays weights apart from the gradient; so does fairseq's `adam`, which
    the papers' recipes name. `adam` here is torch's: it adds weight_decay * weight to the gradient."""
    lr: float
    """Peak learning rate; the schedule multiplies it."""
    betas: tuple[float, float] | None = None
    """Adam and AdamW; None: torch's own (0.9, 0.999)."""
    eps: float | None = None
    """Adam and AdamW; None: torch's own 1e-8."""
    momentum: float | None = None
    """SGD; None: none."""
    weight_decay: float = 0.0
    layer_decay: float | None = None
    """Factor of the learning rate per layer below the head (0.65 in BEiT's fine-tuning); None: all alike."""
    gradient_clip: float | None = None
    """Largest norm of the whole gradient; None: no clipping. Applied by the training step."""

    def __post_init__(self) -> None:
        """Check every value and every pair of values that depend on each other."""
        if self.name not in OPTIMIZERS:
            raise ConfigError(_unknown("optimizer.name", self.name, OPTIMIZERS))
        _check("optimizer.lr", self.lr, lambda lr: lr > 0, "must be above 0")
        _check("optimizer.weight_decay", self.weight_decay, lambda decay: decay >= 0, "must be 0 or more")
        if self.betas is not None:
            two = "must be two numbers from 0 to below 1, such as [0.9, 0.98]"
            if not isinstance(self.betas, list | tuple) or len(self.betas) != 2:
                raise ConfigError(f"optimizer.betas={self.betas} {two}.")
            for beta in self.betas:
                _check("optimizer.betas", beta, lambda beta: 0 <= beta < 1, two)
            object.__setattr__(self, "betas", tuple(self.betas))
        for key, holds, remedy in (
            ("eps", lambda eps: eps > 0, "must be above 0, or null"),
            ("momentum", lambda momentum: 0 <= momentum < 1, "must lie in [0, 1), or be null"),
            ("layer_decay", lambda decay: 0 < decay <= 1, "must lie in (0, 1], or be null"),
            ("gradient_clip", lambda norm: norm > 0, "must be above 0, or null for no clipping"),
        ):
            _check(f"optimizer.{key}", getattr(self, key), holds, remedy, optional=True)
        taken = OPTIMIZERS[self.name][1]
        for key in ("betas", "eps", "momentum"):
            if getattr(self, key) is not None and key not in taken:
                raise ConfigError(
                    f"optimizer.{key} has no effect with optimizer.name={self.name}: set it to null."
                )


def build_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer of all trainable parameters of `module`, in groups by weight decay and learning rate.

    It uses torch's fused kernels, also on the CPU, where they are several times as fast as the others and
    give the same bits in every run and with any number of threads. (Lightning's own gradient clipping
    refuses them under mixed precision; `torch.nn.utils.clip_grad_norm_` does not.)

    Raises:
        MagnetoError: `layer_decay` is set and the module has no `layer_modules()`.
    """
    cls, taken = OPTIMIZERS[config.name]
    settings = {key: getattr(config, key) for key in taken if getattr(config, key) is not None}
    groups = parameter_groups(
        module, lr=config.lr, weight_decay=config.weight_decay, layer_decay=config.layer_decay
    )
    return cls(groups, lr=config.lr, weight_decay=config.weight_decay, fused=True, **settings)


def parameter_groups(
    module: nn.Module, *, lr: float, weight_decay: float, layer_decay: float | None = None
) -> list[dict[str, Any]]:
    """Groups `{"params", "name", "lr", "weight_decay"}` that hold every trainable parameter exactly once.

    A parameter is decayed if it has two or more dimensions and all modules that own it (a tied one has
    several) are in DECAYED, unless one excludes it by `no_weight_decay()`. With `layer_decay`, layer k of the
    L of `layer_modules()` has the learning rate lr * layer_decay ** (L - k), k from 0, and the head has lr.

    The order of groups and parameters depends on the module alone, so that optimizer states can be reloaded.
    """
    undecayed = _undecayed(module)
    depth_of, num_layers = _depths(module, layer_decay) if layer_decay is not None else ({}, 0)

    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for parameter in module.parameters():
        if not parameter.requires_grad:
            continue
        depth = depth_of.get(id(parameter), num_layers)
        decays = id(parameter) not in undecayed
        if (depth, decays) not in groups:
            name = "decay" if decays else "no_decay"
            if layer_decay is not None:
                name = (f"layer_{depth:02d}/" if depth < num_layers else "head/") + name
            groups[depth, decays] = {
                "params": [],
                "name": name,
                "lr": lr * (1.0 if layer_decay is None else layer_decay) ** (num_layers - depth),
                "weight_decay": weight_decay if decays else 0.0,
            }
        groups[depth, decays]["params"].append(parameter)

    grouped = [id(parameter) for group in groups.values() for parameter in group["params"]]
    trainable = {id(parameter) for parameter in module.parameters() if parameter.requires_grad}
    assert len(grouped) == len(trainable) and set(grouped) == trainable, "the groups are no partition"
    assert grouped, "the module has no trainable parameter"
    return list(groups.values())


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """What `conf/scheduler/*.yaml` holds. Raises ConfigError on values that cannot be meant.

    A duration is a number of optimizer steps (an int) or a fraction of the whole run (a float below 1.0).
    """

    name: str
    """A key of SCHEDULES."""
    warmup: Duration = 0
    """Duration of the linear rise to the peak."""
    warmup_init_ratio: float = 0.0
    """Where the rise begins, as a ratio of the peak."""
    final_ratio: float | None = None
    """Where the schedule ends, as a ratio of the peak; None: 0. For linear, cosine, polynomial and wsd."""
    power: float | None = None
    """For polynomial, which needs it."""
    decay: Duration | None = None
    """For wsd, which needs it: duration of the decay at the end of the run."""

    def __post_init__(self) -> None:
        """Check every value and every pair of values that depend on each other."""
        if self.name not in SCHEDULES:
            raise ConfigError(_unknown("scheduler.name", self.name, SCHEDULES))
        _check_duration("scheduler.warmup", self.warmup)
        _check_duration("scheduler.decay", self.decay, optional=True)
        ratio = "must lie in [0, 1]: it is a ratio of optimizer.lr"
        _check("scheduler.warmup_init_ratio", self.warmup_init_ratio, lambda r: 0 <= r <= 1, ratio)
        _check("scheduler.final_ratio", self.final_ratio, lambda r: 0 <= r <= 1, ratio, optional=True)
        _check("scheduler.power", self.power, lambda power: power > 0, "must be above 0", optional=True)
        _, needed, optional = SCHEDULES[self.name]
        for key in ("final_ratio", "power", "decay"):
            given = getattr(self, key) is not None
            if given and key not in needed + optional:
                raise ConfigError(
                    f"scheduler.{key} has no effect with scheduler.name={self.name}: set it to null."
                )
            if not given and key in needed:
                raise ConfigError(f"scheduler.name={self.name} needs scheduler.{key}: give it.")


def build_scheduler(optimizer: torch.optim.Optimizer, config: SchedulerConfig, total_steps: int) -> LambdaLR:
    """The schedule of a run of `total_steps` optimizer steps; call `.step()` after each of them.

    The learning rate is a function of the step alone, so a reloaded `state_dict` goes on exactly.

    Raises:
        MagnetoError: the durations do not fit into the run.
    """
    factor = schedule(config, total_steps)
    return LambdaLR(optimizer, factor)


def schedule(config: SchedulerConfig, total_steps: int) -> Callable[[int], float]:
    """The factor of the peak learning rate as a function of the step, the number of updates made before.

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
            "never reach its learning rate: give more steps, or a fraction such as 0.1, which always fits."
        )
    decay = 0 if config.decay is None else steps_of(config.decay, total_steps)
    if warmup + decay > total_steps:
        raise ConfigError(
            f"scheduler.warmup={config.warmup} and scheduler.decay={config.decay} are {warmup + decay} steps "
            f"and more than the run of {total_steps}: give more steps, or fractions such as 0.1 and 0.2."
        )
    shape, _, _ = SCHEDULES[config.name]
    init = config.warmup_init_ratio

    def factor(step: int) -> float:
        if step < warmup:
            return init + (1.0 - init) * (step + 1) / (warmup + 1)
        return shape(min(step, total_steps), warmup, total_steps, config)

    return factor


def steps_of(duration: Duration, total_steps: int) -> int:
    """A duration in steps: an int as it is, a float as a fraction of the run, rounded."""
    return duration if isinstance(duration, int) else round(duration * total_steps)


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
    assert config.decay is not None
    start = total - steps_of(config.decay, total)
    return 1.0 if step < start else _between(1.0 - math.sqrt(_progress(step, start, total)), config)


def _progress(step: int, start: int, end: int) -> float:
    """How much of the way from `start` to `end` is done at `step`, 0.0 to 1.0."""
    return (step - start) / (end - start) if end > start else 1.0


def _between(height: float, config: SchedulerConfig) -> float:
    """From a height of 1.0 (the peak) to 0.0 (the end) to the factor."""
    final = config.final_ratio or 0.0
    return final + (1.0 - final) * height


# By name: the factor from the end of the warmup on, the settings it needs, and those it can be given.
SCHEDULES: dict[
    str, tuple[Callable[[int, int, int, SchedulerConfig], float], tuple[str, ...], tuple[str, ...]]
] = {
    "constant": (_constant, (), ()),
    "linear": (_linear, (), ("final_ratio",)),
    # Half a cosine wave: Loshchilov & Hutter 2017, eq. 5, without restarts.
    "cosine": (_cosine, (), ("final_ratio",)),
    # sqrt(warmup / step), for a run of any length: Vaswani et al. 2017, eq. 3 ("noam", with lr for its peak).
    "inverse_sqrt": (_inverse_sqrt, (), ()),
    # (1 - progress) ** power; the default of fairseq's `polynomial_decay` is power 1, a straight line.
    "polynomial": (_polynomial, ("power",), ("final_ratio",)),
    # Warmup, stable, decay: 1 - sqrt(progress) over the last `decay` steps (Hägele et al., arXiv 2405.18392).
    "wsd": (_wsd, ("decay",), ("final_ratio",)),
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
            f"optimizer.layer_decay={layer_decay} is not possible: {type(module).__name__} does not tell "
            "its layers. Set it to null, or give the module a method layer_modules()."
        )
    layers = layer_modules()
    depths: dict[int, int] = {}
    for depth, layer in enumerate(layers):
        for parameter in layer.parameters():
            depths.setdefault(id(parameter), depth)
    return depths, len(layers)


def _unknown(what: str, name: object, options: Iterable[str]) -> str:
    return f"{what} '{name}' is unknown.{nearest(name, options)} Choose from {', '.join(options)}."


def _check_duration(key: str, value: Any, optional: bool = False) -> None:
    remedy = "must be a number of steps (0 or more) or a fraction of the run (from 0.0 to below 1.0)"
    _check(key, value, lambda d: 0 <= d < (math.inf if isinstance(d, int) else 1.0), remedy, optional)


def _check(key: str, value: Any, holds: Callable[[Any], bool], remedy: str, optional: bool = False) -> None:
    """ConfigError unless the value is a finite number that fulfils the condition (or None if optional)."""
    if optional and value is None:
        return
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not (number and holds(value)):
        raise ConfigError(f"{key}={value} {remedy}.")
