"""Error rates of recognised text: corpus scores from summed counts, and alignments that a person can read.

A corpus rate is (substitutions + deletions + insertions) / reference length, both summed over the corpus.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Literal, NamedTuple

import torch
from rapidfuzz.distance import Levenshtein  # the engine of jiwer, which is the oracle in the tests
from torch import Tensor

from magneto.errors import ConfigError, nearest
from magneto.metrics.examples import ExampleScores

Operation = Literal["equal", "substitute", "delete", "insert"]
Unit = Literal["character", "word"]

OPERATIONS: tuple[Operation, ...] = ("equal", "substitute", "delete", "insert")


def metric_names(labels: Sequence[str]) -> list[str]:
    """Return each label as one part of a metric's name, in which a slash begins the next part."""
    names: list[str] = []
    for label in labels:
        name = label.replace("/", "_")
        while name in names:
            name += "_"
        names.append(name)
    return names


class Edit(NamedTuple):
    """One step of an alignment: `ref` is empty for an insertion, `hyp` for a deletion."""

    op: Operation
    ref: str
    hyp: str


def align(reference: str, hypothesis: str, unit: Unit = "word") -> list[Edit]:
    """A shortest list of edits, token by token, that turns the reference into the hypothesis.

    Words are split at white space; characters include one space between two words. Nothing else is
    normalised: case, punctuation and Unicode form are the data's business.
    """
    ref, hyp = _tokens(reference, unit), _tokens(hypothesis, unit)
    edits: list[Edit] = []
    for block in Levenshtein.opcodes(ref, hyp):
        left, right = ref[block.src_start : block.src_end], hyp[block.dest_start : block.dest_end]
        if block.tag == "delete":
            edits += [Edit("delete", token, "") for token in left]
        elif block.tag == "insert":
            edits += [Edit("insert", "", token) for token in right]
        else:
            op: Operation = "equal" if block.tag == "equal" else "substitute"
            edits += [Edit(op, *pair) for pair in zip(left, right, strict=True)]
    return edits


def mark_errors(reference: str, hypothesis: str, unit: Unit = "word") -> str:
    """The alignment as one line of plain text in the style of wdiff.

    >>> mark_errors("the red boat", "the bed boat sails")
    'the [-red-]{+bed+} boat {+sails+}'
    >>> mark_errors("red boat", "bed bot", unit="character")
    '[-r-]{+b+}ed bo[-a-]t'
    """
    space = " " if unit == "word" else ""
    parts = []
    for equal, run in groupby(align(reference, hypothesis, unit), key=lambda edit: edit.op == "equal"):
        edits = list(run)
        ref = space.join(edit.ref for edit in edits if edit.ref)
        hyp = space.join(edit.hyp for edit in edits if edit.hyp)
        parts.append(ref if equal else (f"[-{ref}-]" if ref else "") + (f"{{+{hyp}+}}" if hyp else ""))
    return space.join(parts)


class ErrorRate(ExampleScores):
    """Corpus character and word error rate, over all samples and per group (for example per language).

    An empty reference adds nothing to the reference length, and every token of its hypothesis is an
    insertion. Where the summed length is zero, the rate is the number of errors (jiwer's convention): 0.0
    if there are none.

    Args:
        groups: the names that `update` may give, alike on all processes.
    """

    higher_is_better = False

    def __init__(self, groups: Sequence[str] = ()) -> None:
        super().__init__(
            2 + 2 * len(OPERATIONS)
        )  # index of the group (-1: none), counts of characters, of words
        self.groups = tuple(groups)

    def update(
        self,
        references: Sequence[str],
        hypotheses: Sequence[str],
        ids: Tensor,
        groups: Sequence[str] | None = None,
    ) -> None:
        """Count the errors of one batch.

        Args:
            references: B texts.
            hypotheses: B texts.
            ids: (B,) int64, one number per sample, unique in the corpus.
            groups: B names out of those given to the constructor, or None.

        Raises:
            MagnetoError: a group is not one of the constructor's.
        """
        members = [-1] * len(references) if groups is None else [self._group_index(name) for name in groups]
        rows = [
            [member, *_count(ref, hyp, "character"), *_count(ref, hyp, "word")]
            for member, ref, hyp in zip(members, references, hypotheses, strict=True)
        ]
        if rows:
            self.keep(ids, torch.tensor(rows))

    def compute(self) -> dict[str, float]:
        """The rates as fractions (0.42, not 42).

        Returns:
            `cer`, `wer`; `substitutions`, `deletions` and `insertions`, the parts that add up to `cer`;
            `cer/<group>` and `wer/<group>` for each group that was seen. Empty when no sample was seen.
        """
        table = self.examples().long()
        if not len(table):
            return {}
        group_of, counts = table[:, 0], table[:, 1:].reshape(-1, 2, len(OPERATIONS))

        scores = _rates(counts)
        equal, substituted, deleted, inserted = counts[:, 0].sum(dim=0).tolist()
        length = max(equal + substituted + deleted, 1)
        scores["substitutions"] = substituted / length
        scores["deletions"] = deleted / length
        scores["insertions"] = inserted / length
        for index, name in enumerate(self.groups):
            if (member := group_of == index).any():
                scores |= {f"{rate}/{name}": value for rate, value in _rates(counts[member]).items()}
        return scores

    def _group_index(self, group: str) -> int:
        if group not in self.groups:
            known = ", ".join(self.groups) or "none"
            raise ConfigError(
                f"group '{group}' is not counted; counted are: {known}.{nearest(group, self.groups)}"
            )
        return self.groups.index(group)


def _tokens(text: str, unit: Unit) -> list[str]:
    words = text.split()
    return words if unit == "word" else list(" ".join(words))


def _count(reference: str, hypothesis: str, unit: Unit) -> list[int]:
    """Count each of OPERATIONS in the alignment."""
    ops = [edit.op for edit in align(reference, hypothesis, unit)]
    return [ops.count(op) for op in OPERATIONS]


def _rates(counts: Tensor) -> dict[str, float]:
    """Corpus rates from the counts of N samples, (N, 2, 4): of characters and of words, of each operation."""
    rates = {}
    for name, ops in zip(("cer", "wer"), counts.sum(dim=0).tolist(), strict=True):
        equal, substituted, deleted, inserted = ops
        rates[name] = (substituted + deleted + inserted) / max(equal + substituted + deleted, 1)
    return rates
