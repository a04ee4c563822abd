"""Masked image modelling (BEiT, Bao et al., arXiv 2106.08254): pictures with patches hidden -> what was there.

    pictures --stem: patches, the hidden ones replaced--> encoder --hidden places only--> head -> code of each patch

The codes are those of a visual tokenizer (`task=visual_tokenizer`), given or trained first. Two cheaper targets are an
option away: the pixels of a patch (as in MAE, arXiv 2111.06377) and codes of a random projection (BEST-RQ).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric

from magneto.checkpoint import read_model
from magneto.data.base import DataModule
from magneto.data.block_masking import BlockMasking
from magneto.data.image import ImageDataModule
from magneto.data.image_predict import evaluation_batch, user_pictures
from magneto.data.image_store import ImageSpec
from magneto.errors import UserError, from_mapping, nearest
from magneto.nn import Linear, PatchStem, build_backbone, training_flops_per_token
from magneto.nn.random_projection import RandomProjection
from magneto.nn.visual_tokenizer import VisualTokenizer, VisualTokenizerConfig
from magneto.panels import hide, side_by_side, tile
from magneto.tasks.base import Batch, PredictInput, Sample, StepOutput, TaskModule
from magneto.tasks.visual_tokenizer import VisualTokenization, require_patches, shape_of_patches
from magneto.visual_tokens import DefaultTokenizer, default_tokenizer

TARGETS = ("codes", "pixels", "random_projection")
EPS = 1e-6  # under the square root of a patch's variance


@dataclass(frozen=True, kw_only=True)
class BEiTOptions:
    """What `conf/task/beit.yaml` sets under `task`; which patches are hidden is the data's business (`data.masking`)."""

    target: str = "codes"
    """codes of a visual tokenizer; pixels: of each hidden patch, less their mean and divided by their deviation, with
    squared error; random_projection: codes for which nothing is trained."""
    tokenizer: str | None = None
    """codes: checkpoint or export of a task=visual_tokenizer; null: `default_tokenizer` is trained on this data, once."""
    default_tokenizer: Mapping[str, Any] = field(default_factory=dict)
    """See `DefaultTokenizer`."""
    random_codes: int = 512
    """random_projection: size of the codebook."""
    visual_tokenizer: Mapping[str, Any] | None = None
    """Sizes of the tokenizer, found by `prepare`; with the weights of a checkpoint they are all that is needed of it."""

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise UserError(
                f"task.target={self.target}: must be one of {', '.join(TARGETS)}.{nearest(self.target, TARGETS)}"
            )
        if self.target != "codes" and self.tokenizer is not None:
            raise UserError(f"task.tokenizer has no effect with task.target={self.target}: set it to null.")
        if self.random_codes < 2:
            raise UserError(f"task.random_codes={self.random_codes}: a codebook needs at least 2.")


