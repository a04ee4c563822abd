"""Visual tokenizer: images as discrete codes, one for each patch, the targets of BEiT (arXiv 2106.08254).

There are two kinds, by what is decoded from the codes:

- pixels: an autoencoder of 3 x 3 convolutions over the grid of patches (van den Oord et al., arXiv 1711.00937, 4.1);
- features of a teacher (VQ-KD, BEiT v2, arXiv 2208.06366, 2.2): a Transformer encodes, a shallow one predicts the
  teacher's features of each patch.

Shapes: B images (B, channels, image_size, image_size), normalised; N = (image_size / patch_size) ** 2 patches in rows,
the grid of `PatchStem`; [CLS] has no code.
"""

from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor, nn

from magneto.config.validate import check_types, from_mapping
from magneto.errors import ConfigError
from magneto.nn.config import BackboneConfig, Count, Probability
from magneto.nn.embeddings import PatchStem
from magneto.nn.init import Linear
from magneto.nn.transformer import Encoder
from magneto.nn.vision.renormalise import Renormalisation
from magneto.nn.vision.vector_quantizer import Quantized, VectorQuantizer


@dataclass(frozen=True, kw_only=True)
class VisualTokenizerConfig:
    """Description of a visual tokenizer in plain values.

    All arguments are keywords and have a default.

    Raises:
        ConfigError: a value that is not allowed, or that contradicts another one.
    """

    image_size: Count = 28
    """Side of the (square) image in pixels."""
    patch_size: Count = 4
    """Side of a patch in pixels; must divide `image_size`."""
    channels: Count = 1
    """1 for grey, 3 for colour."""
    codes: Annotated[int, Ge(2)] = 512
    """Size of the codebook; BEiT and BEiT v2 have 8192."""
    code_width: Count = 32
    """Channels of a code, fewer than those of the encoder; 32 in BEiT v2."""
    width: Count = 64
    """Channels of the convolutions, for pixels."""
    blocks: Annotated[int, Ge(0)] = 2
    """Residual blocks of the encoder and of the decoder, for pixels."""
    decay: Probability = 0.99
    """See `VectorQuantizer`, as for the next two."""
    normalize: bool = True
    revive_below: Probability = 0.05
    teacher_width: int | None = None
    """Width of the teacher's features, for VQ-KD; None: the codes are decoded to pixels."""
    backbone: BackboneConfig | None = None
    """Encoder of VQ-KD; its decoder has the same width."""
    decoder_layers: Count = 1
    """Depth of the decoder of VQ-KD: a shallow one needs more information in the codes."""

    def __post_init__(self) -> None:
        check_types(
            VisualTokenizerConfig, {key: value for key, value in vars(self).items() if key != "backbone"}
        )
        if self.image_size % self.patch_size:
            raise ConfigError(
                f"image_size={self.image_size} does not divide by patch_size={self.patch_size}. Set patch_size to a divisor."
            )
        if (self.teacher_width is None) != (self.backbone is None):
            raise ConfigError(
                "teacher_width and backbone go together. Set both for VQ-KD, which learns the features of a teacher, "
                "or neither for a tokenizer of pixels."
            )
        if self.backbone is not None and (
            self.backbone.architecture != "encoder" or self.backbone.multiway != "none"
        ):
            raise ConfigError(
                "the backbone of VQ-KD must be an encoder of images only. Set architecture=encoder and multiway=none."
            )

    @property
    def grid(self) -> int:
        """Patches per side."""
        return self.image_size // self.patch_size

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "VisualTokenizerConfig":
        """Build a config from plain values by name. Raises `ConfigError` also for an unknown key, with the nearest one."""
        backbone = values.get("backbone")
        if isinstance(backbone, dict):
            values = {**values, "backbone": BackboneConfig.from_dict(backbone)}
        return from_mapping(cls, values, "visual_tokenizer")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, from which `from_dict` builds an equal config."""
        return asdict(self)


class VisualTokenizer(nn.Module):
    """Encoder, codebook and decoder of images.

    Args:
        config: description of the tokenizer.

    Shape:
        Input: (B, channels, image_size, image_size). Output: the same, or for VQ-KD (B, N, teacher_width); and `Quantized`.
    """

    def __init__(self, config: VisualTokenizerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder: ConvolutionalEncoder | TransformerEncoder
        self.decoder: ConvolutionalDecoder | TransformerDecoder
        if config.backbone is None:
            self.encoder, self.decoder = ConvolutionalEncoder(config), ConvolutionalDecoder(config)
        else:
            assert config.teacher_width is not None
            self.encoder = TransformerEncoder(config, config.backbone)
            self.decoder = TransformerDecoder(config, config.backbone, config.teacher_width)
        self.quantizer = VectorQuantizer(
            config.codes,
            config.code_width,
            decay=config.decay,
            normalize=config.normalize,
            revive_below=config.revive_below,
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Quantized]:
        """Return what is decoded from the codes of images, and the codes; in training mode the codebook learns."""
        quantized = self.quantizer(self.encode(images))  # vectors: (B, N, code_width)
        output: Tensor = self.decoder(quantized.vectors)  # images, or (B, N, teacher_width)
        return output, quantized

    def encode(self, images: Tensor) -> Tensor:
        """Encode images to the vectors that are quantised, (B, N, code_width)."""
        return self.encoder(images)

    def codes(self, images: Tensor) -> Tensor:
        """Return the codes of images, (B, N) int64, and change no state, in training mode too."""
        with torch.no_grad():
            return self.quantizer.nearest(self.encode(images))

    def decode(self, codes: Tensor) -> Tensor:
        """Decode codes (B, N) int64 to images, or for VQ-KD to features (B, N, teacher_width)."""
        return self.decoder(self.quantizer.lookup(codes))

    @torch.no_grad()
    def renormalise(self, change: Renormalisation) -> None:
        """Change the weights for images of another normalisation: same codes of images, same images of codes."""
        encoder = self.encoder
        first = encoder.patches if isinstance(encoder, ConvolutionalEncoder) else encoder.stem.projection
        pairs: list[tuple[nn.Conv2d | nn.ConvTranspose2d | nn.Linear, Any]] = [(first, change.reads)]
        if isinstance(self.decoder, ConvolutionalDecoder):
            pairs.append((self.decoder.patches, change.writes))
        for layer, changed in pairs:
            assert layer.bias is not None
            weight, bias = changed(layer.weight, layer.bias)
            layer.weight.copy_(weight)
            layer.bias.copy_(bias)

    def reconstruction_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean squared error of a pixel, or for VQ-KD the mean of 1 - cosine of a patch's features.

        Args:
            output: result of `forward` or `decode`.
            target: images, or for VQ-KD the teacher's features (B, N, teacher_width).
        """
        if self.config.teacher_width is None:
            return F.mse_loss(output.float(), target.float())
        return 1 - F.cosine_similarity(output.float(), target.float(), dim=-1).mean()


