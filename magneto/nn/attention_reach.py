"""What the tokens of a forward pass may attend to: real ones, the past, a window, their own document."""

from dataclasses import dataclass

import torch
from torch import Tensor

from magneto.nn.attention_kernels import Packed, Windowed


@dataclass(frozen=True)
class Reach:
    """Which keys each query may read; the queries are the last `new` of the tokens, the keys are all."""

    new: int
    """Number T of queries."""
    start: int
    """Number of tokens before them."""
    causal: bool
    """Whether a query reads itself and the tokens before it alone."""
    window: int | None
    """See `BackboneConfig.attention_window`."""
    seen: Tensor | None
    """(B, start + T) bool, True = real token; None if all are real."""
    documents: Tensor | None
    """(B, T) int64, the number of each token's document, from 1, 0 = padding; None: there is one."""

    def sparse(self, device: torch.device) -> Windowed | Packed | None:
        """Return windows or documents whose attention is computed for them alone; None: a mask is as good."""
        documents = self.documents
        if self.start:
            return None
        if self.window is None:
            return None if documents is None else Packed.of(documents, self.causal)
        if self.new <= 2 * self.window:
            return None
        if documents is None and self.seen is not None:
            documents = self.seen.long()
        elif documents is None:
            documents = torch.ones(1, self.new, dtype=torch.int64, device=device)
        return Windowed(self.window, self.causal, documents)

    def mask(self, device: torch.device, *, past: bool) -> Tensor | None:
        """Return bool (B or 1, 1, T or 1, start + T), True = attend, or None where SDPA needs no mask.

        Args:
            device: of the mask.
            past: whether it must hide the future also where SDPA itself can.
        """
        total = self.start + self.new
        window = self.window or total
        allowed = None if self.seen is None else self.seen[:, None, None, :]
        hides_future = self.causal and self.new > 1
        if window < total or (hides_future and (past or self.start or self.seen is not None)):
            every = torch.ones(self.new, total, dtype=torch.bool, device=device)
            last = self.start if self.causal else self.start + window - 1
            near = every.tril(last).triu(self.start - window + 1)
            # Padding attends to itself: a query without any key would make a row of the softmax 0/0.
            itself = every.tril(self.start) & every.triu(self.start)
            allowed = near if allowed is None else (allowed & near) | itself
        if self.documents is not None:
            own = (self.documents[:, :, None] == self.documents[:, None])[:, None]  # (B, 1, T, T)
            allowed = own if allowed is None else allowed & own
        return allowed


def attention_bias(allowed: Tensor | None, relative: Tensor | None) -> Tensor | None:
    """Return mask and relative positions in SDPA's form, or None where SDPA needs neither.

    Args:
        allowed: bool (B or 1, 1, T or 1, S), True = attend; None: all.
        relative: (1, heads, T, S), what is added to the scores; None: nothing.

    Returns:
        Bool (True = attend) without relative positions, else float with a large negative number where attention is
        masked: -inf would give 0/0 in an example without any real token.
    """
    if relative is None:
        return allowed
    if torch.is_autocast_enabled(relative.device.type):  # once here instead of once in each layer
        relative = relative.to(torch.get_autocast_dtype(relative.device.type))
    return (
        relative if allowed is None else relative.masked_fill(~allowed, torch.finfo(relative.dtype).min / 2)
    )
