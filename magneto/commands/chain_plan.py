"""What a chain costs, by arithmetic alone: nothing is fetched or trained.

Counted are the weights of backbone and embeddings, and the model FLOPs of `magneto.nn.flops` with those of an output layer
over the vocabulary; heads, stems and predictors of a task are not. Memory is 16 bytes a weight (weight, gradient and two
moments in fp32) and 34 bytes for each unit of each layer of each token on a device (Korthikanti et al., arXiv 2205.05198,
without the scores of attention, which flash attention does not keep).
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric.utilities.throughput import _CUDA_FLOPS
from rich import box
from rich.console import Console
from rich.table import Table

from magneto.commands.chain import ChainRun, composed
from magneto.commands.chain_spec import jobs_of
from magneto.config import schema
from magneto.errors import ConfigError, nearest
from magneto.nn import BackboneConfig, build_backbone, training_flops_per_token
from magneto.tasks.registry import task_class

GPUS = {"a100": "a100", "h100": "h100 sxm", "h200": "h100 sxm"}
"""Devices by their names in Lightning's table of peak FLOP/s; an H200 multiplies as fast as an H100."""
UTILISATION = 0.4
"""Share of a device's peak that model FLOPs are taken to reach."""
WRITES = ("mlm", "causal_lm", "mt", "asr", "asr_transducer")
"""Tasks whose outputs are tokens."""
SENTENCE, UTTERANCE = 32, 320
"""Tokens of a sentence and of a recording (of 40 ms), where batches are counted in tokens or frames."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one run.

    Attributes:
        parameters: of backbone and embeddings.
        steps: optimizer steps.
        flops: model FLOPs of all steps.
        memory: bytes on a device.
    """

    parameters: int
    steps: int
    flops: float
    memory: float


def cost_of(config: Mapping[str, Any], backbone: Mapping[str, Any], vocabulary: int) -> Cost:
    """Return the cost of a run.

    Args:
        config: the whole configuration.
        backbone: its backbone, or that of the weights that it starts from.
        vocabulary: number of its tokens, or of those of the weights that it starts from.
    """
    data, steps = config["data"], config["trainer"]["max_steps"]
    shape = task_class(config["task"]["_target_"]).shape_from(backbone, data)
    model = BackboneConfig.from_dict({**backbone, **shape})
    outputs = vocabulary if config["task"]["name"] in WRITES else 0
    with torch.device("meta"):
        weights = sum(parameter.numel() for parameter in build_backbone(model).parameters())
    length, tokens, on_device = _tokens(data)
    if model.architecture == "encoder_decoder":
        each = sum(
            training_flops_per_token(
                model, length, side=side, memory_length=length if side == "decoder" else 0
            )
            for side in ("encoder", "decoder")
        )
        layers = 2 * model.num_layers
    else:
        each, layers = training_flops_per_token(model, length), model.num_layers
    return Cost(
        parameters=weights + vocabulary * model.d_model,
        steps=steps,
        flops=steps * tokens * (each + 6.0 * outputs * model.d_model),
        memory=16.0 * (weights + vocabulary * model.d_model) + 34.0 * model.d_model * layers * on_device,
    )


def _tokens(data: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return the tokens of a sequence, of a step, and of a device at a time."""
    for key, length, per_token in (
        ("batch_tokens", SENTENCE, 1),
        ("batch_frames", UTTERANCE, data.get("subsampling", 4)),
    ):
        if key in data:
            return length, (data.get("global_batch") or data[key]) // per_token, data[key] // per_token
    length = data.get("block_size", 0) or data.get("max_tokens", 0)
    if "image_size" in data:
        length += (data["image_size"] // data["patch_size"]) ** 2 + 1
    return length, (data.get("global_batch") or data["batch_size"]) * length, data["batch_size"] * length


def peak(device: str) -> float:
    """Return a device's FLOP/s: of a GPU in bf16 by Lightning's table, of this CPU by a product in fp32.

    Raises:
        ConfigError: no such device is known.
    """
    if device == "cpu":
        a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
        torch.mm(a, b)
        begin = time.perf_counter()
        for _ in range(5):
            torch.mm(a, b)
        return 5 * 2 * 1024**3 / (time.perf_counter() - begin)
    if device not in GPUS:
        names = ["cpu", *GPUS]
        raise ConfigError(f"device={device}: must be one of {', '.join(names)}.{nearest(device, names)}")
    return float(_CUDA_FLOPS[GPUS[device]][torch.bfloat16])


def print_plan(chain_run: ChainRun, device: str) -> None:
    """Print the runs of a chain with their costs, one line for those of a row and step, and the sum."""
    peak_speed, total, count = peak(device), 0.0, 0
    heads = ("row", "step", "runs", "parameters", "steps", "EFLOP", "GB", f"hours, {device}")
    table = Table(*heads, box=box.MARKDOWN)
    for column in table.columns[2:]:
        column.justify = "right"
    for row in chain_run.scale.rows:
        backbones: dict[str, Any] = {}
        vocabularies: dict[str, int] = {}
        for name, step in chain_run.scale.steps.items():
            jobs = list(jobs_of(chain_run.scale, row, name))
            config = schema.to_dict(composed(chain_run.arguments(jobs[0])))
            own = config["backbone"]
            # The shape comes with the weights, how the input is read with the task.
            source = backbones.get(step.init_from or "", {})
            backbones[name] = {**own, **{key: source[key] for key in SHAPE if key in source}}
            tokens = (config["data"].get("tokenizer") or {}).get("vocab_size") or 0
            vocabularies[name] = vocabularies.get(step.init_from or "", tokens)
            cost = cost_of(config, backbones[name], vocabularies[name])
            hours = len(jobs) * cost.flops / (UTILISATION * peak_speed) / 3600
            total, count = total + hours, count + len(jobs)
            table.add_row(
                row, name, f"{len(jobs)}", f"{cost.parameters / 1e6:,.1f} M", f"{cost.steps:,}",
                f"{cost.flops / 1e18:.3g}", f"{cost.memory / 1e9:.1f}", f"{hours:,.2f}",
            )  # fmt: skip
    console = Console(width=140)
    console.print(chain_run.scale.note)
    console.print(table)
    console.print(
        f"{count} runs, {total:,.1f} hours of one {device} at {UTILISATION:.0%} of {peak_speed / 1e12:,.3g} TFLOP/s. "
        "Parameters: backbone and embeddings. GB: weights, gradients and moments in fp32, activations of a device's batch."
    )


SHAPE = (
    "placement",
    "num_layers",
    "decoder_layers",
    "d_model",
    "num_heads",
    "ffn_dim",
    "fusion_layers",
    "multiway",
)
"""Fields of a backbone that come with its weights."""
