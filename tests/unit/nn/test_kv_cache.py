"""Decoding step by step with a cache gives what decoding at once gives."""

from typing import Any

import pytest
import torch
from torch import Tensor

from magneto.nn import PLACEMENTS, KVCache
from magneto.nn.config import SEQUENCE_POSITIONS
from tests.unit.nn.models import D, build
from tests.unit.nn.models import real as right_mask
from tests.unit.nn.models import stream as tokens

SHORT: dict[str, Any] = {"num_layers": 2, "conv_position_kernel": 5}


@pytest.mark.parametrize("position", SEQUENCE_POSITIONS)
@pytest.mark.parametrize("placement", PLACEMENTS)
@torch.no_grad()
def test_cached_equals_uncached(placement: str, position: str) -> None:
    """A prompt of 4, single tokens, then a chunk of 3; longer than the convolution's kernel."""
    x = tokens(3, 12)
    steps = [x[:, :4], *x[:, 4:9].split(1, dim=1), x[:, 9:]]

    model = build(placement, "decoder", position, **SHORT)
    cache = KVCache()
    stepped = torch.cat([model(step, cache=cache) for step in steps], dim=1)
    torch.testing.assert_close(stepped, model(x), atol=1e-5, rtol=1e-5)
    assert cache.length == 12 and cache.mask is None

    model = build(placement, "encoder_decoder", position, **SHORT)
    mask = right_mask([9, 4, 7], 9)
    memory = model.encode(tokens(), mask)
    cache = KVCache()
    stepped = torch.cat([model.decode(step, None, memory, mask, cache) for step in steps], dim=1)
    torch.testing.assert_close(stepped, model.decode(x, None, memory, mask), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("position", SEQUENCE_POSITIONS)
@torch.no_grad()
def test_prompts_of_unequal_length(position: str) -> None:
    """Left padding: each row decodes as it does alone, prompt and continuation."""
    model, x, lengths = build(position=position, architecture="decoder", **SHORT), tokens(3, 12), [8, 3, 5]
    prompt = torch.full((3, 8, D), 1e3)
    for row, length in enumerate(lengths):
        prompt[row, 8 - length :] = x[row, :length]
    mask = right_mask(lengths, 8).flip(1)
    cache = KVCache()
    outputs = [model(prompt, mask, cache=cache)]
    for step in range(4):
        new = torch.stack([x[row, length + step] for row, length in enumerate(lengths)])
        outputs.append(model(new[:, None], cache=cache))
    batch = torch.cat(outputs, dim=1)
    for row, length in enumerate(lengths):
        alone = model(x[row : row + 1, : length + 4])
        torch.testing.assert_close(batch[row, 8 - length :], alone[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("position", SEQUENCE_POSITIONS)
@torch.no_grad()
def test_reorder_follows_the_beams(position: str) -> None:
    """One prompt a source becomes two beams each, beams change places, one source leaves."""
    model = build(position=position, architecture="encoder_decoder", **SHORT)
    mask = right_mask([9, 4], 9)
    memory = model.encode(tokens(2), mask)
    cache = KVCache()
    history = tokens(2, 3)
    model.decode(history, None, memory, mask, cache)

    def step(index: list[int], copy_memory: bool, seed: int) -> Tensor:
        nonlocal history, memory, mask
        rows = torch.tensor(index)
        cache.reorder(rows, memory=copy_memory)
        if copy_memory:
            memory, mask = memory[rows], mask[rows]
        new = torch.randn(len(index), 1, D, generator=torch.Generator().manual_seed(seed))
        history = torch.cat((history[rows], new), dim=1)
        out = model.decode(new, None, memory, mask, cache)
        torch.testing.assert_close(
            out, model.decode(history, None, memory, mask)[:, -1:], atol=1e-5, rtol=1e-5
        )
        return out

    step([0, 0, 1, 1], True, 1)
    step([1, 1, 3, 2], False, 2)
    step([3, 2], True, 3)


@torch.no_grad()
def test_reorder_keeps_the_padding() -> None:
    model, x = build(position="learned", architecture="decoder"), tokens(2, 6)
    mask = right_mask([6, 2], 6).flip(1)
    cache = KVCache()
    model(x, mask, cache=cache)
    cache.reorder(torch.tensor([1, 0, 1]))
    new = tokens(3, 1)
    out = model(new, cache=cache)
    for row, (source, length) in enumerate(((1, 2), (0, 6), (1, 2))):
        alone = torch.cat((x[source, 6 - length :], new[row]))[None]
        torch.testing.assert_close(out[row], model(alone)[0, -1:], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_memory_is_projected_once() -> None:
    """Keys and values of the memory are computed in the first step only."""
    model = build(architecture="encoder_decoder", **SHORT)
    memory, cache, calls = model.encode(tokens()), KVCache(), []
    for layer in model.decoder.layers:
        layer.cross_attention.branch.kv.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(4):
        model.decode(tokens(3, 1), None, memory, None, cache)
    assert len(calls) == 2  # layers, not layers times steps


@torch.no_grad()
def test_cache_grows_past_its_first_capacity() -> None:
    model, x = (
        build(position="rotary", architecture="decoder", max_positions=200, num_layers=2),
        tokens(2, 150),
    )
    cache = KVCache()
    stepped = torch.cat([model(step, cache=cache) for step in x.split(1, dim=1)], dim=1)
    torch.testing.assert_close(stepped, model(x), atol=1e-5, rtol=1e-5)
