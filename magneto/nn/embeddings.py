"""Stems: modules that turn tokens, images and speech into the (B, T, d_model) input of a stack.

The stack adds the positions. Only the stem of two modalities adds its own, since both count from 0.
"""

from itertools import pairwise
from math import sqrt
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magneto.errors import ConfigError
from magneto.nn.config import BackboneConfig
from magneto.nn.init import Linear
from magneto.nn.positions import check_length

N = TypeVar("N", int, Tensor)


class TokenStem(nn.Module):
    """Embeddings of tokens.

    The table is initialised with standard deviation d_model ** -0.5 and its rows are multiplied by sqrt(d_model)
    (Vaswani et al., arXiv 1706.03762, 3.4): they have unit variance, as the output of a layer, and the same table as an
    output layer (`logits`) gives logits of unit variance.

    Args:
        vocab_size: number of tokens.
        config: `d_model`, and in `embedding_scale` whether there is the factor sqrt(d_model).
        padding_id: token whose embedding stays zero.

    Shape:
        Input: (B, T) int64. Output: (B, T, d_model).
    """

    def __init__(self, vocab_size: int, config: BackboneConfig, *, padding_id: int | None = None) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, config.d_model, padding_idx=padding_id)
        self.scale = sqrt(config.d_model) if config.embedding_scale else 1.0
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.embedding.weight, std=self.embedding.embedding_dim**-0.5)
        if self.embedding.padding_idx is not None:
            with torch.no_grad():
                self.embedding.weight[self.embedding.padding_idx].zero_()

    def forward(self, tokens: Tensor) -> Tensor:
        x: Tensor = self.embedding(tokens)  # (B, T, d_model)
        return x * self.scale if self.scale != 1.0 else x

    def logits(self, x: Tensor) -> Tensor:
        """Apply the embedding table as output layer: (..., d_model) -> (..., vocab_size)."""
        return F.linear(x, self.embedding.weight)


