"""Shared key-value heads, windows and extended rotary positions against Mistral, built from small random configs."""

from typing import Any

import pytest
import torch

from magneto.nn import KVCache
from tests.unit.nn.models import FFN, HEADS, D, build, real, stream
from tests.unit.oracles.weights import Link, agree, close, copy_weights, fused, same

transformers = pytest.importorskip("transformers")
LENGTH, POSITIONS = 14, 32


def mistral(kv_heads: int, window: int | None, scaling: str) -> tuple[Any, Any, list[Link]]:
    """Our Pre-LN decoder and a Mistral with the same weights."""
    rope: dict[str, Any] = {"rope_theta": 500.0, "rope_type": "default"}
    more: dict[str, Any] = {}
    if scaling != "none":
        rope |= {"rope_type": scaling, "factor": 4.0, "original_max_position_embeddings": POSITIONS // 4}
        more = {"rotary_scaling": scaling, "rotary_factor": 4.0}
    ours = build(
        "pre_ln", "decoder", "rotary", norm="rmsnorm", norm_eps=1e-6, activation="swiglu", bias=False,
        num_kv_heads=kv_heads, attention_window=window, rotary_base=500.0, max_positions=POSITIONS, **more,
    )  # fmt: skip
    config = transformers.MistralConfig(
        hidden_size=D, num_hidden_layers=3, num_attention_heads=HEADS, num_key_value_heads=kv_heads, intermediate_size=FFN,
        vocab_size=8, rms_norm_eps=1e-6, sliding_window=window, max_position_embeddings=POSITIONS, rope_parameters=rope,
        head_dim=D // HEADS, attn_implementation="eager", pad_token_id=0,
    )  # fmt: skip
    theirs = transformers.MistralModel(config).eval()
    del theirs.embed_tokens
    links = same(ours.final_norm, theirs.norm)
    for a, b in zip(ours.layers, theirs.layers, strict=True):
        attention, ffn, own = a.self_attention, a.feed_forward, b.self_attn
        links += same(attention.pre_norm, b.input_layernorm) + same(ffn.pre_norm, b.post_attention_layernorm)
        if kv_heads == HEADS:
            links += fused(attention.branch.qkv, [own.q_proj, own.k_proj, own.v_proj])
        else:
            links += same(attention.branch.q, own.q_proj) + fused(
                attention.branch.kv, [own.k_proj, own.v_proj]
            )
        links += same(attention.branch.out, own.o_proj) + same(ffn.branch.fc2, b.mlp.down_proj)
        links += fused(ffn.branch.fc1, [b.mlp.gate_proj, b.mlp.up_proj])
    copy_weights(ours, theirs, links)
    return ours, theirs, links


@pytest.mark.parametrize("scaling", ["none", "linear", "yarn"])
@pytest.mark.parametrize("window", [None, 4, 9])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_mistral(kv_heads: int, window: int | None, scaling: str) -> None:
    """A window of 4 is computed in blocks, one of 9, more than half of the length, by a mask."""
    ours, theirs, links = mistral(kv_heads, window, scaling)
    x, y = stream(length=LENGTH).requires_grad_(), stream(length=LENGTH).requires_grad_()
    seen = real([LENGTH, 5, 11], LENGTH)
    b = theirs(inputs_embeds=y, attention_mask=seen.long(), use_cache=False).last_hidden_state
    agree((ours(x, seen), b), [(x, y)], links, seen)


@pytest.mark.parametrize("window", [None, 4])
def test_cached_steps(window: int | None) -> None:
    """Tokens that come one by one, after a prompt of several, attend to what they attend to in the whole sequence."""
    ours, theirs, _ = mistral(2, window, "yarn")
    x, cache = stream(length=LENGTH), KVCache()
    whole = theirs(inputs_embeds=x, use_cache=False).last_hidden_state
    with torch.inference_mode():
        parts = [ours(part, cache=cache) for part in x.split([10, 1, 1, 2], dim=1)]
    close(torch.cat(parts, dim=1), whole)
    assert cache.layers[0].keys is not None and cache.layers[0].keys.size(1) == 2  # heads that are kept
