"""Masked image modelling (BEiT, Bao et al., arXiv 2106.08254): images with patches hidden -> what was there.

    images --stem: patches, the hidden ones replaced--> encoder --hidden patches only--> head -> code of each patch

The codes are those of a visual tokenizer (`task=visual_tokenizer`), given or trained first. Two cheaper targets are an
option away: the pixels of a patch (as in MAE, arXiv 2111.06377) and codes of a random projection (BEST-RQ).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric

from magneto.config.validate import from_mapping
from magneto.data.image.module import ImageDataModule
from magneto.data.module import DataModule
from magneto.errors import ConfigError
from magneto.inference.images import complete_images
from magneto.inference.inputs import PredictInput
from magneto.nn import Linear
from magneto.nn.vision.visual_tokenizer import VisualTokenizer
from magneto.tasks.images import ImageTask, require_patches
from magneto.tasks.masked_image import EPS, MaskedImages, TargetOptions
from magneto.training.module import Batch, StepOutput
from magneto.training.samples import Sample
from magneto.visualize.image_grid import hide, side_by_side, tile


@dataclass(frozen=True, kw_only=True)
class BEiTOptions(TargetOptions):
    """Options under `task`, see `conf/task/beit.yaml`."""


class BEiT(MaskedImages, ImageTask):
    """Cross-entropy of the codes of hidden patches, or squared error of their pixels.

    Batches are those of `magneto.data.image.module` with masks.
    """

    name = "beit"
    example_input = "input=image.png"
    monitor = "val/loss"
    Options = BEiTOptions
    requires: ClassVar = {"architecture": "encoder"}
    primary_metric = "accuracy"
    options: BEiTOptions

    @classmethod
    def prepare(cls, config: Mapping[str, Any], data: DataModule) -> dict[str, Any]:
        """Return the tokenizer: the given one, or the default one of this data."""
        assert isinstance(data, ImageDataModule)
        require_patches(cls.name, data.info)
        if data.config.masking is None:
            raise ConfigError(
                "data.masking is missing: task=beit hides patches. Set data.masking={ratio: 0.4}."
            )
        settings = {key: value for key, value in config["task"].items() if key not in ("_target_", "name")}
        options = from_mapping(BEiTOptions, settings, "task")
        return cls.prepare_target(options, data)

    def build(self) -> None:
        self.build_encoder(mask_token=True)
        outputs = self.build_target()
        self.head = Linear(self.config.d_model, outputs, roles=("head",))
        if self.target is not None:
            self.scores["accuracy"] = MeanMetric()

    def forward(self, images: Tensor, masked: Tensor) -> Tensor:
        """(B, C, S, S) and (B, N) bool with M hidden patches in all -> fp32 (M, codes or C * patch * patch)."""
        hidden = self.backbone(self.stem(images, masked))[:, 1:]
        out: Tensor = self.head(hidden[masked])
        return out.float()

    def step(self, batch: Batch) -> StepOutput:
        """Loss summed over the hidden patches; the weight is their number."""
        images, masked = batch["image"], self.hidden(batch)
        outputs, targets = self(images, masked), self.targets(images, masked)
        weight = torch.full((), float(len(outputs)), device=images.device)
        loss = self.patch_loss(outputs, targets)
        return StepOutput(loss, weight, outputs=(outputs.detach(), targets))

    def evaluate(self, batch: Batch, output: StepOutput) -> None:
        outputs, targets = output.outputs
        if self.target is not None:
            self.scores["accuracy"].update((outputs.argmax(-1) == targets).float().mean(), output.weight)

    def samples(self, batch: Batch, output: StepOutput, evaluated: None) -> list[Sample]:
        """Return a panel of the batch's first image."""
        count = int(batch["masked"][0].sum())
        panel = self.panel(batch["image"][:1], batch["masked"][:1], output.outputs[0][:count])
        return [{"id": f"{int(batch['id'][0]):08d}", "kind": "masked image", "image": panel}]

    def panel(self, image: Tensor, masked: Tensor, outputs: Tensor) -> np.ndarray:
        """Return (H, W, 3) uint8: an image (1, C, S, S), the same without what is hidden, and completed by the outputs.

        Codes become pixels through their decoder, visible patches by their own codes; codes that stand for no pixels have
        no third image.
        """
        pixels = self.info.pixels(image).cpu()
        shown = [pixels, hide(pixels, masked.cpu(), self.info.patch_size)]
        if (filled := self._filled(image, masked, outputs)) is not None:
            shown.append(self.info.pixels(filled).cpu())
        return side_by_side([tile(part[0]) for part in shown])

    def _filled(self, image: Tensor, masked: Tensor, outputs: Tensor) -> Tensor | None:
        """Return the image as the model completes it, normalised (1, C, S, S); None where its outputs are no pixels."""
        if self.target is None:
            patches = self.patches(image).clone()
            hidden = patches[masked]
            # Brightness and contrast of a patch are not predicted: the true ones are used.
            deviation = (hidden.var(-1, keepdim=True) + EPS).sqrt()
            patches[masked] = outputs * deviation + hidden.mean(-1, keepdim=True)
            grid = self.stem.grid
            return F.pixel_shuffle(patches.transpose(1, 2).reshape(1, -1, grid, grid), self.info.patch_size)
        if not isinstance(self.target, VisualTokenizer) or self.target.config.teacher_width is not None:
            return None
        codes = self.target.codes(image).masked_scatter(masked, outputs.argmax(-1))
        return self.target.decode(codes).float()

    def flops(self, batch: Batch) -> float:
        """Stem and encoder over all patches, head over the hidden ones, forward and backward; targets are not counted."""
        hidden = 6 * int(batch["masked"].sum()) * self.head.weight.numel()
        return float(len(batch["id"]) * self.encoder_flops() + hidden)

    def predictions(self, inputs: PredictInput, options: Any) -> Iterator[dict[str, Any]]:
        return complete_images(self, inputs, self.stem.grid)
