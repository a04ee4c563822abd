"""The further placements against implementations that others have published, and against their formulas written out.

docs/placements.md names the sources.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magneto.errors import ConfigError
from magneto.nn import PLACEMENTS, BackboneConfig, Encoder, Placement
from magneto.nn.attention import Context
from magneto.nn.norm import DynamicTanh
from tests.unit.nn.models import FFN, HEADS, D, build, real, stream
from tests.unit.oracles.weights import Link, agree, copy_weights, same

transformers = pytest.importorskip("transformers")
timm_vit = pytest.importorskip("timm.models.vision_transformer")
LLAMA = {"norm": "rmsnorm", "bias": False, "activation": "swiglu", "final_norm": False}


def llama_links(ours: Any, theirs: Any) -> list[Link]:
    """The linear maps of two layers without biases, whose feed-forwards have a gate."""
    attention, ffn = ours.self_attention.branch, ours.feed_forward.branch
    parts = [(attention.qkv, D, [theirs.self_attn.q_proj, theirs.self_attn.k_proj, theirs.self_attn.v_proj])]
    parts.append((ffn.fc1, FFN, [theirs.mlp.gate_proj, theirs.mlp.up_proj]))
    links = same(attention.out, theirs.self_attn.o_proj) + same(ffn.fc2, theirs.mlp.down_proj)
    for linear, width, blocks in parts:
        for index, block in enumerate(blocks):
            links.append(Link(linear.weight, block.weight, (index * width, (index + 1) * width)))
    return links


def run_llama_layer(layer: nn.Module, x: Tensor) -> Tensor:
    """Without positions: angles of zero."""
    angle = torch.zeros(1, x.size(1), D // HEADS)
    out = layer(x, position_embeddings=(angle.cos(), angle.sin()), attention_mask=None)
    return out[0] if isinstance(out, tuple) else out


def llama_config(kind: str, **more: Any) -> Any:
    return getattr(transformers, kind)(
        hidden_size=D, intermediate_size=FFN, num_attention_heads=HEADS, num_key_value_heads=HEADS, head_dim=D // HEADS,
        num_hidden_layers=1, rms_norm_eps=1e-5, attn_implementation="eager", **more,
    )  # fmt: skip


def test_peri_ln_is_that_of_gemma_2() -> None:
    """Its norms multiply by 1 + weight."""
    from transformers.models.gemma2.modeling_gemma2 import Gemma2DecoderLayer

    config = llama_config(
        "Gemma2Config",
        hidden_activation="silu",
        query_pre_attn_scalar=D // HEADS,
        attn_logit_softcapping=None,
    )
    model, theirs = build("peri_ln", num_layers=1, **LLAMA), Gemma2DecoderLayer(config, layer_idx=0)
    theirs.self_attn.is_causal = False
    ours = model.layers[0]
    attention, ffn = ours.self_attention, ours.feed_forward
    norms = same(attention.pre_norm, theirs.input_layernorm)
    norms += same(attention.branch_norm, theirs.post_attention_layernorm)
    norms += same(ffn.pre_norm, theirs.pre_feedforward_layernorm)
    norms += same(ffn.branch_norm, theirs.post_feedforward_layernorm)
    links = norms + llama_links(ours, theirs)
    copy_weights(model, theirs, links)
    for link in norms:
        link.theirs.data.sub_(1)
    x, y = stream().requires_grad_(), stream().requires_grad_()
    agree((model(x), run_llama_layer(theirs, y)), [(x, y)], links, real([9, 9, 9], 9))


def test_res_post_norm_is_that_of_olmo_2() -> None:
    """But for the norms of its queries and keys, which span all heads."""
    from transformers.models.olmo2.modeling_olmo2 import Olmo2DecoderLayer

    model = build("res_post_norm", num_layers=1, **LLAMA)
    theirs = Olmo2DecoderLayer(llama_config("Olmo2Config"), layer_idx=0)
    theirs.self_attn.is_causal = False
    theirs.self_attn.q_norm = theirs.self_attn.k_norm = nn.Identity()
    ours = model.layers[0]
    links = same(ours.self_attention.branch_norm, theirs.post_attention_layernorm)
    links += same(ours.feed_forward.branch_norm, theirs.post_feedforward_layernorm)
    links += llama_links(ours, theirs)
    copy_weights(model, theirs, links)
    x, y = stream().requires_grad_(), stream().requires_grad_()
    agree((model(x), run_llama_layer(theirs, y)), [(x, y)], links, real([9, 9, 9], 9))


@pytest.mark.parametrize("placement", ["res_post_norm", "res_post_norm_zero", "layer_scale", "magneto"])
def test_blocks_of_timm(placement: str) -> None:
    """Swin v2's block, LayerScale, and Sub-LN's inner norms, with the values that their factors begin with."""
    block, options = {
        "res_post_norm": (timm_vit.ResPostBlock, {}),
        "res_post_norm_zero": (timm_vit.ResPostBlock, {"init_values": 0.0}),
        "layer_scale": (timm_vit.Block, {"init_values": 0.1}),
        "magneto": (timm_vit.Block, {"scale_attn_norm": True, "scale_mlp_norm": True}),
    }[placement]
    norm = nn.LayerNorm
    theirs = block(D, HEADS, FFN / D, qkv_bias=True, norm_layer=norm, **options)
    model = build(placement, num_layers=1, final_norm=False)
    ours = model.layers[0]
    attention, ffn = ours.self_attention, ours.feed_forward
    for branch_norm, name in ((attention.branch_norm, "norm1"), (ffn.branch_norm, "norm2")):
        fresh = Encoder(BackboneConfig(placement=placement, num_layers=1, d_model=D)).layers[0]
        if branch_norm is not None:
            assert torch.equal(fresh.feed_forward.branch_norm.weight, getattr(theirs, name).weight)
    if placement == "layer_scale":
        assert torch.equal(fresh.feed_forward.scale, theirs.ls2.gamma)
    outer = "branch_norm" if placement.startswith("res_post") else "pre_norm"
    links = same(getattr(attention, outer), theirs.norm1) + same(getattr(ffn, outer), theirs.norm2)
    links += same(attention.branch.qkv, theirs.attn.qkv) + same(attention.branch.out, theirs.attn.proj)
    links += same(ffn.branch.fc1, theirs.mlp.fc1) + same(ffn.branch.fc2, theirs.mlp.fc2)
    if placement == "layer_scale":
        links += [Link(attention.scale, theirs.ls1.gamma), Link(ffn.scale, theirs.ls2.gamma)]
    if placement == "magneto":
        links += same(attention.branch.inner_norm, theirs.attn.norm)
        links += same(ffn.branch.inner_norm, theirs.mlp.norm)
    copy_weights(model, theirs, links)
    x, y = stream().requires_grad_(), stream().requires_grad_()
    agree((model(x), theirs(y)), [(x, y)], links, real([9, 9, 9], 9))


def test_scaled_init_is_that_of_gpt2() -> None:
    """Out and fc2 are 1 / sqrt(2L) times as large as the others of the same shape."""
    torch.manual_seed(0)
    theirs = transformers.GPT2Model(transformers.GPT2Config(vocab_size=8, n_embd=128, n_layer=8, n_head=4))
    ratio = theirs.h[0].attn.c_proj.weight.std() / theirs.h[0].attn.c_attn.weight.std()
    model = Encoder(BackboneConfig(placement="pre_ln_scaled", num_layers=8, d_model=128))
    attention, ffn = model.layers[3].self_attention.branch, model.layers[3].feed_forward.branch
    for small, large in ((attention.out, attention.qkv), (ffn.fc2, ffn.fc1)):
        assert float(small.weight.std() / large.weight.std()) == pytest.approx(float(ratio), rel=0.03)
    assert float(ratio) == pytest.approx(0.25, rel=0.03)


def norm(x: Tensor, module: nn.Module | None) -> Tensor:
    assert isinstance(module, nn.LayerNorm)
    return F.layer_norm(x, x.shape[-1:], module.weight, module.bias, 1e-5)


def branches(layer: Any) -> tuple[Any, Any]:
    """Functions of the two sub-layers without anything around them."""
    return lambda x: layer.self_attention.branch(x, Context()), layer.feed_forward.branch


def lns(x: Tensor, layer: Any, number: int) -> Tensor:
    attention, ffn = branches(layer)
    x = x + attention(norm(x, layer.self_attention.pre_norm) / number**0.5)
    return x + ffn(norm(x, layer.feed_forward.pre_norm) / number**0.5)


def mix_ln(x: Tensor, layer: Any, number: int) -> Tensor:
    attention, ffn = branches(layer)
    if number == 1:  # a quarter of four
        x = norm(x + attention(x), layer.self_attention.post_norm)
        return norm(x + ffn(x), layer.feed_forward.post_norm)
    x = x + attention(norm(x, layer.self_attention.pre_norm))
    return x + ffn(norm(x, layer.feed_forward.pre_norm))


def hybrid_norm(x: Tensor, layer: Any, number: int) -> Tensor:
    """Queries, keys and values are normalised head by head."""
    branch = layer.self_attention.branch
    q, k, v = (part.unflatten(-1, (HEADS, -1)) for part in branch.qkv(x).chunk(3, dim=-1))
    q, k, v = norm(q, branch.q_norm), norm(k, branch.k_norm), norm(v, branch.v_norm)
    heads = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in (q, k, v)))
    u = norm(x + branch.out(heads.transpose(1, 2).flatten(2)), layer.feed_forward.stream_norm)
    return u + layer.feed_forward.branch(u)


def keel(x: Tensor, layer: Any, number: int) -> Tensor:
    """Four layers are eight sub-layers; the first attention is Pre-LN's."""
    attention, ffn = branches(layer)
    h = attention(norm(x, layer.self_attention.pre_norm))
    x = x + h if number == 1 else norm(8 * x + h, layer.self_attention.post_norm)
    return norm(8 * x + ffn(norm(x, layer.feed_forward.pre_norm)), layer.feed_forward.post_norm)


