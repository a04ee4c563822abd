"""Compiled decoding steps: one graph, no look at the device at each token, the same texts as without."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from magneto.errors import ConfigError
from magneto.inference.compiled_steps import CompiledSteps, _next_logits
from magneto.inference.sampling import STEPS_AT_ONCE, Decoding, generate, next_tokens
from magneto.nn.config import SEQUENCE_POSITIONS
from magneto.tasks.causal_lm import CausalLM
from tests.unit.test_generation import PROMPTS, TOKENIZER, model, tokens_of

GREEDY = {"temperature": 0.0}
RANDOM = {"temperature": 1.2, "top_p": None}


@pytest.fixture(autouse=True)
def forget_graphs() -> Iterator[None]:
    """Begin and end without a graph, and fail where a second one is made."""
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield
    torch._dynamo.reset()


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


@pytest.mark.parametrize(
    "settings", [GREEDY, RANDOM, {"temperature": 0.9, "top_k": 20}, {"temperature": 0.9, "top_p": 0.8}]
)
def test_one_graph_writes_the_same_tokens(settings: dict[str, Any]) -> None:
    """Prompts of unequal length, and rows that end at different steps."""
    task = model(position="rotary", num_kv_heads=2, attention_window=9)
    decoding = Decoding(max_new_tokens=45, min_new_tokens=3, seed=3, **settings)
    expected = tokens_of(task, PROMPTS, decoding, end=9, barred=[4])
    assert tokens_of(CompiledSteps(task, "aot_eager"), PROMPTS, decoding, end=9, barred=[4]) == expected
    assert graphs() == 1


@pytest.mark.parametrize("position", SEQUENCE_POSITIONS)
def test_one_graph_for_each_position(position: str) -> None:
    """Beyond the context, whose newer half is then read again into the same cache."""
    task = model(context=24, position=position)
    decoding = Decoding(max_new_tokens=50, **GREEDY)
    steps = CompiledSteps(task, "aot_eager")
    assert tokens_of(steps, PROMPTS, decoding) == tokens_of(task, PROMPTS, decoding)
    assert graphs() == 1 and steps._cache is not None and steps._cache.real.shape == (3, 128)


def test_next_prompts_need_no_graph() -> None:
    """Fewer prompts, longer or shorter ones, other settings; more prompts do."""
    task = model(position="rotary")
    steps = CompiledSteps(task, "aot_eager")
    for prompts, settings in (
        (PROMPTS, GREEDY),
        (PROMPTS[1:], RANDOM),
        ([[8] * 40], RANDOM),
        ([[1]], GREEDY),
    ):
        decoding = Decoding(max_new_tokens=20, **settings)
        assert tokens_of(steps, prompts, decoding) == tokens_of(task, prompts, decoding)
    assert graphs() == 1
    with pytest.raises(ConfigError, match="Recompiling"):
        tokens_of(steps, PROMPTS * 2, Decoding(max_new_tokens=20))


def test_what_is_written_has_one_address() -> None:
    """CUDA graphs need that of every tensor that a step writes: they skip other graphs, and copy other inputs."""
    unmarked: list[Tensor] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor], **options: Any) -> Any:
        for node, value in zip(graph.graph.find_nodes(op="placeholder"), inputs, strict=True):
            if not node.meta["tensor_dict"].get("_dynamo_static_input_type"):
                unmarked.append(value)
        return graph

    tokens_of(CompiledSteps(model(position="convolutional"), backend), PROMPTS, Decoding(max_new_tokens=3))
    (tokens,) = unmarked  # neither weights nor the cache
    assert tokens.shape == (3, 1) and tokens.dtype == torch.int64


def test_stop_strings_within_a_block() -> None:
    """Tokens that were computed after a row's end, a stop string or the greatest length are in no text."""
    task = model(position="rotary")
    free = generate(task, TOKENIZER, PROMPTS, Decoding(max_new_tokens=40, seed=2, temperature=1.2))
    settings = Decoding(max_new_tokens=35, seed=2, temperature=1.2, stop=free[1].text[4:6])
    expected = generate(task, TOKENIZER, PROMPTS, settings)
    assert {row.reason for row in expected} >= {"stop"} and len(expected[1].tokens) < STEPS_AT_ONCE
    assert generate(CompiledSteps(task, "eager"), TOKENIZER, PROMPTS, settings) == expected


class HostWaits(TorchDispatchMode):
    """Count the operations whose result the host needs, for which it would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket in (
            torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.masked_select
        )  # fmt: skip
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("settings", [GREEDY, RANDOM, {"top_k": 9}, {"top_p": 0.8}])
def test_the_host_waits_once_a_block(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """One list of tokens for each 16 steps, and the prompts' mask, which is made on the host."""
    lists: list[Tensor] = []
    plain = Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda self: lists.append(self) or plain(self))
    steps = CompiledSteps(model(position="rotary"), "eager")
    steps._step = _next_logits  # operations inside of a graph are not seen
    within = next_tokens.__wrapped__  # in inference mode a dispatch mode does not see them
    with HostWaits() as waits, torch.no_grad():
        assert len(list(within(steps, PROMPTS, Decoding(max_new_tokens=40, **settings)))) == 40
    assert [tokens.shape for tokens in lists] == [(3, 16), (3, 16), (3, 8)]
    assert waits.count == 1


def test_a_step_that_cannot_be_compiled() -> None:
    """A model of a user's own with a break in its graph gets one error with the remedy."""

    class Printing(CausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            hidden = super().forward(*args, **kwargs)
            print(float(hidden.sum()))
            return hidden

    task = model(position="rotary")
    task.__class__ = Printing
    with pytest.raises(ConfigError, match=r"compile=true.*Set compile to false"):
        tokens_of(CompiledSteps(task, "aot_eager"), PROMPTS, Decoding(max_new_tokens=3))
