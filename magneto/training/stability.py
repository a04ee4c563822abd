"""Measure activations and relative updates of the layers during training."""

import math
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from magneto.nn.attention import Attention
from magneto.nn.attention_kernels import Packed, Windowed, documents_of
from magneto.nn.init import Linear
from magneto.training.module import Batch, TrainingModule
from magneto.training.sharding import local_part, release, whole_tensor, with_part


class StabilityProbe(Callback):
    """Measure the network every `every` steps, and log under `probe/`.

    - `activation_rms/layer_NN`: root mean square of each layer's output, over batch, time (padding included) and width:
      the magnitude that grows in deep Sub-LN vision models (microsoft/torchscale issue 14).
    - `activation_max/layer_NN`: the largest absolute value in it, which is what a number format has to hold.
      Both over all passes of the step, where a task has several (`task=vl`: images, texts, pairs).
    - `update_to_weight/...`: ||change of the weights in this step|| / ||weights||, for stem, backbone and head and over all,
      and by role of the matrices inside layers: q, k, v, out, fc1, fc2, gate.
    - `gradient_ratio`: norm of the gradient of the first layer by that of the last.
    - `input_share`: share of the square of the last layer's output that lies in the direction of the stack's input, a mean
      over tokens: what is left of the embeddings.
    - `token_similarity`: share of the mean token in that square, over the tokens of an example: 1 where all are alike.
    - `attention_logit_max`: the largest score before a softmax.

    In a model of two stacks the third to fifth are of each, `gradient_ratio/encoder`; all are of tokens with padding.

    The activations are those of another forward pass over the batch, uncompiled and without gradients, so that the step
    itself runs as any other. The weights before the step wait on the CPU: what fits onto a GPU fits with the probe.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._due = False
        self._before: dict[str, Tensor] = {}
        # Of each pass of a layer: its largest value, the mean of its squares, and over how many.
        self._seen: dict[str, list[tuple[Tensor, Tensor, int]]] = defaultdict(list)
        self._inputs: dict[str, Tensor] = {}
        self._scalars: dict[str, list[float]] = defaultdict(list)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Look at the activations, if this step is measured: of the batches that it accumulates, at those of the last."""
        step, more = divmod(batch_idx + 1, trainer.accumulate_grad_batches)
        self._due = self.every > 0 and more == 0 and (step % self.every == 0 or step == 1)
        if self._due:
            assert isinstance(pl_module, TrainingModule)
            self._scalars.clear()
            self._look(trainer, pl_module, batch)

    def _look(self, trainer: L.Trainer, module: TrainingModule, batch: Batch) -> None:
        """Run the batch through the model once more and leave it as it was: its buffers, and the random numbers."""
        buffers = {buffer: buffer.clone() for buffer in module.buffers()}
        gpus = [module.device] if module.device.type == "cuda" else []
        with ExitStack() as stack:
            stack.enter_context(torch.random.fork_rng(gpus))
            stack.enter_context(torch.compiler.set_stance("force_eager"))  # compiled layers ignore new hooks
            for side, layers in _stacks(module).items():
                for name, layer in layers:
                    first, last = layer is layers[0][1], layer is layers[-1][1]
                    handle = layer.register_forward_hook(self._hook(name, side, first=first, last=last))
                    stack.callback(handle.remove)
                    for attention in layer.modules():
                        if isinstance(attention, Attention):
                            self._watch(attention)
                            stack.callback(delattr, attention, "attention")  # its class has it
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                module.step(batch)
        release(module)
        for buffer, before in buffers.items():
            buffer.copy_(before)

    def _hook(self, name: str, stack: str, *, first: bool, last: bool) -> Callable[..., None]:
        def store(module: nn.Module, inputs: Any, output: Any) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            hidden = hidden.float()
            self._seen[name].append((hidden.abs().max(), hidden.square().mean(), hidden.numel()))
            if first:
                self._inputs[stack] = inputs[0].float()
            if last:
                share = cosine_similarity(self._inputs.pop(stack), hidden, dim=-1).square().mean()
                self._scalars[f"probe/input_share{stack}"].append(float(share))
                similarity = hidden.mean(1).square().sum(-1) / hidden.square().sum(-1).mean(1).clamp(
                    min=1e-30
                )
                self._scalars[f"probe/token_similarity{stack}"].append(float(similarity.mean()))

        return store

    def _watch(self, attention: Attention) -> None:
        """Note the largest score of each call of `attention.attention`."""
        plain = attention.attention

        def watched(
            q: Tensor,
            k: Tensor,
            v: Tensor,
            bias: Tensor | None,
            causal: bool = False,
            sparse: Windowed | Packed | None = None,
        ) -> Tensor:
            self._scalars["probe/attention_logit_max"].append(largest_score(q, k, bias, causal, sparse))
            return plain(q, k, v, bias, causal, sparse)

        attention.attention = watched  # type: ignore[method-assign]  # of this one object

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Keep the weights, and compare the gradients of the first and the last layer."""
        if self._due:
            for name, parameter in pl_module.named_parameters():
                self._before[name] = local_part(parameter.detach()).to("cpu", copy=True)
            for stack, layers in _stacks(pl_module).items():
                first, last = (_gradient_norm(layer) for layer in (layers[0][1], layers[-1][1]))
                self._scalars[f"probe/gradient_ratio{stack}"] = [first / max(last, 1e-30)]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Log what was seen."""
        if not self._due:
            return
        assert isinstance(pl_module, TrainingModule)
        metrics = {}
        for name, passes in self._seen.items():
            total = sum(float(square) * count for _, square, count in passes)
            metrics[f"probe/activation_rms/{name}"] = math.sqrt(total / sum(count for *_, count in passes))
            metrics[f"probe/activation_max/{name}"] = max(float(largest) for largest, *_ in passes)
        self._seen.clear()
        for name, values in self._scalars.items():
            largest = name == "probe/attention_logit_max"
            metrics[name] = max(values) if largest else sum(values) / len(values)
        pl_module.record(metrics | self._updates(pl_module))

    def _updates(self, module: TrainingModule) -> dict[str, float]:
        """Return the relative changes of the weights since they were kept, a tensor at a time."""
        squares: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        roles = _roles(module)
        for name, parameter in module.named_parameters():
            before = with_part(parameter, self._before.pop(name).to(parameter.device))
            changes, sizes = (whole_tensor(t).square() for t in (parameter.detach() - before, before))
            blocks = roles.get(name, ())
            parts = [(part, changes, sizes) for part in ("all", name.split(".", 1)[0])]
            if blocks:
                parts += zip(blocks, changes.chunk(len(blocks)), sizes.chunk(len(blocks)), strict=True)
            for part, change, size in parts:
                squares[part][0] += float(change.sum())
                squares[part][1] += float(size.sum())
        return {
            f"probe/update_to_weight/{part}": math.sqrt(change / max(size, 1e-30))
            for part, (change, size) in squares.items()
        }


