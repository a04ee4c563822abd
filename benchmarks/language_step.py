"""A training step of language models beside their peers: from tokens to the optimizer's update, and what it needs in memory.

    python benchmarks/language_step.py                            # causal and masked, fp32 and bf16
    python benchmarks/language_step.py --loss                     # the loss alone, by vocabulary
    python benchmarks/language_step.py --rounds 2 --layers 2 --width 64 --batch 2 --length 64   # to see that it runs

Causal: our Pre-LN and Magneto, transformers' GPT-2, and a plain model written as nanoGPT is (fused q, k, v, SDPA, one
F.cross_entropy over all logits). Masked: our Post-LN encoder with logits at masked places, and transformers' BERT. All
have the same depth, widths and vocabulary, tied embeddings, exact GELU, learned positions, no dropout, and AdamW with
fused kernels; bf16 is autocast, for all. They take turns, one step each, and the order shifts by one each round; a ratio
is the median over rounds of the ratios within a round. "memory" is how far the process's resident size (on Linux) rises
during the first steps, at its peak and beyond the parameters; each contestant has a process of its own for it. On a GPU
it is torch's own count.

Goals, on 2 CPU cores without other work: at least 1.1 times the tokens per second of each peer, peak memory not higher.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from rich import box
from rich.console import Console
from rich.table import Table
from timing import machine, ratio, rounds_of
from torch import Tensor, nn

from magneto.nn import BackboneConfig, Linear, TokenStem, build_backbone, build_norm, chunked_cross_entropy

MASKED = 0.15


@dataclass(frozen=True)
class Sizes:
    """What all contestants share; the feed-forward is 4 * width wide and a head has 64 channels."""

    layers: int
    width: int
    vocabulary: int
    batch: int
    length: int

    @property
    def heads(self) -> int:
        return max(1, self.width // 64)


Loss = Callable[[Tensor, Tensor], Tensor]
"""tokens (B, T) and targets (B, T), -100 where nothing is to be predicted -> mean loss."""


class Ours(nn.Module):
    """Stem, stack, tied output layer; logits at the places that have a target alone."""

    def __init__(self, sizes: Sizes, placement: str, architecture: str) -> None:
        super().__init__()
        config = BackboneConfig(
            placement=placement, architecture=architecture, num_layers=sizes.layers, d_model=sizes.width,
            num_heads=sizes.heads, max_positions=sizes.length, input_norm=placement == "post_ln",
        )  # fmt: skip
        self.stem, self.backbone = TokenStem(sizes.vocabulary, config), build_backbone(config)
        # BERT's head: a product, GELU and a norm before the table.
        masked = architecture == "encoder"
        self.transform = (
            nn.Sequential(Linear(sizes.width, sizes.width, roles=("head",)), nn.GELU(), build_norm(config, sizes.width))
            if masked
            else None
        )  # fmt: skip
        self.bias = nn.Parameter(torch.zeros(sizes.vocabulary)) if masked else None

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        scored = targets != -100
        hidden = self.backbone(self.stem(tokens))[scored]
        if self.transform is not None:
            hidden = self.transform(hidden)
        loss = chunked_cross_entropy(hidden, self.stem.embedding.weight, targets[scored], self.bias)
        return loss.loss_sum / scored.sum()


class PlainBlock(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        d, self.heads = sizes.width, sizes.heads
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.fc1, self.fc2 = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x: Tensor) -> Tensor:
        size, length, d = x.shape
        q, k, v = (
            part.view(size, length, self.heads, d // self.heads).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).split(d, dim=2)
        )
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).contiguous().view(size, length, d))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Plain(nn.Module):
    """A GPT as one would write it down on a page."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.tokens = nn.Embedding(sizes.vocabulary, sizes.width)
        self.positions = nn.Embedding(sizes.length, sizes.width)
        self.blocks = nn.ModuleList(PlainBlock(sizes) for _ in range(sizes.layers))
        self.norm = nn.LayerNorm(sizes.width)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.tokens.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1), ignore_index=-100)


