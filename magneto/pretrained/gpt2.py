"""GPT-2 (Radford et al. 2019) from Hugging Face files -> a `pre_ln` decoder with a tied output layer.

| Hugging Face (`transformer.` before it, or not) | here                                                          |
|-------------------------------------------------|---------------------------------------------------------------|
| wte                                             | stem.embedding, the output layer too                          |
| wpe                                             | backbone.position.table                                       |
| h.N.ln_1, h.N.ln_2                              | backbone.layers.N.self_attention.pre_norm, feed_forward.pre_norm |
| h.N.attn.c_attn, c_proj                         | ...self_attention.branch.{qkv,out}                            |
| h.N.mlp.c_fc, c_proj                            | ...feed_forward.branch.{fc1,fc2}                              |
| ln_f                                            | backbone.final_norm                                           |

Their linear maps (`Conv1D`) keep the weights transposed. DistilGPT-2 and other models of the same type are read too. The
weights do not carry dropout: it is what the configuration says.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from magneto.errors import ConfigError
from magneto.pretrained.hub import (
    Imported,
    Weights,
    activation,
    fetch,
    read_config,
    read_tokenizer,
    read_weights,
    require,
)

_LEFT_OUT = (".attn.bias", ".attn.masked_bias")  # the causal mask, which old versions stored


def import_weights(source: str) -> Imported:
    """Read a GPT-2: `GPT2Model` or `GPT2LMHeadModel`, saved by any version of transformers.

    Args:
        source: a folder with config.json and model.safetensors, or a name on the hub.

    Raises:
        ConfigError: it is not available, is no GPT-2 that our decoder can express, or lacks a weight.
    """
    folder = fetch(source)
    config = read_config(folder)
    require(
        config,
        {
            "model_type": "gpt2", "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False, "tie_word_embeddings": True,
        },
        str(folder),
    )  # fmt: skip
    try:
        backbone: dict[str, Any] = {
            "placement": "pre_ln",
            "architecture": "decoder",
            "num_layers": config["n_layer"],
            "d_model": config["n_embd"],
            "num_heads": config["n_head"],
            "ffn_dim": config.get("n_inner") or 4 * config["n_embd"],
            "activation": activation(config, "activation_function", "gelu_new", folder),
            "norm": "layernorm",
            "norm_eps": config.get("layer_norm_epsilon", 1e-5),
            "bias": True,
            "position": "learned",
            "max_positions": config["n_positions"],
            "input_norm": False,
            "embedding_scale": False,
        }
    except KeyError as error:
        raise ConfigError(f"{folder}/config.json: {error} is missing: not a whole GPT-2.") from error
    state = _translate(read_weights(folder), config["n_layer"], folder)
    return Imported(backbone, state, read_tokenizer(folder))


def _translate(tensors: dict[str, Tensor], layers: int, folder: Path) -> dict[str, Tensor]:
    """Their tensors under our names."""
    kept = {
        name.removeprefix("transformer."): tensor
        for name, tensor in tensors.items()
        if name != "lm_head.weight" and not name.endswith(_LEFT_OUT)
    }
    weights = Weights(kept, folder, "GPT-2")
    weights.state = {
        "stem.embedding.weight": weights.take("wte.weight"),
        "backbone.position.table": weights.take("wpe.weight"),
    }
    weights.move({"backbone.final_norm": "ln_f"})
    for number in range(layers):
        ours, theirs = f"backbone.layers.{number}", f"h.{number}"
        weights.move(
            {
                f"{ours}.self_attention.pre_norm": f"{theirs}.ln_1",
                f"{ours}.feed_forward.pre_norm": f"{theirs}.ln_2",
            }
        )
        weights.move(
            {
                f"{ours}.self_attention.branch.qkv": f"{theirs}.attn.c_attn",
                f"{ours}.self_attention.branch.out": f"{theirs}.attn.c_proj",
                f"{ours}.feed_forward.branch.fc1": f"{theirs}.mlp.c_fc",
                f"{ours}.feed_forward.branch.fc2": f"{theirs}.mlp.c_proj",
            },
            transposed=True,
        )
    weights.require_empty()
    return weights.state
