"""VQA's accuracy of answers to questions about images, and NLVR2's consistency of judgements."""

from collections.abc import Sequence

import torch
from torch import Tensor

from magneto.data.vqa.answers import vqa_accuracy
from magneto.metrics.error_rate import metric_names
from magneto.metrics.examples import ExampleScores


class AnswerScores(ExampleScores):
    """Scores over all questions of an evaluation, as fractions.

    - `accuracy`: mean of `vqa_accuracy`; of questions that one person answered, the share of right answers.
    - `accuracy/<kind>`: of the questions of one kind, where there are several; a slash in its name becomes `_`.
    - `facts/majority_accuracy`: accuracy of giving every kind of question its most frequent answer, without the image.
    - `consistency`: share of the statements that are judged rightly for all their pairs of images.

    Args:
        kinds: names of the kinds of questions.
        majority: the most frequent answer of each kind in training, and last that of all questions.
        statements: whether consistency is to be measured.
    """

    majority: Tensor

    def __init__(self, kinds: Sequence[str], majority: Sequence[int], statements: bool) -> None:
        super().__init__(5)
        self.kinds, self.statements = tuple(kinds), statements
        self.register_buffer("majority", torch.tensor(majority), persistent=False)

    def update(
        self, chosen: Tensor, counts: Tensor, people: Tensor, ids: Tensor, kinds: Tensor, groups: Tensor
    ) -> None:
        """Keep one batch.

        Args:
            chosen: (B,) int64, the model's answers.
            counts: (B, A), how many people gave each answer.
            people: (B,), how many were asked.
            ids: (B,) of the questions.
            kinds: (B,) int64, -1 where there is none.
            groups: (B,) equal for the pairs of one statement, -1 for a statement of one pair.
        """
        given = torch.stack((chosen, self.majority[kinds]), dim=1)
        accuracy = vqa_accuracy(counts.double().gather(1, given), people.double()[:, None])
        self.keep(ids, kinds, groups, accuracy)

    def compute(self) -> dict[str, float]:
        """The scores; empty when no question was seen."""
        rows = self.examples()
        if not len(rows):
            return {}
        kind, group, right, majority = rows.T
        scores = {"accuracy": float(right.mean()), "facts/majority_accuracy": float(majority.mean())}
        if len(self.kinds) > 1:
            scores |= {
                f"accuracy/{name}": float(right[kind == index].mean())
                for index, name in enumerate(metric_names(self.kinds))
                if (kind == index).any()
            }
        if self.statements:
            alone = right[group < 0]
            wrong = {one: False for one in group[group >= 0].tolist()}
            for one, value in zip(group.tolist(), right.tolist(), strict=True):
                if one in wrong:
                    wrong[one] |= value < 1
            statements = len(wrong) + len(alone)
            consistent = len(wrong) - sum(wrong.values()) + float((alone == 1).sum())
            scores["consistency"] = consistent / statements
        return scores
