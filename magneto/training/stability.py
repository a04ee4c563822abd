"""Measure activations and relative updates of the layers during training."""

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from magneto.training.module import Batch, TrainingModule


class StabilityProbe(Callback):
    """Measure the network every `every` steps, and log under `probe/`.

    - `activation_rms/layer_NN`: root mean square of each layer's output, over batch, time (padding included) and width:
      the magnitude that grows in deep Sub-LN vision models (microsoft/torchscale issue 14).
    - `activation_max/layer_NN`: the largest absolute value in it, which is what a number format has to hold.
      Both over all passes of the step, where a task has several (`task=vl`: images, texts, pairs).
    - `update_to_weight/...`: ||change of the weights in this step|| / ||weights||, for stem, backbone and head and over all.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._before: dict[str, Tensor] | None = None
        # Of each pass of a layer: its largest value, the mean of its squares, and over how many.
        self._seen: dict[str, list[tuple[Tensor, Tensor, int]]] = defaultdict(list)
        self._stance: Any = None

    def _due(self, trainer: L.Trainer, batch_idx: int) -> bool:
        # Of the batches that a step accumulates, the last one is measured.
        step, more = divmod(batch_idx + 1, trainer.accumulate_grad_batches)
        return self.every > 0 and more == 0 and (step % self.every == 0 or step == 1)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Hook the layers for this one step."""
        assert isinstance(pl_module, TrainingModule)
        if self._due(trainer, batch_idx):
            # Compiled layers ignore hooks that come later: this step runs them uncompiled.
            self._stance = torch.compiler.set_stance("force_eager")
            self._stance.__enter__()
            self._seen.clear()
            self._handles = [
                layer.register_forward_hook(self._hook(name)) for name, layer in pl_module.named_layers()
            ]

    def _hook(self, name: str) -> Callable[..., None]:
        def store(module: nn.Module, inputs: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            hidden = hidden.detach().float()
            self._seen[name].append((hidden.abs().max(), hidden.square().mean(), hidden.numel()))

        return store

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if self._stance is not None:
            self._before = {name: p.detach().clone() for name, p in pl_module.named_parameters()}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Log what was seen; remove the hooks."""
        if self._stance is None:
            return
        self._unhook()
        assert isinstance(pl_module, TrainingModule)
        metrics = {}
        for name, passes in self._seen.items():
            total = sum(float(square) * count for _, square, count in passes)
            metrics[f"probe/activation_rms/{name}"] = math.sqrt(total / sum(count for *_, count in passes))
            metrics[f"probe/activation_max/{name}"] = max(float(largest) for largest, *_ in passes)
        if self._before is not None:
            squares: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
            for name, parameter in pl_module.named_parameters():
                before = self._before[name]
                change = float((parameter.detach() - before).square().sum())
                for part in ("all", name.split(".", 1)[0]):
                    squares[part][0] += change
                    squares[part][1] += float(before.square().sum())
            self._before = None
            metrics |= {
                f"probe/update_to_weight/{part}": math.sqrt(change / max(size, 1e-30))
                for part, (change, size) in squares.items()
            }
        pl_module.record(metrics)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        if self._stance is not None:
            self._unhook()

    def _unhook(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._stance.__exit__(None, None, None)
        self._stance = None
