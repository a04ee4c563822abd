"""Transducer (Graves, arXiv 1211.3711): what follows an encoder of speech in the paper's recogniser (section 6).

A predictor reads the tokens so far, and a joint network scores, for each frame t and each number u of tokens so far, what
comes next: a token, which leads from (t, u) to (t, u + 1), or the blank, which leads to (t + 1, u). The probability of
a text is the sum over all paths from (0, 0) that read all frames and end with its last token.

torchaudio's `rnnt_loss` takes the logits of all (t, u) at once and with the joint network, on a CPU, 1.6 to 1.9 times as
long as this module (`benchmarks/transducer.py`); here they are made and used in parts, and two scores of each (t, u)
stay. It is the oracle in the tests.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from magneto.nn.init import Linear

BLANK = 0
State = tuple[Tensor, Tensor]
"""Hidden and cell state of an LSTM, (layers, N, width) each."""

MAX_SCORES = 2**24
"""Scores of the joint network that are kept for the backward pass; more are made in parts, and again there."""


class Predictor(nn.Module):
    """LSTM over the tokens so far; the blank stands for the beginning.

    Args:
        vocab_size: number of tokens, the blank included.
        width: of embeddings and LSTM.
        num_layers: of the LSTM.
        dropout: on its input and between its layers.
    """

    def __init__(self, vocab_size: int, width: int, num_layers: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.dropout = nn.Dropout(dropout)
        self.lstm = nn.LSTM(
            width, width, num_layers, batch_first=True, dropout=dropout if num_layers > 1 else 0.0
        )

    def forward(self, tokens: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """Read (N, L) tokens after what `state` has read: their states (N, L, width), and the last one for the next."""
        states, last = self.lstm(self.dropout(self.embedding(tokens)), state)
        return states, last

    def prefixes(self, targets: Tensor) -> Tensor:
        """Return the states after 0, 1, ... U tokens of the targets (B, U): (B, U + 1, width)."""
        states, _ = self(F.pad(targets, (1, 0), value=BLANK))
        return states

    def training_flops_per_token(self) -> float:
        """Return the model FLOPs of a forward and a backward pass per token (`nn.flops`)."""
        return 6.0 * sum(weight.numel() for weight in self.lstm.parameters() if weight.ndim == 2)


class Joint(nn.Module):
    """Scores of what comes next, from a frame and a prefix: output(tanh(W f + V p)).

    Args:
        d_model: width of the frames.
        predictor_width: width of the prefixes.
        width: of the sum.
        vocab_size: number of tokens, the blank included.
    """

    def __init__(self, d_model: int, predictor_width: int, width: int, vocab_size: int) -> None:
        super().__init__()
        self.frame = Linear(d_model, width, roles=("head",))
        self.prefix = Linear(predictor_width, width, roles=("head",), bias=False)
        self.output = Linear(width, vocab_size, roles=("head",))

    def forward(self, frames: Tensor, prefixes: Tensor) -> Tensor:
        """Return fp32 logits (..., vocab_size) of projected frames and prefixes (..., width), which are broadcast."""
        logits: Tensor = self.output(torch.tanh(frames + prefixes))
        return logits.float()

    def loss(
        self,
        frames: Tensor,
        prefixes: Tensor,
        targets: Tensor,
        lengths: Tensor,
        target_lengths: Tensor,
        max_scores: int = MAX_SCORES,
    ) -> Tensor:
        """Return the negative log probability of each text.

        Args:
            frames: (B, T, d_model), output of the encoder.
            prefixes: (B, U + 1, predictor_width), of `Predictor.prefixes`.
            targets: (B, U) int64, anything where padded.
            lengths: (B,) int64, frames of each row, 1 or more.
            target_lengths: (B,) int64, tokens of each row; they may exceed the frames.
            max_scores: logits that are kept for the backward pass; with more, they are made for some frames at a time, and
                once more in the backward pass: this bounds memory and costs a third of the joint network's time.

        Returns:
            (B,) fp32.
        """
        frames, prefixes = self.frame(frames), self.prefix(prefixes)[:, None]  # (B, T, J), (B, 1, U + 1, J)
        batch, length, _ = frames.shape
        at_once = max(1, max_scores // (batch * prefixes.size(2) * self.output.out_features))
        if at_once >= length:
            blank, token = self._arcs(frames, prefixes, targets)
        else:
            parts = [
                checkpoint(self._arcs, part, prefixes, targets, use_reentrant=False)
                for part in torch.split(frames, at_once, dim=1)
            ]
            blank, token = (torch.cat(scores, dim=1) for scores in zip(*parts, strict=True))
        return path_sum_loss(blank, token, lengths, target_lengths)

    def _arcs(self, frames: Tensor, prefixes: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log probabilities of the blank, (B, t, U + 1), and of the next target, (B, t, U)."""
        logits = self(frames[:, :, None], prefixes)  # (B, t, U + 1, V)
        total = logits.logsumexp(dim=-1)
        index = targets[:, None, :, None].expand(-1, frames.size(1), -1, -1)
        token = logits[:, :, :-1].gather(-1, index).squeeze(-1)
        return logits[..., BLANK] - total, token - total[:, :, :-1]

    def training_flops(self, batch: int, frames: int, prefixes: int) -> float:
        """Return the model FLOPs of `loss` with its backward pass (`nn.flops`); what is made again does not count."""
        projected = frames * self.frame.weight.numel() + prefixes * self.prefix.weight.numel()
        return 6.0 * batch * (projected + frames * prefixes * self.output.weight.numel())


