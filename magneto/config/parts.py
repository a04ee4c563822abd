"""The keys of the groups trainer, callbacks, logger, optimizer and scheduler, with types, ranges and defaults.

Relations between keys are checked by the classes, everything else by `magneto.config.validate.from_mapping`, which builds
them. This module is imported by `python run.py --help`: it must not import torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from magneto.errors import ConfigError

Ratio = Annotated[float, Ge(0), Le(1)]
Beta = Annotated[float, Ge(0), Lt(1)]
Duration = Annotated[int, Ge(0)] | Annotated[float, Ge(0), Lt(1)]
"""A number of optimizer steps (an int) or a fraction of the whole run (a float below 1.0)."""


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """Arguments of lightning.Trainer, with the differences below; Lightning checks the rest of the values."""

    accelerator: str = "auto"
    devices: int | str | list[int] = 1
    num_nodes: Annotated[int, Ge(1)] = 1
    strategy: str = "auto"
    precision: Literal["auto", "32-true", "bf16-mixed", "64-true"] = "auto"
    """auto: bf16 where the hardware multiplies in bf16, else fp32."""
    max_steps: Annotated[int, Ge(1)] = 1000
    val_check_interval: Annotated[int, Ge(1)] = 200
    """Optimizer steps between two validations."""
    accumulate_grad_batches: Annotated[int, Ge(1)] = 1
    log_every_n_steps: Annotated[int, Ge(1)] = 10
    limit_val_batches: Annotated[int, Ge(1)] | Annotated[float, Gt(0)] = 1.0
    """A validation chooses the checkpoint that is tested: 0 is not possible."""
    limit_test_batches: Annotated[int, Ge(1)] | Annotated[float, Gt(0)] = 1.0
    num_sanity_val_steps: Annotated[int, Ge(-1)] = 0
    deterministic: bool | Literal["warn"] = "warn"
    """warn: what has no deterministic kernel (on CUDA: the backward pass of CTC) is reported, and runs."""
    matmul_precision: Literal["high", "medium"] | None = None
    """Of fp32 products on GPUs (torch.set_float32_matmul_precision): high is TF32. It concerns 32-true and predictions."""
    compile: bool | Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = (
        False
    )
    """torch.compile each layer in place; true is its default mode. reduce-overhead uses CUDA graphs."""
    threads: Annotated[int, Ge(1)] | None = None
    """Of the CPU; None leaves it to torch."""
    enable_progress_bar: bool = True
    benchmark: bool | None = None
    detect_anomaly: bool | None = None
    inference_mode: bool | None = None
    profiler: str | None = None
    """The report of +trainer.profiler=simple is in the run's log.txt."""
    sync_batchnorm: bool | None = None


EXTRA_TRAINER_KEYS = ("benchmark", "detect_anomaly", "inference_mode", "profiler", "sync_batchnorm")
"""Keys that are in no composed configuration: a user adds them with +trainer.KEY=."""


@dataclass(frozen=True, kw_only=True)
class CallbacksConfig:
    """What watches a run, and what it keeps."""

    probe_every: Annotated[int, Ge(0)] = 50
    """Steps between two measurements of the stability probe (0: never)."""
    divergence_factor: Annotated[float, Gt(1)] = 2.0
    """The run counts as diverged when its smoothed training loss exceeds the first one by this factor."""
    save_minutes: Annotated[float, Gt(0)] = 5.0
    """Minutes between two saves of checkpoints/last.ckpt, besides that after each validation."""
    save_every: Annotated[int, Ge(1)] | None = None
    """Steps between two of them; null: minutes alone decide."""
    save_async: bool = False
    """Write checkpoints in the background, from a copy in the host's memory; sharded ones (fsdp) are not."""
    ema_decay: Annotated[float, Gt(0), Lt(1)] | None = None
    """Decay of an exponential moving average of the weights, which is validated, tested and exported."""
    average_last: Annotated[int, Ge(2)] | None = None
    """The mean of the weights at this number of last validations is tested and exported, instead of the best ones."""
    samples: Annotated[int, Ge(0)] = 8
    """Examples to look at, logged at each validation."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Callbacks of your own: name -> `_target_`, a class derived from lightning.Callback, and its arguments."""

    def __post_init__(self) -> None:
        """Check that weights are averaged in one way."""
        if self.average_last is not None and self.ema_decay is not None:
            raise ConfigError(
                "callbacks.average_last and callbacks.ema_decay are two ways to average weights: set one to null."
            )


WandbMode = Literal["auto", "online", "offline", "disabled"]


