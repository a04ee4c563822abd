"""Decoding steps of a language model as one compiled graph, over a key-value cache of fixed size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from magneto.errors import ConfigError
from magneto.nn import KVCache, StaticKVCache

if TYPE_CHECKING:
    from magneto.inference.sampling import LanguageModel

CAPACITY_MULTIPLE = 128


class CompiledSteps:
    """A language model whose steps of one token are compiled, with CUDA graphs on a GPU; prompts are read as they were.

    The cache is kept for the next batch of prompts where it is large enough, so that a list of prompts needs few graphs:
    one, and one more where the number of rows or tokens changes.

    Args:
        model: what computes the logits; a decoder-only stack of `magneto.nn` reads its cache.
        backend: of `torch.compile`.

    Raises:
        ConfigError: by the first step, where there is no compiler or the model cannot be compiled as a whole.
    """

    def __init__(self, model: LanguageModel, backend: str = "inductor") -> None:
        self.model, self.context, self.device = model, model.context, model.device
        # Each kind of model, number of rows and capacity has a graph: more than the default of 8 in a long session.
        torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
        self._step = torch.compile(_next_logits, fullgraph=True, backend=backend, mode="reduce-overhead")
        self._cache: StaticKVCache | None = None

    def static(self, prompt: KVCache, capacity: int) -> StaticKVCache:
        """Return a cache of at least this capacity with the tokens of `prompt`; its rows may be followed by others."""
        kept = self._cache
        if kept is None or not kept.fits(prompt, capacity):
            kept = self._cache = None  # frees its memory before
            capacity = (
                -(-capacity // CAPACITY_MULTIPLE) * CAPACITY_MULTIPLE
            )  # so that the next prompts fit too
            self._cache = kept = StaticKVCache(prompt, capacity)
            for tensor in kept.tensors():  # CUDA graphs read and write them where they are, without a copy
                torch._dynamo.mark_static_address(tensor)
        else:
            kept.load(prompt)
        return kept

    def next_logits(self, tokens: Tensor, mask: Tensor | None, cache: KVCache | StaticKVCache) -> Tensor:
        """Compute the logits of the next token, as `LanguageModel.next_logits`; with a static cache by the graph."""
        if isinstance(cache, KVCache):
            return self.model.next_logits(tokens, mask, cache)
        rows = len(tokens)
        tokens = F.pad(tokens, (0, 0, 0, len(cache.real) - rows))
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]  # a step's logits are read at once
        try:
            return self._step(self.model, tokens, cache)[:rows]
        except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
            raise ConfigError(
                f"compile=true: the step of this model cannot be compiled ({str(error).strip().splitlines()[0]}). Set "
                "compile to false."
            ) from error


def _next_logits(model: LanguageModel, tokens: Tensor, cache: StaticKVCache) -> Tensor:
    return model.next_logits(tokens, None, cache)
