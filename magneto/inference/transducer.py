"""From the states of an encoder to token sequences: greedy and beam search of a transducer.

torchaudio's `RNNTBeamSearch` takes one recording at a time and a model of its own kind; the searches here are batched.
"""

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from magneto.inference.ctc import HASH_MULTIPLIER, check_beam
from magneto.nn.transducer import BLANK, Joint, Predictor, State

TOKENS_PER_FRAME = 2
"""A beam search gives no text with more tokens than this for each frame, on average."""


@dataclass(frozen=True)
class TransducerHypothesis:
    """A decoded sequence: `tokens` without blanks, `score` its log probability."""

    tokens: list[int]
    score: float


@torch.no_grad()
def transducer_greedy(
    predictor: Predictor, joint: Joint, encoded: Tensor, lengths: Tensor, *, max_per_frame: int = 10
) -> list[list[int]]:
    """Take the best of each step until it is the blank, then the next frame.

    Args:
        predictor: of the model.
        joint: of the model.
        encoded: (B, T, d_model), output of the encoder.
        lengths: (B,) int, real frames of each utterance.
        max_per_frame: tokens of one frame after which the next one follows anyhow.

    Returns:
        B token lists.
    """
    frames, lengths = joint.frame(encoded), lengths.to(encoded.device)  # (B, T, J)
    batch, device = torch.arange(len(frames), device=frames.device), frames.device
    last = torch.full_like(batch, BLANK)
    prefixes, state = _read(predictor, joint, last, None)
    t, count = torch.zeros_like(batch), torch.zeros_like(batch)
    written = []
    while bool((alive := t < lengths).any()):
        best = joint(frames[batch, t.clamp(max=frames.size(1) - 1)], prefixes).argmax(-1)
        emits = alive & (best != BLANK) & (count < max_per_frame)
        if bool(emits.any()):
            written.append(torch.where(emits, best, BLANK))
            read, after = _read(predictor, joint, best, state)
            prefixes = torch.where(emits[:, None], read, prefixes)
            state = _where(emits, after, state)
        count = torch.where(emits, count + 1, 0)
        t = t + ~emits
    tokens = torch.stack(written, dim=1) if written else torch.empty(len(batch), 0, device=device)
    return [[token for token in row if token != BLANK] for row in tokens.tolist()]


