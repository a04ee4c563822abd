"""Semantic segmentation, the class of each pixel: encoder -> UperNet -> classes, from nothing or fine-tuned.

    images --stem: patches--> encoder --four layers--> maps of four resolutions --UperNet--> logits, enlarged to the image
                                          third layer --FCN--> logits, for the auxiliary loss

The recipe is that of BEiT on ADE20k (arXiv 2106.08254, A.2); the decoder is in magneto/nn/vision/upernet.py. With
`init_from=` the encoder comes pretrained (magneto/pretrained/init_from.py). An image that is larger than what the model
reads is evaluated in overlapping windows.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from magneto.data.collate import IGNORE
from magneto.data.segmentation.module import SegmentationDataModule
from magneto.errors import ConfigError
from magneto.inference.inputs import PredictInput
from magneto.inference.segmentation import overlay, segment_images, shares
from magneto.inference.sliding import sliding_logits
from magneto.metrics.segmentation import SegmentationScores
from magneto.nn import Encoder
from magneto.nn.vision.upernet import RESCALED, FCNHead, Rescale, UperHead
from magneto.tasks.images import ImageTask
from magneto.training.module import Batch, StepOutput
from magneto.training.samples import Sample
from magneto.training.sharding import gathered
from magneto.visualize.confusion_matrix import draw_confusion
from magneto.visualize.image_grid import side_by_side, tile

MOST_DRAWN = 1000  # classes up to which there is a confusion matrix


@dataclass(frozen=True, kw_only=True)
class SegmentationOptions:
    """Options under `task`, see `conf/task/segmentation.yaml`."""

    head_width: Annotated[int, Ge(1)] = 32
    """Channels inside the decoder: 512 in UperNet, 768 in BEiT base."""
    layers: Sequence[int] | None = None
    """Four layers (from 0) whose outputs are read, the last of which is the encoder's; null: those after a third, a half,
    two thirds and all of them, as BEiT's 3, 5, 7, 11 of 12."""
    auxiliary_weight: Annotated[float, Ge(0)] = 0.4
    """Of the loss of a small head on the third layer, in training alone; 0: there is none."""
    auxiliary_width: Annotated[int, Ge(1)] | None = None
    """Channels of that head; null: half of head_width."""
    head_dropout: Annotated[float, Ge(0), Lt(1)] = 0.1
    """Share of the channels that are dropped before the classes."""
    stride: Annotated[float, Gt(0), Le(1)] = 2 / 3
    """From one window of an evaluated image to the next, as a share of a window: BEiT's 341 of 512 pixels."""


