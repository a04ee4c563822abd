"""Speed of `gpu.py`: a training step of each task beside its peers, `run.py` itself, the placements, generation."""

import csv
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import generation
import lightning as L
import torch
import torch.nn.functional as F
from backbone import stand_in_for_fairscale
from gpu_contest import Contestant, Setting, Work, attach, contest, count_waits, our_step, step_of
from gpu_report import Report, quiet
from gpu_tasks import TASKS, speed_settings
from hydra import compose, initialize_config_dir
from language_step import Ours, Plain, Sizes
from lightning.fabric.utilities import move_data_to_device
from timing import Step, ratio, rounds_of
from torch import Tensor, nn

from magneto.commands import build
from magneto.commands.resolve import ResolvedRun, resolve
from magneto.config.groups import CONF
from magneto.nn.placement import PLACEMENTS
from magneto.tasks.base import Task
from magneto.training.devices import prediction_autocast
from tests.toys.runs import drive

OURS = "Magneto"
COMMAND_STEPS = 30
UNITS = {
    "asr": ("audio_seconds", "s of sound"), "beit": ("examples", "images"), "vl": ("examples", "pairs"),
    "image_classification": ("examples", "images"),
}  # fmt: skip
"""What speed is measured in, and its name, where these are not tokens."""


def task_contest(report: Report, setting: Setting, task: str) -> None:
    """A task beside its peers; our causal LM also as Pre-LN, and both beside a plain model and torchscale."""
    settings = speed_settings(task, setting.folder, setting.small)
    run = resolved(settings)
    assert run.data is not None
    ours = build.build_task(run.config, run.data)
    work = first_batch(ours, run, setting)
    contestants = {OURS: Contestant(lambda: compiled(ours, work, setting, task == "causal_lm"), True)}
    if task == "causal_lm":
        contestants |= of_causal_lm(settings, work, setting)
    if task == "image_classification":
        contestants["timm VisionTransformer"] = Contestant(lambda: timm_step(ours, work, setting), True)
    if task in TASKS:
        from peers import PEERS

        peer = PEERS[task](ours, run.data)
        alike = task in ("causal_lm", "mlm", "beit")
        contestants[f"transformers {peer.name}"] = Contestant(lambda: peer_step(peer, work, setting), alike)
    contest(report, setting, "speed", f"{task}: ", contestants, OURS, work)


def resolved(settings: list[str]) -> ResolvedRun:
    """Return the configuration of a run that is not made, and its data."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        run = resolve(compose("config", settings))
    assert run.data is not None
    run.data.setup("fit")
    run.data.configure_run(1)
    return run


def first_batch(task: Task, run: ResolvedRun, setting: Setting) -> Work:
    """Return the first batch of a run, prepared by the task and moved to the device."""
    assert run.data is not None
    attach(task, setting)
    batch = task.on_before_batch_transfer(next(iter(run.data.train_dataloader())), 0)
    counts = batch.pop("work")
    key, unit = UNITS.get(task.name, ("tokens", "tokens"))
    batch = move_data_to_device(batch, torch.device(setting.device))
    return Work(batch, counts[key], unit, counts["model_flops"])


def compiled(task: Task, work: Work, setting: Setting, compile_it: bool) -> tuple[nn.Module, Step]:
    """Return a task and its step, its layers compiled where that is asked for."""
    if compile_it and setting.compiled:
        task.compile_layers()
    return task, our_step(task, work.batch, setting)


def peer_step(peer: Any, work: Work, setting: Setting) -> tuple[nn.Module, Step]:
    """Return a model of transformers and its step; what it needs of a batch is made in the step, as its trainer does."""
    model = peer.model()
    return model, step_of(model, lambda model: model(**peer.inputs(work.batch)).loss, setting.device)


def timm_step(task: Any, work: Work, setting: Setting) -> tuple[nn.Module, Step]:
    """Return timm's ViT of the shape of our task, and its step."""
    import image_step

    info, config = task.info, task.config
    sizes = image_step.Sizes(
        layers=config.num_layers, width=config.d_model, heads=config.num_heads, image=info.image_size,
        patch=info.patch_size, channels=info.channels, classes=len(info.labels), batch=0, text=0,
    )  # fmt: skip
    model = image_step.vit(sizes)
    images, labels = work.batch["image"], work.batch["label"]
    return model, step_of(model, lambda model: F.cross_entropy(model(images).float(), labels), setting.device)


def of_causal_lm(settings: list[str], work: Work, setting: Setting) -> dict[str, Contestant]:
    """Return Pre-LN, a plain model in nanoGPT's style and torchscale's, all of one shape."""
    tokens, targets = work.batch["tokens"], work.batch["targets"]

    def pre_ln() -> tuple[nn.Module, Step]:
        run = resolved([*settings, "backbone=pre_ln"])
        assert run.data is not None
        return compiled(build.build_task(run.config, run.data), work, setting, True)

    def other(make: Callable[[Sizes], nn.Module], compile_it: bool) -> tuple[nn.Module, Step]:
        run = resolved(settings)
        assert run.data is not None
        shape, info = run.config["backbone"], run.data.info
        sizes = Sizes(shape["num_layers"], shape["d_model"], info.vocab_size, *tokens.shape)  # type: ignore[attr-defined]
        model = make(sizes)
        if compile_it and setting.compiled:
            model.compile()
        return model, step_of(model, lambda model: model(tokens, targets), setting.device)

    return {
        "Pre-LN": Contestant(pre_ln, True),
        "plain (nanoGPT style)": Contestant(lambda: other(Plain, True), True),
        "torchscale, Sub-LN": Contestant(lambda: other(TorchscaleLM, False), True),
    }


