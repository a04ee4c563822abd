"""AnswerScores, against numbers worked out by hand."""

import pytest
import torch

from magneto.metrics.vqa import AnswerScores


def test_accuracy_is_that_of_each_kind_and_of_all() -> None:
    scores = AnswerScores(["colour", "yes/no"], majority=[0, 2, 2], statements=False)
    counts = torch.tensor([[8.0, 2, 0, 0], [0, 3, 0, 0], [0, 0, 10, 0], [0, 0, 0, 10]])
    scores.update(
        chosen=torch.tensor([1, 1, 2, 2]),
        counts=counts,
        people=torch.full((4,), 10.0),
        ids=torch.arange(4),
        kinds=torch.tensor([0, 0, 1, 1]),
        groups=torch.full((4,), -1),
    )
    assert scores.compute() == pytest.approx(
        {"accuracy": 0.625, "accuracy/colour": 0.75, "accuracy/yes_no": 0.5, "facts/majority_accuracy": 0.5}
    )


def test_a_question_that_comes_twice_counts_once() -> None:
    scores = AnswerScores([""], majority=[0, 0], statements=False)
    for _ in range(2):
        scores.update(
            torch.tensor([0, 0]), torch.tensor([[1.0, 0], [0, 1]]), torch.ones(2),
            torch.tensor([5, 6]), torch.zeros(2, dtype=torch.long), torch.tensor([-1, -1]),
        )  # fmt: skip
    scores.update(
        torch.tensor([0]), torch.tensor([[1.0, 0]]), torch.ones(1),
        torch.tensor([7]), torch.tensor([-1]), torch.tensor([-1]),
    )  # fmt: skip
    assert scores.compute() == pytest.approx({"accuracy": 2 / 3, "facts/majority_accuracy": 2 / 3})


def test_consistency_of_statements() -> None:
    """A statement is understood where all its pairs are judged rightly."""
    scores = AnswerScores([""], majority=[0, 0], statements=True)
    right = torch.tensor([1, 1, 1, 0, 1, 0])  # groups 7 7, 8 8, and two that stand alone
    counts = torch.nn.functional.one_hot(torch.ones(6, dtype=torch.long), 2).float()
    scores.update(
        chosen=right,
        counts=counts,
        people=torch.ones(6),
        ids=torch.arange(6),
        kinds=torch.zeros(6, dtype=torch.long),
        groups=torch.tensor([7, 7, 8, 8, -1, -1]),
    )
    assert scores.compute() == pytest.approx(
        {"accuracy": 4 / 6, "consistency": 2 / 4, "facts/majority_accuracy": 0.0}
    )


def test_nothing_seen_gives_nothing() -> None:
    assert AnswerScores([""], majority=[0, 0], statements=True).compute() == {}
