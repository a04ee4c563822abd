"""Generation with a decoder-only model: greedy or sampled, many prompts at once, token by token.

    prompts --padded on the left--> one pass fills the key-value cache --> one token a row and step --> pieces of text

A row's tokens depend on its own prompt, the settings and its index in the whole list alone: padding is masked, positions
count real tokens, every row has its own random numbers, and rows that are finished leave the batch (with compiled steps
they stay and are ignored). So a batch gives what its prompts give alone (to rounding, as long as the context is not full).

The context is `max_positions` tokens. A longer prompt loses its beginning. When the cache is full, the newer half of
what was read is read again as a fresh context and the older half is forgotten: a pass over half a context for every half
context of new tokens, instead of one for every token.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import numpy as np
import torch
from annotated_types import Ge, Gt, Le, MinLen
from torch import Tensor

from magneto.config.validate import check_types
from magneto.data.rng import random_stream
from magneto.data.tokenizers.text import TextTokenizer
from magneto.errors import ConfigError
from magneto.inference.compiled_steps import CompiledSteps
from magneto.nn import KVCache, StaticKVCache

Reason = Literal["end", "stop", "length"]
StopString = Annotated[str, MinLen(1)]
STEPS_AT_ONCE = 16
"""Compiled steps between two looks at their tokens, for which the host waits; tokens after a row's end are dropped.

Other steps are followed by a look each: launching their kernels one by one takes far longer than the look, and no step is
computed in vain.
"""
LEAST_TEMPERATURE = 1e-30  # fp32 logits divided by less than that overflow
CUT_CHARACTER = "\ufffd"  # what a decoder writes for bytes that are no UTF-8, such as half a character


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How the next token is chosen and when to stop. Raises ConfigError for values out of range."""

    max_new_tokens: Annotated[int, Ge(1)] = 128
    min_new_tokens: Annotated[int, Ge(0)] = 0
    """Tokens before the end of the document, or a stop string, is allowed."""
    temperature: Annotated[float, Ge(0)] = 0.8
    """The logits are divided by it; 0 is greedy, and so is what is too small to divide by."""
    top_k: Annotated[int, Ge(1)] | None = None
    """Sample from the k most probable tokens."""
    top_p: Annotated[float, Gt(0), Le(1)] | None = 0.95
    """Sample from the most probable tokens that together reach this probability (Holtzman et al., arXiv 1904.09751)."""
    stop: StopString | tuple[StopString, ...] = ()  # a tuple once it is made
    """The text ends before the first of these strings."""
    seed: int = 0
    """Of the random numbers: the same settings and prompts give the same text."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        check_types(Decoding, vars(self))
        if self.min_new_tokens > self.max_new_tokens:
            raise ConfigError(
                f"min_new_tokens={self.min_new_tokens}: must be from 0 to max_new_tokens={self.max_new_tokens}."
            )


class LanguageModel(Protocol):
    """A model that generation can use."""

    @property
    def context(self) -> int:
        """Tokens that it can look back at."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it is."""
        ...

    def next_logits(self, tokens: Tensor, mask: Tensor | None, cache: KVCache | StaticKVCache) -> Tensor:
        """Tokens (B, T) that follow what the cache holds, left-padded where mask (B, T) is False -> (B, V) fp32."""
        ...


@dataclass(frozen=True)
class Continuation:
    """Generated text of one prompt."""

    text: str
    """Without the prompt, the stop string and the end token."""
    tokens: tuple[int, ...]
    """All that were sampled, without the end token."""
    reason: Reason
    """Why it ended: the end token, a stop string, or max_new_tokens."""


@dataclass(frozen=True)
class Piece:
    """The next part of one row's text, whole characters only."""

    row: int
    text: str
    finished: Continuation | None = None
    """With the row's last piece, all of it."""


def generate(
    model: LanguageModel,
    tokenizer: TextTokenizer,
    prompts: Sequence[Sequence[int]],
    settings: Decoding,
    indices: Sequence[int] | None = None,
) -> list[Continuation]:
    """Return the continuation of each prompt (token ids, at least one), in their order; `stream` yields it in pieces.

    indices: see `next_tokens`. Give them where the prompts are a part of a longer list.
    """
    pieces = stream(model, tokenizer, prompts, settings, indices)
    finished = {piece.row: piece.finished for piece in pieces if piece.finished is not None}
    return [finished[row] for row in range(len(prompts))]