@torch.no_grad()
def largest_score(
    q: Tensor,
    k: Tensor,
    bias: Tensor | None,
    causal: bool = False,
    sparse: Windowed | Packed | None = None,
) -> float:
    """Return the largest score of attention before its softmax, over what may be attended to.

    Args:
        q: (B, heads, T, head_dim).
        k: (B, kv heads, S, head_dim).
        bias: broadcast to (B, heads, T, S): added to the scores, or if bool, True = attend; None.
        causal: whether token t attends to the tokens 0 to t.
        sparse: windows or documents of attention, in place of `bias` and `causal`.
    """
    k = k.repeat_interleave(q.size(1) // k.size(1), dim=1)
    if isinstance(sparse, Windowed):
        return max(_largest_in_block(q, k, sparse, start) for start in range(0, q.size(2), sparse.window))
    if sparse is not None:
        groups = documents_of(q, k, k, sparse)
        return max(largest_score(a, b, mask, sparse.causal) for a, b, _, _, mask in groups)
    largest = -math.inf
    if bias is not None:
        bias = bias.expand(len(q), *bias.shape[1:])
    for example in range(len(q)):  # one at a time: all scores would be the largest tensor of the step
        scores = (q[example].float() @ k[example].float().mT) * q.size(-1) ** -0.5  # (heads, T, S)
        if bias is not None and bias.dtype == torch.bool:
            scores = scores.masked_fill(~bias[example], -math.inf)
        elif bias is not None:
            scores = scores + bias[example]
        if causal:
            scores = scores.masked_fill(
                ~torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril(), -math.inf
            )
        largest = max(largest, float(scores.max()))
    return largest


def _largest_in_block(q: Tensor, k: Tensor, windowed: Windowed, start: int) -> float:
    """Return the largest score of the queries from `start` on, as many as the window is long."""
    window, causal, own = windowed.window, windowed.causal, windowed.documents
    first, end = max(0, start - window + 1), start + window * (1 if causal else 2)
    queries, keys = q[:, :, start : start + window].float(), k[:, :, first:end].float()
    scores = (queries @ keys.mT) * q.size(-1) ** -0.5  # (B, heads, window, keys)
    distance = torch.arange(queries.size(2), device=q.device)[:, None] + start - first
    distance = distance - torch.arange(keys.size(2), device=q.device)
    near = (distance < window) & (distance > (-1 if causal else -window))
    near = near & (own[:, start : start + window, None] == own[:, None, first:end])  # (1 or B, window, keys)
    return float(scores.masked_fill(~near[:, None], -math.inf).max())


def _stacks(module: L.LightningModule) -> dict[str, list[tuple[str, nn.Module]]]:
    """Return the layers by stack: "" of a model of one, else "/encoder" and "/decoder"."""
    assert isinstance(module, TrainingModule)
    stacks: dict[str, list[tuple[str, nn.Module]]] = defaultdict(list)
    for name, layer in module.named_layers():
        side, slash, _ = name.rpartition("/")
        stacks[slash + side].append((name, layer))
    return stacks


def _gradient_norm(module: nn.Module) -> float:
    squares = [float(whole_tensor(p.grad.square().sum())) for p in module.parameters() if p.grad is not None]
    return math.sqrt(sum(squares))


def _roles(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return the weights of the linear maps inside layers by name, with the roles of their blocks."""
    return {
        f"{path}.weight": linear.roles
        for path, linear in module.named_modules()
        if isinstance(linear, Linear) and not {"head", "stem"} & set(linear.roles)
    }