def rezero(x: Tensor, layer: Any, number: int) -> Tensor:
    attention, ffn = branches(layer)
    x = x + layer.self_attention.scale * attention(x)
    return x + layer.feed_forward.scale * ffn(x)


def complete_p(x: Tensor, layer: Any, number: int) -> Tensor:
    attention, ffn = branches(layer)
    x = x + 6 / 4 * attention(norm(x, layer.self_attention.pre_norm))
    return x + 6 / 4 * ffn(norm(x, layer.feed_forward.pre_norm))


def pre_ln_head_norm(x: Tensor, layer: Any, number: int) -> Tensor:
    branch, ffn = layer.self_attention.branch, layer.feed_forward
    h = branch.qkv(norm(x, layer.self_attention.pre_norm))
    q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in h.chunk(3, dim=-1))
    heads = norm(F.scaled_dot_product_attention(q, k, v).transpose(1, 2), branch.head_norm)
    x = x + branch.out(heads.flatten(2))
    return x + ffn.branch(norm(x, ffn.pre_norm))


FORMULAS = [lns, mix_ln, hybrid_norm, keel, rezero, complete_p, pre_ln_head_norm]


@pytest.mark.parametrize("formula", FORMULAS, ids=lambda formula: formula.__name__)
def test_formula_of_four_layers(formula: Any) -> None:
    model, x = build(formula.__name__, num_layers=4), stream()
    expected = x
    for number, layer in enumerate(model.layers, start=1):
        expected = formula(expected, layer, number)
    if model.final_norm is not None:
        expected = norm(expected, model.final_norm)
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)


