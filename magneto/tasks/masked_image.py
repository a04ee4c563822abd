"""Targets of hidden patches: codes of a visual tokenizer, of a random projection, or the pixels.

Shared by the tasks that hide patches: `task=beit` and `task=vl`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor

from magneto.config.validate import from_mapping
from magneto.data.image.module import ImageDataModule
from magneto.errors import ConfigError
from magneto.nn.vision.random_projection import RandomProjection
from magneto.nn.vision.renormalise import Renormalisation
from magneto.nn.vision.visual_tokenizer import VisualTokenizer, VisualTokenizerConfig
from magneto.tasks.base import Task
from magneto.tasks.default_visual_tokenizer import DefaultTokenizer, default_tokenizer
from magneto.tasks.visual_tokenizer import VisualTokenization
from magneto.training.checkpoint_io import read_model
from magneto.training.module import Batch

EPS = 1e-6  # under the square root of a patch's variance


@dataclass(frozen=True, kw_only=True)
class TargetOptions:
    """The options of what is predicted; which patches are hidden is set by `data.masking`."""

    target: Literal["codes", "pixels", "random_projection"] = "codes"
    """codes of a visual tokenizer; pixels: of each hidden patch, less their mean and divided by their deviation, with
    squared error; random_projection: codes for which nothing is trained."""
    tokenizer: str | None = None
    """codes: checkpoint or export of a task=visual_tokenizer; null: `default_tokenizer` is trained on this data, once."""
    default_tokenizer: Mapping[str, Any] = field(default_factory=dict)
    """See `DefaultTokenizer`."""
    random_codes: Annotated[int, Ge(2)] = 512
    """random_projection: size of the codebook."""
    visual_tokenizer: Mapping[str, Any] | None = None
    """Sizes of the tokenizer, found by `prepare`; with the weights of a checkpoint they are all that is needed of it."""

    def __post_init__(self) -> None:
        if self.target != "codes" and self.tokenizer is not None:
            raise ConfigError(f"task.tokenizer has no effect with task.target={self.target}: set it to null.")


class MaskedImages(Task):
    """A task that predicts hidden patches.

    `prepare_target` finds the tokenizer, `build_target` makes `self.target`, `targets` and `patch_loss` make the loss.
    """

    uses_labels = False
    target: VisualTokenizer | RandomProjection | None  # no value here: it would hide the module of that name
    """Model of the codes; None for pixels."""

    @staticmethod
    def prepare_target(options: TargetOptions, data: ImageDataModule) -> dict[str, Any]:
        """Return the tokenizer as options: the given one, or the default one of this data."""
        if options.target != "codes":
            return {}
        default = from_mapping(DefaultTokenizer, options.default_tokenizer, "task.default_tokenizer")
        source = options.tokenizer or str(default_tokenizer(data, default))
        tokenizer = read_tokenizer(source).tokenizer.config
        for key in ("image_size", "patch_size", "channels"):
            ours, theirs = getattr(data.info, key), getattr(tokenizer, key)
            if ours != theirs:
                raise ConfigError(f"task.tokenizer={source}: is for {key}={theirs}, and the data has {ours}.")
        return {"tokenizer": source, "visual_tokenizer": tokenizer.to_dict()}

    def build_target(self) -> int:
        """Make `self.target`, which is not trained; returns how many outputs the head of a patch needs."""
        options: TargetOptions = self.options
        patch, channels = self.info.patch_size, self.info.channels
        if options.target != "codes" and channels * patch**2 < 2:
            raise ConfigError(
                f"task.target={options.target}: nothing is left of a patch of one grey pixel less its mean. Set "
                "data.patch_size to 2 or more."
            )
        if options.target == "pixels":
            self.target = None
            return int(channels * patch**2)
        if options.target == "codes":
            assert options.visual_tokenizer is not None, "prepare() comes before the task"
            shape = VisualTokenizerConfig.from_dict(dict(options.visual_tokenizer))
            self.target, outputs = VisualTokenizer(shape), shape.codes
        else:
            outputs = options.random_codes
            self.target = RandomProjection(patch, channels, outputs)
        self.target.requires_grad_(False)
        return outputs

    def initialize(self) -> None:
        """Read the tokenizer's weights, for images normalised as ours; a checkpoint carries them from then on."""
        if isinstance(self.target, VisualTokenizer):
            assert self.options.tokenizer is not None
            given = read_tokenizer(self.options.tokenizer)
            self.target.load_state_dict(given.tokenizer.state_dict())
            theirs, ours = ((info.mean, info.std) for info in (given.info, self.info))
            if (change := Renormalisation.between(theirs, ours)) is not None:
                self.target.renormalise(change)

    def train(self, mode: bool = True) -> Self:
        """Set the mode; the model of the targets stays in evaluation mode."""
        super().train(mode)
        if self.target is not None:
            self.target.eval()
        return self

    def hidden(self, batch: Batch) -> Tensor:
        """Return (B, N) bool, the hidden patches of a batch. Raises `ConfigError` where the data hides none."""
        if "masked" not in batch:
            raise ConfigError(
                f"data.masking is missing: task={self.name} hides patches. Set data.masking as it was in training."
            )
        return batch["masked"]

    def targets(self, images: Tensor, masked: Tensor) -> Tensor:
        """Return of the M hidden patches: codes (M,) int64, or normalised pixels (M, C * patch * patch)."""
        if self.target is not None:
            return self.target.codes(images)[masked]
        pixels = self.patches(images)[masked]
        mean, variance = pixels.mean(-1, keepdim=True), pixels.var(-1, keepdim=True)
        return (pixels - mean) / (variance + EPS).sqrt()

    def patches(self, images: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, N, C * patch * patch), in the order of the stem."""
        return F.pixel_unshuffle(images.float(), self.info.patch_size).flatten(2).transpose(1, 2)

    def patch_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return a scalar, summed over the hidden patches: cross-entropy of codes, or squared error of pixels."""
        if self.target is not None:
            return F.cross_entropy(outputs, targets, reduction="sum")
        return F.mse_loss(outputs, targets, reduction="sum") / outputs.size(1)


def read_tokenizer(source: str) -> VisualTokenization:
    """Return the model of a checkpoint or export of `task=visual_tokenizer`."""
    if not Path(source).exists():
        raise ConfigError(
            f"task.tokenizer={source}: there is no such checkpoint or export. Train one with task=visual_tokenizer, or "
            "leave it out: one is trained first."
        )
    parameters, weights = read_model(source)
    own = f"{VisualTokenization.__module__}.{VisualTokenization.__qualname__}"
    if parameters["task"] != own:
        raise ConfigError(
            f"task.tokenizer={source}: is of {parameters['task']}, not of task=visual_tokenizer."
        )
    task = VisualTokenization(**{key: value for key, value in parameters.items() if key != "task"})
    task.load_state_dict(weights)
    return task