class PatchStem(nn.Module):
    """Linear map of the square patches of an image, or convolutions over it, with a [CLS] token before the patches.

    With `mask_token` patches can be masked: a learned vector replaces them (BEiT, arXiv 2106.08254, 2.3).

    With `convolutional` the image is halved by 3 x 3 convolutions of stride 2, each with LayerNorm and GELU, until a
    patch is a pixel, which is mapped linearly (Xiao et al., "Early convolutions help transformers see better", arXiv
    2106.14881; they take BatchNorm and ReLU, and we a norm that neither mixes examples nor differs in evaluation). The
    width doubles with each up to `d_model`. Neighbours see each other there, so masked patches are blanked before it.

    Args:
        image_size: side of the (square) image in pixels.
        patch_size: side of a patch in pixels; must divide `image_size`.
        channels: 1 for grey, 3 for colour.
        d_model: width of the stack.
        class_token: whether token 0 is a learned [CLS] token.
        mask_token: whether there is a vector for masked patches.
        convolutional: whether there are convolutions.

    Raises:
        ConfigError: `patch_size` does not divide `image_size`, or is no power of two and the stem is convolutional.

    Shape:
        Input: (B, channels, image_size, image_size). Output: (B, num_tokens, d_model), where num_tokens is
        (image_size / patch_size) ** 2 patches in rows, and 1 more with [CLS].
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        channels: int,
        d_model: int,
        *,
        class_token: bool = True,
        mask_token: bool = False,
        convolutional: bool = False,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ConfigError(
                f"image_size={image_size} does not divide by patch_size={patch_size}. "
                f"Set image_size={-(-image_size // patch_size) * patch_size} or another patch_size."
            )
        self.patch_size = patch_size
        self.grid = image_size // patch_size
        self.num_tokens = self.grid**2 + class_token
        halvings = patch_size.bit_length() - 1 if convolutional else 0
        if convolutional and (halvings == 0 or patch_size != 2**halvings):
            raise ConfigError(
                f"patch_size={patch_size}: backbone.image_stem=convolutional halves an image until a patch is a pixel. Set "
                "patch_size to 2, 4, 8 or 16, or image_stem to linear."
            )
        widths = [channels, *(max(1, d_model // 2**n) for n in reversed(range(halvings)))]
        # The border is mirrored: zeros there would be another colour to a model of another normalisation.
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1, padding_mode="reflect")
            for before, after in pairwise(widths)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths[1:])
        self.projection = Linear(
            d_model if convolutional else channels * patch_size**2, d_model, roles=("stem",)
        )
        self.class_token = nn.Parameter(torch.empty(d_model)) if class_token else None
        self.mask_token = nn.Parameter(torch.empty(d_model)) if mask_token else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise [CLS] and the vector of masked patches again; the projection does so itself."""
        for token in (self.class_token, self.mask_token):
            if token is not None:
                nn.init.normal_(token, std=token.numel() ** -0.5)

    def training_flops_per_token(self) -> float:
        """Return the model FLOPs of a forward and a backward pass per token: 6 for each product (`nn.flops`)."""
        sides = (self.grid * self.patch_size // 2 ** (n + 1) for n in range(len(self.convolutions)))
        convolutions = sum(
            side**2 * convolution.get_parameter("weight").numel()
            for side, convolution in zip(sides, self.convolutions, strict=True)
        )
        return 6.0 * (self.projection.weight.numel() + convolutions / self.num_tokens)

    def patches(self, images: Tensor, masked: Tensor | None) -> Tensor:
        """Return what is projected of each patch: (B, N, channels * patch_size ** 2), or (B, N, d_model)."""
        if not self.convolutions:
            return F.pixel_unshuffle(images, self.patch_size).flatten(2).transpose(1, 2)
        if masked is not None:
            hidden = masked.view(-1, 1, self.grid, self.grid)  # (B, 1, grid, grid)
            for dim in (2, 3):
                hidden = hidden.repeat_interleave(self.patch_size, dim)  # (B, 1, H, W)
            images = images.masked_fill(hidden, 0.0)
        x = images.contiguous(
            memory_format=torch.channels_last
        )  # half the time on a CPU, and norms need no copy
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.gelu(norm(convolution(x).movedim(1, -1))).movedim(-1, 1)  # (B, width, H / 2, W / 2) ...
        return x.flatten(2).transpose(1, 2)

    def forward(self, images: Tensor, masked: Tensor | None = None) -> Tensor:
        """Embed images (B, channels, H, W); `masked` (B, grid ** 2) bool, True = this patch is masked."""
        assert images.shape[2:] == (self.grid * self.patch_size,) * 2, images.shape
        patches = self.patches(images, masked)
        x: Tensor = self.projection(patches)  # (B, N, d_model)
        if masked is not None:
            assert self.mask_token is not None, "mask_token=True is needed to mask patches"
            x = torch.where(masked[..., None], self.mask_token.to(x.dtype), x)
        if self.class_token is None:
            return x
        first = self.class_token.to(x.dtype).expand(len(x), 1, -1)  # (B, 1, d_model)
        return torch.cat((first, x), dim=1)  # (B, 1 + N, d_model)


class VisionLanguageStem(nn.Module):
    """Images, texts, or pairs of them as the input of a multiway stack: patches first, then tokens.

    Each modality has learned positions of its own, from 0 on, alone and in a pair (as in BEiT-3), so the stack must have
    `position="none"`.

    Args:
        vision: stem of the images.
        text: stem of the texts.
        config: `d_model`, and in `max_positions` the longest text.
    """

    def __init__(self, vision: PatchStem, text: TokenStem, config: BackboneConfig) -> None:
        super().__init__()
        self.vision, self.text = vision, text
        self.vision_position = nn.Parameter(torch.empty(vision.num_tokens, config.d_model))
        self.text_position = nn.Parameter(torch.empty(config.max_positions, config.d_model))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the positions again, as small as those of `LearnedPosition`; the stems do so themselves."""
        for table in (self.vision_position, self.text_position):
            nn.init.normal_(table, std=table.size(1) ** -0.5)

    def forward(
        self, images: Tensor | None = None, tokens: Tensor | None = None, masked: Tensor | None = None
    ) -> tuple[Tensor, int]:
        """Embed a batch of images, texts or pairs.

        Args:
            images: (B, channels, H, W); None for texts.
            tokens: (B, L) int64; None for images.
            masked: (B, N) bool, True = this patch is masked.

        Returns:
            (B, T, d_model) and num_vision_tokens, the first tokens of the T that are vision: 0 for texts, T for images.
            The mask of pairs is that of the texts after as many True: `F.pad(mask, (num_vision_tokens, 0), value=True)`.

        Raises:
            ConfigError: a text is longer than `max_positions`.
        """
        assert images is not None or tokens is not None
        parts = []
        if images is not None:
            parts.append(self.vision(images, masked) + self.vision_position)  # (B, 1 + N, d_model)
        if tokens is not None:
            check_length("the positions of texts", tokens.size(1), len(self.text_position))
            parts.append(self.text(tokens) + self.text_position[: tokens.size(1)])  # (B, L, d_model)
        return torch.cat(parts, dim=1), 0 if images is None else parts[0].size(1)


class AudioStem(nn.Module):
    """Two convolutions over time, of kernel 5 and stride 2, each with GELU: 10 ms frames -> 40 ms.

    The mel bands are channels. Padded frames are set to zero before each convolution, which itself pads with zeros, so
    that an utterance has the same output alone and in a padded batch. The stem costs less than the 3 x 3 convolutions
    over time and frequency of the paper's recogniser (`VGGStem`), and CTC learns sooner to emit more than blanks.

    Args:
        feature_dim: width of a frame (mel bands).
        config: `d_model`, the width of both convolutions.

    Shape:
        Input: (B, T, feature_dim). Output: (B, ceil(ceil(T / 2) / 2), d_model).
    """

    def __init__(self, feature_dim: int, config: BackboneConfig) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(feature_dim, config.d_model, 5, stride=2, padding=2)
        self.conv2 = nn.Conv1d(config.d_model, config.d_model, 5, stride=2, padding=2)

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Return the number of frames after the stem, of the same shape and dtype as `lengths`."""
        return _halved(_halved(lengths))

    def training_flops_per_token(self) -> float:
        """Return the model FLOPs of a forward and a backward pass per frame of output: 6 for each weight (`nn.flops`)."""
        return 6.0 * (2 * self.conv1.weight.numel() + self.conv2.weight.numel())

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Embed the features of speech.

        Args:
            features: (B, T, feature_dim).
            lengths: (B,) number of real frames of each row; None if all are real.

        Returns:
            (B, T', d_model) and its mask (B, T') bool, True = real frame; None if `lengths` is.
        """
        x = features.transpose(1, 2)  # (B, feature_dim, T)
        mask: Tensor | None = None
        for conv in (self.conv1, self.conv2):
            if lengths is not None:
                x = x * _real(lengths, x.size(2))[:, None]
                lengths = _halved(lengths)
            x = F.gelu(conv(x))  # (B, d_model, ceil(T / 2)), then (B, d_model, T')
        if lengths is not None:
            mask = _real(lengths, x.size(2))
        return x.transpose(1, 2), mask


class VGGStem(nn.Module):
    """Two blocks of two 3 x 3 convolutions with ReLU and a 2 x 2 max pooling, then a linear map: 10 ms frames -> 40 ms.

    The paper's recogniser has a "VGG" front end (section 6); the widths, 64 and 128, are those of ESPnet's `vgg2l`, which is
    named after Simonyan and Zisserman, arXiv 1409.1556. Padded frames are set to zero before each convolution.

    Args:
        feature_dim: width of a frame (mel bands).
        config: `d_model`, the width of the output.

    Shape:
        Input: (B, T, feature_dim). Output: (B, ceil(ceil(T / 2) / 2), d_model).
    """

    widths = (64, 128)

    def __init__(self, feature_dim: int, config: BackboneConfig) -> None:
        super().__init__()
        first, second = self.widths
        self.feature_dim = feature_dim
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1)
            for before, after in pairwise((1, first, first, second, second))
        )
        self.projection = Linear(second * _halved(_halved(feature_dim)), config.d_model, roles=("stem",))

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Return the number of frames after the stem, of the same shape and dtype as `lengths`."""
        return _halved(_halved(lengths))

    def training_flops_per_token(self) -> float:
        """Return the model FLOPs of a forward and a backward pass per frame of output: 6 for each product (`nn.flops`)."""
        bands = self.feature_dim
        positions = (4 * bands, 4 * bands, 2 * _halved(bands), 2 * _halved(bands))
        products = sum(
            count * convolution.get_parameter("weight").numel()
            for count, convolution in zip(positions, self.convolutions, strict=True)
        )
        return 6.0 * (products + self.projection.weight.numel())

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Embed the features of speech: arguments and result are those of `AudioStem.forward`."""
        x = features[:, None]  # (B, 1, T, feature_dim)
        for index, convolution in enumerate(self.convolutions):
            if lengths is not None:
                x = x * _real(lengths, x.size(2))[:, None, :, None]
            x = F.relu(convolution(x))
            if index % 2:
                if lengths is not None:  # what is padded must not be the largest
                    x = x * _real(lengths, x.size(2))[:, None, :, None]
                    lengths = _halved(lengths)
                x = F.max_pool2d(x, 2, ceil_mode=True)
        mask = None if lengths is None else _real(lengths, x.size(2))
        hidden: Tensor = self.projection(x.transpose(1, 2).flatten(2))  # (B, T', d_model)
        return hidden, mask


def _halved(length: N) -> N:
    """Return the number of frames after a convolution or pooling of stride 2 that covers all: half, rounded up."""
    return (length + 1) // 2


def _real(lengths: Tensor, size: int) -> Tensor:
    """Return (B, size) bool: True for the first lengths[b] frames."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]
