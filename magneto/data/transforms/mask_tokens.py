"""Which tokens a masked language model has to guess, and what it sees in their places."""

from dataclasses import dataclass, replace

import numpy as np

from magneto.errors import DataError

LONGEST_SPAN = 10  # as in SpanBERT


@dataclass(frozen=True, kw_only=True)
class Masking:
    """Masking of BERT (Devlin et al. 2019, arXiv 1810.04805, 3.1) or, with span > 1, of SpanBERT (1907.10529, 3.1).

    probability: the share of a block's tokens that are chosen, exact up to rounding, at least one; span: mean length
    of the runs that are chosen together, drawn geometrically, at most 10 tokens; mask: the share of runs that become
    `[MASK]`; random: the share whose tokens become random ones; the rest is left as it is. eval_probability: the share
    of the tokens that are chosen in evaluation; None: as in training. It pays to hide more than 15 % in training
    (Wettig et al. 2023, arXiv 2202.08005), but scores compare at equal shares only.
    """

    probability: float = 0.15
    mask: float = 0.8
    random: float = 0.1
    span: float = 1.0
    eval_probability: float | None = None

    def __post_init__(self) -> None:
        for key in ("probability", "eval_probability"):
            value = getattr(self, key)
            if value is not None and not 0 < value < 1:
                raise DataError(f"masking.{key}={value} must lie between 0 and 1: 0.15.")
        if min(self.mask, self.random) < 0 or self.mask + self.random > 1:
            raise DataError(
                f"masking.mask={self.mask} and masking.random={self.random} are shares of the chosen tokens: neither "
                "below 0, together at most 1."
            )
        if not 1 <= self.span <= LONGEST_SPAN:
            raise DataError(
                f"masking.span={self.span} must lie between 1 (single tokens) and {LONGEST_SPAN}."
            )

    def for_evaluation(self) -> "Masking":
        """The masking of an evaluation."""
        return self if self.eval_probability is None else replace(self, probability=self.eval_probability)

    def choose(self, allowed: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """Choose tokens of a block.

        Args:
            allowed: (T,) bool, what may be chosen.
            random: the stream to draw from.

        Returns:
            (T,) int64: 0 where a token is not chosen, else the number of its run, from 1.
        """
        places = np.flatnonzero(allowed)
        runs = np.zeros(len(allowed), np.int64)
        if not len(places):
            return runs
        wanted = max(1, round(self.probability * len(places)))
        if self.span == 1:
            runs[random.permutation(places)[:wanted]] = np.arange(1, wanted + 1)
            return runs
        chosen, number = 0, 0
        for start in random.permutation(places):
            if chosen == wanted:
                break
            if runs[start]:
                continue
            number += 1
            length = min(int(random.geometric(1 / self.span)), LONGEST_SPAN, wanted - chosen)
            for place in range(start, min(start + length, len(allowed))):
                if not allowed[place] or runs[place]:
                    break
                runs[place] = number
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
        """What the model sees: tokens (T,) int64 with those of `runs` (of `choose`) replaced.

        ordinary: ids from which random tokens are drawn.
        """
        fate = random.random(int(runs.max(initial=0)) + 1)[runs]
        shown = np.where((runs > 0) & (fate < self.mask), mask_id, tokens)
        other = (runs > 0) & (fate >= self.mask) & (fate < self.mask + self.random)
        shown[other] = random.choice(ordinary, int(other.sum()))
        return shown
