"""Tokens per second of generation: with and without the cache, a batch beside a single prompt, and transformers' own.

    python benchmarks/generation.py                         # 6 layers x 512, 512 tokens, a quarter of an hour on 2 cores
    python benchmarks/generation.py --tokens 64 --rounds 1  # to see that it runs
    python benchmarks/generation.py --compile               # growing cache, static cache, and that compiled

All contestants have the same weights: a GPT-2 with random ones, made by transformers, saved, and read by our importer.
Greedy, fp32, no end token, so that all do the same work; that they write the same tokens is checked. They take turns, and
the order shifts by one each round; ratios are medians over rounds of the ratios within a round. "No cache" reads the whole
sequence again for every token, as nanoGPT's sample.py does.

Goals, on 2 CPU cores without other work: with the cache at least 5 times as fast as without at 512 tokens; a batch of 16 at
least 6 times the tokens per second of a single prompt; not slower than transformers' `generate`.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from rich import box
from rich.console import Console
from rich.table import Table
from timing import machine, ratio, rounds_of

from magneto.inference.compiled_steps import CompiledSteps
from magneto.inference.sampling import Decoding, next_tokens
from magneto.nn import BackboneConfig, KVCache, TokenStem, build_backbone
from magneto.pretrained.gpt2 import import_weights

PROMPT = 16
Tokens = list[list[int]]
Generate = Callable[[Tokens, int], Tokens]


class Model(torch.nn.Module):
    """Stem and decoder with imported weights, as `magneto.inference.sampling` wants a model."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        imported = import_weights(folder)
        config = BackboneConfig.from_dict(imported.backbone)
        self.stem = TokenStem(len(imported.state_dict["stem.embedding.weight"]), config)
        self.backbone = build_backbone(config)
        self.load_state_dict(imported.state_dict)
        self.context = config.max_positions

    @property
    def device(self) -> torch.device:
        return self.stem.embedding.weight.device

    def next_logits(self, tokens: torch.Tensor, mask: Any, cache: KVCache | None) -> torch.Tensor:
        hidden = self.backbone(self.stem(tokens), mask, cache=cache)[:, -1]
        return F.linear(hidden, self.stem.embedding.weight).float()


def ours(model: Any) -> Generate:
    def generate(prompts: Tokens, new: int) -> Tokens:
        steps = list(next_tokens(model, prompts, Decoding(max_new_tokens=new, temperature=0)))
        return [list(row) for row in zip(*([token for _, token in step] for step in steps), strict=True)]

    return generate


def static(model: Model) -> Generate:
    """With the cache of the compiled steps, uncompiled."""
    generate = ours(CompiledSteps(model))

    def uncompiled(prompts: Tokens, new: int) -> Tokens:
        with torch.compiler.set_stance("force_eager"):
            return generate(prompts, new)

    return uncompiled


def without_cache(model: Model) -> Generate:
    @torch.inference_mode()
    def generate(prompts: Tokens, new: int) -> Tokens:
        tokens = torch.tensor(prompts, device=model.device)
        for _ in range(new):
            drawn = model.next_logits(tokens, None, None).argmax(-1)
            tokens = torch.cat((tokens, drawn[:, None]), dim=1)
        return tokens[:, len(prompts[0]) :].tolist()

    return generate


def theirs(model: Any) -> Generate:
    @torch.inference_mode()
    def generate(prompts: Tokens, new: int) -> Tokens:
        tokens = torch.tensor(prompts, device=model.device)
        found = model.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=new, min_new_tokens=new,
            do_sample=False, use_cache=True,
        )  # fmt: skip
        return found[:, tokens.shape[1] :].tolist()

    return generate


