"""Synthetic questions and statements about the images of the Tux Paint stamps (docs/data.md).

No person asked or answered them: the patterns below make them from the folders of the stamps (a stamp of animals/birds
shows a bird) and from the main colour of the image. They show that a model learns to read a question and to look at an
image, and do not replace VQA or NLVR2.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from magneto.data.corpora.base import SPLITS
from magneto.data.corpora.image.base import ImageCorpus
from magneto.data.corpora.image.stamp_images import StampImagesReader
from magneto.data.corpora.vqa.base import TRUTH, Question, QuestionCorpus, UsableImages
from magneto.data.corpora.vqa.colours import main_colour
from magneto.data.rng import random_stream

THINGS = {
    "animals": "an animal", "animals/birds": "a bird", "animals/fish": "a fish", "animals/insects": "an insect",
    "animals/mammals": "a mammal", "clothes": "clothing", "clothes/hats": "a hat", "food": "food",
    "food/fruit": "fruit", "food/vegetables": "a vegetable", "hobbies/music": "a musical instrument",
    "household": "a household item", "household/dishes": "tableware", "household/tools": "a tool",
    "people/body_parts": "a part of the body", "plants": "a plant", "plants/flowers": "a flower",
    "plants/trees": "a tree", "space/planets": "a planet", "symbols/alphabets": "a letter",
    "symbols/chess": "a chess piece", "symbols/money": "money", "town/houses": "a house",
    "town/roadsigns": "a road sign", "vehicles": "a vehicle",
}  # fmt: skip
"""Folder -> the object that its stamps show."""
ASK_COLOUR = ("what colour is it?", "which colour does it have?", "what is its main colour?")
ASK_THING = ("what is it?", "what is this?", "what does the picture show?")
ASK_WHETHER = ("is it {}?", "is this {}?", "does the picture show {}?")
STATEMENTS: dict[str, tuple[tuple[bool, bool], ...]] = {
    "both pictures show {}": ((True, True),),
    "the left picture shows {}": ((True, True), (True, False)),
    "the right picture shows {}": ((True, True), (False, True)),
    "only one of the pictures shows {}": ((True, False), (False, True)),
}
"""Pattern -> for the left and the right image whether they show it, in all cases where the statement is true."""
PAIRS = 2  # true ones of each statement, and the same number of false ones
STATED_FOR = 4  # images of an object for one statement of each pattern


class StampQuestionsReader:
    """Three kinds of questions about each stamp: its colour, what it is, and whether it is something ("yes" or "no").

    Args:
        folder: see `StampImagesReader`.
    """

    corpus, recipe = "stamp_questions", 1

    def __init__(self, folder: str | None = None) -> None:
        self._stamps = StampImagesReader(languages=["en"], folder=folder)

    def fingerprint(self) -> dict[str, Any]:
        """See `Reader`."""
        return {"corpus": self.corpus, "recipe": self.recipe, "stamps": self._stamps.fingerprint()}

    def load(self, data_dir: Path) -> ImageCorpus:
        """Return the stamps whose folders are in `THINGS`, without their classes."""
        corpus = self._stamps.load(data_dir)
        images = [replace(image, label=None, captions={}) for image in corpus.examples if shown(image.id)]
        origin = {**corpus.origin, "synthetic": True}
        return ImageCorpus(examples=images, skipped=corpus.skipped, origin=origin)

    def questions(self, data_dir: Path, images: UsableImages) -> QuestionCorpus:
        """Return the questions, always the same."""
        asked = [
            question
            for id in images.splits
            for question in _ask(id, main_colour(images.pixels(id)), list(images.splits))
        ]
        return QuestionCorpus(asked, origin={"synthetic": True})


class StampStatementsReader(StampQuestionsReader):
    """Statements about two stamps of one split; each is made about four pairs, and true of two of them."""

    corpus, recipe = "stamp_statements", 1

    def questions(self, data_dir: Path, images: UsableImages) -> QuestionCorpus:
        """Return the statements, always the same."""
        made: list[Question] = []
        for split in SPLITS:
            members = [id for id, of in images.splits.items() if of == split]
            showing: dict[str, set[str]] = {}
            for id in members:
                colour = main_colour(images.pixels(id))
                for thing in (*shown(id), *([f"something {colour}"] if colour else [])):
                    showing.setdefault(thing, set()).add(id)
            made += _state(split, members, showing)
        return QuestionCorpus(made, origin={"synthetic": True})


def shown(id: str) -> list[str]:
    """Return the objects that a stamp shows, by its folders: the general first."""
    folders = id.split("/")[:-1]
    paths = ("/".join(folders[: depth + 1]) for depth in range(len(folders)))
    return [THINGS[path] for path in paths if path in THINGS]


def _ask(id: str, colour: str | None, others: Sequence[str]) -> Iterator[Question]:
    """Yield the questions about an image.

    The object of the question with answer "no" is one of a random image of `others`: a common object then has as many
    answers "no" as "yes", and the question alone does not give the answer away.
    """
    random = random_stream(0, f"questions about {id}", 0)
    things = shown(id)
    question = partial(Question, images=(id,))
    yield question(id=f"{id}?what", text=_one(ASK_THING, random), answers=(things[-1],), kind="what")
    absent = things[0]
    while absent in things:
        absent = _one(shown(_one(others, random)), random)
    for thing, answer in ((_one(things, random), "yes"), (absent, "no")):
        text = _one(ASK_WHETHER, random).format(thing)
        yield question(id=f"{id}?{answer}", text=text, answers=(answer,), kind="yes/no")
    if colour is not None:
        yield question(id=f"{id}?colour", text=_one(ASK_COLOUR, random), answers=(colour,), kind="colour")


def _state(split: str, members: Sequence[str], showing: Mapping[str, set[str]]) -> Iterator[Question]:
    for thing, those in sorted(showing.items()):
        with_it, without = sorted(those), [id for id in members if id not in those]
        if len(with_it) < 2 or len(without) < 2:
            continue
        for pattern, truths in STATEMENTS.items():
            text = pattern.format(thing)
            falsehoods = [(a, b) for a in (True, False) for b in (True, False) if (a, b) not in truths]
            for number in range(max(1, len(with_it) // STATED_FOR)):
                group = f"{split}: {text} {number}"
                random = random_stream(0, group, 0)
                for index in range(2 * PAIRS):
                    true = index < PAIRS
                    combination = _one(truths if true else falsehoods, random)
                    pair = _pair(combination, with_it, without, random)
                    yield Question(
                        id=f"{group} {index}",
                        text=text,
                        images=pair,
                        answers=(TRUTH[true],),
                        group=group,
                    )


def _pair(
    has: tuple[bool, bool], with_it: Sequence[str], without: Sequence[str], random: np.random.Generator
) -> tuple[str, str]:
    """Return two different images, left and right, of which each shows the object or not, as `has` says."""
    if has[0] == has[1]:
        first, second = random.choice(len(with_it if has[0] else without), 2, replace=False).tolist()
        return (with_it[first], with_it[second]) if has[0] else (without[first], without[second])
    one, other = _one(with_it, random), _one(without, random)
    return (one, other) if has[0] else (other, one)


def _one(choices: Sequence[Any], random: np.random.Generator) -> Any:
    return choices[int(random.integers(len(choices)))]
