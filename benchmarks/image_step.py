"""A training step on images beside timm's: from pixels to the optimizer's update, and what a second modality costs.

    python benchmarks/image_step.py                                # ViT-Ti/16 on 224 x 224, fp32 and bf16 on the CPU
    python benchmarks/image_step.py --image 28 --patch 4 --channels 1 --width 128 --heads 4 --layers 6 --batch 128
    python benchmarks/image_step.py --multiway                     # pairs of image and text, and a plain encoder
    python benchmarks/image_step.py --rounds 2 --image 32 --width 64 --heads 2 --layers 2 --batch 4  # to see that it runs

Classification from nothing: patches, [CLS], the encoder, the mean of the patches, a linear map, cross-entropy, AdamW with
fused kernels. All have the same depth, widths and heads, exact GELU, neither dropout nor stochastic depth; ours comes with
learned positions, as timm's VisionTransformer has, and with relative ones, as timm's BEiT has (one table for all layers in
either). bf16 is autocast, for all. They take turns, one step each, and the order shifts by one each round; a ratio is the
median over rounds of the ratios within a round.

Multiway: the encoder alone with AdamW, on pairs of patches and tokens. Each token goes through as many weights as in the
plain encoder; there are up to twice as many of them.

Goals, on 2 CPU cores without other work: Magneto at least 1.0 times as fast as timm's VisionTransformer, Pre-LN 1.05 times;
a multiway step at most 1.1 times the plain one's.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F
from rich import box
from rich.console import Console
from rich.table import Table
from timing import machine, ratio, rounds_of
from torch import Tensor, nn

from magneto.nn import BackboneConfig, Encoder, Linear, PatchStem


@dataclass(frozen=True)
class Sizes:
    """What all contestants share; the feed-forward is 4 * width wide."""

    layers: int
    width: int
    heads: int
    image: int
    patch: int
    channels: int
    classes: int
    batch: int
    text: int

    @property
    def grid(self) -> int:
        return self.image // self.patch


class Ours(nn.Module):
    """(B, C, S, S) -> (B, classes)."""

    def __init__(self, sizes: Sizes, placement: str, position: str) -> None:
        super().__init__()
        self.stem = PatchStem(sizes.image, sizes.patch, sizes.channels, sizes.width)
        relative = position == "relative_2d"
        self.backbone = Encoder(
            BackboneConfig(
                placement=placement, num_layers=sizes.layers, d_model=sizes.width, num_heads=sizes.heads,
                position=position, max_positions=self.stem.num_tokens, grid=sizes.grid if relative else None,
            )
        )  # fmt: skip
        self.head = Linear(sizes.width, sizes.classes, roles=("head",))

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.head(self.backbone(self.stem(images))[:, 1:].mean(1))
        return out


def vit(sizes: Sizes) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=sizes.image, patch_size=sizes.patch, in_chans=sizes.channels, num_classes=sizes.classes,
        embed_dim=sizes.width, depth=sizes.layers, num_heads=sizes.heads, global_pool="avg", fc_norm=False,
    )  # fmt: skip


def beit(sizes: Sizes) -> nn.Module:
    from timm.models.beit import Beit

    return Beit(
        img_size=sizes.image, patch_size=sizes.patch, in_chans=sizes.channels, num_classes=sizes.classes,
        embed_dim=sizes.width, depth=sizes.layers, num_heads=sizes.heads, use_abs_pos_emb=False,
        use_shared_rel_pos_bias=True, init_values=None,
    )  # fmt: skip


THEIRS = "timm VisionTransformer, Pre-LN"
CONTESTANTS: dict[str, Callable[[Sizes], nn.Module]] = {
    "ours, Pre-LN": partial(Ours, placement="pre_ln", position="learned"),
    "ours, Magneto": partial(Ours, placement="magneto", position="learned"),
    "ours, Pre-LN, relative positions": partial(Ours, placement="pre_ln", position="relative_2d"),
    "ours, Magneto, relative positions": partial(Ours, placement="magneto", position="relative_2d"),
    THEIRS: vit,
    "timm Beit, Pre-LN, relative positions": beit,
}


class Pairs(nn.Module):
    """An encoder of pairs, (B, T, width) -> the same: the first `num_vision_tokens` are vision."""

    def __init__(self, sizes: Sizes, multiway: str) -> None:
        super().__init__()
        self.num_vision_tokens = None if multiway == "none" else 1 + sizes.grid**2
        self.backbone = Encoder(
            BackboneConfig(
                num_layers=sizes.layers, d_model=sizes.width, num_heads=sizes.heads, position="none", multiway=multiway
            )
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.backbone(x, num_vision_tokens=self.num_vision_tokens)
        return out


PLAIN = "plain encoder"
MULTIWAY: dict[str, Callable[[Sizes], nn.Module]] = {
    PLAIN: partial(Pairs, multiway="none"),
    "multiway, own feed-forwards": partial(Pairs, multiway="feed_forward"),
    "multiway, own weights throughout": partial(Pairs, multiway="full"),
}

Loss = Callable[[nn.Module], Tensor]


def training_step(model: nn.Module, loss: Loss, dtype: str, device: str) -> Callable[[], None]:
    """Forward, backward, update."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=dtype == "bf16"):
            value = loss(model)
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def compare(
    console: Console,
    title: str,
    contestants: Mapping[str, Callable[[Sizes], nn.Module]],
    reference: str,
    loss: Loss,
    sizes: Sizes,
    device: str,
    rounds: int,
) -> None:
    """The table of contestants; `title` ends with their number format."""
    steps, parameters = {}, {}
    for name, build in contestants.items():
        torch.manual_seed(0)
        model = build(sizes).to(device).train()
        parameters[name] = sum(p.numel() for p in model.parameters())
        steps[name] = training_step(model, loss, title.rpartition(" ")[2], device)
    seconds = rounds_of(steps, rounds, device)
    table = Table(title, "examples/s", f"speed, {reference} = 1", "parameters", box=box.MARKDOWN)
    for column in table.columns[1:]:
        column.justify = "right"
    for name in sorted(steps, key=lambda name: median(seconds[name])):
        rate = f"{sizes.batch / median(seconds[name]):.1f}"
        speed = f"x{ratio(seconds, reference, name):.3f}"
        table.add_row(name, rate, speed, f"{parameters[name] / 1e6:.2f} M")
    console.print(table)
    console.print()


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument("--image", type=int, default=224, help="pixels on a side")
    parser.add_argument("--patch", type=int, default=16)
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--text", type=int, default=64, help="tokens beside each image, for --multiway")
    parser.add_argument("--dtype", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--multiway", action="store_true", help="multiway encoders instead of classifiers")
    options = vars(parser.parse_args())
    device, rounds, dtypes, multiway = (options.pop(key) for key in ("device", "rounds", "dtype", "multiway"))
    sizes = Sizes(**options)
    console = Console(width=120, highlight=False)
    console.print(machine(device))
    console.print(f"{sizes}, {rounds} rounds\n")
    torch.manual_seed(1)
    images = torch.randn(sizes.batch, sizes.channels, sizes.image, sizes.image, device=device)
    labels = torch.randint(sizes.classes, (sizes.batch,), device=device)
    pairs = torch.randn(sizes.batch, 1 + sizes.grid**2 + sizes.text, sizes.width, device=device)

    def classify(model: nn.Module) -> Tensor:
        return F.cross_entropy(model(images).float(), labels)

    def encode(model: nn.Module) -> Tensor:
        out: Tensor = model(pairs).float().square().mean()
        return out

    for dtype in dtypes:
        if multiway:
            compare(console, f"pairs, {dtype}", MULTIWAY, PLAIN, encode, sizes, device, rounds)
        else:
            compare(console, f"images, {dtype}", CONTESTANTS, THEIRS, classify, sizes, device, rounds)


if __name__ == "__main__":
    main()
