"""Positions: the order of the tokens as input of a stack, of its queries and keys, or of its attention scores.

Learned, sinusoidal and convolutional positions are added to the input of the stack; rotary positions turn
queries and keys; relative positions are added to the attention scores. Positions count real tokens, so that padding on
the left of a prompt changes nothing.
"""

from math import ceil, floor, log, pi

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from magneto.errors import ConfigError
from magneto.nn.config import BackboneConfig


def check_length(position: str, end: int, limit: int) -> None:
    """Raise ConfigError if a sequence of `end` tokens is longer than the `limit` rows of the table named `position`."""
    if end > limit:
        raise ConfigError(
            f"a sequence of {end} tokens is longer than max_positions={limit}, the limit of {position}. "
            "Set max_positions to a larger value, or shorten the sequences."
        )


class AbsolutePosition(nn.Module):
    """Module that adds row p of `table` (max_positions, d_model) to token p."""

    name: str
    table: Tensor

    def forward(self, x: Tensor, start: int, seen: Tensor | None, documents: Tensor | None = None) -> Tensor:
        """Add positions to x.

        Args:
            x: (B, T, d_model), the tokens from `start` on.
            start: number of tokens before them.
            seen: (B, start + T) bool, True = real token; None if all are real.
            documents: (B, T) int64, number of each token's document, in which positions begin anew; None: there is one.
        """
        end = start + x.size(1)
        if documents is not None:
            slots = torch.arange(end, device=x.device).expand_as(documents)
            begins = documents != F.pad(documents, (1, 0), value=-1)[:, :-1]
            index = slots - torch.where(begins, slots, 0).cummax(1).values
            return x + F.embedding(index.clamp(max=len(self.table) - 1), self.table)
        check_length(f"position={self.name}", end, len(self.table))
        if seen is None:
            return x + self.table[start:end]
        index = (seen.cumsum(1) - 1).clamp(min=0)[:, start:]
        return x + F.embedding(index, self.table)


class LearnedPosition(AbsolutePosition):
    """Trained vector for each position, initialised with standard deviation d_model ** -0.5.

    The token embeddings have unit variance: positions start as a small part of the input, as in fairseq and ViT.
    """

    name = "learned"

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(config.max_positions, config.d_model))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.table, std=self.table.size(1) ** -0.5)


class SinusoidalPosition(AbsolutePosition):
    """Sines in half of the channels, cosines in the others (Vaswani et al., arXiv 1706.03762, 3.5)."""

    name = "sinusoidal"

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        angles = torch.arange(config.max_positions)[:, None] * _frequencies(config.d_model)
        self.register_buffer("table", torch.cat((angles.sin(), angles.cos()), dim=-1), persistent=False)


class Rotary(nn.Module):
    """Rotary positions (Su et al., arXiv 2104.09864): cosines and sines that turn queries and keys.

    With `rotary_scaling=linear` positions are divided by the factor (arXiv 2306.15595). With `yarn` (arXiv 2309.00071,
    sections 3.2 to 3.4) only wavelengths that a training sequence did not hold once are, those of which it held 32 stay,
    between them there is a ramp; and queries and keys are scaled by 0.1 log(factor) + 1.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        frequencies, factor, scale = (
            _frequencies(config.head_dim, config.rotary_base),
            config.rotary_factor,
            1.0,
        )
        if config.rotary_scaling == "linear":
            frequencies = frequencies / factor
        elif config.rotary_scaling == "yarn":
            trained = config.max_positions / factor
            extended = _yarn_ramp(config.head_dim, config.rotary_base, trained)
            frequencies = frequencies * (1 - extended) + frequencies / factor * extended
            scale = 0.1 * log(factor) + 1
        angles = torch.arange(config.max_positions)[:, None] * frequencies
        self.register_buffer("cos", angles.cos() * scale, persistent=False)
        self.register_buffer("sin", angles.sin() * scale, persistent=False)

    def forward(self, start: int, length: int) -> tuple[Tensor, Tensor]:
        """Return two tables (length, 1, head_dim / 2) for the tokens from `start` on.

        They count slots, not real tokens: scores depend on differences, which padding on the left does not change.
        """
        end = start + length
        check_length("position=rotary", end, len(self.cos))
        return self.cos[start:end, None], self.sin[start:end, None]

    def at(self, slot: Tensor) -> tuple[Tensor, Tensor]:
        """Return two tables (T, 1, head_dim / 2) for the tokens at `slot` (T,)."""
        return self.cos[slot, None], self.sin[slot, None]


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Turn channel pairs (i, i + head_dim / 2) of x (B, T, heads, head_dim), in the tables' dtype."""
    cos, sin = rotary
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def _frequencies(width: int, base: float = 10_000.0) -> Tensor:
    """Return (width / 2,) frequencies, in radians a position, that fall from 1 to 1 / base."""
    return torch.exp(torch.arange(0, width, 2) * (-log(base) / width))


