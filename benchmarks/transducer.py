"""The transducer's joint network and loss beside torchaudio's kernel, and its training step beside CTC's.

    python benchmarks/transducer.py                        # two minutes on a quiet core
    python benchmarks/transducer.py --small --rounds 1     # to see that it runs

"joint network and loss": forward and backward, from states of an encoder to their gradient; torchaudio's `rnnt_loss` takes
the logits of all frames and prefixes, ours makes them in parts where they are many (`magneto.nn.transducer`). "memory" is
how far the resident size of a process of its own (on Linux) rises above what it held before. "training step": stem,
encoder of 6 layers x 256, head or joint network, and loss, of an equal batch of 16 utterances of 3 s.

Goals on a CPU: a step of at most twice CTC's; below 2 GB for 8 utterances of 12 s with 60 tokens and 1,000 units.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F
from language_step import growth
from rich import box
from rich.console import Console
from rich.table import Table
from timing import machine, ratio, rounds_of
from torch import Tensor
from torchaudio.functional import rnnt_loss

from magneto.nn import AudioStem, BackboneConfig, Encoder, Linear
from magneto.nn.transducer import BLANK, MAX_SCORES, Joint, Predictor

SHAPES = {
    "16 utterances of 3 s, 45 of 60 characters": (16, 75, 45, 60),
    "8 utterances of 12 s, 60 of 1,000 units": (8, 300, 60, 1000),
}
"""Utterances, frames of 40 ms, tokens, vocabulary."""
SMALL = {"small": (2, 8, 5, 10)}
WIDTH = 256


def by_torchaudio(
    joint: Joint, frames: Tensor, prefixes: Tensor, targets: Tensor, *lengths: Tensor
) -> Tensor:
    """The loss of each text, of all logits at once."""
    logits = joint(joint.frame(frames)[:, :, None], joint.prefix(prefixes)[:, None])
    frame_counts, token_counts = (length.int() for length in lengths)
    loss: Tensor = rnnt_loss(logits, targets.int(), frame_counts, token_counts, blank=BLANK, reduction="none")
    return loss


def in_parts(share: int, joint: Joint, *inputs: Tensor) -> Tensor:
    """The loss of each text, of at most a `share` of the scores that are kept by default."""
    return joint.loss(*inputs, max_scores=MAX_SCORES // share)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "ours": partial(in_parts, 1),
    "ours, in smaller parts": partial(in_parts, 8),
    "torchaudio": by_torchaudio,
}


def loss_step(shape: Sequence[int], name: str) -> Callable[[], None]:
    """Forward and backward of the joint network and its loss."""
    batch, frames, tokens, vocabulary = shape
    torch.manual_seed(0)
    joint = Joint(WIDTH, WIDTH, WIDTH, vocabulary)
    hidden = torch.randn(batch, frames, WIDTH, requires_grad=True)
    prefixes = torch.randn(batch, tokens + 1, WIDTH, requires_grad=True)
    targets = torch.randint(1, vocabulary, (batch, tokens))
    lengths = torch.full((batch,), frames), torch.full((batch,), tokens)

    def step() -> None:
        LOSSES[name](joint, hidden, prefixes, targets, *lengths).sum().backward()

    return step


def training_steps(shape: Sequence[int]) -> dict[str, Callable[[], None]]:
    """Forward and backward of whole models."""
    batch, frames, tokens, vocabulary = shape
    torch.manual_seed(0)
    config = BackboneConfig(position="convolutional")
    features, targets = torch.randn(batch, 4 * frames, 80), torch.randint(1, vocabulary, (batch, tokens))
    lengths, token_counts = torch.full((batch,), frames), torch.full((batch,), tokens)
    stem, encoder = AudioStem(80, config), Encoder(config)
    head = Linear(WIDTH, vocabulary, roles=("head",))
    predictor, joint = Predictor(vocabulary, WIDTH, 2), Joint(WIDTH, WIDTH, WIDTH, vocabulary)

    def hidden() -> Tensor:
        return torch.as_tensor(encoder(stem(features)[0]))

    def ctc() -> None:
        log_probs = head(hidden()).log_softmax(-1).transpose(0, 1)
        F.ctc_loss(log_probs, targets, lengths, token_counts, zero_infinity=True).backward()

    def transducer() -> None:
        joint.loss(hidden(), predictor.prefixes(targets), targets, lengths, token_counts).sum().backward()

    return {"CTC": ctc, "transducer": transducer}


def memory(shape_name: str, name: str) -> float:
    """MiB of a step in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--measure", shape_name, name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    """Print two tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--measure", nargs=2, metavar=("SHAPE", "LOSS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shapes = SMALL if arguments.small else SHAPES
    if arguments.measure:
        shape, name = arguments.measure
        print(growth(loss_step(shapes[shape], name), "cpu", times=1))
        return
    console = Console(width=120)
    console.print(machine("cpu"))
    table = Table("joint network and loss", "seconds", "ours is faster by", "memory MiB", box=box.MARKDOWN)
    for shape_name, shape in shapes.items():
        seconds = rounds_of({name: loss_step(shape, name) for name in LOSSES}, arguments.rounds, "cpu", 1)
        for name, values in seconds.items():
            table.add_row(
                f"{name}: {shape_name}",
                f"{median(values):.3f}",
                f"x{ratio(seconds, name, 'ours'):.2f}",
                f"{memory(shape_name, name):.0f}",
            )
    console.print(table)
    seconds = rounds_of(training_steps(next(iter(shapes.values()))), arguments.rounds, "cpu", 1)
    table = Table("training step", "seconds", "of CTC's", box=box.MARKDOWN)
    for name, values in seconds.items():
        table.add_row(name, f"{median(values):.3f}", f"x{ratio(seconds, name, 'CTC'):.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