@torch.no_grad()
def transducer_beam_search(
    predictor: Predictor,
    joint: Joint,
    encoded: Tensor,
    lengths: Tensor,
    *,
    beam_width: int = 4,
    n_best: int = 1,
) -> list[list[TransducerHypothesis]]:
    """Alignment-length synchronous search (Saon et al., "Alignment-length synchronous decoding for RNN transducer", 2020).

    After i steps each hypothesis in the beam has read t frames and written u tokens with t + u = i, so that all are
    equally long paths, and the paths of one text meet: their probabilities are added. The score of a text is exact where
    nothing was pruned, and else a lower bound.

    Args:
        predictor: of the model.
        joint: of the model.
        encoded: (B, T, d_model), output of the encoder.
        lengths: (B,) int, real frames of each utterance.
        beam_width: hypotheses kept after each step, W.
        n_best: sequences returned per utterance, at most `beam_width`.

    Returns:
        For each utterance up to `n_best` hypotheses, best first (fewer where fewer texts were finished).

    Raises:
        ConfigError: `beam_width` < 1, or `n_best` outside 1..`beam_width`.
    """
    check_beam(beam_width, n_best, "hypothesis")
    frames, device = joint.frame(encoded), encoded.device
    (batch, longest, _), width = frames.shape, beam_width
    ends = lengths.to(device)[:, None]  # (B, 1)
    rows = torch.arange(batch, device=device)[:, None]

    # Slot w of utterance b: a text, its log probability, its number of tokens, its last token and what the predictor has
    # made of it; hashes of the text and of its parent, the text without the last token. At first the empty text alone.
    score = torch.full((batch, width), -inf, dtype=torch.float64, device=device)
    score[:, 0] = 0.0
    count = torch.zeros(batch, width, dtype=torch.int64, device=device)
    last, own_hash, parent_hash = torch.full_like(count, BLANK), count.clone(), count - 1
    prefixes, state = _read(predictor, joint, last.flatten(), None)
    origins: list[Tensor] = []
    appended: list[Tensor] = []
    # Finished texts: their scores, and the step and slot of each.
    best = score.new_full((batch, n_best), -inf)
    place = torch.zeros(batch, n_best, 2, dtype=torch.int64, device=device)

    for step in range(longest + TOKENS_PER_FRAME * longest):
        t = step - count
        arcs = joint(frames[rows, t.clamp(0, longest - 1)], prefixes.view(batch, width, -1))
        arcs = score[..., None] + arcs.double().log_softmax(-1)  # (B, W, V)
        stay, tokens = arcs[..., BLANK], arcs[..., BLANK + 1 :]

        done = t == ends - 1  # the blank in the last frame ends the text
        slots = torch.arange(width, device=device).expand(batch, -1)
        places = torch.stack((torch.full_like(slots, step), slots), dim=-1)
        best, index = torch.cat((best, torch.where(done, stay, -inf)), dim=1).topk(n_best, dim=1)
        place = torch.cat((place, places), dim=1).gather(1, index[..., None].expand(-1, -1, 2))
        stay = stay.masked_fill(done, -inf)
        tokens = tokens.masked_fill((count >= TOKENS_PER_FRAME * ends)[..., None], -inf)

        # Text i and one more token may be text j, which is in the beam already: that probability goes to j. Equal hashes
        # stand for equal texts (as in the prefix search of CTC).
        is_parent = (own_hash[:, :, None] == parent_hash[:, None]) & (stay > -inf)[:, None]  # (B, i, j)
        of_last = (last - 1).clamp(min=0)[:, None].expand(-1, width, -1)
        from_parent = torch.where(is_parent, tokens.gather(2, of_last), -inf)  # (B, i, j)
        stay = torch.logaddexp(stay, from_parent.logsumexp(1))
        taken = torch.zeros_like(tokens).scatter_add_(2, of_last, is_parent.to(tokens.dtype))
        tokens = tokens.masked_fill(taken > 0, -inf)

        # Keep the best W of the W texts that stay as they are and of those that grow by one of their best W tokens.
        grown, choice = tokens.topk(min(width, tokens.size(2)), dim=2)
        score, index = torch.cat((stay, grown.flatten(1)), dim=1).topk(width, dim=1)
        grows = index >= width
        within = (index - width).clamp(min=0)
        origin = torch.where(grows, within // grown.size(2), index)
        token = torch.where(grows, choice.flatten(1).gather(1, within) + 1, BLANK)
        origins.append(origin)
        appended.append(token)
        # Scores only fall from here on: no text in the beam can come before those that are finished.
        if bool((score.logsumexp(1) <= best[:, -1]).all()):
            break
        count, before = count.gather(1, origin) + grows, own_hash.gather(1, origin)
        own_hash = torch.where(grows, before * HASH_MULTIPLIER + token, before)
        parent_hash = torch.where(grows, before, parent_hash.gather(1, origin))
        last = torch.where(grows, token, last.gather(1, origin))
        flat, moved = (rows * width + origin).flatten(), grows.flatten()
        prefixes, state = prefixes[flat], (state[0][:, flat], state[1][:, flat])
        read, after = _read(predictor, joint, last.flatten(), state)
        prefixes = torch.where(moved[:, None], read, prefixes)
        state = _where(moved, after, state)

    return [
        [
            TransducerHypothesis(_trace(origins, appended, row, *where), value)
            for value, where in zip(scores, places_of_one, strict=True)
            if value > -inf
        ]
        for row, (scores, places_of_one) in enumerate(zip(best.tolist(), place.tolist(), strict=True))
    ]


def _read(predictor: Predictor, joint: Joint, tokens: Tensor, state: State | None) -> tuple[Tensor, State]:
    """Read one more token (N,) each: projected prefixes (N, J) and the new state."""
    states, after = predictor(tokens[:, None], state)
    return joint.prefix(states[:, 0]), after


def _where(chosen: Tensor, new: State, old: State) -> State:
    """Return the new state where `chosen` (N,) is True."""
    hidden, cell = (torch.where(chosen[:, None], one, other) for one, other in zip(new, old, strict=True))
    return hidden, cell


def _trace(origins: list[Tensor], appended: list[Tensor], row: int, step: int, slot: int) -> list[int]:
    """Return the tokens of the text in a slot before a step."""
    tokens = []
    for origin, token in zip(reversed(origins[:step]), reversed(appended[:step]), strict=True):
        if (written := int(token[row, slot])) != BLANK:
            tokens.append(written)
        slot = int(origin[row, slot])
    return tokens[::-1]
