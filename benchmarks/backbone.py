"""A training step of the backbone beside its peers: forward, backward, gradients dropped; no optimizer, no data.

    python benchmarks/backbone.py                              # fp32 and bf16 on the CPU, ten minutes on 2 cores
    python benchmarks/backbone.py --device cuda --rounds 50 --batch 32 --length 512
    python benchmarks/backbone.py --compile                    # and Magneto and torchscale with compiled layers
    python benchmarks/backbone.py --attention                  # SDPA's kernels beside our two products, by length

Every contestant is a stack of the same depth and widths with exact GELU and no dropout, fed the same (B, T, width)
floats; bf16 is autocast, for all of them. They take turns, one step each, and the order shifts by one each round:
whatever slows the machine for a while slows all of them. The ratio is the median over rounds of the ratios within a
round; the times are medians too. Still, a machine with other work on it shares its caches and clocks: report ratios
from a quiet one only, and never times without the line that names the machine.

"saved" is what the forward pass keeps for the backward pass, parameters apart (but with their bf16 copies): the part
of peak memory that a model decides. Goals, on 2 CPU cores without other work: Magneto at least 1.1 times as fast as
torchscale's Sub-LN in fp32 and 1.3 times in bf16, and its step at most 1.08 times our own Pre-LN's.
"""

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from rich import box
from rich.console import Console
from rich.table import Table
from timing import Step, machine, ratio, rounds_of
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from magneto.nn import BackboneConfig, Encoder
from magneto.nn.attention_kernels import matmul_attention

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
REFERENCE, OURS, PRE_LN = "torchscale, Sub-LN", "Magneto", "ours, Pre-LN"
LENGTHS = (32, 64, 128, 192, 256, 384, 512, 768, 1024, 2048)