def path_sum_loss(blank: Tensor, token: Tensor, lengths: Tensor, target_lengths: Tensor) -> Tensor:
    """Return minus the log of the summed probability of all paths (Graves, arXiv 1211.3711, section 2.4), differentiable.

    Args:
        blank: (B, T, U + 1) log probability of the blank in frame t after u tokens.
        token: (B, T, U) log probability of token u + 1 in frame t after u tokens; finite where padded.
        lengths: (B,) int64, frames of each row, 1 or more.
        target_lengths: (B,) int64, tokens of each row.

    Returns:
        (B,) of the dtype of `blank`; the sums are in fp64.
    """
    loss: Tensor = _PathSum.apply(blank, token, lengths, target_lengths)  # type: ignore[no-untyped-call]
    return loss


class _PathSum(torch.autograd.Function):
    """Forward and backward variables frame by frame; within a frame a recurrence over u, which `logcumsumexp` solves.

    With E(t, u), the sum of the first u token scores of frame t:

        alpha(t, u) = E(t, u) + log sum_{v <= u} exp(alpha(t - 1, v) + blank(t - 1, v) - E(t, v))
        beta(t, u) = log sum_{v >= u} exp(blank(t, v) + beta(t + 1, v) + E(t, v)) - E(t, u)
    """

    @staticmethod
    def forward(ctx: Any, blank: Tensor, token: Tensor, lengths: Tensor, target_lengths: Tensor) -> Tensor:
        dtype, frames = blank.dtype, blank.size(1)
        blank, token = blank.double(), token.double()
        sums = F.pad(token.cumsum(dim=2), (1, 0))  # E, (B, T, U + 1)
        states = torch.arange(blank.size(2), device=blank.device)
        # log probability of what follows the last frame: nothing, if all tokens were there
        end = torch.where(states == target_lengths[:, None], 0.0, -torch.inf).to(blank)
        beta, betas, nexts = (
            end,
            [],
            [],
        )  # the last two: beta of each frame and of the one after it, last frame first
        for t in reversed(range(frames)):
            nexts.append(torch.where((t + 1 >= lengths)[:, None], end, beta))
            beta = (blank[:, t] + nexts[-1] + sums[:, t]).flip(1).logcumsumexp(1).flip(1) - sums[:, t]
            betas.append(beta)
        total = beta[:, 0]  # (B,)
        if any(ctx.needs_input_grad):
            alphas = [sums[:, 0]]
            for t in range(1, frames):
                before = alphas[-1] + blank[:, t - 1] - sums[:, t]
                alphas.append(sums[:, t] + before.logcumsumexp(1))
            alpha = torch.stack(alphas, dim=1) - total[:, None, None]
            padded = torch.arange(frames, device=blank.device) >= lengths[:, None]  # (B, T)
            # The share of the paths that take an arc is minus the gradient of its score.
            shares = (
                alpha + blank + torch.stack(nexts[::-1], dim=1),
                alpha[:, :, :-1] + token + torch.stack(betas[::-1], dim=1)[:, :, 1:],
            )
            ctx.save_for_backward(
                *(share.masked_fill(padded[..., None], -torch.inf).exp().to(dtype) for share in shares)
            )
        return -total.to(dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        blank, token = (-share * grad[:, None, None] for share in ctx.saved_tensors)
        return blank, token, None, None
