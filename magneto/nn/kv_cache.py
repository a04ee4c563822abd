"""The key-value caches of step-by-step decoding: one that grows, and one of fixed size for compiled steps."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class LayerCache:
    """Keys and values of one decoder layer: of its own tokens and, computed once, of the memory.

    `keys` and `values` have the shape (B, heads, capacity, head_dim), of which the first `length` slots are filled. The
    capacity doubles when it is full, so that a step does not copy the past.
    """

    length: int = 0
    keys: Tensor | None = None
    values: Tensor | None = None
    memory: tuple[Tensor, Tensor] | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append (B, heads, T, head_dim) and return all keys and values, (B, heads, length, head_dim)."""
        batch, heads, new, head_dim = keys.shape
        end = self.length + new
        if self.keys is None or self.values is None or end > self.keys.size(2):
            shape = (batch, heads, max(64, 2 * self.length, end), head_dim)
            grown = keys.new_empty(shape), values.new_empty(shape)
            if self.keys is not None and self.values is not None:
                grown[0][:, :, : self.length] = self.keys[:, :, : self.length]
                grown[1][:, :, : self.length] = self.values[:, :, : self.length]
            self.keys, self.values = grown
        self.keys[:, :, self.length : end] = keys
        self.values[:, :, self.length : end] = values
        self.length = end
        return self.filled()

    def filled(self) -> tuple[Tensor, Tensor]:
        """Return keys and values of the tokens so far, (B, heads, length, head_dim) each."""
        assert self.keys is not None and self.values is not None
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def reorder(self, index: Tensor, memory: bool) -> None:
        """Replace row i by the former row `index[i]`."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = (self._rows(t, index) for t in (self.keys, self.values))
        if memory and self.memory is not None:
            self.memory = self.memory[0][index], self.memory[1][index]

    def _rows(self, cached: Tensor, index: Tensor) -> Tensor:
        filled = cached[:, :, : self.length].index_select(0, index)
        if len(index) != len(cached):
            cached = cached.new_empty(len(index), *cached.shape[1:])
        cached[:, :, : self.length] = filled
        return cached


@dataclass
class KVCache:
    """State of a decoder between the steps of a generation.

    Create an empty one and pass it to every step. It is for inference only (`torch.inference_mode` or `torch.no_grad`):
    each step writes into it in place.

    Example:
        >>> cache = KVCache()
        >>> with torch.inference_mode():
        ...     out = decoder(prompt, cache=cache)  # (B, T, d_model)
        ...     out = decoder(next_token, cache=cache)  # (B, 1, d_model), which attends to the prompt too
    """

    length: int = 0
    """Number of tokens so far, padding included."""
    mask: Tensor | None = None
    """(B, length) bool, True = real token; None while every token was real."""
    tail: Tensor | None = None
    """(B, d_model, kernel - 1): the last inputs of a convolutional position, zeros before the first token."""
    layers: list[LayerCache] = field(default_factory=list)

    def extend(self, x: Tensor, mask: Tensor | None, num_layers: int) -> tuple[int, Tensor | None]:
        """Count the tokens of a step, and create the caches of the layers in the first one.

        Args:
            x: (B, T, d_model), the new tokens.
            mask: (B, T) bool, True = real token; None if all are real.
            num_layers: number of layers of the decoder.

        Returns:
            The number of tokens before this step, and the mask (B, length) of all tokens, None if all are real.
        """
        start = self.length
        if mask is not None or self.mask is not None:
            past = self.mask
            if past is None:
                past = torch.ones(len(x), start, dtype=torch.bool, device=x.device)
            if mask is None:
                mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
            self.mask = torch.cat((past, mask), dim=1)
        self.length += x.size(1)
        if not self.layers:
            self.layers.extend(LayerCache() for _ in range(num_layers))
        return start, self.mask

    def reorder(self, index: Tensor, *, memory: bool = True) -> None:
        """Replace row i of the batch by the former row `index[i]`.

        Beam search needs this: one prompt becomes several beams, a beam follows its best parent, finished rows leave.

        Args:
            index: (B',) int64, the source row of each new row; B' may differ from B.
            memory: False where every row keeps its own source sentence (beams of one sentence that change places),
                which saves a copy of the cross-attention's keys and values.
        """
        if self.mask is not None:
            self.mask = self.mask[index]
        if self.tail is not None:
            self.tail = self.tail[index]
        for layer in self.layers:
            layer.reorder(index, memory)


class StaticLayerCache(LayerCache):
    """Keys and values of one decoder layer, (B, heads, capacity, head_dim) each, written at the slot `position` (1,)."""

    def __init__(self, keys: Tensor, values: Tensor, position: Tensor) -> None:
        super().__init__(keys=keys, values=values)
        self.position = position

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values of one token, (B, heads, 1, head_dim), and return those of all slots, empty ones too."""
        assert self.keys is not None and self.values is not None
        self.keys.index_copy_(2, self.position, keys)
        self.values.index_copy_(2, self.position, values)
        return self.keys, self.values


class StaticKVCache:
    """State of a decoder-only model between steps of one token, in tensors that keep their shapes and addresses.

    The number of tokens is a tensor too: all steps are one compiled graph, and the host waits for none of them.

    Args:
        prompt: a cache that the prompts were read into. This one begins with a copy of it.
        capacity: tokens that this cache can hold, those of the prompts included. The caller counts them.
    """

    position: Tensor
    """(1,) int64, the number of tokens so far, padding included: the slot of the next one."""
    real: Tensor
    """(B, capacity) bool, False = padding of the prompts."""
    tail: Tensor | None
    """As `KVCache.tail`."""
    layers: list[StaticLayerCache]

    def __init__(self, prompt: KVCache, capacity: int) -> None:
        first, _ = prompt.layers[0].filled()
        self.position = torch.zeros(1, dtype=torch.int64, device=first.device)
        self.real = torch.ones(len(first), capacity, dtype=torch.bool, device=first.device)
        self.tail = None if prompt.tail is None else torch.empty_like(prompt.tail)
        # Zeros: what is masked has the weight 0, and 0 times an arbitrary value might be NaN.
        shape = (*first.shape[:2], capacity, first.size(3))
        self.layers = [
            StaticLayerCache(first.new_zeros(shape), first.new_zeros(shape), self.position)
            for _ in prompt.layers
        ]
        self.load(prompt)

    def tensors(self) -> list[Tensor]:
        """Return all tensors that the steps write."""
        kept = [t for layer in self.layers for t in (layer.keys, layer.values)]
        return [t for t in (self.position, self.real, self.tail, *kept) if t is not None]

    def fits(self, prompt: KVCache, capacity: int) -> bool:
        """Whether other prompts can be loaded, of as many rows or fewer and up to `capacity` tokens with what follows."""
        keys, _ = prompt.layers[0].filled()
        own = self.layers[0].keys
        assert own is not None
        rows, slots = self.real.shape
        return (
            len(keys) <= rows and capacity <= slots and keys.dtype == own.dtype and keys.device == own.device
        )

    def load(self, prompt: KVCache) -> None:
        """Forget all tokens and copy those of other prompts, at most as many rows, which become the first ones."""
        self.position.fill_(prompt.length)
        self.real.fill_(True)
        if prompt.mask is not None:
            self.real[: len(prompt.mask), : prompt.length] = prompt.mask
        if self.tail is not None and prompt.tail is not None:
            self.tail[: len(prompt.tail)] = prompt.tail
        for layer, read in zip(self.layers, prompt.layers, strict=True):
            for kept, new in zip((layer.keys, layer.values), read.filled(), strict=True):
                assert kept is not None
                kept[: len(new), :, : prompt.length] = new
