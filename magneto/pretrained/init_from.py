"""Starting from a pretrained model (`init_from=`): its shape, its tokenizer, its weights.

`init_from` names a run's folder, a checkpoint (`RUN/checkpoints/best.ckpt`), an export folder, `hf:NAME_OR_FOLDER` or
`beit3:FILE` (one importer a module).
Two steps, both called by the engine:

1. `adopt(config, overrides)`, before anything is built: the backbone gets the shape of the pretrained one and the data
   its tokenizer or its patches, so that a command names `init_from` and no size. What the user did say must agree.
2. `initialize_from(task, source)`, before training: weights are copied where name, shape and meaning agree. Images
   may be of another size than the pretrained ones: what was learned of places is resized (nn/resize.py). They may be
   normalised in another way: the map of patches takes that up (nn/renormalise.py).
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from magneto.data.tokenizers.text import TextTokenizer
from magneto.errors import ConfigError
from magneto.nn.config import BackboneConfig
from magneto.pretrained import image_size as images
from magneto.pretrained.hub import fetch, read_config
from magneto.tasks.base import Task
from magneto.training.checkpoint_io import read_model
from magneto.training.files import write_atomically

log = logging.getLogger("magneto")

HUB = "hf:"
BEIT3 = "beit3:"
"""Files as the authors of BEiT-3 published them, which are in no hub's format."""
FAMILIES = ("bert", "gpt2")
"""`model_type` of the models that have an importer, each in a module of its name in `magneto.pretrained.hub`."""
_TRAINING_ONLY = (
    "dropout", "attention_dropout", "activation_dropout", "drop_path", "gain", "activation_checkpointing"
)  # fmt: skip
SHAPE = tuple(field.name for field in fields(BackboneConfig) if field.name not in _TRAINING_ONLY)
"""Fields that decide what a backbone's weights mean; the others only say how it is trained."""
_BODY = ("stem.", "source_stem.", "target_stem.", "backbone.")
"""Parameters that must fit; others (heads) are taken where they do."""
_HEADS = ("head.", "image_head.")
"""Parameters whose outputs stand for labels, tokens or codes."""
_TARGET = "target."
"""Parameters of a model that only gives what is to be learnt."""


@dataclass(frozen=True)
class Pretrained:
    """What stands behind `init_from=`.

    Attributes:
        source: as the user gave it.
        backbone: its configuration.
        info: facts of the data that it was trained on; of an import those that its importer knows.
        weights: tensors under our names.
        tokenizer: content of its tokenizer.json; None where it has none.
    """

    source: str
    backbone: BackboneConfig
    info: dict[str, Any]
    weights: dict[str, Tensor]
    tokenizer: str | None


@dataclass(frozen=True)
class Report:
    """What `initialize_from` did, by the names of the tensors."""

    source: str
    taken: tuple[str, ...]
    new: tuple[str, ...]
    """Of the model, and not in the source or not of its meaning: they keep their random values."""
    left: tuple[str, ...]
    """Of the source, without a place in the model."""
    cut: tuple[str, ...] = ()
    """Those taken whose last rows, beyond the tokens, stood for nothing."""
    resized: tuple[str, ...] = ()
    """Those taken that were resized to images of another size."""
    renormalised: tuple[str, ...] = ()
    """Those taken that were changed to read images of another mean and deviation."""

    def __str__(self) -> str:
        parts = [f"loaded {len(self.taken)} tensors ({_summary(self.taken)})"]
        parts += [f"cut to the tokens: {', '.join(self.cut)}"] if self.cut else []
        parts += [f"resized to these images: {', '.join(self.resized)}"] if self.resized else []
        parts += (
            [f"for their mean and deviation: {', '.join(self.renormalised)}"] if self.renormalised else []
        )
        parts += [f"newly initialised: {_summary(self.new)}"] if self.new else []
        parts += [f"unused: {_summary(self.left)}"] if self.left else []
        return f"init_from={self.source}: {'; '.join(parts)}"


def _summary(names: Sequence[str]) -> str:
    """Whole parts by their first name, with the number of their tensors; a lone tensor by its full name."""
    parts: dict[str, list[str]] = {}
    for name in names:
        parts.setdefault(name.split(".", 1)[0], []).append(name)
    return ", ".join(f"{part}: {len(of)}" if len(of) > 1 else of[0] for part, of in parts.items())


