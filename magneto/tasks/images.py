"""What the tasks with images share: patches, and the pairs of an image and a text."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from magneto.data.image.dataset import ImageInfo
from magneto.data.image.module import ImageDataModule
from magneto.data.module import DataModule
from magneto.data.tokenizers.text import TextTokenizer
from magneto.errors import ConfigError
from magneto.nn import PatchStem, TokenStem, VisionLanguageStem, build_backbone, training_flops_per_token
from magneto.tasks.base import Task
from magneto.training.module import Batch

TABLES = ("learned", "sinusoidal", "rotary")
"""Positions that have a table of limited length."""


def require_patches(task: str, info: ImageInfo) -> None:
    """Raise `ConfigError` unless the data says how large a patch is."""
    if info.patch_size is None:
        raise ConfigError(
            f"data.patch_size is missing: task={task} reads an image in patches, such as patch_size=4 of 28 pixels or "
            "patch_size=16 of 224."
        )


class ImageTask(Task):
    """A task of images that are read in patches."""

    Data: ClassVar[type[DataModule]] = ImageDataModule
    reads = "file"
    stem: PatchStem

    @classmethod
    def shape_from(cls, backbone: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields that follow from the patches of an image.

        That is `grid` for positions of two dimensions, else the rows of a table, one for each patch and one for [CLS].
        """
        if not info["patch_size"]:
            return {}
        grid = info["image_size"] // info["patch_size"]
        if backbone.get("position") == "relative_2d":
            return {"grid": grid}
        return {"max_positions": 1 + grid**2} if backbone.get("position") in TABLES else {}

    def build_encoder(self, mask_token: bool = False) -> None:
        """Make the stem and the backbone."""
        require_patches(self.name, self.info)
        self.stem = patch_stem(self, mask_token)
        self.backbone = build_backbone(self.config)

    def throughput_counts(self, batch: Batch) -> dict[str, float]:
        """Images and the tokens that the encoder reads."""
        rows = len(batch["id"])
        return {"examples": float(rows), "tokens": float(rows * self.stem.num_tokens)}

    def encoder_flops(self) -> float:
        """Stem and encoder of one image, forward and backward."""
        length = self.stem.num_tokens
        per_token = training_flops_per_token(self.config, length) + self.stem.training_flops_per_token()
        return length * per_token


class PairTask(Task):
    """A task of pairs of an image and a text in one encoder, whose batches hold `image`, `tokens` and `mask`."""

    requires: ClassVar = {"architecture": "encoder", "position": "none"}
    reads = "file"

    def build_encoder(self, mask_token: bool = False) -> None:
        """Make the tokenizer, the stem and the backbone."""
        most = self.info.max_tokens
        remedy = f"set data.max_tokens to {self.config.max_positions} or less"
        self.require_positions(most, f"data.max_tokens={most}", remedy, table=True)
        require_patches(self.name, self.info)
        self.tokenizer = TextTokenizer.from_json(self.info.tokenizer)
        vision, text = patch_stem(self, mask_token), TokenStem(self.info.vocab_size, self.config)
        self.stem = VisionLanguageStem(vision, text, self.config)
        self.backbone = build_backbone(self.config)

    def encode(
        self,
        images: Tensor | None = None,
        tokens: Tensor | None = None,
        mask: Tensor | None = None,
        masked: Tensor | None = None,
    ) -> tuple[Tensor, int]:
        """Images (B, C, S, S), texts (B, T) with their mask, or pairs -> (B, T', d_model), and how many are vision."""
        x, num_vision_tokens = self.stem(images, tokens, masked)
        if images is not None:
            mask = None if mask is None else F.pad(mask, (num_vision_tokens, 0), value=True)
        count = None if self.config.multiway == "none" else num_vision_tokens
        hidden: Tensor = self.backbone(x, mask, num_vision_tokens=count)
        return hidden, num_vision_tokens


def patch_stem(task: Task, mask_token: bool) -> PatchStem:
    """Return the stem of the images of a task."""
    info = task.info
    return PatchStem(
        info.image_size,
        info.patch_size,
        info.channels,
        task.config.d_model,
        mask_token=mask_token,
        convolutional=task.config.image_stem == "convolutional",
    )
