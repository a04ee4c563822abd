"""Multiple-choice tasks for the lm-evaluation-harness, made of the held-out speeches of the State of the Union.

They have the forms of the paper's (section 4.1) and are not those tasks: `sotu_continuation` asks, as HellaSwag and
StoryCloze do, which of four continuations is the paragraph's own, the others being those of other paragraphs; `sotu_name`
asks, as Winogrande does, which of two names of a country stood in a sentence. Digits stay, as in data=sotu.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from magneto.data.corpora.text.state_of_the_union import StateOfTheUnionReader
from magneto.data.rng import random_stream
from magneto.errors import DataError
from magneto.training.files import write_atomically

CONTEXT, ENDING, CHOICES = 24, 12, 4
"""Words of a context and of a continuation; continuations to choose from."""
COUNTRIES = (
    "Great Britain", "France", "Spain", "Mexico", "Russia", "Germany", "Japan", "China", "Cuba", "Canada", "Brazil", "Chile",
    "Italy", "Turkey", "Austria", "Colombia", "Nicaragua", "Panama", "Hawaii", "Iraq", "Vietnam", "Korea", "Texas", "Peru",
)  # fmt: skip
_PARAGRAPH = re.compile(r"\n\s*\n")
_NAME = re.compile(rf"\b({'|'.join(COUNTRIES)})\b")
SHARED = {
    "dataset_path": "json",
    "output_type": "multiple_choice",
    "test_split": "test",
    "fewshot_split": "train",
    "fewshot_delimiter": "\n\n",
    "target_delimiter": " ",
    "metric_list": [{"metric": "acc"}],
}


def write_tasks(folder: Path, data_dir: Path, speeches: str | None = None, most: int = 500) -> list[str]:
    """Write both tasks, with up to `most` questions of held-out speeches and as many solved examples of the others.

    Args:
        folder: for the files; what is there already stays.
        data_dir: where the speeches are fetched to.
        speeches: the folder of the speeches; None: an installed copy, else fetched.
        most: questions of a task.

    Returns:
        Names of the tasks.

    Raises:
        DataError: there are no questions.
    """
    names = ["sotu_continuation", "sotu_name"]
    if all((folder / f"{name}.yaml").is_file() for name in names):
        return names
    folder.mkdir(parents=True, exist_ok=True)
    paragraphs: dict[str, list[str]] = {"train": [], "test": []}
    for document in StateOfTheUnionReader(speeches).load(data_dir).examples:
        if document.split in paragraphs:
            parts = (" ".join(part.split()) for part in _PARAGRAPH.split(document.text))
            paragraphs[str(document.split)] += [
                part for part in parts if len(part.split()) >= CONTEXT + ENDING
            ]
    for name, make in zip(names, (_continuations, _names), strict=True):
        files = {}
        for split, texts in paragraphs.items():
            questions = list(make(texts))
            if not questions:
                raise DataError(
                    f"{name}: the {split} speeches have no question in them. Use the whole corpus."
                )
            chosen = random_stream(0, f"questions of {name}", 0, 0).permutation(len(questions))[:most]
            files[split] = str((folder / f"{name}-{split}.jsonl").absolute())
            write_atomically(
                Path(files[split]), "".join(json.dumps(questions[index]) + "\n" for index in sorted(chosen))
            )
        description = {
            "task": name, **SHARED, "dataset_kwargs": {"data_files": files}, "doc_to_text": "{{context}}",
            "doc_to_choice": "{{choices}}", "doc_to_target": "{{answer}}",
        }  # fmt: skip
        write_atomically(folder / f"{name}.yaml", json.dumps(description, indent=1) + "\n")
    return names


def _continuations(texts: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the beginning of each paragraph, with what follows in it and in three others."""
    words = [text.split() for text in texts]
    endings = [" ".join(one[CONTEXT : CONTEXT + ENDING]) for one in words]
    if len(texts) < CHOICES:
        return
    for number, one in enumerate(words):
        random = random_stream(0, "wrong continuations", 0, number)
        others = (number + 1 + random.choice(len(texts) - 1, CHOICES - 1, replace=False)) % len(texts)
        yield _question(
            " ".join(one[:CONTEXT]), endings[number], [endings[other] for other in others], random
        )


def _names(texts: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the text before the last name of a country, with the name and another one before the rest of its sentence."""
    for number, text in enumerate(texts):
        found = list(_NAME.finditer(text))
        if not found or len(text[: found[-1].start()].split()) < ENDING:
            continue
        last = found[-1]
        rest = re.split(r"(?<=[.;:?!])\s", text[last.end() :])[0]
        random = random_stream(0, "wrong name", 0, number)
        others = [name for name in COUNTRIES if name not in text]
        other = others[int(random.integers(len(others)))]
        before = " ".join(text[: last.start()].split()[-2 * CONTEXT :])
        yield _question(before, last.group() + rest, [other + rest], random)


def _question(context: str, right: str, wrong: list[str], random: np.random.Generator) -> dict[str, Any]:
    order = random.permutation(1 + len(wrong))
    choices = [[right, *wrong][index] for index in order]
    return {"context": context, "choices": choices, "answer": int(np.flatnonzero(order == 0)[0])}
