"""Label lines with a classifier of texts or pairs of texts, or the test file of a GLUE task."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from magneto.data.corpora.text_classification.base import zero_digits
from magneto.data.corpora.text_classification.glue import read_test_file
from magneto.data.text_classification.dataset import padding
from magneto.data.tokenizers.encode import encode
from magneto.errors import ConfigError, MagnetoError
from magneto.inference.inputs import PredictInput

BATCH = 32

Texts = tuple[str, str | None]
"""A text, and the second one of a pair."""


@dataclass(frozen=True, kw_only=True)
class TextClassificationPredictOptions:
    """Options of `mode=predict`, `conf/predict/text_classification.yaml`."""

    glue: str | None = None
    """Name of a GLUE task: `input=` is its unlabelled test file, the output is what the benchmark's server takes."""


def classify(
    model: Any, inputs: PredictInput, options: TextClassificationPredictOptions
) -> Iterator[dict[str, Any]]:
    """Label lines: a text each, or two texts with a tab between them where the model was trained on pairs.

    A line that is not that gets an empty answer. With `glue`, label the rows of that task's test file, printed as the
    table that GLUE's server takes.

    Yields:
        `input`, `label` and, for classes, `probability`; with `glue` also `index`.
    """
    if options.glue is not None:
        yield from _classify_glue(model, inputs, options.glue)
        return
    numbered = enumerate(inputs.lines(), 1)
    empty = {"label": None, **({"probability": None} if model.labels else {})}
    while lines := list(islice(numbered, BATCH)):
        texts: dict[int, Texts] = {}
        for number, line in lines:
            try:
                texts[number] = _split(line, model.info.pairs)
            except MagnetoError as why:
                inputs.unanswered(number, why)
        answers = dict(zip(texts, _answers(model, list(texts.values())) if texts else [], strict=True))
        for number, line in lines:
            answer = answers.get(number)
            printed = "" if answer is None else "\t".join([*map(str, answer.values()), line])
            yield {"text": printed, "input": line, **(answer or empty)}


def _classify_glue(model: Any, inputs: PredictInput, task: str) -> Iterator[dict[str, Any]]:
    if inputs.path is None or inputs.path == "-":
        raise ConfigError(f"predict.glue={task} needs input=: the test file of that task.")
    head = "index\tprediction\n"
    examples = read_test_file(Path(inputs.path), task)
    while rows := list(islice(examples, BATCH)):
        if (rows[0][2] is not None) != model.info.pairs:
            raise ConfigError(
                f"predict.glue={task}: the model was not trained on that task (texts or pairs). Use a checkpoint of it."
            )
        for (index, text, _), answer in zip(rows, _answers(model, [row[1:] for row in rows]), strict=True):
            yield {"text": f"{head}{index}\t{answer['label']}", "index": index, "input": text, **answer}
            head = ""


def _split(line: str, pairs: bool) -> Texts:
    texts = line.split("\t")
    expected = 2 if pairs else 1
    if len(texts) != expected or not all(text.strip() for text in texts):
        what = "two texts with a tab between them" if pairs else "one text without a tab"
        raise ConfigError(f"the model takes {what}, not {line[:60]!r}. Give that in each line.")
    return texts[0], texts[1] if pairs else None


def _answers(model: Any, texts: Sequence[Texts]) -> list[dict[str, Any]]:
    """Return the answers of one batch."""
    if model.info.zero_digits:
        texts = [(zero_digits(text), pair and zero_digits(pair)) for text, pair in texts]
    encoded = encode(
        model.tokenizer, [text for text, _ in texts], [pair for _, pair in texts], model.info.max_tokens
    )
    items = [
        {"tokens": tokens, "second": np.arange(len(tokens)) >= second}
        for tokens, second in zip(encoded.tokens, encoded.second, strict=True)
    ]
    batch = padding(model.tokenizer.pad_id or 0)(items)
    answers: list[dict[str, Any]] = model.describe(
        model(*(batch[key].to(model.device) for key in ("tokens", "mask", "second")))
    )
    return answers
