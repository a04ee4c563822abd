"""Classes of images: encoder -> one vector -> label; from nothing, fine-tuned, or as a linear probe.

    images --stem: patches behind a [CLS]--> encoder --mean of the patches | [CLS]--> norm, dropout --> linear --> classes

With `init_from=` the encoder comes pretrained (magneto/pretrained/init_from.py). A linear probe leaves it as it is, and
measures how much of the classes its features hold.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from annotated_types import Ge, Lt
from torch import Tensor, nn

from magneto.data.image.dataset import ImageDataset
from magneto.data.image.module import ImageDataModule
from magneto.data.module import DataModule
from magneto.errors import ConfigError
from magneto.inference.images import (
    ImageClassificationPredictOptions,
    classify_images,
    top_answers,
)
from magneto.inference.inputs import PredictInput
from magneto.metrics.image_classification import ClassScores
from magneto.nn import (
    BackboneConfig,
    Linear,
    build_norm,
)
from magneto.nn.vision.pooling import PatchPooling
from magneto.tasks.images import ImageTask, require_patches
from magneto.training.module import Batch, StepOutput
from magneto.training.samples import Sample
from magneto.visualize.confusion_matrix import draw_confusion
from magneto.visualize.image_grid import tile

log = logging.getLogger("magneto")

FEATURE_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class ImageClassificationOptions:
    """Options under `task`, see `conf/task/image_classification.yaml`."""

    pooling: str = "mean"
    """mean: of the patches, as BEiT is fine-tuned; class_token: the vector of [CLS], as ViT."""
    pool_grid: int = 1
    """The mean is taken in each of pool_grid x pool_grid parts of the image, and these are joined, as probes of feature
    maps do (Zhang et al., arXiv 1611.09842), for classes that differ in the position of things. From 1 to the patches on a
    side."""
    linear_probe: bool = False
    """Stem and backbone are frozen, without dropout; features are normalised by a BatchNorm without weights of its own
    (MAE, arXiv 2111.06377, A.1); a linear map of them is trained."""
    layers: Sequence[int] | None = None
    """Linear probe: the layers (from 0) whose pooled outputs are joined to the features, before any final norm; null: the
    encoder's output. BEiT and iGPT probe a layer in the middle."""
    cache_features: bool = False
    """Linear probe: the features of the training images are computed once and kept in memory, for data without
    augmentation."""
    label_smoothing: Annotated[float, Ge(0), Lt(1)] = 0.0
    """In training alone."""
    mixup: Annotated[float, Ge(0)] = 0.0
    """Both parameters of mixup's Beta distribution (arXiv 1710.09412); 0: off."""
    cutmix: Annotated[float, Ge(0)] = 0.0
    """The same of cutmix (arXiv 1905.04899). Where both are on, each batch has one of the two at random."""
    head_std: Annotated[float, Ge(0)] = 0.01
    """Standard deviation of the head's first weights. BEiT and MAE fine-tune from 2e-5: a head whose outputs are
    almost equal at first keeps the gradients of the encoder small. For a probe it does not matter."""
    head_dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    """On the pooled vector."""

    def __post_init__(self) -> None:
        if not self.linear_probe and (self.layers is not None or self.cache_features):
            raise ConfigError(
                "task.layers and task.cache_features are for probes: set task.linear_probe=true."
            )
        if self.cache_features and (self.mixup or self.cutmix):
            raise ConfigError(
                "task.cache_features=true keeps the features of whole images, which task.mixup and task.cutmix change: "
                "set both to 0."
            )


class ClassificationHead(nn.Module):
    """Features (B, width) -> fp32 logits (B, classes)."""

    def __init__(
        self, config: BackboneConfig, options: ImageClassificationOptions, width: int, classes: int
    ) -> None:
        super().__init__()
        self.dropout = options.head_dropout
        self.norm: nn.Module | None = None
        if options.linear_probe:
            self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        elif not config.normed_output:
            self.norm = build_norm(config, width)
        self.linear = Linear(width, classes, roles=("head",))
        nn.init.normal_(self.linear.weight, std=options.head_std)

    def forward(self, features: Tensor) -> Tensor:
        features = features.float()
        if self.norm is not None:
            features = self.norm(features)
        logits: Tensor = self.linear(F.dropout(features, self.dropout, self.training))
        return logits.float()


