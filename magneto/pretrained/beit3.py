"""BEiT-3 (Wang et al., arXiv 2208.10442) as Microsoft published it -> a `full` multiway Sub-LN encoder and its stem.

A file of `torch.save` with {"model": tensors}. Every linear map and norm is there twice: A for vision, B for text.

| theirs (`beit3.` before it, or not)                     | here                                                           |
|---------------------------------------------------------|----------------------------------------------------------------|
| text_embed                                              | stem.text.embedding                                            |
| vision_embed.{proj,cls_token,mask_token}                | stem.vision.{projection,class_token,mask_token}                |
| encoder.embed_positions.{A,B}                           | stem.{vision_position,text_position}, without their first rows |
| encoder.layers.N.self_attn_layer_norm.{A,B}             | backbone.layers.N.self_attention.{vision,text}.pre_norm        |
| encoder.layers.N.self_attn.{q,k,v}_proj.{A,B}           | ...self_attention.{vision,text}.branch.qkv, one above other    |
| encoder.layers.N.self_attn.{inner_attn_ln,out_proj}.{A,B}| ...self_attention.{vision,text}.branch.{inner_norm,out}       |
| encoder.layers.N.final_layer_norm.{A,B}                 | ...feed_forward.{vision,text}.pre_norm                         |
| encoder.layers.N.ffn.{A,B}.{fc1,ffn_layernorm,fc2}      | ...feed_forward.{vision,text}.branch.{fc1,inner_norm,fc2}      |
| encoder.layer_norm.{A,B}                                | backbone.final_norm.{vision,text}                              |

The position tables begin with two rows that no token reads (fairseq counts from 2). Models fine-tuned for classification
and question answering have no final norm. Heads (`mlm_head`, `vision_head`, ...) keep their names: a task may have a place
for them.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from magneto.errors import ConfigError
from magneto.pretrained.hub import Imported, Weights

_BODY = ("text_embed.", "vision_embed.", "encoder.")
_SIDES = {"A": "vision", "B": "text"}
_UNUSED_POSITIONS = 2


def import_weights(source: str, *, head_dim: int = 64) -> Imported:
    """Read a BEiT-3, pre-trained or fine-tuned.

    Args:
        source: the file.
        head_dim: channels of an attention head, which no weight tells; 64 in all published sizes.

    Raises:
        ConfigError: there is no such file, it is damaged, or it holds no whole BEiT-3.
    """
    file = Path(source).expanduser()
    weights = Weights({name.removeprefix("beit3."): one for name, one in _read(file).items()}, file, "BEiT-3")
    left, take = weights.left, weights.take
    words, patches = take("text_embed.weight"), take("vision_embed.proj.weight")
    width = words.size(1)
    if width % head_dim:
        raise ConfigError(
            f"{file}: a width of {width} does not divide into heads of {head_dim}: not a BEiT-3."
        )
    state = weights.state = {
        "stem.text.embedding.weight": words,
        "stem.vision.projection.weight": patches.flatten(1),
        "stem.vision.projection.bias": take("vision_embed.proj.bias"),
        "stem.vision.class_token": take("vision_embed.cls_token").flatten(),
        "stem.vision.mask_token": take("vision_embed.mask_token").flatten(),
    }
    for side, ours in _SIDES.items():
        table = take(f"encoder.embed_positions.{side}.weight")
        state[f"stem.{ours}_position"] = table[_UNUSED_POSITIONS:].clone()

    layers = 1 + max(
        (int(name.split(".")[2]) for name in left if name.startswith("encoder.layers.")), default=-1
    )
    if not layers:
        raise ConfigError(f"{file}: the weights lack encoder.layers: not a whole BEiT-3.")
    final_norm = "encoder.layer_norm.A.weight" in left
    for side, ours in _SIDES.items():
        for number in range(layers):
            theirs = f"encoder.layers.{number}"
            attention = f"backbone.layers.{number}.self_attention.{ours}"
            feed_forward = f"backbone.layers.{number}.feed_forward.{ours}"
            weights.move(
                {
                    f"{attention}.branch.qkv": [f"{theirs}.self_attn.{part}_proj.{side}" for part in "qkv"],
                    f"{attention}.pre_norm": f"{theirs}.self_attn_layer_norm.{side}",
                    f"{attention}.branch.inner_norm": f"{theirs}.self_attn.inner_attn_ln.{side}",
                    f"{attention}.branch.out": f"{theirs}.self_attn.out_proj.{side}",
                    f"{feed_forward}.pre_norm": f"{theirs}.final_layer_norm.{side}",
                    f"{feed_forward}.branch.fc1": f"{theirs}.ffn.{side}.fc1",
                    f"{feed_forward}.branch.inner_norm": f"{theirs}.ffn.{side}.ffn_layernorm",
                    f"{feed_forward}.branch.fc2": f"{theirs}.ffn.{side}.fc2",
                }
            )
        if final_norm:
            weights.move({f"backbone.final_norm.{ours}": f"encoder.layer_norm.{side}"})
    left.pop("encoder.output_projection.weight", None)
    weights.require_empty(lambda name: name.startswith(_BODY))
    state |= {name: tensor.float() for name, tensor in left.items()}
    backbone: dict[str, Any] = {
        "placement": "magneto",
        "architecture": "encoder",
        "multiway": "full",
        "num_layers": layers,
        "d_model": width,
        "num_heads": width // head_dim,
        "ffn_dim": state["backbone.layers.0.feed_forward.text.branch.fc1.bias"].numel(),
        "activation": "gelu",
        "norm": "layernorm",
        "norm_eps": 1e-5,
        "bias": True,
        "position": "none",
        "max_positions": len(state["stem.text_position"]),
        "embedding_scale": False,
        "final_norm": None if final_norm else False,
    }
    return Imported(backbone, state, None, {"mean": [0.5] * 3, "std": [0.5] * 3})  # unilm, beit3/datasets.py


def _read(file: Path) -> dict[str, Tensor]:
    """Their tensors. Files of a training hold its arguments too, an `argparse.Namespace`, which runs no code."""
    if not file.is_file():
        raise ConfigError(f"init_from=beit3:{file}: there is no such file.")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for a damaged or foreign file
        raise ConfigError(f"{file}: cannot be read as a BEiT-3 ({str(error).splitlines()[0]}).") from error
    weights = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise ConfigError(f"{file}: holds no weights: BEiT-3's files are {{'model': tensors}}.")
    return weights
