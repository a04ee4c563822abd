"""Beam search with a key-value cache: many sentences at once, for decoder-only models and encoder-decoders.

The search is independent of the model. It calls `step(tokens, state)` with the newest token of each row and gets the log
probabilities of the next one; between two steps it reorders the rows of `state`.

The result is defined as in fairseq (`sequence_generator.py`; Ott et al., arXiv 1904.01038): in each step the K live
beams of a sentence give 2K best extensions. Those of the first K that are the end token are finished, the first K of
the others live on; a sentence ends when K hypotheses are finished, or at its greatest length, where every beam must end.
Hypotheses are ranked by

    log p(y) / |y| ** length_penalty,   |y| counted with the end token:

0 is plain probability, 1 (the default) the mean log probability of a token; above 1 favours long outputs. This is
fairseq's `--lenpen`. GNMT (Wu et al., arXiv 1609.08144, eq. 14) has (5 + |y|) / 6 where |y| stands here.

A sentence ends as soon as its result is certain: when no live beam can reach its n best any more, even if every further
token had probability 1. That changes the time, not the result.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Protocol, TypeVar

import torch
from torch import Tensor


class State(Protocol):
    """State of a model between two steps, such as `nn.KVCache`."""

    def reorder(self, index: Tensor, *, memory: bool = True) -> None:
        """Make row i what row `index[i]` was. memory=False: each row stays with its own sentence."""
        ...


S = TypeVar("S", bound=State)
Step = Callable[[Tensor, S], Tensor]
"""(R, 1) int64 tokens and the state of the R rows -> (R, V) log probabilities of the next token (normalised: <= 0)."""


@dataclass(frozen=True)
class Hypothesis:
    """A finished output.

    Attributes:
        tokens: without the end token.
        log_prob: natural logarithm of its probability, the end token included.
        score: what it is ranked by: `log_prob / (len(tokens) + 1) ** length_penalty`.
    """

    tokens: list[int]
    log_prob: float
    score: float


@dataclass
class _Beams:
    """The sentences still searched: b of them, K live beams and n finished hypotheses each.

    All are tensors whose first dimension is the sentence. `history` (b, K, L) holds the tokens of the live beams,
    `best` (b, n, L) those of the best finished ones; scores of empty slots are -inf.
    """

    sentence: Tensor
    limit: Tensor
    log_prob: Tensor
    history: Tensor
    score: Tensor
    best: Tensor
    best_log_prob: Tensor
    best_length: Tensor
    finished: Tensor
    done: Tensor

    def take(self, keep: Tensor) -> "_Beams":
        return _Beams(**{name: value[keep] for name, value in vars(self).items()})

    def harvest(self, into: list[list[Hypothesis]]) -> None:
        """Write the finished hypotheses of each sentence into its list, best first."""
        columns = (self.sentence, self.score, self.best_log_prob, self.best_length, self.best)
        for sentence, *row in zip(*(column.tolist() for column in columns), strict=True):
            into[sentence] = [
                Hypothesis(tokens[: length - 1], log_prob, score)
                for score, log_prob, length, tokens in zip(*row, strict=True)
                if length
            ]


@torch.no_grad()
def beam_search(
    step: Step[S],
    state: S,
    start: Tensor,
    *,
    eos: int,
    beam: int,
    max_length: Tensor | int,
    min_length: int = 1,
    length_penalty: float = 1.0,
    n_best: int = 1,
) -> list[list[Hypothesis]]:
    """Search the best continuations of B sentences at once.

    Args:
        step: one step of the model, see `Step`. The first call has B rows, later ones at most B * beam.
        state: knows all that comes before `start`: nothing in translation, the prompt without its last token in a
            decoder-only model (prompts of unequal length are padded on the left).
        start: (B,) int64, the token that comes before the first one searched: `<s>`, or the prompt's last.
        eos: the end token.
        beam: live beams of a sentence; with 1 the result is that of greedy decoding.
        max_length: greatest length of an output, the end token included: one for all, or (B,) int64, of 1 or more.
        min_length: least length, the end token included.
        length_penalty: exponent of the length, 0 or more.
        n_best: hypotheses of each sentence to return, at most `beam`.

    Returns:
        For each sentence its `n_best` hypotheses, best first; fewer where the search finds fewer.
    """
    assert 1 <= n_best <= beam and length_penalty >= 0
    sentences, device = len(start), start.device
    results: list[list[Hypothesis]] = [[] for _ in range(sentences)]
    if not sentences:
        return results
    limit = torch.as_tensor(max_length, device=device).expand(sentences)
    longest = int(limit.max())
    assert int(limit.min()) >= 1, "an output has at least its end token"

    next_token = step(start[:, None], state).float()  # (B, V): the beams of a sentence do not differ yet
    vocabulary = next_token.size(-1)
    next_token = next_token.repeat_interleave(beam, dim=0)
    state.reorder(torch.arange(sentences, device=device).repeat_interleave(beam))
    beams = _begin(sentences, beam, n_best, limit, longest, start)
    not_eos = torch.arange(vocabulary, device=device) != eos
    for length in count(1):
        candidates = next_token.view(-1, beam, vocabulary)
        last = beams.limit == length
        if length < min_length:
            candidates = candidates.masked_fill(~not_eos & ~last[:, None, None], -torch.inf)
        candidates = candidates.masked_fill(not_eos & last[:, None, None], -torch.inf)
        total = (beams.log_prob[:, :, None] + candidates).flatten(1)
        best, index = total.topk(min(2 * beam, total.size(1)))  # (b, 2K), falling
        parent, token = index // vocabulary, index % vocabulary
        ends = token == eos
        _finish(beams, best[:, :beam], parent[:, :beam], ends[:, :beam], length, length_penalty)
        parent, token = _survive(beams, best, parent, token, ends, length)

        bound = beams.log_prob.max(1).values / beams.limit**length_penalty
        beams.done |= (beams.finished >= beam) | last | (beams.score[:, -1] >= bound)
        left = len(beams.done) - int(beams.done.sum())  # the one look at the device in a step
        if not left:
            break
        rows = torch.arange(len(parent), device=device)[:, None] * beam + parent
        # Taking sentences out copies the memory of those that stay: not for each of them alone.
        leave = 4 * left <= 3 * len(beams.done)
        if leave:
            beams.take(beams.done).harvest(results)
            keep = ~beams.done
            beams, rows, token = beams.take(keep), rows[keep], token[keep]
        state.reorder(rows.flatten(), memory=leave)
        next_token = step(token.view(-1, 1), state).float()
    beams.harvest(results)
    return results


def _begin(sentences: int, beam: int, n_best: int, limit: Tensor, longest: int, start: Tensor) -> _Beams:
    """Return all sentences with one live beam, the empty one; the other slots are dead (-inf)."""
    log_prob = torch.full((sentences, beam), -torch.inf, device=start.device)
    log_prob[:, 0] = 0.0
    return _Beams(
        sentence=torch.arange(sentences, device=start.device),
        limit=limit,
        log_prob=log_prob,
        history=start.new_zeros(sentences, beam, longest),
        score=log_prob.new_full((sentences, n_best), -torch.inf),
        best=start.new_zeros(sentences, n_best, longest),
        best_log_prob=log_prob.new_full((sentences, n_best), -torch.inf),
        best_length=start.new_zeros(sentences, n_best),
        finished=start.new_zeros(sentences),
        done=torch.zeros_like(start, dtype=torch.bool),
    )


def _finish(beams: _Beams, best: Tensor, parent: Tensor, ends: Tensor, length: int, penalty: float) -> None:
    """Put those of the K best extensions that are the end token among the n best finished; all (b, K)."""
    ends = ends & best.isfinite() & ~beams.done[:, None]
    score = (best / length**penalty).masked_fill(~ends, -torch.inf)
    kept, order = torch.cat((beams.score, score), 1).topk(beams.score.size(1))
    history = _rows(beams.history, parent)
    beams.score = kept
    beams.best = _rows(torch.cat((beams.best, history), 1), order)
    beams.best_log_prob = torch.cat((beams.best_log_prob, best), 1).gather(1, order)
    beams.best_length = torch.cat((beams.best_length, ends * length), 1).gather(1, order)
    beams.finished += ends.sum(1)


def _survive(
    beams: _Beams, best: Tensor, parent: Tensor, token: Tensor, ends: Tensor, length: int
) -> tuple[Tensor, Tensor]:
    """Make the first K extensions that are not finished the live beams; return their parents and tokens, (b, K)."""
    order = ends.long().argsort(dim=1, stable=True)[:, : beams.log_prob.size(1)]
    parent, token = parent.gather(1, order), token.gather(1, order)
    beams.log_prob = best.masked_fill(ends, -torch.inf).gather(1, order)
    beams.history = _rows(beams.history, parent)
    beams.history[:, :, length - 1] = token
    return parent, token


def _rows(tokens: Tensor, index: Tensor) -> Tensor:
    """(b, K, L) and index (b, J) -> (b, J, L): row index[i, j] of sentence i."""
    return tokens.gather(1, index[:, :, None].expand(-1, -1, tokens.size(2)))