class BEiT(TaskModule):
    """Cross-entropy of the codes of hidden patches, or squared error of their pixels.

    Batches are those of `magneto.data.image` with masks.
    """

    name = "beit"
    monitor = "val/loss"
    Options = BEiTOptions
    Data = ImageDataModule
    options: BEiTOptions

    @classmethod
    def shape_from(cls, backbone: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
        """Positions for the patches of a picture."""
        return shape_of_patches(backbone, spec)

    @classmethod
    def prepare(cls, config: Mapping[str, Any], data: DataModule) -> dict[str, Any]:
        """The tokenizer: the given one, or the default one of this data."""
        assert isinstance(data, ImageDataModule)
        require_patches(cls.name, data.spec.to_dict())
        if data.masking is None:
            raise UserError(
                "data.masking is missing: task=beit hides patches. Say data.masking={ratio: 0.4}."
            )
        settings = {key: value for key, value in config["task"].items() if key not in ("_target_", "name")}
        options = from_mapping(BEiTOptions, settings, "task")
        if options.target != "codes":
            return {}
        default = from_mapping(DefaultTokenizer, options.default_tokenizer, "task.default_tokenizer")
        source = options.tokenizer or str(default_tokenizer(data, default))
        tokenizer = _read_tokenizer(source).config
        for key in ("image_size", "patch_size", "channels"):
            ours, theirs = getattr(data.spec, key), getattr(tokenizer, key)
            if ours != theirs:
                raise UserError(f"task.tokenizer={source}: is for {key}={theirs}, and the data has {ours}.")
        return {"tokenizer": source, "visual_tokenizer": tokenizer.to_dict()}

    def build(self) -> None:
        """Stem, encoder, head; the model that gives the targets; accuracy of the hidden patches."""
        if self.config.architecture != "encoder":
            raise UserError(
                f"backbone.architecture={self.config.architecture}: task={self.name} needs architecture=encoder."
            )
        require_patches(self.name, self.spec)
        self.pictures = ImageSpec.from_dict(self.spec)
        size, patch, channels = (self.spec[key] for key in ("image_size", "patch_size", "channels"))
        self.stem = PatchStem(size, patch, channels, self.config.d_model, mask_token=True)
        self.backbone = build_backbone(self.config)
        self.target: VisualTokenizer | RandomProjection | None = None
        outputs = channels * patch**2
        if self.options.target == "codes":
            assert self.options.visual_tokenizer is not None, "prepare() comes before the task"
            shape = VisualTokenizerConfig.from_dict(dict(self.options.visual_tokenizer))
            self.target, outputs = VisualTokenizer(shape), shape.codes
        elif self.options.target == "random_projection":
            outputs = self.options.random_codes
            self.target = RandomProjection(patch, channels, outputs)
        if self.target is not None:
            self.target.requires_grad_(False)
        self.head = Linear(self.config.d_model, outputs, roles=("head",))
        if self.target is not None:
            self.scores["accuracy"] = MeanMetric()

    def initialize(self) -> None:
        """Read the tokenizer's weights; a checkpoint carries them from then on."""
        if isinstance(self.target, VisualTokenizer):
            assert self.options.tokenizer is not None
            self.target.load_state_dict(_read_tokenizer(self.options.tokenizer).state_dict())

    def train(self, mode: bool = True) -> "BEiT":
        """As every module; what gives the targets stays as it is."""
        super().train(mode)
        if self.target is not None:
            self.target.eval()
        return self

    def forward(self, images: Tensor, masked: Tensor) -> Tensor:
        """(B, C, S, S) and (B, N) bool with M hidden patches in all -> fp32 (M, codes or C * patch * patch)."""
        hidden = self.backbone(self.stem(images, masked))[:, 1:]
        out: Tensor = self.head(hidden[masked])
        return out.float()

    def _wanted(self, images: Tensor, masked: Tensor) -> Tensor:
        """Of the M hidden patches: codes (M,) int64, or normalised pixels (M, C * patch * patch)."""
        if self.target is not None:
            return self.target.codes(images)[masked]
        pixels = self._patches(images)[masked]
        mean, variance = pixels.mean(-1, keepdim=True), pixels.var(-1, keepdim=True)
        return (pixels - mean) / (variance + EPS).sqrt()

    def _patches(self, images: Tensor) -> Tensor:
        """(B, C, S, S) -> (B, N, C * patch * patch), in the order of the stem."""
        return F.pixel_unshuffle(images.float(), self.spec["patch_size"]).flatten(2).transpose(1, 2)

    def step(self, batch: Batch) -> StepOutput:
        """Loss summed over the hidden patches; the weight is their number."""
        images, masked = batch["image"], batch["masked"]
        made, wanted = self(images, masked), self._wanted(images, masked)
        weight = torch.tensor(float(len(made)), device=images.device)
        if self.target is not None:
            loss = F.cross_entropy(made, wanted, reduction="sum")
        else:
            loss = F.mse_loss(made, wanted, reduction="sum") / made.size(1)
        return StepOutput(loss, weight, outputs=(made.detach(), wanted))

    def evaluate(self, batch: Batch, output: StepOutput) -> None:
        """Accuracy of the batch's codes."""
        made, wanted = output.outputs
        if self.target is not None:
            self.scores["accuracy"].update((made.argmax(-1) == wanted).float().mean(), output.weight)

    def samples(self, batch: Batch, output: StepOutput) -> list[Sample]:
        """The batch's first picture, what the model saw of it, and what it made of that."""
        count = int(batch["masked"][0].sum())
        panel = self._panel(batch["image"][:1], batch["masked"][:1], output.outputs[0][:count])
        return [{"id": f"{int(batch['id'][0]):08d}", "kind": "masked picture", "picture": panel}]

    def _panel(self, image: Tensor, masked: Tensor, made: Tensor) -> np.ndarray:
        """(H, W, 3) uint8: a picture (1, C, S, S), the same without what is hidden, and with what was made for it.

        Codes become pixels through their decoder, visible patches by their own codes; codes that stand for no pixels have
        no third picture.
        """
        pixels = self.pictures.pixels(image).cpu()
        shown = [pixels, hide(pixels, masked.cpu(), self.spec["patch_size"])]
        if (filled := self._filled(image, masked, made)) is not None:
            shown.append(self.pictures.pixels(filled).cpu())
        return side_by_side([tile(part[0]) for part in shown])

    def _filled(self, image: Tensor, masked: Tensor, made: Tensor) -> Tensor | None:
        """The picture as the model completes it, normalised (1, C, S, S); None where its outputs are no pixels."""
        if self.target is None:
            patches = self._patches(image).clone()
            hidden = patches[masked]
            # Brightness and contrast of a patch are not predicted: the true ones are lent to it.
            deviation = (hidden.var(-1, keepdim=True) + EPS).sqrt()
            patches[masked] = made * deviation + hidden.mean(-1, keepdim=True)
            grid = self.stem.grid
            return F.pixel_shuffle(
                patches.transpose(1, 2).reshape(1, -1, grid, grid), self.spec["patch_size"]
            )
        if not isinstance(self.target, VisualTokenizer) or self.target.config.teacher_width is not None:
            return None
        codes = self.target.codes(image).masked_scatter(masked, made.argmax(-1))
        return self.target.decode(codes).float()

    def units(self, batch: Batch) -> dict[str, float]:
        """Pictures and the tokens that the encoder reads."""
        return {"examples": float(len(batch["id"])), "tokens": float(len(batch["id"]) * self.stem.num_tokens)}

    def flops(self, batch: Batch) -> float:
        """Stem and encoder over all patches, head over the hidden ones, forward and backward; targets are not counted."""
        rows, length = len(batch["id"]), self.stem.num_tokens
        per_token = training_flops_per_token(self.config, length) + 6 * self.stem.projection.weight.numel()
        return float(rows * length * per_token + 6 * int(batch["masked"].sum()) * self.head.weight.numel())

    def predict(self, inputs: PredictInput, options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Hide patches of each picture and complete it: the picture, what the model saw, what it made."""
        if options:
            raise UserError(f"predict.{next(iter(options))}: task={self.name} has no such option.")
        if inputs.path is None:
            raise UserError(
                "prompt=: this model reads pictures. Say input= with a picture or a folder of them."
            )
        for number, (file, image) in enumerate(user_pictures(inputs.path, self.spec["channels"])):
            images = evaluation_batch([image], self.pictures).to(self.device)
            masks = BlockMasking().draw(
                self.stem.grid, np.array([number]), seed=0, purpose="masks of predict", epoch=0
            )
            masked = torch.from_numpy(masks).to(self.device)
            made, wanted = self(images, masked), self._wanted(images, masked)
            result = {"input": str(file), "picture": self._panel(images, masked, made)}
            if self.target is None:
                error = float(F.mse_loss(made, wanted))
                yield {"text": f"{file}\tsquared error {error:.3f}", **result, "squared_error": error}
            else:
                right, count = int((made.argmax(-1) == wanted).sum()), len(wanted)
                yield {"text": f"{file}\t{right} of {count} codes", **result, "right": right, "hidden": count}


def _read_tokenizer(source: str) -> VisualTokenizer:
    """The tokenizer of a checkpoint or export of `task=visual_tokenizer`."""
    if not Path(source).exists():
        raise UserError(
            f"task.tokenizer={source}: there is no such checkpoint or export. Train one with task=visual_tokenizer, or "
            "leave it out: one is trained first."
        )
    parameters, weights = read_model(source)
    own = f"{VisualTokenization.__module__}.{VisualTokenization.__qualname__}"
    if parameters["task"] != own:
        raise UserError(f"task.tokenizer={source}: is of {parameters['task']}, not of task=visual_tokenizer.")
    task = VisualTokenization(**{key: value for key, value in parameters.items() if key != "task"})
    task.load_state_dict(weights)
    return task.tokenizer.eval()
