"""Copy the weights of a model to another implementation, and compare the outputs and gradients of both."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Link:
    """A parameter of ours and one that must equal it, or the rows of either that hold a block."""

    ours: nn.Parameter
    theirs: nn.Parameter
    rows: tuple[int, int] | None = None
    transposed: bool = False
    their_rows: tuple[int | None, int | None] = (None, None)

    def theirs_of(self, tensor: Tensor) -> Tensor:
        """The rows of their tensor."""
        return tensor[slice(*self.their_rows)]

    def view(self, tensor: Tensor) -> Tensor:
        """Our tensor as theirs is laid out."""
        block = tensor if self.rows is None else tensor[slice(*self.rows)]
        return block.T if self.transposed else block


def same(ours: nn.Module, theirs: nn.Module, transposed: bool = False) -> list[Link]:
    """Weight and bias of two linear maps, norms or embeddings; `transposed` for a GPT-2 `Conv1D` weight."""
    links = [Link(ours.weight, theirs.weight, transposed=transposed)]
    return links if getattr(ours, "bias", None) is None else [*links, Link(ours.bias, theirs.bias)]


def fused(ours: nn.Module, theirs: Iterable[nn.Module]) -> list[Link]:
    """One linear map of ours and the separate ones whose outputs it concatenates."""
    links, start = [], 0
    for linear in theirs:
        rows = (start, start + linear.out_features)
        links += [Link(ours.weight, linear.weight, rows)]
        links += [] if linear.bias is None else [Link(ours.bias, linear.bias, rows)]
        start = rows[1]
    assert start == ours.out_features
    return links


def copy_weights(ours: nn.Module, theirs: nn.Module, links: list[Link]) -> None:
    """Make their weights ours; every parameter of both sides must be in `links`."""
    for side, linked in (
        (ours, {id(link.ours) for link in links}),
        (theirs, {id(link.theirs) for link in links}),
    ):
        left_out = [name for name, parameter in side.named_parameters() if id(parameter) not in linked]
        assert not left_out, left_out
    with torch.no_grad():
        for link in links:
            link.theirs_of(link.theirs).copy_(link.view(link.ours))


def close(ours: Tensor, theirs: Tensor, what: str = "") -> None:
    """Agree to 1e-5, relative to the largest value of the tensor where that is above 1 (a gradient's sum)."""
    ours, theirs = ours.detach(), theirs.detach()
    error = float((ours - theirs).abs().max()) / max(1.0, float(theirs.abs().max()))
    assert error <= 1e-5, f"{what}: {error:.2e}"


def agree(
    outputs: tuple[Tensor, Tensor], inputs: list[tuple[Tensor, Tensor]], links: list[Link], real: Tensor
) -> None:
    """Outputs at real places, and the gradients of a random linear loss of them, (ours, theirs) each."""
    ours, theirs = (output[real] for output in outputs)
    close(ours, theirs, "output")
    direction = torch.randn(ours.shape, generator=torch.Generator().manual_seed(2))
    for output in (ours, theirs):
        (output * direction).sum().backward()
    for index, (a, b) in enumerate(inputs):
        assert a.grad is not None and b.grad is not None and a.grad.abs().max() > 1e-2
        close(a.grad, b.grad, f"gradient of input {index}")
    for link in links:
        assert link.ours.grad is not None and link.theirs.grad is not None
        close(
            link.view(link.ours.grad),
            link.theirs_of(link.theirs.grad),
            f"gradient of a {tuple(link.theirs.shape)}",
        )