@dataclass(frozen=True, kw_only=True)
class LoggerConfig:
    """Weights & Biases; metrics.csv is always written. W&B's environment variables decide where a key has its default."""

    wandb: WandbMode = "auto"
    """auto: online where a key is found, offline otherwise."""
    project: str = "magneto"
    entity: str | None = None
    group: str | None = None
    """None: the run's name without its seed, so that seeds are one group."""
    tags: Sequence[str] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Loggers of your own: name -> `_target_`, a class derived from Lightning's Logger, and its arguments."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The groups that the loop of training is built from."""

    trainer: TrainerConfig
    callbacks: CallbacksConfig
    logger: LoggerConfig


OPTIMIZER_KEYS = {
    "adamw": ("betas", "eps"),
    "adam": ("betas", "eps"),
    "sgd": ("momentum",),
    "muon": ("betas", "eps", "momentum"),
}
"""The optional keys that each optimizer takes."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """What `conf/optimizer/*.yaml` holds."""

    name: Literal["adamw", "adam", "sgd", "muon"] = "adamw"
    """`adamw` decays weights apart from the gradient; so does fairseq's `adam`, which the papers' recipes name. `adam`
    here is torch's: it adds weight_decay * weight to the gradient. `muon` is torch's Muon for the matrices inside the
    layers, scaled to AdamW's updates, and AdamW for everything else."""
    lr: Annotated[float, Gt(0)]
    """Peak learning rate; the schedule multiplies it."""
    betas: tuple[Beta, Beta] | None = None
    """Adam, AdamW and the part of Muon that is AdamW; None: torch's own (0.9, 0.999)."""
    eps: Annotated[float, Gt(0)] | None = None
    """As betas; None: torch's own 1e-8."""
    momentum: Beta | None = None
    """SGD and Muon; None: none for SGD, torch's own 0.95 for Muon."""
    weight_decay: Annotated[float, Ge(0)] = 0.0
    layer_decay: Annotated[float, Gt(0), Le(1)] | None = None
    """Factor of the learning rate per layer below the head (0.65 in BEiT's fine-tuning); None: all alike."""
    gradient_clip: Annotated[float, Gt(0)] | None = None
    """Largest norm of the whole gradient; None: no clipping. Applied by the training step."""

    def __post_init__(self) -> None:
        """Check that every key has an effect on the chosen optimizer."""
        _check_effects(self, "optimizer", ("betas", "eps", "momentum"), OPTIMIZER_KEYS[self.name])


SCHEDULE_KEYS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "constant": ((), ()),
    "linear": ((), ("final_ratio",)),
    "cosine": ((), ("final_ratio",)),
    "inverse_sqrt": ((), ()),
    "polynomial": (("power",), ("final_ratio",)),
    "wsd": (("decay",), ("final_ratio",)),
}
"""The keys that each schedule needs, and those that it takes."""


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """What `conf/scheduler/*.yaml` holds."""

    name: Literal["constant", "linear", "cosine", "inverse_sqrt", "polynomial", "wsd"]
    warmup: Duration = 0
    """The linear rise to the peak."""
    warmup_init_ratio: Ratio = 0.0
    """Where the rise begins, as a ratio of the peak."""
    final_ratio: Ratio | None = None
    """Where the schedule ends, as a ratio of the peak; None: 0. For linear, cosine, polynomial and wsd."""
    power: Annotated[float, Gt(0)] | None = None
    """For polynomial, which needs it."""
    decay: Duration | None = None
    """For wsd, which needs it: the decay at the end of the run."""

    def __post_init__(self) -> None:
        """Check that the chosen schedule has the keys that it needs, and no others."""
        needed, taken = SCHEDULE_KEYS[self.name]
        _check_effects(self, "scheduler", ("final_ratio", "power", "decay"), needed + taken)
        for key in needed:
            if getattr(self, key) is None:
                raise ConfigError(f"scheduler.name={self.name} needs scheduler.{key}: set it to a value.")


def _check_effects(config: Any, where: str, optional: Sequence[str], taken: Sequence[str]) -> None:
    for key in optional:
        if getattr(config, key) is not None and key not in taken:
            raise ConfigError(f"{where}.{key} has no effect with {where}.name={config.name}: set it to null.")


def defaults(cls: type) -> Mapping[str, Any]:
    """Return the keys of a part that a composed configuration has, with their defaults."""
    return {
        one.name: one.default if one.default_factory is MISSING else one.default_factory()
        for one in fields(cls)
        if one.name not in EXTRA_TRAINER_KEYS
    }
