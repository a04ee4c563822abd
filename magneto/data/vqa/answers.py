"""Answers that several people gave to one question, as VQA counts them (Antol et al., arXiv 1505.00468, and its tool).

An answer is right as far as other people gave it: min(how many / 3, 1). Of the ten people who answered, each in turn is
left out, and the mean of the ten results is the accuracy.
"""

import re

from torch import Tensor

ENOUGH = 3  # people who gave an answer that is wholly right
_NUMBERS = {
    word: str(value)
    for value, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}
_ARTICLES = frozenset(("a", "an", "the"))
_CONTRACTED = (
    "ain't aren't can't couldn't could've didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's i'm i've "
    "isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't "
    "that's there'd there're there's they'd they'll they're they've wasn't weren't we've what'll what're what's what've "
    "when's where'd where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd "
    "you'll you're you've"
)
_APOSTROPHES = {word.replace("'", ""): word for word in _CONTRACTED.split()}
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")


def normalize_answer(text: str) -> str:
    """Equal for answers that VQA's tool takes for the same: small letters, digits for numbers up to ten, no articles.

    An answer of articles alone ("a", of a letter on a sign) stays. One without any letter or digit becomes empty.
    Contractions get their apostrophe. A punctuation mark vanishes where it touches a space, and where the answer has a
    number such as 1,000; otherwise it becomes a space. A full stop stays in a decimal number only.
    """
    text = " ".join(text.split())
    grouped = _DIGIT_COMMA.search(text) is not None
    plain = text
    for mark in _MARKS:
        beside_space = f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if beside_space or grouped else " ")
    words = [_NUMBERS.get(word, word) for word in _FULL_STOP.sub("", plain).lower().split()]
    telling = [word for word in words if word not in _ARTICLES] or words
    return " ".join(_APOSTROPHES.get(word, word) for word in telling)


def shared(counts: Tensor, people: Tensor) -> Tensor:
    """min(counts / 3, 1): how far an answer is that of the people who were asked.

    Of fewer than three people all must have given it.

    Args:
        counts: how many gave the answer, any shape.
        people: how many were asked, broadcastable.
    """
    return (counts / people.clamp(1, ENOUGH)).clamp(0, 1)


def vqa_accuracy(counts: Tensor, people: Tensor) -> Tensor:
    """VQA's accuracy of an answer: the mean of `shared` over the people, each of whom is left out in turn.

    Of ten people, 0, 1, 2, 3 and 4 who gave it make 0, 0.3, 0.6, 0.9 and 1. An only one cannot be left out: what he says
    is right.

    Args:
        counts: how many gave the answer, float, any shape.
        people: how many were asked, float, broadcastable.
    """
    without_it, without_another = shared(counts - 1, people - 1), shared(counts, people - 1)
    mean = (counts * without_it + (people - counts) * without_another) / people
    return mean.where(people > 1, counts)