class ResidualBlock(nn.Module):
    """x + conv1(relu(conv3(relu(x)))): (B, width, H, W) -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv3 = nn.Conv2d(width, width, 3, padding=1)
        self.conv1 = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv1(F.relu(self.conv3(F.relu(x))))


class ConvolutionalEncoder(nn.Module):
    """Images -> (B, N, code_width): one linear map for each patch, then convolutions over the grid."""

    def __init__(self, config: VisualTokenizerConfig) -> None:
        super().__init__()
        self.patches = nn.Conv2d(config.channels, config.width, config.patch_size, stride=config.patch_size)
        self.blocks = nn.Sequential(*(ResidualBlock(config.width) for _ in range(config.blocks)))
        self.head = nn.Conv2d(config.width, config.code_width, 1)

    def forward(self, images: Tensor) -> Tensor:
        x: Tensor = self.head(F.relu(self.blocks(self.patches(images))))
        return x.flatten(2).transpose(1, 2)


class ConvolutionalDecoder(nn.Module):
    """(B, N, code_width) -> images: the layers of the encoder in reverse order."""

    def __init__(self, config: VisualTokenizerConfig) -> None:
        super().__init__()
        self.grid = config.grid
        self.stem = nn.Conv2d(config.code_width, config.width, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(config.width) for _ in range(config.blocks)))
        self.patches = nn.ConvTranspose2d(
            config.width, config.channels, config.patch_size, stride=config.patch_size
        )

    def forward(self, vectors: Tensor) -> Tensor:
        x = vectors.transpose(1, 2).reshape(len(vectors), -1, self.grid, self.grid)
        return self.patches(F.relu(self.blocks(self.stem(x))))


class TransformerEncoder(nn.Module):
    """Images -> (B, N, code_width): patches, an `Encoder`, and two maps with a tanh between them, as in BEiT v2.

    There is a [CLS] token, so that all positions of the backbone are possible; its output is dropped.
    """

    def __init__(self, config: VisualTokenizerConfig, backbone: BackboneConfig) -> None:
        super().__init__()
        self.stem = PatchStem(config.image_size, config.patch_size, config.channels, backbone.d_model)
        self.backbone = Encoder(backbone)
        self.head = _head(backbone.d_model, config.code_width)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(self.stem(images))[:, 1:])


class TransformerDecoder(nn.Module):
    """(B, N, code_width) -> (B, N, teacher_width): a stack of `decoder_layers` like the encoder's, with a [CLS]."""

    def __init__(self, config: VisualTokenizerConfig, backbone: BackboneConfig, teacher_width: int) -> None:
        super().__init__()
        self.projection = Linear(config.code_width, backbone.d_model, roles=("stem",))
        self.class_token = nn.Parameter(torch.empty(backbone.d_model))
        self.backbone = Encoder(replace(backbone, num_layers=config.decoder_layers))
        self.head = _head(backbone.d_model, teacher_width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.class_token, std=self.class_token.numel() ** -0.5)

    def forward(self, vectors: Tensor) -> Tensor:
        x = self.projection(vectors)
        x = torch.cat((self.class_token.to(x.dtype).expand(len(x), 1, -1), x), dim=1)
        return self.head(self.backbone(x)[:, 1:])


def _head(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        Linear(width, width, roles=("head",)), nn.Tanh(), Linear(width, out, roles=("head",))
    )
