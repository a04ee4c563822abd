"""From scores to token sequences: CTC greedy and CTC prefix beam search.

torchaudio's CTC decoders need a GPU (`cuda_ctc_decoder`) or flashlight-text (`ctc_decoder`); the search
here is plain torch, batched, and runs anywhere. Class 0 is the CTC blank throughout.
"""

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from magneto.errors import ConfigError

BLANK = 0

HASH_MULTIPLIER = 6364136223846793005  # odd, from Knuth's MMIX generator; products wrap modulo 2**64


@dataclass(frozen=True)
class CtcHypothesis:
    """A decoded sequence: `tokens` without blanks and special symbols, `score` its log probability."""

    tokens: list[int]
    score: float


def ctc_greedy(scores: Tensor, lengths: Tensor) -> list[list[int]]:
    """Best path: the best class of each frame, repeats merged, blanks dropped.

    Args:
        scores: (B, T, V) logits or log probabilities.
        lengths: (B,) int, real frames of each utterance; what lies behind them is ignored.

    Returns:
        B token lists.
    """
    best, real = scores.argmax(dim=-1), _frame_mask(scores, lengths)
    first_of_run = torch.ones_like(real)
    first_of_run[:, 1:] = best[:, 1:] != best[:, :-1]
    keep = real & first_of_run & (best != BLANK)
    return [tokens.tolist() for tokens in torch.split(best[keep].cpu(), keep.sum(dim=1).tolist())]


def ctc_blank_ratio(scores: Tensor, lengths: Tensor) -> Tensor:
    """Share of the real frames whose best class is blank, a scalar: near 1.0 when a CTC model has collapsed.

    Args:
        scores: (B, T, V) logits or log probabilities.
        lengths: (B,) int, real frames of each utterance.
    """
    real = _frame_mask(scores, lengths)
    return ((scores.argmax(dim=-1) == BLANK) & real).sum() / real.sum().clamp(min=1)


