"""Decoding with a cache of fixed size gives what decoding with a growing cache gives."""

from typing import Any

import pytest
import torch
from torch import Tensor

from magneto.nn import PLACEMENTS, KVCache, StaticKVCache
from magneto.nn.config import SEQUENCE_POSITIONS
from tests.unit.nn.models import build, real, stream

SHORT: dict[str, Any] = {"architecture": "decoder", "num_layers": 2, "conv_position_kernel": 5}
LENGTHS = [8, 3, 5]
OPTIONS: dict[str, dict[str, Any]] = {
    "grouped": {"num_kv_heads": 2, "position": "rotary"},
    "window": {"attention_window": 4, "position": "rotary"},
    "window, relative": {"attention_window": 4, "position": "relative"},
    "norms and gate": {
        "qk_norm": True, "v_norm": True, "attention_gate": True, "inner_attention_norm": "heads", "norm": "rmsnorm",
        "position": "learned",
    },
    "linear scaling": {"position": "rotary", "rotary_scaling": "linear", "rotary_factor": 2.0},
    "yarn": {"position": "rotary", "rotary_scaling": "yarn", "rotary_factor": 4.0},
    "dyt, swiglu": {"norm": "dyt", "activation": "swiglu", "input_norm": True, "position": "convolutional"},
    "kernel of one": {"position": "convolutional", "conv_position_kernel": 1},
}  # fmt: skip


def read(model: Any, x: Tensor, lengths: list[int]) -> KVCache:
    """Read prompts that are padded on the left with large numbers."""
    prompt = torch.full((len(lengths), max(lengths), x.size(2)), 1e3)
    for row, length in enumerate(lengths):
        prompt[row, max(lengths) - length :] = x[row, :length]
    cache = KVCache()
    model(prompt, real(lengths, max(lengths)).flip(1), cache=cache)
    return cache


def check_steps(model: Any, growing: KVCache, static: StaticKVCache, steps: int) -> None:
    """Compare single-token steps with both caches; the static one may have more rows."""
    rows = len(growing.layers[0].filled()[0])
    for step in range(steps):
        new = stream(len(static.real), 1, seed=step)
        expected = model(new[:rows], cache=growing)
        torch.testing.assert_close(model(new, cache=static)[:rows], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("position", SEQUENCE_POSITIONS)
@pytest.mark.parametrize("placement", PLACEMENTS)
@torch.no_grad()
def test_static_equals_growing(placement: str, position: str) -> None:
    """Prompts of unequal length, then as many tokens as the cache holds."""
    model = build(placement, position=position, **SHORT)
    growing = read(model, stream(3, 8), LENGTHS)
    check_steps(model, growing, StaticKVCache(growing, 18), 10)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@torch.no_grad()
def test_static_with_options_of_attention(options: dict[str, Any]) -> None:
    model = build(**SHORT | options)
    growing = read(model, stream(3, 8), LENGTHS)
    check_steps(model, growing, StaticKVCache(growing, 20), 12)


@pytest.mark.parametrize("position", SEQUENCE_POSITIONS)
@torch.no_grad()
def test_next_prompts_in_the_same_memory(position: str) -> None:
    """Shorter prompts, fewer rows, no padding: nothing of the former ones is left, and no tensor is replaced."""
    model = build(position=position, **SHORT)
    growing = read(model, stream(3, 8), LENGTHS)
    static = StaticKVCache(growing, 20)
    check_steps(model, growing, static, 5)
    places = [tensor.data_ptr() for tensor in static.tensors()]
    other = read(model, stream(2, 6, seed=9), [4, 4])
    assert static.fits(other, 20) and not static.fits(other, 21)
    static.load(other)
    check_steps(model, other, static, 9)
    assert [tensor.data_ptr() for tensor in static.tensors()] == places
    assert not static.fits(read(model, stream(4, 6), [4, 4, 4, 4]), 8)


@pytest.mark.parametrize("position", ["rotary", "relative", "convolutional"])
@torch.no_grad()
def test_static_cache_under_autocast(position: str) -> None:
    """It has the dtype of the keys, and one for keys of another dtype is not reused."""
    model = build(position=position, **SHORT)
    full = read(model, stream(3, 8), LENGTHS)
    with torch.autocast("cpu", torch.bfloat16):
        growing = read(model, stream(3, 8), LENGTHS)
        static = StaticKVCache(growing, 16)
        assert static.layers[0].keys.dtype == torch.bfloat16 and not static.fits(full, 16)
        for step in range(6):
            new = stream(3, 1, seed=step)
            expected = model(new, cache=growing)
            torch.testing.assert_close(model(new, cache=static), expected, atol=0.05, rtol=0.05)