class TorchscaleLM(nn.Module):
    """torchscale's decoder with Sub-LN and tied embeddings."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        stand_in_for_fairscale()
        from torchscale.architecture.config import DecoderConfig
        from torchscale.architecture.decoder import Decoder
        from torchscale.component.embedding import PositionalEmbedding

        config = DecoderConfig(
            subln=True, decoder_layers=sizes.layers, decoder_embed_dim=sizes.width,
            decoder_attention_heads=sizes.heads, decoder_ffn_embed_dim=4 * sizes.width,
            share_decoder_input_output_embed=True, vocab_size=sizes.vocabulary,
        )  # fmt: skip
        table = nn.Embedding(sizes.vocabulary, sizes.width)
        nn.init.normal_(table.weight, std=0.02)
        self.decoder = Decoder(config, table, PositionalEmbedding(sizes.length + 2, sizes.width))

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        logits, _ = self.decoder(tokens)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class Waits(L.Callback):
    """Record how often the host waits for the GPU from the end of a training batch to the end of the next one."""

    def __init__(self) -> None:
        self.counting = ExitStack()
        self.found: list[str] | None = None

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        """Count up to here, and begin again."""
        self.stop(pl_module)
        if trainer.strategy.root_device.type == "cuda":
            self.found = self.counting.enter_context(count_waits())

    def stop(self, pl_module: Any) -> None:
        """Record what was counted."""
        self.counting.close()
        if self.found is not None:
            pl_module.record({"throughput/waits": float(len(self.found))})
        self.found = None

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Evaluations are not counted."""
        self.stop(pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Nothing is counted after the last step."""
        self.stop(pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Leave torch as it was."""
        self.stop(pl_module)


def command(report: Report, setting: Setting) -> None:
    """Train the causal LM by `run.py` and read what it logs of the last third of its steps."""
    settings = [
        *speed_settings("causal_lm", setting.folder, setting.small), f"trainer.max_steps={COMMAND_STEPS}",
        f"trainer.val_check_interval={COMMAND_STEPS}", f"trainer.log_every_n_steps={COMMAND_STEPS // 3}",
        f"trainer.accelerator={setting.accelerator}", "trainer.precision=bf16-mixed",
        f"trainer.compile={str(setting.compiled).lower()}", "trainer.deterministic=false", "callbacks.samples=0",
        "trainer.limit_val_batches=1", "trainer.limit_test_batches=1", "callbacks.save_every=null",
        "callbacks.probe_every=0", "data.num_workers=auto", "+callbacks.extra.waits._target_=gpu_speed.Waits",
    ]  # fmt: skip
    with quiet(setting.folder / "log.txt"):
        result = drive(settings)
    logged: dict[str, list[float]] = {}
    with (Path(result["folder"]) / "metrics.csv").open() as file:
        for row in csv.DictReader(file):
            logged.setdefault(row["metric"].removeprefix("throughput/"), []).append(float(row["value"]))
    values = {"rate": logged["tokens_per_s"][-1]}
    if "mfu" in logged:
        values["mfu"] = logged["mfu"][-1]
    if "waits" in logged:
        values["waits"] = median(logged["waits"])
    memory = result["peak_memory_bytes"] or result["run_peak_memory_bytes"]
    if memory:
        values["memory_mib"] = memory / 2**20
    note = f"waiting for data {100 * logged['data_wait_fraction'][-1]:.1f} %"
    report.add("speed", "causal_lm: run.py", note=note, unit="tokens", **values)


def placements(report: Report, setting: Setting) -> None:
    """A step of a causal LM with each placement, none compiled."""
    sizes = Sizes(2, 64, 500, 2, 32) if setting.small else Sizes(12, 768, 8192, 16, 512)
    tokens, targets = torch.randint(sizes.vocabulary, (2, sizes.batch, sizes.length), device=setting.device)

    def make(placement: str) -> tuple[nn.Module, Step]:
        model = Ours(sizes, placement, "decoder")
        return model, step_of(model, lambda model: model(tokens, targets), setting.device)

    contestants = {name: Contestant(partial(make, name)) for name in PLACEMENTS}
    contest(report, setting, "placements", "", contestants, "pre_ln", Work({}, tokens.numel(), "tokens"))


def generate(report: Report, setting: Setting) -> None:
    """Tokens per second of one prompt and of many, ours and transformers', which must write the same in fp32."""
    layers, width, vocabulary, new, batch = (
        (2, 64, 500, 8, 4) if setting.small else (24, 1024, 50_304, 128, 32)
    )
    models = generation.make_models(layers, width, vocabulary, generation.PROMPT + new, setting.device)
    ways = {"ours": generation.ours(models[0]), "transformers": generation.theirs(models[1])}
    prompts = torch.randint(vocabulary, (batch, generation.PROMPT)).tolist()
    begun = [go(prompts, 8) for go in ways.values()]  # of more of them, two can be equally probable
    if begun[0] != begun[1]:
        raise RuntimeError("ours and transformers' write different tokens")
    for count in (1, batch):
        steps = {f"{name}, batch {count}": partial(go, prompts[:count], new) for name, go in ways.items()}
        with prediction_autocast("auto", setting.device):
            seconds = rounds_of(steps, min(3, setting.rounds), setting.device, warm_up=1)
        for name in steps:
            each = median(seconds[name])
            values = {"ms": 1e3 * each, "rate": count * new / each}
            values["relative"] = ratio(seconds, name, next(iter(steps)))
            report.add("generation", name, unit="tokens", **values)