def _yarn_ramp(width: int, base: float, trained: float) -> Tensor:
    """Return (width / 2,): 0 for frequencies of 32 turns or more in `trained` positions, 1 for those of less than one."""

    def channel(turns: float) -> float:
        return width * log(trained / (turns * 2 * pi)) / (2 * log(base))

    first, last = max(floor(channel(32)), 0), min(ceil(channel(1)), width - 1)
    return ((torch.arange(width // 2) - first) / max(last - first, 1e-3)).clamp(0, 1)


class RelativeBias(nn.Module):
    """T5's bucketed relative positions (Raffel et al., arXiv 1910.10683, 2.1), one table for all layers.

    A bucket for each small distance, then buckets that widen logarithmically up to `relative_max_distance`. A
    bidirectional stack spends half of the buckets on either direction, a causal one all of them on the past.
    The table starts at zero, so that attention starts without a preference.
    """

    def __init__(self, config: BackboneConfig, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.max_distance = config.relative_max_distance
        self.table = nn.Parameter(torch.zeros(config.relative_buckets, config.num_heads))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.table)

    def forward(self, start: int, length: int) -> Tensor:
        """Return (1, heads, length, start + length): what is added to the score of query slot start + i and key slot j."""
        total = start + length
        # A score depends on the distance only: look up each distance once, then slide a window over them.
        distance = torch.arange(1 - total, length, device=self.table.device)  # key - query
        return self.at(distance).unfold(1, total, 1).flip(1)[None]

    def at(self, distance: Tensor) -> Tensor:
        """Return (heads, N): what is added to the score at each distance (N,), key slot minus query slot."""
        return F.embedding(self.buckets(distance), self.table).T

    def buckets(self, distance: Tensor) -> Tensor:
        """Return the bucket of each distance (key slot minus query slot), int64 of the same shape."""
        count = len(self.table)
        offset: Tensor | int = 0
        if self.causal:
            distance = (-distance).clamp(min=0)
        else:
            count //= 2
            offset = (distance > 0) * count
            distance = distance.abs()
        near = count // 2
        steps = torch.log(distance.clamp(min=1) / near) / log(self.max_distance / near)
        far = (near + (steps * (count - near)).long()).clamp(max=count - 1)
        return offset + torch.where(distance < near, distance, far)


class RelativeGridBias(nn.Module):
    """BEiT's relative positions of patches (Bao et al., arXiv 2106.08254, section 2), one table for all layers.

    The table has an entry for each displacement (rows, columns) between two patches, and three for [CLS]. It starts at
    zero. BEiT pre-trains with one table, as here, and starts fine-tuning with a copy of it in each layer.
    """

    index: Tensor

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        assert config.grid is not None
        self.grid = config.grid
        self.table = nn.Parameter(torch.zeros((2 * self.grid - 1) ** 2 + 3, config.num_heads))
        self.register_buffer("index", self._index(), persistent=False)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.table)

    def forward(self, start: int, length: int) -> Tensor:
        """Return (1, heads, length, length): what is added to the score of query token i and key token j; token 0 is [CLS].

        Raises:
            ConfigError: `length` is not that of a [CLS] token and grid x grid patches.
        """
        assert start == 0
        if length != len(self.index):
            raise ConfigError(
                f"position=relative_2d with grid={self.grid} is for {len(self.index)} tokens, [CLS] and {self.grid} x "
                f"{self.grid} patches, not for {length}. Set grid to image_size / patch_size and keep [CLS]."
            )
        return F.embedding(self.index, self.table).permute(2, 0, 1).contiguous()[None]

    def _index(self) -> Tensor:
        """Return (1 + grid ** 2, 1 + grid ** 2) int64: the row of the table for each query and key, in BEiT's order."""
        side, reach = self.grid, 2 * self.grid - 1
        patches = torch.cartesian_prod(torch.arange(side), torch.arange(side))
        rows, columns = (patches[:, None] - patches[None] + side - 1).unbind(-1)  # query - key, from 0 on
        index = torch.empty(1 + side**2, 1 + side**2, dtype=torch.int64)
        index[1:, 1:] = rows * reach + columns
        index[0, :], index[:, 0], index[0, 0] = reach**2, reach**2 + 1, reach**2 + 2
        return index


class ConvolutionalPosition(nn.Module):
    """Module that adds gelu(convolution over time) to the input (wav2vec 2.0, arXiv 2006.11477, section 2).

    The convolution is depthwise, which costs a small part of a layer on a CPU. Padding is set to zero first, so that it
    changes no real frame. A causal stack sees the past only, and keeps the last kernel - 1 inputs in its cache.
    """

    def __init__(self, config: BackboneConfig, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        kernel, width = config.conv_position_kernel, config.d_model
        self.reach = kernel - 1
        self.conv = nn.Conv1d(width, width, kernel, groups=width, bias=config.bias)

    def forward(self, x: Tensor, mask: Tensor | None, tail: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Add positions to x.

        Args:
            x: (B, T, d_model).
            mask: (B, T) bool, True = real; None if all are real.
            tail: (B, d_model, kernel - 1), the inputs just before x, if there were earlier steps of a causal stack.

        Returns:
            x with its positions, (B, T, d_model), and the tail for the next step.
        """
        frames = (x if mask is None else x * mask[..., None]).transpose(1, 2)  # (B, d_model, T)
        if tail is None:
            past = self.reach if self.causal else self.reach // 2
            frames = F.pad(frames, (past, self.reach - past))
        else:
            frames = torch.cat((tail, frames), dim=2)
        return x + F.gelu(self.conv(frames)).transpose(1, 2), frames[:, :, frames.size(2) - self.reach :]