@torch.no_grad()
def ctc_beam_search(
    log_probs: Tensor,
    lengths: Tensor,
    *,
    beam_width: int = 16,
    n_best: int = 1,
    min_log_prob: float = -10.0,
) -> list[list[CtcHypothesis]]:
    """CTC prefix beam search (Hannun et al. 2014, arXiv 1408.2873, algorithm 1, without a language model).

    The score of a token sequence is the log of the summed probability of all its paths. It is exact when
    nothing is pruned, that is with `min_log_prob=-inf` and a beam as wide as there are prefixes, and else a
    lower bound.

    Args:
        log_probs: (B, T, V) log-softmax outputs. Pruned on their device; the search is on the CPU, in fp64.
        lengths: (B,) int, real frames of each utterance.
        beam_width: prefixes kept after each frame, W.
        n_best: sequences returned per utterance, at most `beam_width`.
        min_log_prob: a token less probable than this in a frame is held impossible there (the blank never
            is), so that the work grows with the tokens that matter and not with the vocabulary.

    Returns:
        For each utterance up to `n_best` hypotheses, best first (fewer when fewer sequences are possible).

    Raises:
        ConfigError: `beam_width` < 1, or `n_best` outside 1..`beam_width`.
    """
    check_beam(beam_width, n_best, "prefix")
    blank, candidates, candidate_scores = _prune(log_probs, lengths, min_log_prob)
    batch, frames = blank.shape
    width = beam_width

    # Slot w of utterance b holds a prefix: the log probability of its paths that end in blank, and of those
    # that end in its last token; that token (BLANK: the prefix is empty); hashes of the prefix and of its
    # parent, the prefix without the last token. At first there is the empty prefix only.
    ends_blank = blank.new_full((batch, width), -inf)
    ends_blank[:, 0] = 0.0
    ends_token = torch.full_like(ends_blank, -inf)
    last = torch.full((batch, width), BLANK)
    own_hash, parent_hash = torch.zeros_like(last), torch.zeros_like(last)
    origins, appended = [], []

    for t in range(frames):
        tokens, scores = candidates[:, t], candidate_scores[:, t]  # (B, C)
        total = torch.logaddexp(ends_blank, ends_token)
        # (B, W, C): this candidate is the prefix's last token.
        repeats = last.unsqueeze(2) == tokens.unsqueeze(1)
        last_score = torch.where(repeats, scores.unsqueeze(1), -inf).amax(dim=2)  # (B, W)

        # Between two equal tokens of a sequence stands a blank; any other token may follow on every path.
        extended = torch.where(repeats, ends_blank.unsqueeze(2), total.unsqueeze(2)) + scores.unsqueeze(1)

        # Prefix i and one more token may be prefix j, which is in the beam already: that probability goes
        # to j. Equal hashes stand for equal prefixes: with 64 bits a collision is as good as impossible
        # (1e-17 a frame).
        alive = (last != BLANK) & (total > -inf)
        is_parent = (own_hash.unsqueeze(2) == parent_hash.unsqueeze(1)) & alive.unsqueeze(1)  # (B, i, j)
        doubled = last.unsqueeze(2) == last.unsqueeze(1)
        mass = torch.where(doubled, ends_blank.unsqueeze(2), total.unsqueeze(2))
        from_parent = torch.where(is_parent, mass, -inf).amax(dim=1) + last_score
        extended[(is_parent.float() @ repeats.float()) > 0] = -inf

        stay_blank = total + blank[:, t, None]
        stay_token = torch.logaddexp(ends_token + last_score, from_parent)

        # Keep the best W of the W prefixes that stay as they are and the W x C that grow by a token.
        stay = torch.logaddexp(stay_blank, stay_token)
        best, index = torch.cat([stay, extended.flatten(1)], dim=1).topk(width, dim=1)
        grows = index >= width
        grown = (index - width).clamp(min=0)
        origin = torch.where(grows, grown // tokens.shape[1], index)
        token = torch.where(grows, tokens.gather(1, grown % tokens.shape[1]), BLANK)

        kept = ~grows
        ends_blank = torch.where(kept, stay_blank.gather(1, origin), -inf)
        ends_token = torch.where(kept, stay_token.gather(1, origin), best)
        last = torch.where(kept, last.gather(1, origin), token)
        origin_hash = own_hash.gather(1, origin)
        own_hash = torch.where(kept, origin_hash, origin_hash * HASH_MULTIPLIER + token)
        parent_hash = torch.where(kept, parent_hash.gather(1, origin), origin_hash)
        origins.append(origin)
        appended.append(token)

    score, slot = torch.logaddexp(ends_blank, ends_token).topk(n_best, dim=1)
    history = []
    for origin, token in zip(reversed(origins), reversed(appended), strict=True):
        history.append(token.gather(1, slot))
        slot = origin.gather(1, slot)
    # (B, n_best, T): the token appended in each frame, BLANK where the prefix stayed.
    paths = torch.stack(history[::-1], dim=2) if history else slot.new_zeros(batch, n_best, 0)
    return [
        [
            CtcHypothesis(tokens=[token for token in path if token != BLANK], score=value)
            for path, value in zip(paths_of_one, scores_of_one, strict=True)
            if value > -inf
        ]
        for paths_of_one, scores_of_one in zip(paths.tolist(), score.tolist(), strict=True)
    ]


def check_beam(beam_width: int, n_best: int, what: str) -> None:
    """Raise `ConfigError` if a beam of this width keeps nothing of `what`, or fewer than `n_best`."""
    if beam_width < 1:
        raise ConfigError(f"beam_width={beam_width} keeps no {what}: it must be 1 or more.")
    if not 1 <= n_best <= beam_width:
        raise ConfigError(
            f"n_best={n_best} is not possible with beam_width={beam_width}: choose 1 to {beam_width}."
        )


def _prune(log_probs: Tensor, lengths: Tensor, min_log_prob: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the input of the search, on the CPU: blank scores (B, T), tokens (B, T, C) and their scores.

    C is the largest number of tokens above the threshold in any frame; smaller sets are filled up with
    scores of -inf. A frame behind an utterance's end is a certain blank, which changes no prefix's
    probability.
    """
    real = _frame_mask(log_probs, lengths)
    blank = log_probs[:, :, BLANK].masked_fill(~real, 0.0)
    tokens = log_probs[:, :, BLANK + 1 :]
    possible = (tokens >= min_log_prob) & real.unsqueeze(2)
    count = max(int(possible.sum(dim=2).max()), 1) if possible.numel() else 1
    scores, candidates = tokens.masked_fill(~possible, -inf).topk(count, dim=2)
    return blank.cpu().double(), candidates.cpu() + BLANK + 1, scores.cpu().double()


def _frame_mask(scores: Tensor, lengths: Tensor) -> Tensor:
    """(B, T) bool, True for real frames."""
    return torch.arange(scores.shape[1], device=scores.device) < lengths.to(scores.device).unsqueeze(1)