def read_pretrained(source: str) -> Pretrained:
    """A pretrained model, on the CPU.

    Raises:
        ConfigError: there is nothing at `source`, it is damaged, or it is of a family without an importer.
    """
    if source.startswith(HUB):
        name = source.removeprefix(HUB)
        family = read_config(fetch(name)).get("model_type")
        if family not in FAMILIES:
            raise ConfigError(
                f"init_from={source}: models of type {family!r} cannot be imported; importers are there for "
                f"{', '.join(FAMILIES)}."
            )
        return _imported(source, family, name)
    if source.startswith(BEIT3):
        return _imported(source, "beit3", source.removeprefix(BEIT3))
    if not Path(source).expanduser().exists():
        raise ConfigError(
            f"init_from={source}: there is no such checkpoint, run or export folder. A model of the Hugging Face hub, or "
            f"in its format, is named {HUB}{source}."
        )
    hyper_parameters, weights = read_model(Path(source).expanduser())
    info = hyper_parameters["info"]
    tokenizer = info.get("tokenizer")
    return Pretrained(
        source,
        BackboneConfig.from_dict(hyper_parameters["backbone"]),
        info,
        weights,
        tokenizer if isinstance(tokenizer, str) else None,
    )


def _imported(source: str, family: str, name: str) -> Pretrained:
    imported = import_module(f"magneto.pretrained.{family}").import_weights(name)
    config = BackboneConfig.from_dict(imported.backbone)
    return Pretrained(source, config, dict(imported.images), imported.state_dict, imported.tokenizer_json)


# ------------------------------------------------------------------ shape and tokenizer, before the model is built


