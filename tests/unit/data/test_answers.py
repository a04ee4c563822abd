"""VQA's accuracy and soft targets, worked out by hand, and when answers count as equal."""

import itertools

import pytest
import torch

from magneto.data.vqa.answers import normalize_answer, shared, vqa_accuracy


def by_definition(answers: list[str], given: str) -> float:
    """Each person is left out in turn; min(how many of the others gave the answer / 3, 1), averaged."""
    scores = []
    for left_out in range(len(answers)):
        others = answers[:left_out] + answers[left_out + 1 :]
        scores.append(min(others.count(given) / 3, 1))
    return sum(scores) / len(scores)


@pytest.mark.parametrize(
    ("count", "accuracy"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (7, 1.0), (10, 1.0)]
)
def test_accuracy_by_the_definition(count: int, accuracy: float) -> None:
    """The accuracy of an answer is that of the definition."""
    answers = ["red"] * count + ["blue"] * (10 - count)
    found = float(vqa_accuracy(torch.tensor(float(count)), torch.tensor(10.0)))
    assert found == pytest.approx(accuracy) and found == pytest.approx(by_definition(answers, "red"))


@pytest.mark.parametrize("people", range(4, 12))
def test_any_number_of_people_above_three(people: int) -> None:
    for count in range(people + 1):
        answers = ["red"] * count + ["blue"] * (people - count)
        found = vqa_accuracy(torch.tensor(float(count)), torch.tensor(float(people)))
        assert float(found) == pytest.approx(by_definition(answers, "red"))


def test_few_people_who_agree_are_right() -> None:
    people = torch.tensor([1.0, 1, 2, 2, 3, 3])
    counts = torch.tensor([0.0, 1, 1, 2, 2, 3])
    # Of two who differ the one who is left out is right or wrong; of three, two agree: (0.5 + 0.5 + 1) / 3.
    assert vqa_accuracy(counts, people).tolist() == pytest.approx([0, 1, 0.5, 1, 2 / 3, 1])


def test_soft_targets_are_thirds_of_three_people() -> None:
    counts = torch.tensor([[0.0, 1, 2, 3, 4, 10]])
    assert shared(counts, torch.tensor([[10.0]])).tolist()[0] == pytest.approx([0, 1 / 3, 2 / 3, 1, 1, 1])
    assert shared(torch.tensor([0.0, 1]), torch.tensor(1.0)).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        (" The  Red ball.", "red ball"),
        ("a", "a"),
        (" A. ", "a"),
        ("The a", "the a"),
        ("?", ""),
        ("Two", "2"),
        ("none", "0"),
        ("1,000", "1000"),
        ("2.5", "2.5"),
        ("U.S.", "us"),
        ("black/white", "black white"),
        ("black, white", "black white"),
        ("yes!", "yes"),
        ("t-shirt", "t shirt"),
        ("dont know", "don't know"),
        ("women's", "women's"),
    ],
)
def test_answers_are_made_equal_as_by_vqas_tool(text: str, plain: str) -> None:
    assert normalize_answer(text) == plain


def test_normalised_answers_stay_as_they_are() -> None:
    for words in itertools.product(("The two", "wont", "3.5", "x-ray"), repeat=2):
        once = normalize_answer(" ".join(words))
        assert normalize_answer(once) == once
