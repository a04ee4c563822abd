"""Cost of attention by length: whole sequences, windows, and packed documents.

    python benchmarks/long_context.py                              # 4,096 to 32,768 tokens
    python benchmarks/long_context.py --lengths 256 512 --rounds 1   # to see that it runs

A training step, forward and backward, of a causal Magneto of 2 layers x 256 with 4 heads: attention to all earlier tokens,
to the last 512, and to the own document, of 512 tokens on the mean. They take turns; the table has the median of the
seconds, and the exponent of the length by which they grow from one length to the next.
"""

import argparse
import math
from collections.abc import Sequence
from functools import partial
from statistics import median

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from timing import machine, rounds_of
from torch import Tensor

from magneto.nn import BackboneConfig, Decoder

WINDOW = 512


def packed(length: int) -> Tensor:
    """(1, length) int64: numbers of documents whose lengths are drawn, uniform from 1 to twice the window."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 2 * WINDOW, (length,), generator=generator)
    return torch.arange(1, length + 1).repeat_interleave(sizes)[:length][None]


def step(model: Decoder, x: Tensor, documents: Tensor | None) -> None:
    """Forward and backward, in bf16 where the hardware multiplies in it."""
    with torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported()):
        model(x, documents).sum().backward()
    model.zero_grad()


def measure(lengths: Sequence[int], rounds: int) -> dict[str, list[float]]:
    """Median seconds of each kind of attention at each length."""
    models = {
        window: Decoder(
            BackboneConfig(
                architecture="decoder",
                num_layers=2,
                position="rotary",
                max_positions=max(lengths),
                attention_window=window,
            )
        )
        for window in (None, WINDOW)
    }
    found: dict[str, list[float]] = {}
    for length in lengths:
        x = torch.randn(1, length, 256, requires_grad=True)
        steps = {
            "all earlier tokens": partial(step, models[None], x, None),
            f"window of {WINDOW}": partial(step, models[WINDOW], x, None),
            f"documents of {WINDOW}": partial(step, models[None], x, packed(length)),
        }
        for name, seconds in rounds_of(steps, rounds, "cpu", warm_up=1).items():
            found.setdefault(name, []).append(median(seconds))
    return found


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 8192, 16384, 32768])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(machine("cpu"))
    table = Table("attention to", *(f"{length:,} tokens" for length in options.lengths), box=box.MARKDOWN)
    for name, seconds in measure(options.lengths, options.rounds).items():
        cells = [f"{seconds[0]:.2f} s"]
        for place in range(1, len(seconds)):
            growth = math.log(seconds[place] / seconds[place - 1])
            growth /= math.log(options.lengths[place] / options.lengths[place - 1])
            cells.append(f"{seconds[place]:.2f} s, length^{growth:.1f}")
        table.add_row(name, *cells)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
