"""Choose the tokens that a masked language model predicts, and replace them in its input."""

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Le, Lt

from magneto.data.collate import IGNORE
from magneto.data.tokenizers.text import TextTokenizer
from magneto.errors import ConfigError

LONGEST_SPAN = 10  # as in SpanBERT


@dataclass(frozen=True, kw_only=True)
class Masking:
    """Masking of BERT (Devlin et al. 2019, arXiv 1810.04805, 3.1) or, with span > 1, of SpanBERT (1907.10529, 3.1).

    Hiding more than 15 % in training helps (Wettig et al. 2023, arXiv 2202.08005), but scores can be compared only at
    equal shares.

    Args:
        probability: the share of a block's tokens that are chosen, exact up to rounding, at least one.
        mask: the share of the runs that become `[MASK]`.
        random: the share of the runs whose tokens become random ones; the others are unchanged.
        span: mean length of the runs that are chosen together, geometrically distributed, at most 10 tokens.
        eval_probability: the share of the tokens that are chosen in evaluation; None: as in training.
    """

    probability: Annotated[float, Gt(0), Lt(1)] = 0.15
    mask: Annotated[float, Ge(0)] = 0.8
    random: Annotated[float, Ge(0)] = 0.1
    span: Annotated[float, Ge(1), Le(LONGEST_SPAN)] = 1.0
    eval_probability: Annotated[float, Gt(0), Lt(1)] | None = None

    def __post_init__(self) -> None:
        if self.mask + self.random > 1:
            raise ConfigError(
                f"masking.mask={self.mask} and masking.random={self.random} are shares of the chosen tokens: together at "
                "most 1."
            )

    def for_evaluation(self) -> "Masking":
        """Return the masking of an evaluation."""
        return self if self.eval_probability is None else replace(self, probability=self.eval_probability)

    def __call__(
        self, tokens: np.ndarray, allowed: np.ndarray, tokenizer: TextTokenizer, random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Hide tokens (T,), of those that are `allowed` (T,).

        Returns:
            What the model sees (T,), and the targets (T,): the original tokens at the chosen places, else IGNORE.
        """
        runs = self.choose(allowed, random)
        shown = self.hide(tokens, runs, tokenizer.require("mask"), tokenizer.ordinary_ids, random)
        return shown, np.where(runs > 0, tokens, IGNORE)

    def choose(self, allowed: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Choose tokens of a block.

        Args:
            allowed: (T,) bool, the tokens that may be chosen.
            random: the stream to draw from.

        Returns:
            (T,) int64: 0 where a token is not chosen, else the number of its run, from 1.
        """
        positions = np.flatnonzero(allowed)
        runs = np.zeros(len(allowed), np.int64)
        if not len(positions):
            return runs
        target = max(1, round(self.probability * len(positions)))
        if self.span == 1:
            runs[random.permutation(positions)[:target]] = np.arange(1, target + 1)
            return runs
        chosen, number = 0, 0
        for start in random.permutation(positions):
            if chosen == target:
                break
            if runs[start]:
                continue
            number += 1
            length = min(int(random.geometric(1 / self.span)), LONGEST_SPAN, target - chosen)
            for position in range(start, min(start + length, len(allowed))):
                if not allowed[position] or runs[position]:
                    break
                runs[position] = number
                chosen += 1
        return runs

    def hide(
        self,
        tokens: np.ndarray,
        runs: np.ndarray,
        mask_id: int,
        ordinary: np.ndarray,
        random: np.random.Generator,
    ) -> np.ndarray:
        """Return the input of the model: tokens (T,) int64, of which those of `runs` are replaced.

        Args:
            tokens: (T,) int64.
            runs: (T,) of `choose`.
            mask_id: of `[MASK]`.
            ordinary: ids of the random tokens.
            random: the stream to draw from.
        """
        fate = random.random(int(runs.max(initial=0)) + 1)[runs]
        shown = np.where((runs > 0) & (fate < self.mask), mask_id, tokens)
        other = (runs > 0) & (fate >= self.mask) & (fate < self.mask + self.random)
        shown[other] = random.choice(ordinary, int(other.sum()))
        return shown
