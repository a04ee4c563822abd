"""UperNet on the features of a plain vision Transformer: four layers of one resolution -> classes of pixels.

    four layers (B, d_model, g, g) --rescale--> 4 g, 2 g, g, g / 2 --UperHead--> logits at 4 g
    the third --FCNHead--> logits at g, for the auxiliary loss

The decoder is Xiao et al., "Unified perceptual parsing for scene understanding" (arXiv 1807.10221): a pyramid of poolings of
the coarsest map, then a feature pyramid network. The maps of other resolutions are made as in BEiT's fine-tuning on ADE20k
(arXiv 2106.08254, A.2). Norms are over the channels of each pixel, as in ViTDet's pyramid (arXiv 2203.16527), and not over
the batch: they are the same in evaluation, for one process and for many, and for a batch in parts.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

POOLED = (1, 2, 3, 6)
"""Bins on a side of the pyramid of poolings."""
RESCALED = 4
"""Layers, and maps that are made of them."""


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each pixel: (B, C, H, W) -> the same."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class ConvNormAct(nn.Sequential):
    """Convolution that keeps the size, norm, ReLU: (B, inputs, H, W) -> (B, outputs, H, W)."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
            ChannelNorm(outputs),
            nn.ReLU(),
        )


class Rescale(nn.ModuleList):
    """Feature maps of four resolutions from four of one: transposed convolutions upwards, max pooling downwards.

    Shape:
        Input: four times (B, d_model, g, g). Output: (B, d_model, 4 g, 4 g), 2 g, g, and ceil(g / 2).
    """

    def __init__(self, d_model: int) -> None:
        def doubled() -> nn.Module:
            return nn.ConvTranspose2d(d_model, d_model, 2, stride=2)

        super().__init__(
            [
                nn.Sequential(doubled(), ChannelNorm(d_model), nn.GELU(), doubled()),
                doubled(),
                nn.Identity(),
                nn.MaxPool2d(2, ceil_mode=True),
            ]
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        return [step(x) for step, x in zip(self, features, strict=True)]


class UperHead(nn.Module):
    """Decoder: pooling pyramid of the coarsest map, feature pyramid network, fusion of all of its levels.

    Args:
        d_model: channels of each map.
        width: channels inside.
        classes: of a pixel.
        dropout: share of the channels that are dropped before the classifier.

    Shape:
        Input: four maps, from the finest to the coarsest. Output: (B, classes, H, W), of the size of the finest.
    """

    def __init__(self, d_model: int, width: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.pooled = nn.ModuleList(ConvNormAct(d_model, width, 1) for _ in POOLED)
        self.bottleneck = ConvNormAct(d_model + len(POOLED) * width, width, 3)
        self.laterals = nn.ModuleList(ConvNormAct(d_model, width, 1) for _ in range(RESCALED - 1))
        self.smooth = nn.ModuleList(ConvNormAct(width, width, 3) for _ in range(RESCALED - 1))
        self.fuse = ConvNormAct(RESCALED * width, width, 3)
        self.classifier = Classifier(width, classes, dropout)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        *finer, coarsest = maps
        levels = [self.pyramid(coarsest)]  # (B, width, H / 8, W / 8)
        for lateral, x in zip(reversed(self.laterals), reversed(finer), strict=True):
            levels.insert(0, lateral(x) + resized(levels[0], x))  # top-down: (B, width, ...) of x's size
        levels[:-1] = [smooth(x) for smooth, x in zip(self.smooth, levels[:-1], strict=True)]
        fused = self.fuse(torch.cat([resized(x, levels[0]) for x in levels], dim=1))  # (B, width, H, W)
        logits: Tensor = self.classifier(fused)
        return logits

    def pyramid(self, x: Tensor) -> Tensor:
        """Return what a pixel and the surroundings of all scales hold: (B, d_model, h, w) -> (B, width, h, w)."""
        scales = [
            resized(step(F.adaptive_avg_pool2d(x, bins)), x)
            for step, bins in zip(self.pooled, POOLED, strict=True)
        ]
        whole: Tensor = self.bottleneck(torch.cat([x, *scales], dim=1))
        return whole


class FCNHead(nn.Sequential):
    """A convolution and a classifier, for an auxiliary loss: (B, d_model, g, g) -> (B, classes, g, g)."""

    def __init__(self, d_model: int, width: int, classes: int, dropout: float) -> None:
        super().__init__(ConvNormAct(d_model, width, 3), Classifier(width, classes, dropout))


class Classifier(nn.Sequential):
    """Classes of pixels from features: whole channels are dropped, and a linear map starts near zero."""

    def __init__(self, width: int, classes: int, dropout: float) -> None:
        linear = nn.Conv2d(width, classes, 1)
        super().__init__(nn.Dropout2d(dropout), linear)
        nn.init.normal_(linear.weight, std=0.01)
        nn.init.zeros_(linear.bias)  # type: ignore[arg-type]


def resized(x: Tensor, like: Tensor) -> Tensor:
    """Interpolate (B, C, h, w) linearly to the height and width of another map."""
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)
