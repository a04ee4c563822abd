"""BERT (Devlin et al., arXiv 1810.04805) from Hugging Face files -> a `post_ln` encoder and its masked-LM head.

| Hugging Face (`bert.` before it, or not)                  | here                                                        |
|-----------------------------------------------------------|-------------------------------------------------------------|
| embeddings.word_embeddings                                | stem.embedding                                              |
| embeddings.position_embeddings + type 0 of the token types| backbone.position.table                                     |
| type 1 - type 0                                           | segment (what the second text of a pair adds)               |
| embeddings.LayerNorm                                      | backbone.input_norm                                         |
| encoder.layer.N.attention.self.{query,key,value}          | backbone.layers.N.self_attention.branch.qkv, one above other|
| encoder.layer.N.attention.output.{dense,LayerNorm}        | ...self_attention.{branch.out,post_norm}                    |
| encoder.layer.N.{intermediate.dense,output.dense}         | ...feed_forward.branch.{fc1,fc2}                            |
| encoder.layer.N.output.LayerNorm                          | ...feed_forward.post_norm                                   |
| pooler.dense                                              | pooler.dense (of text_classification)                       |
| cls.predictions.transform.{dense,LayerNorm}, .bias        | head.{dense,norm,output_bias} (of mlm)                      |

Every token has type 0 in our stack, which makes it a constant that the position table can carry. Next-sentence weights
are left out. Models with dropout have ours set to theirs only if the configuration says so: weights do not carry it.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

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

_LEFT_OUT = ("cls.seq_relationship.", "embeddings.position_ids", "cls.predictions.decoder.bias")


def import_weights(source: str) -> Imported:
    """Read a BERT: `BertModel`, `BertForMaskedLM` or `BertForPreTraining`, saved by any version of transformers.

    Args:
        source: a folder with config.json and model.safetensors, or a name on the hub.

    Raises:
        ConfigError: it is not available, is no BERT that our encoder can express, or lacks a weight.
    """
    folder = fetch(source)
    config = read_config(folder)
    require(
        config,
        {
            "model_type": "bert", "position_embedding_type": "absolute", "is_decoder": False,
            "add_cross_attention": False, "tie_word_embeddings": True,
        },
        str(folder),
    )  # fmt: skip
    state = _translate(read_weights(folder), config["num_hidden_layers"], folder)
    backbone: dict[str, Any] = {
        "placement": "post_ln",
        "architecture": "encoder",
        "num_layers": config["num_hidden_layers"],
        "d_model": config["hidden_size"],
        "num_heads": config["num_attention_heads"],
        "ffn_dim": config["intermediate_size"],
        "activation": activation(config, "hidden_act", "gelu", folder),
        "norm": "layernorm",
        "norm_eps": config.get("layer_norm_eps", 1e-12),
        "bias": True,
        "position": "learned",
        "max_positions": config["max_position_embeddings"],
        "input_norm": True,
        "embedding_scale": False,
    }
    return Imported(backbone, state, read_tokenizer(folder))


def _translate(tensors: dict[str, Tensor], layers: int, folder: Path) -> dict[str, Tensor]:
    """Their tensors under our names."""
    kept = {_plain(name): tensor for name, tensor in tensors.items() if "decoder.weight" not in name}
    weights = Weights(kept, folder, "BERT")
    types = weights.take("embeddings.token_type_embeddings.weight")
    weights.state = {
        "stem.embedding.weight": weights.take("embeddings.word_embeddings.weight"),
        "backbone.position.table": weights.take("embeddings.position_embeddings.weight") + types[0],
    }
    if len(types) > 1:
        weights.state["segment"] = types[1] - types[0]
    weights.move({"backbone.input_norm": "embeddings.LayerNorm"})
    for number in range(layers):
        ours, theirs = f"backbone.layers.{number}", f"encoder.layer.{number}"
        weights.move(
            {
                f"{ours}.self_attention.branch.qkv": [
                    f"{theirs}.attention.self.{part}" for part in ("query", "key", "value")
                ],
                f"{ours}.self_attention.branch.out": f"{theirs}.attention.output.dense",
                f"{ours}.self_attention.post_norm": f"{theirs}.attention.output.LayerNorm",
                f"{ours}.feed_forward.branch.fc1": f"{theirs}.intermediate.dense",
                f"{ours}.feed_forward.branch.fc2": f"{theirs}.output.dense",
                f"{ours}.feed_forward.post_norm": f"{theirs}.output.LayerNorm",
            }
        )
    if "pooler.dense.weight" in weights.left:
        weights.move({"pooler.dense": "pooler.dense"})
    if "cls.predictions.transform.dense.weight" in weights.left:
        head = "cls.predictions.transform"
        weights.move({"head.dense": f"{head}.dense", "head.norm": f"{head}.LayerNorm"})
        weights.state["head.output_bias"] = weights.take("cls.predictions.bias")
    weights.require_empty(lambda name: not name.startswith(_LEFT_OUT))
    return weights.state


def _plain(name: str) -> str:
    """Their name without the model's prefix; LayerNorms of the first conversions are called gamma and beta."""
    name = name.removeprefix("bert.")
    for old, new in (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")):
        name = name.replace(old, new)
    return name