@dataclass(frozen=True)
class Sizes:
    """What all contestants share; the feed-forward is 4 * width wide and a head has 64 channels."""

    layers: int
    width: int
    batch: int
    length: int

    @property
    def heads(self) -> int:
        return max(1, self.width // 64)


Call = Callable[[Tensor], Tensor]


# --- contestants: a module and how to call it ------------------------------------------------------------


def ours(sizes: Sizes, placement: str) -> tuple[nn.Module, Call]:
    config = BackboneConfig(
        placement=placement,
        num_layers=sizes.layers,
        d_model=sizes.width,
        num_heads=sizes.heads,
        position="none",
    )
    model = Encoder(config)
    return model, model


def stand_in_for_fairscale() -> None:
    """Let torchscale be imported without it.

    It takes two names of fairscale, long unmaintained, for checkpointing and sharding that nobody asks for here.
    """
    stand_in: Any = ModuleType("fairscale.nn")
    stand_in.checkpoint_wrapper = stand_in.wrap = lambda module: module
    sys.modules.setdefault("fairscale", ModuleType("fairscale"))
    sys.modules.setdefault("fairscale.nn", stand_in)


def torchscale(sizes: Sizes) -> tuple[nn.Module, Call]:
    stand_in_for_fairscale()
    from torchscale.architecture.config import EncoderConfig
    from torchscale.architecture.encoder import Encoder as TorchscaleEncoder

    config = EncoderConfig(
        subln=True,
        encoder_layers=sizes.layers,
        encoder_embed_dim=sizes.width,
        encoder_attention_heads=sizes.heads,
        encoder_ffn_embed_dim=4 * sizes.width,
    )
    model = TorchscaleEncoder(config)
    return model, lambda x: model(None, token_embeddings=x)["encoder_out"]


def torch_nn(sizes: Sizes) -> tuple[nn.Module, Call]:
    layer = nn.TransformerEncoderLayer(
        sizes.width,
        sizes.heads,
        4 * sizes.width,
        dropout=0.0,
        activation="gelu",
        batch_first=True,
        norm_first=True,
    )
    model = nn.TransformerEncoder(
        layer, sizes.layers, norm=nn.LayerNorm(sizes.width), enable_nested_tensor=False
    )
    return model, model


def timm(sizes: Sizes) -> tuple[nn.Module, Call]:
    from timm.models.vision_transformer import Block

    blocks = [
        Block(
            sizes.width,
            sizes.heads,
            qkv_bias=True,
            scale_attn_norm=True,
            scale_mlp_norm=True,
            norm_layer=nn.LayerNorm,
        )
        for _ in range(sizes.layers)
    ]
    model = nn.Sequential(*blocks, nn.LayerNorm(sizes.width))
    return model, model


def bert(sizes: Sizes) -> tuple[nn.Module, Call]:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=1,
        hidden_size=sizes.width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        intermediate_size=4 * sizes.width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertModel(config, add_pooling_layer=False).encoder
    return model, lambda x: model(x).last_hidden_state


def gpt2(sizes: Sizes) -> tuple[nn.Module, Call]:
    from transformers import GPT2Config, GPT2Model

    config = GPT2Config(
        vocab_size=1,
        n_positions=sizes.length,
        n_embd=sizes.width,
        n_layer=sizes.layers,
        n_head=sizes.heads,
        activation_function="gelu",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2Model(config)
    del model.wte
    return model, lambda x: model(inputs_embeds=x, use_cache=False).last_hidden_state


def x_transformers(sizes: Sizes) -> tuple[nn.Module, Call]:
    from x_transformers import Encoder as XEncoder

    model = XEncoder(
        dim=sizes.width,
        depth=sizes.layers,
        heads=sizes.heads,
        attn_dim_head=sizes.width // sizes.heads,
        attn_flash=True,
    )
    return model, model


CONTESTANTS: dict[str, Callable[[Sizes], tuple[nn.Module, Call]]] = {
    OURS: lambda sizes: ours(sizes, "magneto"),
    PRE_LN: lambda sizes: ours(sizes, "pre_ln"),
    REFERENCE: torchscale,
    "timm, Sub-LN": timm,
    "nn.TransformerEncoder, Pre-LN": torch_nn,
    "x-transformers, Pre-LN": x_transformers,
    "transformers BERT, Post-LN": bert,
    "transformers GPT-2, Pre-LN, causal": gpt2,
}
COMPILED = (OURS, REFERENCE)


def compiled(name: str, sizes: Sizes) -> tuple[nn.Module, Call]:
    """With each layer compiled in place, as `trainer.compile=true` does."""
    model, call = CONTESTANTS[name](sizes)
    layers = model.layers
    assert isinstance(layers, nn.ModuleList)
    for layer in layers:
        layer.compile()
    return model, call


# --- measuring -------------------------------------------------------------------------------------------


@contextmanager
def counting_saved(parameters: set[int]) -> Iterator[dict[int, int]]:
    """Bytes of each storage that autograd keeps inside the block, by address, but for the given ones."""
    sizes: dict[int, int] = {}
    kept = []  # a storage freed before the end would give its address to the next

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            sizes[storage.data_ptr()] = storage.nbytes()
            kept.append(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes


def stacks(
    console: Console,
    sizes: Sizes,
    dtype: str,
    device: str,
    rounds: int,
    contestants: dict[str, Callable[[Sizes], tuple[nn.Module, Call]]],
) -> None:
    """The table of all contestants."""
    torch.manual_seed(0)
    x = torch.randn(sizes.batch, sizes.length, sizes.width, device=device, requires_grad=True)
    gradient = torch.randn(sizes.batch, sizes.length, sizes.width, device=device)
    autocast = (
        torch.autocast(device, dtype=torch.bfloat16)
        if dtype == "bf16"
        else torch.autocast(device, enabled=False)
    )
    steps: dict[str, Step] = {}
    parameters: dict[str, int] = {}
    saved: dict[str, int] = {}
    for name, build in contestants.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model, call = build(sizes)
        except ImportError as error:
            console.print(f"left out: {name} ({error})")
            continue
        model.to(device).train()

        def forward(call: Call = call) -> Tensor:
            with autocast:
                return call(x)

        def step(model: nn.Module = model, forward: Callable[[], Tensor] = forward) -> None:
            out = forward()
            out.backward(gradient.to(out.dtype))
            model.zero_grad(set_to_none=True)
            x.grad = None

        own = list(model.parameters())
        parameters[name] = sum(p.numel() for p in own)
        with counting_saved({t.untyped_storage().data_ptr() for t in [x, *own]}) as kept:
            out = forward()
        assert out.shape == x.shape, name
        saved[name] = sum(kept.values())
        del out
        steps[name] = step

    seconds = rounds_of(steps, rounds, device)
    table = Table("stack", "ms", "speed", "saved MiB", "parameters", box=box.MARKDOWN)
    for column in table.columns[1:]:
        column.justify = "right"
    for name in sorted(steps, key=lambda name: median(seconds[name])):
        speed = f"x{ratio(seconds, REFERENCE, name):.2f}" if REFERENCE in steps else "-"
        table.add_row(
            name,
            f"{1e3 * median(seconds[name]):.1f}",
            speed,
            f"{saved[name] / 2**20:.0f}",
            f"{parameters[name] / 1e6:.2f} M",
        )
    console.print(table)
    if REFERENCE in steps:
        console.print(f"speed: {REFERENCE} = 1, higher is better")
    console.print(f"Magneto's step takes {ratio(seconds, OURS, PRE_LN):.3f} times our Pre-LN's\n")


def attention(console: Console, sizes: Sizes, dtype: str, device: str, rounds: int) -> None:
    """Attention alone, without projections, at the same number of tokens for each length.

    What `magneto.nn.attention` has its own two products for, and up to which length: SDPA's choice on a CPU is a
    fused kernel, which in bf16 needs longer than the products while the scores of a head still fit in the cache.
    """

    def math(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(q, k, v)

    kinds: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
        "SDPA": F.scaled_dot_product_attention,
        "SDPA, math": math,
        "two products": lambda q, k, v: matmul_attention(q, k, v, None, 0.0, False),
    }
    table = Table("T", *(f"{name}, ms" for name in kinds), "SDPA / products", box=box.MARKDOWN)
    for column in table.columns:
        column.justify = "right"
    tokens = sizes.batch * sizes.length
    for length in LENGTHS:
        shape = (max(1, tokens // length), length, 3, sizes.heads, sizes.width // sizes.heads)
        qkv = torch.randn(shape, device=device, dtype=DTYPES[dtype], requires_grad=True)
        gradient = torch.randn(shape[0], sizes.heads, length, shape[-1], device=device, dtype=DTYPES[dtype])

        def step(kind: Callable[..., Tensor], qkv: Tensor = qkv, gradient: Tensor = gradient) -> None:
            q, k, v = (t.transpose(1, 2) for t in qkv.unbind(2))
            kind(q, k, v).backward(gradient)
            qkv.grad = None

        steps: dict[str, Step] = {name: partial(step, kind) for name, kind in kinds.items()}
        seconds = rounds_of(steps, rounds, device)
        table.add_row(
            str(length),
            *(f"{1e3 * median(seconds[name]):.2f}" for name in kinds),
            f"{ratio(seconds, 'SDPA', 'two products'):.2f}",
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence")
    parser.add_argument("--dtype", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument(
        "--compile", action="store_true", help="compiled layers too; a minute each to compile"
    )
    parser.add_argument("--attention", action="store_true", help="the attention kernels alone")
    options = parser.parse_args()
    sizes = Sizes(options.layers, options.width, options.batch, options.length)
    console = Console(width=120 if not sys.stdout.isatty() else None, highlight=False)
    console.print(machine(options.device))
    console.print(
        f"{sizes.layers} layers x {sizes.width}, {sizes.heads} heads, feed-forward {4 * sizes.width}, "
        f"batch {sizes.batch} x {sizes.length}, {options.rounds} rounds\n"
    )
    contestants = dict(CONTESTANTS)
    if options.compile:
        contestants |= {f"{name}, compiled": partial(compiled, name) for name in COMPILED}
    for dtype in options.dtype:
        console.print(dtype)
        if options.attention:
            attention(console, sizes, dtype, options.device, options.rounds)
        else:
            stacks(console, sizes, dtype, options.device, options.rounds, contestants)


if __name__ == "__main__":
    main()
