"""The visual tokenizer that `task=beit` trains for itself where none is given, and keeps with the prepared data."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge

from magneto.data.cache import prepare_once, progress, short_hash
from magneto.data.image.module import ImageDataModule
from magneto.tasks.visual_tokenizer import VisualTokenization
from magneto.training import checkpoint_io
from magneto.training.optim import build_optimizer, build_scheduler

log = logging.getLogger("magneto")

FORMAT = 1  # raise it when the code makes another tokenizer of the same settings
SEED = 0  # one tokenizer for the runs of all seeds


@dataclass(frozen=True, kw_only=True)
class DefaultTokenizer:
    """Options under `task.default_tokenizer`, see `conf/task/beit.yaml`: a small model of `task=visual_tokenizer`."""

    codes: int = 512
    code_width: int = 16
    width: int = 64
    blocks: int = 2
    steps: Annotated[int, Ge(1)] = 400
    batch_size: Annotated[int, Ge(1)] = 128
    lr: float = 2.0e-3


def default_tokenizer(data: ImageDataModule, settings: DefaultTokenizer) -> Path:
    """Return the export folder of the tokenizer of this data; train it on its images unless that was done before.

    Its images are augmented as those of the model that will predict its codes. It takes a GPU if there is one; the
    other processes of a run wait.
    """
    info = data.info.to_dict()
    relevant = {key: info[key] for key in ("key", "image_size", "channels", "patch_size", "mean", "std")}
    augment = None if data.config.augment is None else asdict(data.config.augment)
    if augment is not None:
        augment["_operations"] = augment[
            "randaugment"
        ]  # as in earlier versions, whose folders are still used
    fingerprint = {"format": FORMAT, "data": relevant, "augment": augment, "settings": asdict(settings)}
    folder = data.data_dir / "prepared" / f"visual-tokenizer-{short_hash(fingerprint)}"

    def build(target: Path) -> None:
        log.info("training the visual tokenizer, %d steps", settings.steps)
        task = _train(data, info, settings)
        checkpoint_io.export(task, target)

    if prepare_once(folder, build):
        log.info("prepared %s", folder)
    return folder


def _train(data: ImageDataModule, info: Mapping[str, Any], settings: DefaultTokenizer) -> VisualTokenization:
    """Train it in a plain loop, with the task's own step, optimizer and schedule."""
    plain = data.with_config(masking=None, batch_size=settings.batch_size)
    plain.seed = SEED
    plain.setup("fit")
    plain.configure_run(settings.steps)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(SEED)
        task = VisualTokenization(
            backbone={},
            info=info,
            optimizer={"name": "adamw", "lr": settings.lr, "betas": [0.9, 0.99], "weight_decay": 0.01},
            scheduler={"name": "linear", "warmup": 0.05},
            total_steps=settings.steps,
            codes=settings.codes,
            code_width=settings.code_width,
            width=settings.width,
            blocks=settings.blocks,
        ).to(device)
        optimizer = build_optimizer(task, task.optimizer_config)
        scheduler = build_scheduler(optimizer, task.scheduler_config, settings.steps)
        task.train()
        with progress("training the visual tokenizer", settings.steps) as advance:
            for batch in plain.train_dataloader():
                output = task.step({**batch, "image": batch["image"].to(device)})
                torch.autograd.backward(output.loss_sum / output.weight)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                scheduler.step()
                advance(1)
        task.eval()
        log.info(
            "visual tokenizer: %s",
            ", ".join(f"{k} {v:.3f}" for k, v in _measure(task, plain, device).items()),
        )
    return task.cpu()


@torch.no_grad()
def _measure(task: VisualTokenization, data: ImageDataModule, device: torch.device) -> dict[str, float]:
    """Return reconstruction, perplexity and usage on the validation images."""
    for batch in data.val_dataloader():
        batch = {**batch, "image": batch["image"].to(device)}
        task.evaluate(batch, task.step(batch))
    return {
        "reconstruction": float(task.scores["reconstruction"].compute()),
        **{key: float(value) for key, value in task.scores["codes"].compute().items()},
    }
