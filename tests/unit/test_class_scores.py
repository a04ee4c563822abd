"""Accuracies and confusion matrix of images against torchmetrics and counting."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_confusion_matrix

from magneto.errors import MagnetoError
from magneto.metrics.image_classification import DRAWN, NAMED, ClassScores
from magneto.tasks.image_classification import among
from magneto.visualize.confusion_matrix import draw_confusion


def names(count: int) -> list[str]:
    return [f"class {number}" for number in range(count)]


def answers(classes: int, examples: int = 300) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(classes)
    labels = torch.randint(classes, (examples,), generator=random)
    logits = torch.randn(examples, classes, generator=random)
    logits[torch.arange(examples), labels] += 1.0
    return logits, labels


@pytest.mark.parametrize("classes", [3, 10, 40])
def test_accuracies_are_those_of_torchmetrics(classes: int) -> None:
    logits, labels = answers(classes)
    scores = ClassScores(names(classes))
    for part in range(0, 300, 77):
        scores.update(logits[part : part + 77], labels[part : part + 77])
    found = scores.compute()
    for key, average, top in (
        ("top1", "micro", 1),
        ("mean_class_accuracy", "macro", 1),
        ("top5", "micro", 5),
    ):
        wanted = multiclass_accuracy(logits, labels, classes, average=average, top_k=min(top, classes))
        assert found[key] == pytest.approx(float(wanted)), key
    wanted = multiclass_accuracy(logits, labels, classes, average="none")
    for number, name in enumerate(names(classes)):
        assert (f"top1/{name}" in found) == (classes <= NAMED)
        if classes <= NAMED:
            assert found[f"top1/{name}"] == pytest.approx(float(wanted[number]))
    assert scores.confusion is not None
    assert (scores.confusion == multiclass_confusion_matrix(logits, labels, classes).numpy()).all()


def test_examples_without_a_class_are_ignored() -> None:
    """Examples without a class are skipped and a reset forgets."""
    logits, labels = answers(4, 40)
    scores, known = ClassScores(names(4)), ClassScores(names(4))
    labels[::3] = -1
    scores.update(logits, labels)
    known.update(logits[labels >= 0], labels[labels >= 0])
    assert scores.compute() == known.compute()
    scores.reset()
    scores.update(logits[:5], torch.full((5,), -1))
    with pytest.raises(MagnetoError, match="None of the evaluated images has a class"):
        scores.compute()


def test_classes_that_do_not_occur_do_not_count() -> None:
    scores = ClassScores(names(4))
    scores.update(torch.eye(4)[[0, 0, 2, 1]], torch.tensor([0, 0, 2, 2]))
    found = scores.compute()
    assert found["top1"] == 0.75 and found["mean_class_accuracy"] == 0.75  # of class 0: 1, of class 2: a half
    assert {key for key in found if "/" in key} == {"top1/class 0", "top1/class 2"}


def test_a_slash_in_a_class_is_no_further_part() -> None:
    """Of a metric's name; classes that would then be called alike are told apart."""
    scores = ClassScores(["T-shirt/top", "T-shirt_top", "coat"])
    scores.update(torch.eye(3), torch.tensor([0, 1, 0]))
    own = {key: value for key, value in scores.compute().items() if key.startswith("top1/")}
    assert own == {"top1/T-shirt_top": 0.5, "top1/T-shirt_top_": 1.0}


def test_there_is_no_matrix_of_very_many_classes() -> None:
    scores = ClassScores(names(DRAWN + 1))
    scores.update(torch.randn(2, DRAWN + 1), torch.tensor([0, 1]))
    scores.compute()
    assert scores.confusion is None


@pytest.mark.parametrize("classes", [3, NAMED, NAMED + 1])
def test_the_matrix_is_drawn(classes: int) -> None:
    confusion = np.zeros((classes + 5, classes + 5), np.int64)  # five classes that never occur are left out
    confusion[range(classes), range(classes)] = 10
    even = draw_confusion(confusion, names(classes + 5))
    confusion[0, :classes] = 5
    uneven = draw_confusion(confusion, names(classes + 5))
    assert even.dtype == np.uint8 and even.ndim == 3 and even.shape[2] == 3 and min(even.shape[:2]) > 300
    assert even.shape != uneven.shape or (even != uneven).any()


def test_only_classes_of_the_set_can_win() -> None:
    """Among a models classes only those of a set can win."""
    logits, _ = answers(6, 50)
    subset = torch.tensor([1, 4, 5])
    allowed = among(logits, subset)
    assert set(allowed.argmax(1).tolist()) <= {1, 4, 5}
    assert torch.equal(allowed[:, subset], logits[:, subset])
    torch.testing.assert_close(allowed.softmax(1)[:, subset], logits[:, subset].softmax(1))
    target = torch.nn.functional.one_hot(torch.tensor([4] * 50), 6).float()
    loss = torch.nn.functional.cross_entropy(allowed, target)
    torch.testing.assert_close(
        loss, torch.nn.functional.cross_entropy(logits[:, subset], torch.tensor([1] * 50))
    )
