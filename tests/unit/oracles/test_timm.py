"""Sub-LN against timm, whose `scale_attn_norm` and `scale_mlp_norm` are the two inner norms."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from magneto.nn.attention import Context
from tests.unit.nn.models import FFN, HEADS, D, build, real, stream
from tests.unit.oracles.weights import Link, agree, copy_weights, same

vision_transformer = pytest.importorskip("timm.models.vision_transformer")
NORM = partial(nn.LayerNorm, eps=1e-5)


class Stack(nn.Module):
    """timm's blocks and a norm after the last: what its VisionTransformer keeps of them."""

    def __init__(self, layers: int, **more: Any) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            vision_transformer.Block(D, HEADS, mlp_ratio=FFN / D, qkv_bias=True, norm_layer=NORM, **more)
            for _ in range(layers)
        )
        self.norm = NORM(D)


def attention_links(ours: Any, theirs: Any) -> list[Link]:
    links = [*same(ours.qkv, theirs.qkv), *same(ours.out, theirs.proj)]
    if ours.inner_norm is not None:
        links += same(ours.inner_norm, theirs.norm)
    if ours.q_norm is not None:
        links += [*same(ours.q_norm, theirs.q_norm), *same(ours.k_norm, theirs.k_norm)]
    return links


@pytest.mark.parametrize("mask", ["none", "padding", "causal"])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("placement", ["magneto", "pre_ln"])
def test_blocks(placement: str, qk_norm: bool, mask: str) -> None:
    ours = build(placement, qk_norm=qk_norm)
    sub_ln = placement == "magneto"
    theirs = Stack(3, scale_attn_norm=sub_ln, scale_mlp_norm=sub_ln, qk_norm=qk_norm)
    links = same(ours.final_norm, theirs.norm)
    for a, b in zip(ours.layers, theirs.blocks, strict=True):
        links += same(a.self_attention.pre_norm, b.norm1) + same(a.feed_forward.pre_norm, b.norm2)
        links += attention_links(a.self_attention.branch, b.attn)
        links += same(a.feed_forward.branch.fc1, b.mlp.fc1) + same(a.feed_forward.branch.fc2, b.mlp.fc2)
        if sub_ln:
            links += same(a.feed_forward.branch.inner_norm, b.mlp.norm)
    copy_weights(ours, theirs, links)

    x, y = stream().requires_grad_(), stream().requires_grad_()
    seen = real([9, 4, 7], 9) if mask == "padding" else torch.ones(3, 9, dtype=torch.bool)
    ours_mask = seen if mask == "padding" else None
    out = y
    for block in theirs.blocks:
        out = block(
            out,
            attn_mask=None if ours_mask is None else ours_mask[:, None, None, :],
            is_causal=mask == "causal",
        )
    agree((ours(x, ours_mask, causal=mask == "causal"), theirs.norm(out)), [(x, y)], links, seen)


@pytest.mark.parametrize("shared", [True, False])
def test_relative_positions_of_patches(shared: bool) -> None:
    """BEiT's blocks, with one table for all (as it pre-trains) or, for a stack of one layer, one in the layer."""
    beit = pytest.importorskip("timm.models.beit")
    layers = 3 if shared else 1
    ours = build("pre_ln", position="relative_2d", grid=3, num_layers=layers)
    window = None if shared else (3, 3)
    blocks = nn.ModuleList(
        beit.Block(D, HEADS, qkv_bias=True, mlp_ratio=FFN / D, norm_layer=NORM, window_size=window)
        for _ in range(layers)
    )
    theirs = nn.ModuleDict({"blocks": blocks, "norm": NORM(D)})
    if shared:
        theirs["bias"] = beit.RelativePositionBias((3, 3), HEADS)
    table = (theirs["bias"] if shared else blocks[0].attn).relative_position_bias_table
    links = [*same(ours.final_norm, theirs["norm"]), Link(ours.relative.table, table)]
    for a, b in zip(ours.layers, blocks, strict=True):
        links += same(a.self_attention.pre_norm, b.norm1) + same(a.feed_forward.pre_norm, b.norm2)
        links += same(a.self_attention.branch.out, b.attn.proj)
        own, their = a.self_attention.branch.qkv, b.attn
        with torch.no_grad():
            own.bias[D : 2 * D] = 0  # BEiT's keys have no bias, which the softmax would cancel
        links += [Link(own.weight, their.qkv.weight)]
        links += [Link(own.bias, their.q_bias, (0, D)), Link(own.bias, their.v_bias, (2 * D, 3 * D))]
        links += same(a.feed_forward.branch.fc1, b.mlp.fc1) + same(a.feed_forward.branch.fc2, b.mlp.fc2)
    copy_weights(ours, theirs, links)
    x, y = stream(length=10).requires_grad_(), stream(length=10).requires_grad_()
    bias = theirs["bias"]() if shared else None
    out = y
    for block in blocks:
        out = block(out, shared_rel_pos_bias=bias)
    everywhere = torch.ones(3, 10, dtype=torch.bool)
    agree((ours(x), theirs["norm"](out)), [(x, y)], links, everywhere)


def test_attention_alone() -> None:
    ours = build("magneto").layers[0].self_attention.branch
    theirs = vision_transformer.Attention(D, HEADS, qkv_bias=True, scale_norm=True, norm_layer=NORM)
    links = attention_links(ours, theirs)
    copy_weights(ours, theirs, links)
    x, y = stream().requires_grad_(), stream().requires_grad_()
    everywhere = torch.ones(3, 9, dtype=torch.bool)
    agree((ours(x, Context()), theirs(y)), [(x, y)], links, everywhere)