class Segmentation(ImageTask):
    """Cross-entropy over `info.labels` of the pixels whose class is not IGNORE."""

    name = "segmentation"
    example_input = "input=image.png output=masks.jsonl"
    monitor, mode = "val/miou", "max"
    Options = SegmentationOptions
    Data = SegmentationDataModule
    requires: ClassVar = {"architecture": "encoder", "multiway": "none"}
    options: SegmentationOptions
    backbone: Encoder

    def build(self) -> None:
        """Make the encoder, the decoder and the auxiliary head."""
        self.build_encoder()
        self.layers = self._layers()
        options, width, classes = self.options, self.config.d_model, len(self.info.labels)
        self.rescale = Rescale(width)
        self.head = UperHead(width, options.head_width, classes, options.head_dropout)
        self.auxiliary: FCNHead | None = None
        if options.auxiliary_weight:
            inside = options.auxiliary_width or max(1, options.head_width // 2)
            self.auxiliary = FCNHead(width, inside, classes, options.head_dropout)
        self._head_flops = self._count_head_flops()
        self._scores = self.scores["pixels"] = SegmentationScores(self.info.labels)

    def _layers(self) -> tuple[int, ...]:
        depth, chosen = self.config.num_layers, self.options.layers
        if chosen is None:
            return tuple(max(0, round(depth * share) - 1) for share in (1 / 3, 1 / 2, 2 / 3, 1))
        layers = tuple(chosen)
        if (
            len(layers) != RESCALED
            or list(layers) != sorted(layers)
            or layers[0] < 0
            or layers[-1] != depth - 1
        ):
            raise ConfigError(
                f"task.layers={list(layers)}: name {RESCALED} layers in their order, the last of them {depth - 1}, or null."
            )
        return layers

    def features(self, images: Tensor) -> list[Tensor]:
        """(B, C, S, S) -> four maps (B, d_model, g, g), the last with the encoder's final norm, if it has one."""
        output, before = self.backbone(self.stem(images), return_layers=self.layers[:-1])
        grid = self.stem.grid
        maps = [x[:, 1:].transpose(1, 2).unflatten(2, (grid, grid)) for x in (*before, output)]
        # The layout in which convolutions and norms over channels need no copies: half the time on a CPU.
        return [x.contiguous(memory_format=torch.channels_last) for x in maps]

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, S, S) -> fp32 logits (B, classes, S, S)."""
        return self.heads(images)[0]

    def heads(self, images: Tensor) -> list[Tensor]:
        """(B, C, S, S) -> fp32 logits (B, classes, S, S) of the decoder, and of the auxiliary head, if there is one."""
        features = self.features(images)
        outputs = [self.head(self.rescale(features))]
        if self.auxiliary is not None:
            outputs.append(self.auxiliary(features[2]))
        size = images.shape[2:]
        return [F.interpolate(x.float(), size=size, mode="bilinear", align_corners=False) for x in outputs]

    def over_windows(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Images (C, H, W) of any size, normalised -> of each (heads, classes, H, W): the mean of overlapping windows."""
        size = self.info.image_size
        step = max(1, round(self.options.stride * size))
        return sliding_logits(lambda x: torch.stack(self.heads(x), 1), images, size, step, len(images))

    def step(self, batch: Batch) -> StepOutput:
        """Loss summed over the pixels that are not ignored, with that of the auxiliary head."""
        images, targets = batch["image"], batch["mask"]
        outputs = self.heads(images) if self.training else self._of_whole_images(batch)
        loss, *auxiliary = (
            F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum") for logits in outputs
        )
        logs = {"loss_of_decoder": loss.detach()}
        if auxiliary:
            loss = loss + self.options.auxiliary_weight * auxiliary[0]
        return StepOutput(loss, (targets != IGNORE).sum().float(), outputs[0].detach().argmax(1), logs)

    def _of_whole_images(self, batch: Batch) -> list[Tensor]:
        """Return the logits of each head, (B, classes, H, W), of an evaluation batch; 0 beyond an image."""
        sizes = batch["size"].tolist()
        images = [image[:, :h, :w] for image, (h, w) in zip(batch["image"], sizes, strict=True)]
        height, width = batch["mask"].shape[1:]
        with gathered(self):  # processes may have different numbers of windows
            parts = self.over_windows(images)
        padded = [F.pad(x, (0, width - x.size(-1), 0, height - x.size(-2))) for x in parts]
        return list(torch.stack(padded, dim=1))

    def evaluate(self, batch: Batch, output: StepOutput) -> None:
        self._scores.update(output.outputs, batch["mask"])

    def samples(self, batch: Batch, output: StepOutput, evaluated: None) -> list[Sample]:
        """Return a few images of each batch, each with its mask and the model's: over all batches about `num_samples`."""
        rows, labels = len(batch["id"]), self.info.labels
        batches = max(1, self.info.examples["val"] // rows)
        found = []
        for row in range(0, rows, max(1, rows // ceil(self.num_samples / batches))):
            height, width = batch["size"][row].tolist()
            pixels = self.info.pixels(batch["image"][row : row + 1, :, :height, :width])[0].cpu()
            real, answer = (mask[row, :height, :width].cpu() for mask in (batch["mask"], output.outputs))
            scored = real != IGNORE
            found.append(
                {
                    "id": f"{int(batch['id'][row]):08d}",
                    "kind": "segmented",
                    "reference": ", ".join(one["label"] for one in shares(real, labels)),
                    "predicted": ", ".join(one["label"] for one in shares(answer, labels)),
                    "pixel_accuracy": round(float((real == answer)[scored].float().mean()), 4),
                    "image": side_by_side(
                        [
                            tile(one)
                            for one in (
                                pixels,
                                *(overlay(pixels, mask, len(labels)) for mask in (real, answer)),
                            )
                        ]
                    ),
                }
            )
        return found

    def overview(self) -> list[Sample]:
        """Return the confusion matrix of the pixels as an image."""
        if self._scores.confusion is None or len(self.info.labels) > MOST_DRAWN:
            return []
        image = draw_confusion(self._scores.confusion, self.info.labels)
        return [{"id": "confusion", "kind": "confusion matrix", "image": image}]

    def _count_head_flops(self) -> float:
        """Decoder and auxiliary head of one image, forward and backward: three times what torch counts forward."""
        rescale, head = (copy.deepcopy(part).to("meta") for part in (self.rescale, self.head))
        grid = self.stem.grid
        features = [torch.empty(1, self.config.d_model, grid, grid, device="meta")] * RESCALED
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            head(rescale(features))
            if self.auxiliary is not None:
                copy.deepcopy(self.auxiliary).to("meta")(features[2])
        return 3.0 * counter.get_total_flops()

    def flops(self, batch: Batch) -> float:
        """Stem, encoder and heads, forward and backward."""
        return float(len(batch["id"]) * (self.encoder_flops() + self._head_flops))

    def predictions(self, inputs: PredictInput, options: Any) -> Iterator[dict[str, Any]]:
        return segment_images(self, inputs)