def stream(
    model: LanguageModel,
    tokenizer: TextTokenizer,
    prompts: Sequence[Sequence[int]],
    settings: Decoding,
    indices: Sequence[int] | None = None,
) -> Iterator[Piece]:
    """Yield pieces of text as soon as they are certain: no half character, and nothing that may begin a stop string.

    The pieces of a row, put together, are the text of its continuation. Special tokens other than the end of the
    document are never sampled.
    """
    end = tokenizer.eos_id
    texts = [
        TextStream(tokenizer, prompt, tuple(settings.stop), settings.min_new_tokens) for prompt in prompts
    ]
    finished: set[int] = set()
    barred = tokenizer.special_ids - {end}
    for sampled in next_tokens(
        model, prompts, settings, indices=indices, end=end, barred=barred, finished=finished
    ):
        for row, token in sampled:
            text = texts[row]
            shown = len(text.shown)
            reason: Reason | None = None
            if token == end:
                reason = "end"
            else:
                piece = text.push(token)
                if text.stopped:
                    reason = "stop"
                elif len(text.tokens) == settings.max_new_tokens:
                    reason = "length"
            if reason is None:
                if piece:
                    yield Piece(row, piece)
                continue
            finished.add(row)
            text.close()
            reason = "stop" if text.stopped else reason
            yield Piece(row, text.text[shown:], Continuation(text.text, tuple(text.tokens), reason))


