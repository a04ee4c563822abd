"""Compiled stacks: the same results and keys as uncompiled ones, and few graphs."""

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from magneto.nn.config import SEQUENCE_POSITIONS
from tests.unit.nn.test_transformer import build, right_mask, tokens


def check_compiled(backend: str, position: str, architecture: str) -> None:
    model = build(position=position, architecture=architecture, num_layers=1)
    compiled = copy.deepcopy(model)
    compiled.compile(fullgraph=True, backend=backend)
    x, y, mask = tokens(), tokens(3, 5), right_mask([9, 4, 7], 9)
    inputs = (x, y, mask) if architecture == "encoder_decoder" else (x, mask)
    expected, actual = model(*inputs), compiled(*inputs)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    for out in (expected, actual):
        out.square().sum().backward()
    assert list(compiled.state_dict()) == list(model.state_dict())
    for (name, a), b in zip(compiled.named_parameters(), model.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b[1].grad, atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("position", SEQUENCE_POSITIONS)
def test_compiles_in_place_to_one_graph(position: str) -> None:
    """Traced forward and backward without a break, same results, same state-dict keys."""
    check_compiled("aot_eager", position, "encoder_decoder")


def test_drop_path_layers_share_one_graph() -> None:
    """All but the first, which skips nothing."""
    torch._dynamo.reset()
    model, counter = build(drop_path=0.6, num_layers=5), CompileCounter()
    for layer in model.layers:
        layer.compile(backend=counter, fullgraph=True)
    model(tokens()).sum().backward()
    assert counter.frame_count == 2


@pytest.mark.parametrize(("placement", "graphs"), [("lns", 2), ("complete_p", 2), ("mix_ln", 3)])
def test_formulas_by_layer_share_a_graph(placement: str, graphs: int) -> None:
    """Factors of a layer are tensors: a graph for all layers of a kind, another for the first: its input has no gradient."""
    torch._dynamo.reset()
    model, counter = build(placement, num_layers=8), CompileCounter()
    for layer in model.layers:
        layer.compile(backend=counter, fullgraph=True)
    model(tokens()).sum().backward()
    assert counter.frame_count == graphs


@pytest.mark.slow
def test_compiles_in_place_with_inductor() -> None:
    check_compiled("inductor", "relative", "encoder")