class Theirs(nn.Module):
    """transformers' model with its own loss (GPT-2 moves the labels by one itself: other numbers, the same work)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        loss: Tensor = self.model(input_ids=tokens, labels=targets).loss
        return loss


def gpt2(sizes: Sizes) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=sizes.vocabulary, n_positions=sizes.length, n_embd=sizes.width, n_layer=sizes.layers,
        n_head=sizes.heads, activation_function="gelu", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=0, eos_token_id=0, use_cache=False,
    )  # fmt: skip
    return Theirs(GPT2LMHeadModel(config))


def bert(sizes: Sizes) -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=sizes.vocabulary, hidden_size=sizes.width, num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads, intermediate_size=4 * sizes.width, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, max_position_embeddings=sizes.length,
    )  # fmt: skip
    return Theirs(BertForMaskedLM(config))


FAMILIES: dict[str, dict[str, Callable[[Sizes], nn.Module]]] = {
    "causal": {
        "ours, Pre-LN": partial(Ours, placement="pre_ln", architecture="decoder"),
        "ours, Magneto": partial(Ours, placement="magneto", architecture="decoder"),
        "plain (nanoGPT style), Pre-LN": Plain,
        "transformers GPT-2, Pre-LN": gpt2,
    },
    "masked": {
        "ours, Post-LN": partial(Ours, placement="post_ln", architecture="encoder"),
        "ours, Magneto": partial(Ours, placement="magneto", architecture="encoder"),
        "transformers BERT, Post-LN": bert,
    },
}
OURS = {"causal": "ours, Pre-LN", "masked": "ours, Post-LN"}


def inputs(sizes: Sizes, family: str, device: str) -> tuple[Tensor, Tensor]:
    """Random tokens; targets at every place, or at 15 % of them."""
    random = torch.Generator().manual_seed(1)
    shape = (sizes.batch, sizes.length)
    tokens, targets = torch.randint(sizes.vocabulary, (2, *shape), generator=random)
    if family == "masked":
        targets[torch.rand(shape, generator=random) > MASKED] = -100
    return tokens.to(device), targets.to(device)


def training_step(
    sizes: Sizes, family: str, name: str, dtype: str, device: str
) -> tuple[Callable[[], None], int]:
    """The step of one contestant, and its number of parameters."""
    torch.manual_seed(0)
    model = FAMILIES[family][name](sizes).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens, targets = inputs(sizes, family, device)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bf16"):
            loss = model(tokens, targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, sum(p.numel() for p in model.parameters())


def resident(field: str) -> int:
    """Bytes, as Linux tells of this process: VmRSS is what it holds, VmHWM the most that it has held."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def growth(step: Callable[[], None], device: str, times: int = 3) -> float:
    """MiB that `times` calls need at their peak beyond what is held before the first one."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the most held begins again
        before = resident("VmRSS")
    for _ in range(times):
        step()
    after = torch.cuda.max_memory_allocated() if device == "cuda" else resident("VmHWM")
    # Linux counts pages per thread and adds them up late: a peak can seem to lie some pages below the start.
    return max(0, after - before) / 2**20


def alone(arguments: list[str]) -> float:
    """`growth` in a fresh process: `--measure ...` prints it."""
    command = [sys.executable, __file__, *sys.argv[1:], "--measure", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def table_of_steps(console: Console, sizes: Sizes, family: str, dtype: str, device: str, rounds: int) -> None:
    """Tokens per second, memory and parameters of a family."""
    built = {name: training_step(sizes, family, name, dtype, device) for name in FAMILIES[family]}
    seconds = rounds_of({name: step for name, (step, _) in built.items()}, rounds, device)
    memory = {name: alone([family, name, dtype]) for name in built}
    heads = ("tokens/s", "ours is faster by", "memory MiB", "parameters")
    table = Table(f"{family}, {dtype}", *heads, box=box.MARKDOWN)
    for column in table.columns[1:]:
        column.justify = "right"
    tokens = sizes.batch * sizes.length
    for name in sorted(built, key=lambda name: median(seconds[name])):
        table.add_row(
            name, f"{tokens / median(seconds[name]):.0f}", f"x{ratio(seconds, name, OURS[family]):.2f}",
            f"{memory[name]:.0f}",
            f"{built[name][1] / 1e6:.2f} M",
        )  # fmt: skip
    console.print(table)
    console.print()


def loss_step(kind: str, vocabulary: int, sizes: Sizes, dtype: str, device: str) -> Callable[[], None]:
    """Loss and gradients of hidden states and table, forward and backward."""
    positions = sizes.batch * sizes.length
    hidden = torch.randn(positions, sizes.width, device=device, requires_grad=True)
    weight = (torch.randn(vocabulary, sizes.width, device=device) * sizes.width**-0.5).requires_grad_()
    targets = torch.randint(vocabulary, (positions,), device=device)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bf16"):
            if kind == "chunked":
                loss = chunked_cross_entropy(hidden, weight, targets).loss_sum
            else:
                loss = F.cross_entropy(F.linear(hidden, weight), targets, reduction="sum")
        loss.backward()
        hidden.grad = weight.grad = None

    return step


def table_of_losses(console: Console, sizes: Sizes, dtype: str, device: str, rounds: int) -> None:
    """The loss alone: chunked beside F.cross_entropy over all logits at once."""
    table = Table(
        f"vocabulary, {dtype}", "plain ms", "chunked ms", "plain MiB", "chunked MiB", box=box.MARKDOWN
    )
    for column in table.columns:
        column.justify = "right"
    for vocabulary in (4096, 16_384, 65_536):
        kinds = ("plain", "chunked")
        steps = {kind: loss_step(kind, vocabulary, sizes, dtype, device) for kind in kinds}
        seconds = rounds_of(steps, rounds, device)
        times = [f"{1e3 * median(seconds[kind]):.0f}" for kind in kinds]
        table.add_row(
            f"{vocabulary}",
            *times,
            *(f"{alone(['loss', kind, dtype, str(vocabulary)]):.0f}" for kind in kinds),
        )
    console.print(table)
    console.print(
        f"{sizes.batch * sizes.length} positions of width {sizes.width}, forward and backward. The gradient of the table, "
        "which both need, is part of the memory.\n"
    )


def measure(arguments: list[str], sizes: Sizes, device: str) -> None:
    """Print the memory of one contestant, in this process of its own."""
    step: Any
    if arguments[0] == "loss":
        step = loss_step(arguments[1], int(arguments[3]), sizes, arguments[2], device)
    else:
        step, _ = training_step(sizes, *arguments[:3], device)
    print(growth(step, device))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence")
    parser.add_argument("--dtype", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--loss", action="store_true", help="the loss alone, by vocabulary")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = Sizes(options.layers, options.width, options.vocabulary, options.batch, options.length)
    if options.measure:
        measure(options.measure, sizes, options.device)
        return
    console = Console(width=120, highlight=False)
    console.print(machine(options.device))
    console.print(
        f"{sizes.layers} layers x {sizes.width}, vocabulary {sizes.vocabulary}, batch {sizes.batch} x {sizes.length}, "
        f"{options.rounds} rounds\n"
    )
    for dtype in options.dtype:
        if options.loss:
            table_of_losses(console, sizes, dtype, options.device, options.rounds)
            continue
        for family in FAMILIES:
            table_of_steps(console, sizes, family, dtype, options.device, options.rounds)


if __name__ == "__main__":
    main()