@torch.inference_mode()
def next_tokens(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    settings: Decoding,
    *,
    indices: Sequence[int] | None = None,
    end: int | None = None,
    barred: Collection[int] = (),
    finished: Collection[int] = (),
) -> Iterator[list[tuple[int, int]]]:
    """Yield the tokens of each step, as (row, token) for the rows that are not finished.

    Args:
        model: in evaluation mode.
        prompts: token ids, each at least one.
        settings: `stop` is left to `stream`.
        indices: of each prompt, its index in the whole list that it comes from: its random numbers are those of that
            index, however the list is cut into batches. None: the prompts are the whole list.
        end: the token that ends a row, itself yielded; None if there is none.
        barred: tokens that are never sampled.
        finished: rows that the caller has finished; it may add to it between two steps.
    """
    assert prompts and all(len(prompt) for prompt in prompts), "a prompt has at least one token"
    rows = list(range(len(prompts)))
    read = [list(prompt[-model.context :]) for prompt in prompts]
    streams = [
        random_stream(settings.seed, "generation", 0, n) for n in (rows if indices is None else indices)
    ]
    numbers = np.stack([random.random(settings.max_new_tokens) for random in streams])
    uniform = torch.from_numpy(numbers).to(model.device)
    logits, cache = _read(model, read, settings.max_new_tokens)
    never = torch.zeros(logits.shape[1], device=model.device)
    never[list(barred)] = -torch.inf
    before_end = never.clone()
    if end is not None:
        before_end[end] = -torch.inf
    most = STEPS_AT_ONCE if isinstance(model, CompiledSteps) else 1
    made, filled = 0, max(map(len, read))  # tokens of each row, and in the cache
    ended: set[int] = set()
    while True:
        count = min(most, settings.max_new_tokens - made, model.context - filled + 1)
        drawn: list[Tensor] = []
        for step in range(made, made + count):
            if drawn:
                logits = model.next_logits(drawn[-1][:, None], None, cache)
            bar = before_end if step < settings.min_new_tokens else never
            drawn.append(choose(logits + bar, settings, uniform[:, step]))
        sampled = torch.stack(drawn, dim=1).tolist()  # here alone the host waits for the device
        for tokens in zip(*sampled, strict=True):
            pairs = zip(rows, tokens, strict=True)
            new = [(row, token) for row, token in pairs if row not in ended and row not in finished]
            if not new:
                return
            yield new
            ended.update(row for row, token in new if token == end)
        made, filled = made + count, filled + count
        live = [index for index, row in enumerate(rows) if row not in ended and row not in finished]
        if made == settings.max_new_tokens or not live:
            return
        for window, row_tokens in zip(read, sampled, strict=True):
            window.extend(row_tokens)
        last = drawn[-1]
        if isinstance(cache, KVCache) and len(live) < len(rows):
            rows, read = [rows[index] for index in live], [read[index] for index in live]
            kept = torch.tensor(live, device=model.device)
            last, uniform = last[kept], uniform[kept]
            cache.reorder(kept)
        if filled <= model.context:
            logits = model.next_logits(last[:, None], None, cache)
        else:
            read = [window[-max(1, model.context // 2) :] for window in read]
            cache = KVCache()  # so that the full one is freed before
            logits, cache = _read(model, read, settings.max_new_tokens - made)
            filled = max(map(len, read))


def _read(
    model: LanguageModel, prompts: Sequence[Sequence[int]], room: int
) -> tuple[Tensor, KVCache | StaticKVCache]:
    """Read prompts of any lengths; return (B, V) logits of what follows, and a cache, for up to `room` more tokens."""
    longest = max(map(len, prompts))
    tokens = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask = torch.zeros(tokens.shape, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        tokens[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = True
    # Without padding there is no mask at all, which spares every later step the work with it.
    needed = None if bool(mask.all()) else mask.to(model.device)
    cache = KVCache()
    logits = model.next_logits(tokens.to(model.device), needed, cache)
    if not isinstance(model, CompiledSteps):
        return logits, cache
    return logits, model.static(cache, min(model.context, longest + room))


def choose(logits: Tensor, settings: Decoding, uniform: Tensor) -> Tensor:
    """Return the next token of each row, (B,) int64, from fp32 logits (B, V) and a uniform number of [0, 1) each (B,).

    Sampled by inverting the distribution function, so that a row's token depends on its own uniform number alone. The
    order is that of Hugging Face: temperature, top-k, top-p of what is left.
    """
    if settings.temperature < LEAST_TEMPERATURE:
        return logits.argmax(-1)
    logits = logits / settings.temperature
    order: Tensor | None = None
    if settings.top_k is not None and settings.top_k < logits.shape[1]:
        logits, order = logits.topk(settings.top_k)
    elif settings.top_p is not None and settings.top_p < 1:
        logits, order = logits.sort(descending=True)
    probabilities = logits.softmax(-1)
    if settings.top_p is not None and settings.top_p < 1:
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= settings.top_p, 0)
    reached = probabilities.cumsum(-1, dtype=torch.float64)
    index = torch.searchsorted(reached, uniform[:, None] * reached[:, -1:], right=True)
    index = index.clamp(max=reached.shape[1] - 1)
    return (index if order is None else order.gather(1, index)).squeeze(1)


class TextStream:
    """Turn the tokens of one row into text, piece by piece.

    Args:
        tokenizer: decodes.
        prompt: token ids before the first one: they decide whether a word is continued.
        stop: strings that end the text.
        least: tokens before a stop string counts.
    """

    def __init__(
        self, tokenizer: TextTokenizer, prompt: Sequence[int], stop: Sequence[str], least: int = 0
    ) -> None:
        self.tokenizer, self.stop, self.least = tokenizer, tuple(stop), least
        self.tokens: list[int] = []
        self.text = ""
        """All whole characters, up to a stop string."""
        self.shown = ""
        """What `push` has returned: `text` without an end that may become a stop string."""
        self.stopped = False
        # Decoding a short stretch before the new tokens along gives them the white space that belongs to them.
        self._before: list[int] = list(prompt[-4:])
        self._new: list[int] = []
        self._checked = 0

    def push(self, token: int) -> str:
        """Take a token; return what has become certain, possibly nothing."""
        self.tokens.append(token)
        self._new.append(token)
        text = self._decoded()
        if not text.endswith(CUT_CHARACTER):
            self._take(text)
        kept = len(self.text) if self.stopped else len(self.text) - self._may_begin_stop()
        piece = self.text[len(self.shown) : kept]
        self.shown += piece
        return piece

    def close(self) -> None:
        """End the text: `text` is complete, with U+FFFD for a character that stayed cut."""
        if self._new and not self.stopped:
            self._take(self._decoded())
        self.shown = self.text

    def _decoded(self) -> str:
        before = self.tokenizer.decode(self._before)
        return self.tokenizer.decode([*self._before, *self._new])[len(before) :]

    def _take(self, text: str) -> None:
        self.text += text
        self._before, self._new = self._new, []
        if len(self.tokens) <= self.least:
            self._checked = len(self.text)
            return
        reach = max(map(len, self.stop), default=1) - 1
        start = max(0, self._checked - reach)
        ends = [end for stop in self.stop if (end := self.text.find(stop, start)) >= 0]
        if ends:
            self.text, self.stopped = self.text[: min(ends)], True
        self._checked = len(self.text)

    def _may_begin_stop(self) -> int:
        """Return how many characters at the end of the text are the beginning of a stop string."""
        return max(
            (
                length
                for stop in self.stop
                for length in range(1, len(stop))
                if self.text.endswith(stop[:length])
            ),
            default=0,
        )