def adopt(config: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration with the shape and the tokenizer of the model that `init_from` names.

    The backbone's fields are set to the pretrained ones, whatever the task or its size say. `data.tokenizer.file` is
    set to a copy of its tokenizer under `data_dir/tokenizers` (of a translator with two, to both), where the data has
    that key and the user did not set any of `data.tokenizer`. Applied twice it changes nothing further.

    Args:
        config: composed, as plain values; returned as it is where `init_from` is null.
        overrides: of the command line. Those that name another shape are refused.

    Raises:
        MagnetoError: the source cannot be read, an override contradicts it, or it has embeddings of tokens and does not
            say of which.
    """
    source = config.get("init_from")
    if source is None:
        return dict(config)
    pretrained = read_pretrained(source)
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
    if patch_size := images.patch_size(source, pretrained.info, data, overrides):
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
    remedy = "Put its tokenizer.json beside its weights, or name one with data.tokenizer.file."
    if pretrained.source.startswith(BEIT3):
        remedy = "Name one with data.tokenizer.file (docs/data.md makes it of the authors' beit3.spm)."
    raise ConfigError(
        f"init_from={pretrained.source}: it has embeddings of tokens and no tokenizer.json that says which tokens they are. "
        f"{remedy}"
    )


def _given_tokenizer(pretrained: Pretrained, own: Mapping[str, Any], data_dir: Path) -> dict[str, Any]:
    """Keys of `data.tokenizer` that make the data use the pretrained tokenizer; none where it has none that fits."""
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
    differing = _differences(pretrained.backbone, BackboneConfig.from_dict({**backbone, "grid": 1}))
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
    """Write the tokenizer beside the data, under a name that tells its content."""
    file = data_dir / "tokenizers" / f"{hashlib.sha256(tokenizer.encode()).hexdigest()[:12]}.json"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, tokenizer)
    return file


# ------------------------------------------------------------------ weights, before training


def initialize_from(task: Task, source: str) -> Report:
    """Copy what a pretrained model has into `task`.

    Stem and backbone must fit as a whole. Other tensors are taken where names and shapes agree, a head only
    if its outputs mean the same: the same tokenizer and the same labels.

    A model that only gives targets (`target.*`, BEiT's tokenizer) stays the one of `task`, and so does the head beside
    another one.

    Returns:
        what was taken, what is new, what was left.

    Raises:
        ConfigError: the backbones differ (the fields are named), the tokenizers differ, or a tensor of stem or backbone
            is missing or of another shape (the tensors are named). Nothing has been copied then.
    """
    pretrained = read_pretrained(source)
    if differing := _differences(pretrained.backbone, task.config):
        lines = [
            f"  {key}: {theirs} (pretrained), {ours} (this run)" for key, (theirs, ours) in differing.items()
        ]
        raise ConfigError(f"init_from={source}: its backbone is another one:\n" + "\n".join(lines))
    same_tokens = _same_tokenizer(pretrained, task)
    own, weights = task.state_dict(), pretrained.weights
    same_outputs = (
        same_tokens
        and pretrained.info.get("labels") == task.hparams["info"].get("labels")
        and all(_same(weights.get(name), tensor) for name, tensor in own.items() if name.startswith(_TARGET))
    )
    resized = images.resized(pretrained.backbone, weights, task.hparams["info"])
    renormalised = images.renormalised(pretrained.info, weights, task.hparams["info"])
    changed = resized | renormalised
    taken, unfit, cut = {}, [], []
    for name, tensor in own.items():
        if name.startswith(_TARGET):
            continue
        theirs = changed.get(name, weights.get(name))
        table = name.endswith(("embedding.weight", "head.weight", "head.output_bias"))
        if (
            same_tokens
            and table
            and theirs is not None
            and _padded(theirs, tensor, task.hparams["info"].get("vocab_size"))
        ):
            theirs = theirs[: len(tensor)]
            cut.append(name)
        fits = theirs is not None and theirs.shape == tensor.shape
        if theirs is not None and fits and (same_outputs or not name.startswith(_HEADS)):
            taken[name] = theirs
        elif name.startswith(_BODY) and not fits:
            unfit.append(f"  {name}: {_shape(theirs)} (pretrained), {_shape(tensor)} (this run)")
    if unfit:
        raise ConfigError(
            f"init_from={source}: {len(unfit)} tensors of stem or backbone do not fit:\n"
            + "\n".join(unfit[:10])
        )
    with torch.no_grad():
        for name, theirs in taken.items():
            own[name].copy_(theirs)
    return Report(
        source,
        tuple(taken),
        tuple(name for name in own if name not in taken),
        tuple(name for name in weights if name not in taken),
        tuple(name for name in cut if name in taken),
        tuple(name for name in resized if name in taken),
        tuple(name for name in renormalised if name in taken),
    )


def _same(theirs: Tensor | None, ours: Tensor) -> bool:
    return theirs is not None and torch.equal(theirs, ours.cpu())


def _padded(theirs: Tensor, ours: Tensor, vocab_size: int | None) -> bool:
    """Whether a table of tokens has more rows than there are tokens, as many published ones have."""
    return vocab_size == len(ours) < len(theirs) and theirs.shape[1:] == ours.shape[1:]


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else " x ".join(map(str, tensor.shape)) or "a number"


def _same_tokenizer(pretrained: Pretrained, task: Task) -> bool:
    """Whether both read and write the same tokens; raises where the embeddings would mean other ones."""
    for key in ("tokenizer", "source_tokenizer", "target_tokenizer"):
        ours, theirs = task.hparams["info"].get(key), pretrained.info.get(key)
        if key == "tokenizer" and pretrained.tokenizer is not None:
            theirs = pretrained.tokenizer
        if ours == theirs:
            continue
        if not (isinstance(ours, str) and isinstance(theirs, str)):
            return False
        mine, other = TextTokenizer.from_json(ours), TextTokenizer.from_json(theirs)
        if mine != other:
            raise ConfigError(
                f"init_from={pretrained.source}: its tokenizer ({other.vocab_size} entries) is not the one of the data "
                f"({mine.vocab_size} entries), so its embeddings stand for other tokens. Leave data.tokenizer out of "
                "the command: it comes with the weights."
            )
    return True


def _meaning(config: BackboneConfig) -> dict[str, Any]:
    """The shape with defaults filled in: equal for two ways of saying the same."""
    placement = config.resolved_placement()
    values = {key: getattr(config, key) for key in SHAPE}
    values |= {
        "ffn_dim": config.ffn_width,
        "inner_attention_norm": placement.inner_attention,
        "inner_ffn_norm": placement.inner_ffn,
        "final_norm": placement.final,
    }
    if config.architecture == "encoder_decoder":
        values["decoder_layers"] = config.decoder_layers or config.num_layers
    unused = {
        "relative": ("relative_buckets", "relative_max_distance"),
        "convolutional": ("conv_position_kernel",),
    }
    for position, keys in unused.items():
        if config.position != position:
            values |= dict.fromkeys(keys)
    # Tables of positions have so many rows: they are compared as tensors, those of images once they are resized.
    for key in ("max_positions", "grid"):
        values.pop(key)
    return values


def _differences(theirs: BackboneConfig, ours: BackboneConfig) -> dict[str, tuple[Any, Any]]:
    """Fields of the shape that differ, each with (theirs, ours)."""
    left, right = _meaning(theirs), _meaning(ours)
    return {key: (left[key], right[key]) for key in left if left[key] != right[key]}
