"""Post-LN against BERT and Pre-LN against GPT-2, built from small random configs: nothing is downloaded."""

from typing import Any

import pytest
import torch
from torch import Tensor

from magneto.nn import BackboneConfig, KVCache, TokenStem
from tests.unit.nn.models import FFN, HEADS, D, build, real, stream
from tests.unit.oracles.weights import Link, agree, close, copy_weights, fused, same

transformers = pytest.importorskip("transformers")
VOCABULARY, POSITIONS = 50, 32


def bert(activation: str) -> tuple[Any, Any, list[Link]]:
    """Our Post-LN encoder and a BERT with the same weights."""
    ours = build("post_ln", position="learned", input_norm=True, norm_eps=1e-12, activation=activation)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=D,
        num_hidden_layers=3,
        num_attention_heads=HEADS,
        intermediate_size=FFN,
        hidden_act=activation,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=POSITIONS,
    )
    theirs = transformers.BertModel(config, add_pooling_layer=False)
    embeddings = theirs.embeddings
    # What our stack does not own: the word table (a stem's) and the sentence types (none of our tasks has any).
    del embeddings.word_embeddings
    with torch.no_grad():
        embeddings.token_type_embeddings.weight.zero_()
    embeddings.token_type_embeddings.requires_grad_(False)
    links = [Link(ours.position.table, embeddings.position_embeddings.weight)]
    links += same(ours.input_norm, embeddings.LayerNorm)
    for a, b in zip(ours.layers, theirs.encoder.layer, strict=True):
        attention, ffn = a.self_attention, a.feed_forward
        own = b.attention.self
        links += fused(attention.branch.qkv, [own.query, own.key, own.value])
        links += same(attention.branch.out, b.attention.output.dense)
        links += same(attention.post_norm, b.attention.output.LayerNorm)
        links += same(ffn.branch.fc1, b.intermediate.dense) + same(ffn.branch.fc2, b.output.dense)
        links += same(ffn.post_norm, b.output.LayerNorm)
    return ours, theirs, links


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_bert(activation: str, padded: bool, attention: str) -> None:
    ours, theirs, links = bert(activation)
    types = theirs.embeddings.token_type_embeddings.weight
    copy_weights(ours, theirs, [*links, Link(types, types)])
    theirs.set_attn_implementation(attention)
    x, y = stream().requires_grad_(), stream().requires_grad_()
    seen = real([9, 4, 7], 9) if padded else torch.ones(3, 9, dtype=torch.bool)
    b = theirs(inputs_embeds=y, attention_mask=seen.long()).last_hidden_state
    agree((ours(x, seen if padded else None), b), [(x, y)], links, seen)


def gpt2(attention: str = "sdpa") -> tuple[Any, TokenStem, Any, list[Link]]:
    """Our Pre-LN decoder with a stem whose table is also the output layer, and a GPT-2 with the same weights."""
    ours = build("pre_ln", "decoder", position="learned", activation="gelu_tanh")
    stem = TokenStem(VOCABULARY, BackboneConfig(d_model=D, num_heads=HEADS, embedding_scale=False))
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=POSITIONS,
        n_embd=D,
        n_layer=3,
        n_head=HEADS,
        n_inner=FFN,
        activation_function="gelu_new",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=0,
        attn_implementation=attention,
    )
    theirs = transformers.GPT2LMHeadModel(config)
    body = theirs.transformer
    links = [Link(ours.position.table, body.wpe.weight), Link(stem.embedding.weight, body.wte.weight)]
    links += same(ours.final_norm, body.ln_f)
    for a, b in zip(ours.layers, body.h, strict=True):
        links += same(a.self_attention.pre_norm, b.ln_1) + same(a.feed_forward.pre_norm, b.ln_2)
        links += same(a.self_attention.branch.qkv, b.attn.c_attn, transposed=True)
        links += same(a.self_attention.branch.out, b.attn.c_proj, transposed=True)
        links += same(a.feed_forward.branch.fc1, b.mlp.c_fc, transposed=True)
        links += same(a.feed_forward.branch.fc2, b.mlp.c_proj, transposed=True)
    copy_weights(torch.nn.ModuleList([ours, stem]), theirs, links)
    return ours, stem, theirs, links


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("padding", ["none", "right", "left"])
def test_gpt2(padding: str, attention: str) -> None:
    ours, _, theirs, links = gpt2(attention)
    links = [link for link in links if link.theirs is not theirs.transformer.wte.weight]
    seen = torch.ones(3, 9, dtype=torch.bool) if padding == "none" else real([9, 4, 7], 9)
    if padding == "left":
        seen = seen.flip(1)
    x, y = stream().requires_grad_(), stream().requires_grad_()
    b = theirs.transformer(
        inputs_embeds=y, attention_mask=seen.long(), position_ids=(seen.cumsum(1) - 1).clamp(min=0)
    ).last_hidden_state
    agree((ours(x, None if padding == "none" else seen), b), [(x, y)], links, seen)


def test_gpt2_from_tokens_to_loss() -> None:
    """The tied table gets its gradient from both of its ends."""
    ours, stem, theirs, links = gpt2()
    tokens = torch.randint(VOCABULARY, (3, 9), generator=torch.Generator().manual_seed(3))
    logits = stem.logits(ours(stem(tokens)))
    close(logits, theirs(tokens).logits, "logits")
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    their_loss = theirs(tokens, labels=tokens).loss
    close(loss, their_loss, "loss")
    loss.backward()
    their_loss.backward()
    for link in links:
        close(link.view(link.ours.grad), link.theirs.grad, f"gradient of a {tuple(link.theirs.shape)}")


@pytest.mark.parametrize("left_padded", [False, True])
@torch.no_grad()
def test_gpt2_generates_the_same(left_padded: bool) -> None:
    """Greedy decoding with either side's cache, from prompts of equal and of unequal length."""
    ours, stem, theirs, _ = gpt2()
    prompt = torch.randint(1, VOCABULARY, (3, 6), generator=torch.Generator().manual_seed(4))
    mask = real([6, 2, 4], 6).flip(1) if left_padded else torch.ones(3, 6, dtype=torch.bool)
    prompt = prompt * mask
    expected = theirs.generate(
        prompt, attention_mask=mask.long(), max_new_tokens=10, do_sample=False, use_cache=True
    )

    cache, sequence = KVCache(), prompt
    new: Tensor = ours(stem(prompt), mask if left_padded else None, cache=cache)
    for _ in range(10):
        token = stem.logits(new[:, -1]).argmax(-1, keepdim=True)
        sequence = torch.cat((sequence, token), dim=1)
        new = ours(stem(token), cache=cache)
    assert torch.equal(sequence, expected)