def make_models(layers: int, width: int, vocabulary: int, positions: int, device: str) -> tuple[Model, Any]:
    """Return ours and transformers', of the same random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=positions, n_embd=width, n_layer=layers, n_head=max(1, width // 64),
        bos_token_id=0, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    reference = GPT2LMHeadModel(config).eval()
    with tempfile.TemporaryDirectory() as folder:
        reference.save_pretrained(folder)
        model = Model(folder).eval().to(device)
    return model, reference.to(device)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--tokens", type=int, default=512, help="new tokens of each prompt")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument(
        "--compile", action="store_true", help="compare the caches alone, one of them compiled"
    )
    options = parser.parse_args()
    from transformers import __version__ as transformers_version

    model, reference = make_models(
        options.layers, options.width, options.vocabulary, PROMPT + options.tokens, options.device
    )

    prompts = torch.randint(
        options.vocabulary, (options.batch, PROMPT), generator=torch.Generator().manual_seed(1)
    )
    many, one = prompts.tolist(), prompts[:1].tolist()
    if options.compile:
        compare_caches(model, (one, many), options)
        return
    contestants: dict[str, tuple[Generate, Tokens]] = {
        "ours, cache": (ours(model), one),
        "ours, no cache": (without_cache(model), one),
        "transformers, cache": (theirs(reference), one),
        f"ours, cache, batch {options.batch}": (ours(model), many),
        f"transformers, cache, batch {options.batch}": (theirs(reference), many),
    }
    single, whole, other, batch, other_batch = contestants
    written: dict[str, Tokens] = {}
    for name, (generate, inputs) in contestants.items():  # also the warm-up
        written[name] = generate(inputs, min(32, options.tokens))
    for name in contestants:
        assert written[name] == written[other_batch][: len(written[name])], f"{name} writes something else"

    seconds = rounds_of(
        {name: partial(generate, inputs, options.tokens) for name, (generate, inputs) in contestants.items()},
        options.rounds,
        options.device,
        warm_up=0,
    )

    def speed(name: str) -> float:
        return len(contestants[name][1]) * options.tokens / median(seconds[name])

    def faster(a: str, b: str) -> float:
        """How many tokens a writes in the time that b needs for one."""
        return ratio(seconds, b, a) * len(contestants[a][1]) / len(contestants[b][1])

    console = Console(width=120, highlight=False)
    console.print(f"{machine(options.device)}; transformers {transformers_version}")
    console.print(
        f"{options.layers} layers x {options.width}, vocabulary {options.vocabulary}, {PROMPT} + {options.tokens} tokens, "
        f"fp32, {options.rounds} rounds\n"
    )
    table = Table("", "tokens/s", box=box.MARKDOWN)
    table.columns[1].justify = "right"
    for name in contestants:
        table.add_row(name, f"{speed(name):.0f}")
    console.print(table)
    console.print(f"cache / no cache:              x{faster(single, whole):.2f}")
    console.print(f"batch {options.batch} / one prompt:         x{faster(batch, single):.2f}")
    console.print(f"ours / transformers:           x{faster(single, other):.2f}")
    console.print(f"ours / transformers, batch {options.batch}: x{faster(batch, other_batch):.2f}")


def compare_caches(model: Model, inputs: tuple[Tokens, Tokens], options: argparse.Namespace) -> None:
    """Print milliseconds of a step with each cache, and how many times as fast as the growing one."""
    caches = {
        "growing": ours(model), "static": static(model), "static, compiled": ours(CompiledSteps(model)),
    }  # fmt: skip
    steps = {
        (name, len(prompts)): partial(generate, prompts, options.tokens)
        for prompts in inputs
        for name, generate in caches.items()
    }
    written = {key: generate() for key, generate in steps.items()}  # also the warm-up, and the compilation
    for (name, rows), tokens in written.items():
        same = sum(a == b for a, b in zip(tokens, written["growing", rows], strict=True))
        assert same == rows or name == "static, compiled", f"{name} writes something else"
        if same < rows:  # by rounding, where two tokens are equally probable
            print(f"{name}: {rows - same} of {rows} rows are not those of the growing cache")
    names = {f"{name}, {rows}": step for (name, rows), step in steps.items()}
    seconds = rounds_of(names, options.rounds, options.device, warm_up=0)
    table = Table("cache, prompts", "ms/step", "speed", box=box.MARKDOWN)
    for name in names:
        growing = f"growing, {name.rsplit(', ', 1)[1]}"
        table.add_row(
            name,
            f"{1000 * median(seconds[name]) / options.tokens:.2f}",
            f"x{ratio(seconds, growing, name):.2f}",
        )
    Console(width=120, highlight=False).print(machine(options.device), table, sep="\n")


if __name__ == "__main__":
    main()
