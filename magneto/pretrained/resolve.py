"""Take the shape, the patches and the tokenizer of a pretrained model (`init_from=`) into the configuration.

A command then names `init_from` and no size. What the user did set must agree.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from magneto.errors import ConfigError
from magneto.nn.config import BackboneConfig
from magneto.pretrained import image_size
from magneto.pretrained.init_from import BEIT3, HUB, Pretrained
from magneto.pretrained.shape import SHAPE, differences
from magneto.training.files import write_atomically


def adopt(config: Mapping[str, Any], overrides: Sequence[str], pretrained: Pretrained) -> dict[str, Any]:
    """Return the configuration with the shape and the tokenizer of a pretrained model.

    The backbone's fields are set to the pretrained ones, whatever the task or its size say. `data.tokenizer.file` is
    set to a copy of its tokenizer under `data_dir/tokenizers` (of a translator with two, to both), where the data has
    that key and the user did not set any of `data.tokenizer`.

    Args:
        config: composed, as plain values.
        overrides: of the command line. Those that name another shape are refused.
        pretrained: the model that `init_from` names.

    Raises:
        ConfigError: an override contradicts the model, or it has embeddings of tokens and no tokenizer.
    """
    adopted = dict(config)
    _refuse_contradictions(pretrained, config["backbone"], overrides)
    shape = pretrained.backbone.to_dict()
    values = {key: shape[key] for key in SHAPE if key != "architecture"}
    if values["decoder_layers"] is not None and config["backbone"].get("architecture") != "encoder_decoder":
        del values["decoder_layers"]
    adopted["backbone"] = {**config["backbone"], **values}
    own_size = {key: config["backbone"].get(key) for key in ("num_layers", "d_model")}
    if own_size != {key: shape[key] for key in own_size}:
        adopted["size_name"] = f"{shape['num_layers']}x{shape['d_model']}"
    data = config.get("data") or {}
    if patch_size := image_size.patch_size(pretrained.source, pretrained.info, data, overrides):
        adopted["data"] = data = {**data, "patch_size": patch_size}
    chosen = any(override.lstrip("+").startswith("data.tokenizer") for override in overrides)
    own = data.get("tokenizer") or {}
    if "file" in own:
        if own["file"] is None:
            _require_known_tokens(pretrained)
        if not chosen:
            adopted["data"] = {
                **data,
                "tokenizer": {**own, **_given_tokenizer(pretrained, own, Path(config["data_dir"]))},
            }
    return adopted


def _require_known_tokens(pretrained: Pretrained) -> None:
    """Refuse published weights whose embeddings would be taken for the tokens of a tokenizer trained on this data."""
    tables = {"stem.embedding.weight", "stem.text.embedding.weight"}
    if (
        not pretrained.source.startswith((HUB, BEIT3))
        or pretrained.tokenizer is not None
        or tables.isdisjoint(pretrained.weights)
    ):
        return
    remedy = "Put its tokenizer.json beside its weights, or set data.tokenizer.file to one."
    if pretrained.source.startswith(BEIT3):
        remedy = "Set data.tokenizer.file to one (docs/data.md makes it of the authors' beit3.spm)."
    raise ConfigError(
        f"init_from={pretrained.source}: it has embeddings of tokens and no tokenizer.json that says which tokens they are. "
        f"{remedy}"
    )


def _given_tokenizer(pretrained: Pretrained, own: Mapping[str, Any], data_dir: Path) -> dict[str, Any]:
    """Return the keys of `data.tokenizer` that make the data use the pretrained tokenizer; none where none fits."""
    if pretrained.tokenizer is not None:
        return {"file": str(_keep_tokenizer(pretrained.tokenizer, data_dir))}
    if "source_tokenizer" not in pretrained.info or "shared" not in own:
        return {}
    shared = pretrained.info["shared"]
    sides = ("source",) if shared else ("source", "target")
    files = [str(_keep_tokenizer(pretrained.info[f"{side}_tokenizer"], data_dir)) for side in sides]
    return {"shared": shared, "file": files[0] if shared else files}


def _refuse_contradictions(
    pretrained: Pretrained, backbone: Mapping[str, Any], overrides: Sequence[str]
) -> None:
    """Refuse an override that asks for another shape than the pretrained one."""
    named: dict[str, str] = {}
    for override in overrides:
        key = override.lstrip("+").split("=", 1)[0]
        if key == "backbone":
            named["placement"] = override
        elif key == "size":
            named |= dict.fromkeys(("num_layers", "d_model", "num_heads", "ffn_dim"), override)
        elif key.removeprefix("backbone.") in SHAPE and key.startswith("backbone."):
            named[key.removeprefix("backbone.")] = override
    if not named:
        return
    # The grid of patches comes from the data, later; it is not compared.
    differing = differences(pretrained.backbone, BackboneConfig.from_dict({**backbone, "grid": 1}))
    if wrong := {key: named[key] for key in named if key in differing}:
        lines = [
            f"  {key}: {differing[key][0]} (pretrained), {differing[key][1]} ({wrong[key]})" for key in wrong
        ]
        raise ConfigError(
            f"init_from={pretrained.source} has another shape than the command asks for:\n"
            + "\n".join(lines)
            + f"\nLeave {', '.join(sorted(set(wrong.values())))} out: the shape comes with the weights."
        )


def _keep_tokenizer(tokenizer: str, data_dir: Path) -> Path:
    """Write the tokenizer beside the data, under the hash of its content."""
    file = data_dir / "tokenizers" / f"{hashlib.sha256(tokenizer.encode()).hexdigest()[:12]}.json"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, tokenizer)
    return file