def test_every_row_has_an_oracle() -> None:
    elsewhere = {"pre_ln", "post_ln", "deepnorm", "normformer", "peri_ln", "pre_ln_scaled"}
    blocks = {"res_post_norm", "res_post_norm_zero", "layer_scale", "magneto"}
    assert elsewhere | blocks | {formula.__name__ for formula in FORMULAS} == set(PLACEMENTS)


def test_attention_gate() -> None:
    """heads * sigmoid(W x) before the output projection, x being what the attention reads."""
    model, x = build("pre_ln", num_layers=1, attention_gate=True), stream()
    attention = model.layers[0].self_attention
    h = norm(x, attention.pre_norm)
    q, k, v = (
        part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in attention.branch.qkv(h).chunk(3, -1)
    )
    heads = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    expected = x + attention.branch.out(heads * attention.branch.gate(h).sigmoid())
    torch.testing.assert_close(attention(x, Context()), expected)


def test_dynamic_tanh() -> None:
    module = DynamicTanh(4, bias=True)
    x = torch.tensor([[-2.0, 0.0, 1.0, 30.0]])
    torch.testing.assert_close(module(x), torch.tanh(0.5 * x))
    with torch.no_grad():
        module.alpha.fill_(2.0)
        module.weight.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        module.bias.fill_(0.1)
    expected = torch.tensor([1.0, 2.0, 3.0, 4.0]) * torch.tanh(2 * x) + 0.1
    torch.testing.assert_close(module(x), expected)
    assert module(x.bfloat16()).dtype == torch.bfloat16
    encoder = Encoder(BackboneConfig(placement="pre_ln", norm="dyt", num_layers=1, d_model=8, num_heads=2))
    assert sum(isinstance(child, DynamicTanh) for child in encoder.modules()) == 3


def test_first_values_of_layer_scale() -> None:
    """Those of CaiT (section 2): smaller for deeper models."""
    for layers, value in ((6, 0.1), (18, 0.1), (24, 1e-5), (36, 1e-6)):
        depth = BackboneConfig(num_layers=layers).depth("encoder")
        assert PLACEMENTS["layer_scale"].learned_scale_init(depth) == value


def test_a_branch_is_scaled_once() -> None:
    scaled = PLACEMENTS["pre_ln_scaled"].gain_out
    with pytest.raises(ConfigError, match="pre_scale and gain_out"):
        Placement(pre=True, pre_scale=PLACEMENTS["lns"].pre_scale, gain_out=scaled)
    with pytest.raises(ConfigError, match=r"backbone\.gain=none"):
        BackboneConfig(placement="lns", gain="formula")