class ImageClassification(ImageTask):
    """Cross-entropy over `info["labels"]`. Batches are those of `magneto.data.image.module`; masks in them are
    ignored.

    Images without a class (label -1) do not count. Where a batch names `classes`, the answer is one of these: sets such
    as ImageNet-R have only some of a model's classes.
    """

    name = "image_classification"
    example_input = "input=image.png"
    monitor, mode = "val/top1", "max"
    Options = ImageClassificationOptions
    PredictOptions = ImageClassificationPredictOptions
    requires: ClassVar = {"architecture": "encoder", "multiway": "none"}
    options: ImageClassificationOptions

    @classmethod
    def prepare(cls, config: Mapping[str, Any], data: DataModule) -> dict[str, Any]:
        """Check that kept features are of unchanging images, and the batch size of a probe; add no option."""
        assert isinstance(data, ImageDataModule)
        if config["task"].get("linear_probe") and data.config.batch_size < 4:
            raise ConfigError(
                f"data.batch_size={data.config.batch_size}: a linear probe normalises its features over the batch, and the "
                "last of an epoch may be half as large. Take 4 or more."
            )
        if config["task"].get("cache_features") and data.config.augment is not None:
            raise ConfigError(
                "task.cache_features=true needs images that are the same in each epoch: set data.augment=null, or "
                "cache_features=false."
            )
        return {}

    def build(self) -> None:
        require_patches(self.name, self.info)
        self.labels: list[str] = self.info.labels
        if len(self.labels) < 2:
            raise ConfigError(
                f"task={self.name} needs images of two classes at least, and the data has {len(self.labels)}: choose "
                "data with classes, such as data=image_folder with a folder for each."
            )
        self.build_encoder()
        self.layers = self._layers()
        self.pool = PatchPooling(self.options.pooling, self.stem.grid, self.options.pool_grid)
        width = self.config.d_model * self.pool.parts * max(1, len(self.layers))
        self.head = ClassificationHead(self.config, self.options, width, len(self.labels))
        if self.options.linear_probe:
            for part in (self.stem, self.backbone):
                part.requires_grad_(False).eval()
        self._mix = self._mixing()
        self._kept: tuple[Tensor, Tensor] | None = None
        self._scores = self.scores["classes"] = ClassScores(self.labels)

    def _layers(self) -> tuple[int, ...]:
        """The layers that the features come from; empty: the encoder's output."""
        layers = tuple(self.options.layers or ())
        known = range(self.config.num_layers)
        if self.options.layers is not None and (not layers or not set(layers) <= set(known)):
            raise ConfigError(
                f"task.layers={list(layers)}: name layers from 0 to {known[-1]}, or null for the encoder's output."
            )
        return layers

    def _mixing(self) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
        """Return what mixes the images of a batch and their targets; it uses torch's generator, which is seeded step by
        step (`callbacks.StepSeed`), so that a resumed run mixes alike.
        """
        if not (self.options.mixup or self.options.cutmix):
            return None
        from torchvision.transforms import v2

        kinds = []
        if self.options.mixup:
            kinds.append(v2.MixUp(alpha=self.options.mixup))
        if self.options.cutmix:
            kinds.append(v2.CutMix(alpha=self.options.cutmix))
        return v2.RandomChoice(kinds)

    def train(self, mode: bool = True) -> "ImageClassification":
        """Set the mode; the frozen part of a linear probe stays in evaluation mode."""
        super().train(mode)
        if self.options.linear_probe:
            self.stem.eval()
            self.backbone.eval()
        return self

    def on_fit_start(self) -> None:
        """Compute the features of the training images, in their order, so that a resumed run has the same bits."""
        if not self.options.cache_features:
            return
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, ImageDataModule)
        images = data.train_set
        assert isinstance(images, ImageDataset)
        width = self.head.linear.in_features
        log.info("probe: features of %d training images, %.1f GB", len(images), len(images) * width * 4e-9)
        kept = torch.empty(len(images), width, device=self.device)
        training = self.training
        self.eval()
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            for start in range(0, len(images), FEATURE_BATCH):
                end = min(start + FEATURE_BATCH, len(images))
                batch = images.__getitems__([(0, index) for index in range(start, end)])
                kept[start:end] = self.features(batch["image"].to(self.device))
        self.train(training)
        self._kept = torch.from_numpy(images.rows).to(self.device), kept

    def features(self, images: Tensor) -> Tensor:
        """(B, C, S, S) -> what the head reads of each image, (B, width)."""
        x = self.stem(images)
        outputs = self.backbone(x, return_layers=self.layers)[1] if self.layers else [self.backbone(x)]
        return torch.cat([self.pool(out) for out in outputs], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, S, S) -> fp32 logits (B, classes)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.options.linear_probe):
            features = self.features(images)
        return self.head(features)

    def step(self, batch: Batch) -> StepOutput:
        """Loss summed over the images that have a class; of training it is against mixed and smoothed targets."""
        images, labels = batch["image"], batch["label"]
        known = labels >= 0
        targets = F.one_hot(labels.clamp(min=0), len(self.labels)).float() * known[:, None]
        if self.training:
            if self._mix is not None:
                images, targets = self._mix(images, targets)
            # Towards the mean, which is 0 for an image without a class.
            targets = torch.lerp(targets, targets.mean(1, keepdim=True), self.options.label_smoothing)
        if self.training and self._kept is not None:
            rows, features = self._kept
            logits = self.head(features[torch.searchsorted(rows, batch["id"])])
        else:
            logits = self(images)
        if "classes" in batch:
            logits = among(logits, batch["classes"])
        loss = F.cross_entropy(logits, targets, reduction="sum")
        return StepOutput(loss, known.sum().float(), outputs=logits.detach())

    def evaluate(self, batch: Batch, output: StepOutput) -> None:
        self._scores.update(output.outputs, batch["label"])

    def samples(self, batch: Batch, output: StepOutput, evaluated: None) -> list[Sample]:
        """Return a few images of each batch, with label and answer: over all batches about `num_samples`."""
        rows = len(batch["id"])
        batches = max(1, self.info.examples["val"] // rows)
        chosen = range(0, rows, max(1, rows // ceil(self.num_samples / batches)))
        index = torch.tensor(chosen, device=batch["id"].device)
        pixels = self.info.pixels(batch["image"][index]).cpu()
        answers = top_answers(output.outputs[index].softmax(-1), self.labels, 1, "label")
        columns = (batch["id"][index].tolist(), batch["label"][index].tolist(), pixels, answers)
        return [
            {
                "id": f"{id:08d}",
                "kind": "classified",
                "reference": self.labels[label] if label >= 0 else "",
                "predicted": answer[0]["label"],
                "probability": answer[0]["probability"],
                "image": tile(image),
            }
            for id, label, image, answer in zip(*columns, strict=True)
        ]

    def overview(self) -> list[Sample]:
        """Return the confusion matrix as an image."""
        if self._scores.confusion is None:
            return []
        image = draw_confusion(self._scores.confusion, self.labels)
        return [{"id": "confusion", "kind": "confusion matrix", "image": image}]

    def flops(self, batch: Batch) -> float:
        """Stem, encoder and head, forward and backward; of a probe's stem and encoder the forward pass alone, if any."""
        body = self.encoder_flops()
        if self.options.linear_probe:
            body = 0.0 if self._kept is not None else body / 3
        return float(len(batch["id"]) * (body + 6 * self.head.linear.weight.numel()))

    def predictions(
        self, inputs: PredictInput, options: ImageClassificationPredictOptions
    ) -> Iterator[dict[str, Any]]:
        return classify_images(self, inputs, options)


def among(logits: Tensor, classes: Tensor) -> Tensor:
    """(B, classes) logits of which only those of `classes` (K,) int64 can win; the others have no probability."""
    allowed = torch.zeros(logits.size(1), dtype=torch.bool, device=logits.device)
    allowed[classes] = True
    # A finite number: times a target of 0 it is 0, as -inf would not be.
    return logits.masked_fill(~allowed, torch.finfo(logits.dtype).min / 2)
