"""Weights saved by transformers give the same logits and the same text here."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from magneto.data.tokenizers.text import TextTokenizer
from magneto.errors import MagnetoError
from magneto.inference.sampling import Decoding, next_tokens
from magneto.pretrained.gpt2 import import_weights
from magneto.pretrained.init_from import read_pretrained
from magneto.tasks.causal_lm import CausalLM
from tests.toys.init_from import info_of, initialize_from

transformers = pytest.importorskip("transformers")


def tokenizer() -> TextTokenizer:
    return TextTokenizer.train(["the cat sat on the mat"], kind="byte_bpe", vocab_size=263)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder as `save_pretrained` writes it, with a tokenizer.json, and the model that was saved."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=263, n_positions=48, n_embd=32, n_layer=3, n_head=4, bos_token_id=2, eos_token_id=2, pad_token_id=0
    )  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():  # a zero bias or a unit norm would hide mistakes
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("gpt2")
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer().to_json())
    return folder, model


def task(folder: Path) -> CausalLM:
    imported = import_weights(str(folder))
    assert imported.tokenizer_json is not None
    info = info_of(CausalLM, tokenizer=imported.tokenizer_json, vocab_size=263, block_size=48)
    ours = CausalLM(
        backbone=imported.backbone, info=info, optimizer={"lr": 1e-3}, scheduler={"name": "constant"}, total_steps=1
    )  # fmt: skip
    report = initialize_from(ours, f"hf:{folder}")
    assert not report.new and not report.left
    return ours.eval()


@torch.no_grad()
def test_the_logits_are_equal(saved: tuple[Path, Any]) -> None:
    folder, theirs = saved
    tokens = torch.randint(263, (3, 40), generator=torch.Generator().manual_seed(1))
    ours = task(folder)
    torch.testing.assert_close(ours.logits(ours(tokens)), theirs(tokens).logits, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_rows_beyond_the_tokens_are_cut(saved: tuple[Path, Any], tmp_path: Path) -> None:
    """Tables are often padded to a round number of rows; those stand for no token."""
    _, model = saved
    padded = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**{**model.config.to_dict(), "vocab_size": 320})
    ).eval()
    state = model.state_dict()
    for name, tensor in padded.state_dict().items():
        tensor[: len(state[name])].copy_(state[name]) if tensor.shape != state[name].shape else tensor.copy_(
            state[name]
        )
    padded.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(tokenizer().to_json())
    tokens = torch.randint(263, (3, 40), generator=torch.Generator().manual_seed(1))
    ours = task(tmp_path)
    expected = padded(tokens).logits[..., :263]
    torch.testing.assert_close(ours.logits(ours(tokens)), expected, rtol=1e-5, atol=1e-5)
    again = initialize_from(ours, f"hf:{tmp_path}")
    assert again.cut == ("stem.embedding.weight",) and "cut to the tokens: stem.embedding.weight" in str(
        again
    )


def test_greedy_with_unequal_prompts(saved: tuple[Path, Any]) -> None:
    """Greedy generation is equal for prompts of unequal length."""
    folder, theirs = saved
    prompts = [[5, 9, 200], [7], [100, 3, 8, 44, 61, 12]]
    padded = torch.tensor([[0] * (6 - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (6 - len(p)) + [1] * len(p) for p in prompts])
    expected = theirs.generate(
        padded, attention_mask=mask, max_new_tokens=30, do_sample=False, eos_token_id=None, use_cache=True
    )
    steps = list(next_tokens(task(folder), prompts, Decoding(max_new_tokens=30, temperature=0)))
    found = [[token for step in steps for row, token in step if row == wanted] for wanted in range(3)]
    assert found == expected[:, 6:].tolist()


def test_the_tokenizer_comes_along(saved: tuple[Path, Any]) -> None:
    pretrained = read_pretrained(f"hf:{saved[0]}")
    assert pretrained.tokenizer == tokenizer().to_json()
    assert pretrained.backbone.placement == "pre_ln" and not pretrained.backbone.embedding_scale


def test_a_bare_body_and_an_old_file_are_read_too(saved: tuple[Path, Any], tmp_path: Path) -> None:
    """`GPT2Model` has no prefix; old files hold the causal mask; `pytorch_model.bin` came before safetensors."""
    folder, theirs = saved
    weights = {name: tensor.clone() for name, tensor in theirs.transformer.state_dict().items()}
    weights["h.0.attn.bias"] = torch.ones(1, 1, 48, 48)
    torch.save(weights, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    found, expected = import_weights(str(tmp_path)), import_weights(str(folder))
    assert found.state_dict.keys() == expected.state_dict.keys()
    assert all(torch.equal(found.state_dict[name], expected.state_dict[name]) for name in found.state_dict)
    assert found.tokenizer_json is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ({"activation_function": "tanh"}, "activation_function='tanh'"),
        ({"model_type": "gpt_neo"}, "gpt_neo"),
        ({"n_layer": 4}, r"lack h\.3\.ln_1"),
        ({"n_layer": 2}, r"no GPT-2 has: h\.2"),
    ],
)
def test_what_cannot_be_expressed_is_refused(
    saved: tuple[Path, Any], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    config = json.loads((saved[0] / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes((saved[0] / "model.safetensors").read_bytes())
    with pytest.raises(MagnetoError, match=message):
        import_weights(str(tmp_path))
