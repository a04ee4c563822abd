"""Fill the masks of sentences with a masked language model, or score whole sentences by it."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor

from magneto.data.tokenizers.text import TextTokenizer
from magneto.errors import ConfigError, MagnetoError
from magneto.inference.inputs import PredictInput

MASK = "[MASK]"
SCORE_BATCH = 64
_MASK_WITH_SPACE = re.compile(rf"\s*{re.escape(MASK)}")


@dataclass(frozen=True, kw_only=True)
class MaskedLMPredictOptions:
    """Options of `mode=predict`, `conf/predict/mlm.yaml`."""

    top_k: Annotated[int, Ge(1)] = 5
    """Candidates for each mask, the most probable first."""
    score: bool = False
    """Do not fill masks: give the pseudo-perplexity of each sentence instead."""


def fill_or_score(
    model: Any, inputs: PredictInput, options: MaskedLMPredictOptions
) -> Iterator[dict[str, Any]]:
    """Fill the `[MASK]`s of each sentence, or with `score` give its pseudo-perplexity.

    All masks of a sentence are filled at once, each without knowing what the others become, as in training. A line
    without a mask, an empty one to be scored, or one that is too long gets an empty answer.

    Yields:
        `input` with `filled` and `candidates`, or with `pseudo_perplexity`, `nats` and `tokens`.
    """
    empty: dict[str, Any] = {"filled": "", "candidates": []}
    if options.score:
        empty = {"pseudo_perplexity": None, "nats": None, "tokens": 0}
    for number, line in enumerate(inputs.lines(), 1):
        try:
            yield score(model, line) if options.score else fill(model, line, options.top_k)
        except MagnetoError as why:
            inputs.unanswered(number, why)
            yield {"text": "", "input": line, **empty}


def fill(model: Any, line: str, top_k: int) -> dict[str, Any]:
    """Fill the masks of a sentence, and list the `top_k` candidates of each."""
    tokenizer = model.tokenizer
    ids = _framed(model, encode(tokenizer, line))
    masked = ids == tokenizer.require("mask")
    if not masked.any():
        raise ConfigError(
            f"{line[:60]!r} has no {MASK}. Write {MASK} where a word is to be filled in, or set predict.score=true "
            "for the pseudo-perplexity of whole sentences."
        )
    probabilities = model.logits(model(ids[None], None, masked[None])).softmax(-1)
    probabilities[:, sorted(tokenizer.special_ids)] = -1.0
    best = probabilities.topk(min(top_k, probabilities.size(1)), dim=-1)
    candidates = [
        [
            {"token": _plain(tokenizer, index), "probability": round(probability, 4)}
            for index, probability in zip(row, values, strict=True)
        ]
        for row, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    ids[masked] = best.indices[:, 0]
    filled = tokenizer.decode(ids.tolist())
    shown = "; ".join(
        ", ".join(f"{json.dumps(c['token'], ensure_ascii=False)} {c['probability']:.3f}" for c in row)
        for row in candidates
    )
    return {"text": f"{filled}\t{shown}", "input": line, "filled": filled, "candidates": candidates}


def score(model: Any, line: str) -> dict[str, Any]:
    """Return the pseudo-perplexity of a sentence (Salazar et al., arXiv 1910.14659): every token is masked once, alone."""
    tokenizer = model.tokenizer
    text = tokenizer.encode(line)
    if not text:
        raise ConfigError(f"{line[:60]!r} has no token: there is nothing to score. Write a sentence.")
    ids = _framed(model, text)
    words = [index for index, token in enumerate(ids.tolist()) if token not in tokenizer.special_ids]
    if not words:
        raise ConfigError(f"{line[:60]!r} has no token of the vocabulary. Write other words.")
    total = 0.0
    for start in range(0, len(words), SCORE_BATCH):
        columns = torch.tensor(words[start : start + SCORE_BATCH], device=model.device)
        copies = ids.repeat(len(columns), 1)
        hidden = F.one_hot(columns, len(ids)).bool()
        copies[hidden] = tokenizer.require("mask")
        log_probs = model.logits(model(copies, None, hidden)).log_softmax(-1)
        total -= float(log_probs.gather(1, ids[columns, None]).double().sum())
    value = float(torch.tensor(total / len(words), dtype=torch.float64).exp())
    return {
        "text": f"{value:.2f}\t{line}", "input": line, "pseudo_perplexity": value, "nats": total, "tokens": len(words)
    }  # fmt: skip


def encode(tokenizer: TextTokenizer, line: str) -> list[int]:
    """Return the ids of a sentence in which `[MASK]` stands for the mask, whatever the tokenizer calls it."""
    first, *rest = _MASK_WITH_SPACE.split(line)
    ids = tokenizer.encode(first) if first else []
    for part in rest:
        ids.append(tokenizer.require("mask"))
        if part.strip():
            ids += _continued(tokenizer, part)
    return ids


def with_masks(tokenizer: TextTokenizer, ids: list[int]) -> str:
    """Return the text of ids with `[MASK]` in it and no other special token."""
    mask, parts = tokenizer.require("mask"), [list[int]()]
    for token in ids:
        if token == mask:
            parts.append([])
        else:
            parts[-1].append(token)
    return f" {MASK} ".join(map(tokenizer.decode, parts)).strip()


def _continued(tokenizer: TextTokenizer, part: str) -> list[int]:
    """Return the ids of what follows a mask: without a space before it where the text has none ("[MASK].")."""
    if not part[0].isspace():
        letter = tokenizer.encode("a")
        both = tokenizer.encode("a" + part)
        if both[: len(letter)] == letter:
            return both[len(letter) :]
    return tokenizer.encode(part)


def _framed(model: Any, ids: list[int]) -> Tensor:
    """Return (T,) ids between `<s>` and `</s>`, as the blocks of training begin and documents end."""
    bos, eos = model.tokenizer.bos_id, model.tokenizer.eos_id
    framed = [*([] if bos is None else [bos]), *ids, *([] if eos is None else [eos])]
    longest = model.info.block_size
    if len(framed) > longest:
        raise ConfigError(
            f"{len(framed)} tokens with <s> and </s>; the model was trained on blocks of {longest}. Shorten the line."
        )
    return torch.tensor(framed, device=model.device)


def _plain(tokenizer: TextTokenizer, token: int) -> str:
    """Return a token as text, without white space around a word; `token()` where it stands for no text of its own."""
    text = tokenizer.decode([token])
    return text.strip() or text or tokenizer.token(token)
