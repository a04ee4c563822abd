"""Start from a pretrained model (`init_from=`): read it once, and copy what fits into a task.

`init_from` names a run's folder, a checkpoint (`RUN/checkpoints/best.ckpt`), an export folder, `hf:NAME_OR_FOLDER` or
`beit3:FILE` (one importer a module).

1. `read_pretrained(source)` reads it.
2. `magneto.pretrained.resolve.adopt` takes its shape and its tokenizer into the configuration.
3. `initialize_from(task, pretrained)` copies weights where name, shape and meaning agree. Images may be of another size
   than the pretrained ones: what was learned of positions is resized (nn/vision/resize.py). They may be normalised in
   another way: the map of patches is changed for that (nn/vision/renormalise.py).
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
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
from magneto.pretrained.shape import differences
from magneto.tasks.base import Task
from magneto.training.checkpoint_io import read_model

log = logging.getLogger("magneto")

HUB = "hf:"
BEIT3 = "beit3:"
"""Files as the authors of BEiT-3 published them, which are in no hub's format."""
FAMILIES = ("bert", "gpt2")
"""`model_type` of the models that have an importer, each in a module of its name in `magneto.pretrained.hub`."""
_BODY = ("stem.", "source_stem.", "target_stem.", "backbone.")
"""Parameters that must fit; others (heads) are taken where they do."""
_HEADS = ("head.", "image_head.")
"""Parameters whose outputs stand for labels, tokens or codes."""
_TARGET = "target."
"""Parameters of a model that only gives what is to be learnt."""


@dataclass(frozen=True)
class Pretrained:
    """Model that `init_from=` names.

    Attributes:
        source: as the user gave it.
        backbone: its configuration.
        info: of the data that it was trained on; of an import what its importer knows.
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
    """Result of `initialize_from`, by the names of the tensors."""

    source: str
    taken: tuple[str, ...]
    new: tuple[str, ...]
    """Of the model, and not in the source or not of its meaning: they keep their random values."""
    left: tuple[str, ...]
    """Of the source, and not in the model."""
    cut: tuple[str, ...] = ()
    """Those taken whose last rows are beyond the tokens."""
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
    """Return whole parts by their first name, with the number of their tensors; a single tensor by its full name."""
    parts: dict[str, list[str]] = {}
    for name in names:
        parts.setdefault(name.split(".", 1)[0], []).append(name)
    return ", ".join(f"{part}: {len(of)}" if len(of) > 1 else of[0] for part, of in parts.items())


def read_pretrained(source: str) -> Pretrained:
    """Read a pretrained model, on the CPU.

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


def initialize_from(task: Task, pretrained: Pretrained) -> Report:
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
    source = pretrained.source
    if differing := differences(pretrained.backbone, task.config):
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
    """Return whether a table of tokens has more rows than there are tokens, as many published ones have."""
    return vocab_size == len(ours) < len(theirs) and theirs.shape[1:] == ours.shape[1:]


def _shape(tensor: Tensor | None) -> str:
    return "missing" if tensor is None else " x ".join(map(str, tensor.shape)) or "a number"


def _same_tokenizer(pretrained: Pretrained, task: Task) -> bool:
    """Return whether both use the same tokens; raise ConfigError where the embeddings would stand for others."""
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
