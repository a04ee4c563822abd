"""Outputs of the runs of a section for the same examples: read from their samples, shown by `page` and `markup`.

A sample is an object of plain values with `id` and `kind`. One of the OUTPUTS is the text of the model, `reference` the
correct one, `image` a file of its output, and every other text is the input of the model (`source`,
`prompt`, a text with masks).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from magneto.report.comparison import Row, Section
from magneto.report.loading import Run

OUTPUTS = ("hypothesis", "continuation", "filled", "predicted")
"""Keys of a model's text: transcripts and translations, continuations, filled masks, classes."""
MOST = 8
LONGEST = 600  # characters of one text that are shown
_PARTS = ("language", "direction")
_ABOUT = {"id", "kind", "split", "marked", "image", "picture", "reference", *_PARTS, *OUTPUTS}


@dataclass(frozen=True)
class Example:
    """Example with the output of each row.

    Attributes:
        about: id, language or direction, and kind.
        kind: kind of the sample.
        language: language of reference and output; None if it is not known.
        given: (name, text) of each input of the model.
        reference: the correct text; None if there is none.
        outputs: each row with a text as output, and the text.
        images: each row with an image as output, and its file.
    """

    about: str
    kind: str
    language: str | None
    given: tuple[tuple[str, str], ...]
    reference: str | None
    outputs: tuple[tuple[Row, str], ...]
    images: tuple[tuple[Row, Path], ...]


def examples(section: Section) -> tuple[list[Example], list[Run]]:
    """Return the examples of a section and their runs: of each row the finished one with the lowest seed."""
    shown = [(row, run) for row in section.rows if (run := _source(row)) is not None]
    runs = [run for _, run in shown]
    return [
        _example(name, [(row, run, run.samples[name]) for row, run in shown if name in run.samples])
        for name in _names(runs)
    ], runs


def _source(row: Row) -> Run | None:
    """Return the run whose examples are shown for the row."""
    return next((run for run in (*row.finished, *row.runs) if run.samples), None)


def _part(sample: dict[str, Any]) -> str:
    return next((str(sample[key]) for key in _PARTS if sample.get(key)), "")


def _names(runs: Sequence[Run]) -> list[str]:
    """Return ids that most runs have, in turns over kinds, languages and directions so that each is shown."""
    order = list(dict.fromkeys(name for run in runs for name in run.samples))
    coverage = {name: sum(name in run.samples for run in runs) for name in order}
    most = max(coverage.values(), default=0)
    by_part: dict[tuple[str, str], list[str]] = {}
    for name in order:
        if coverage[name] == most:
            sample = next(run.samples[name] for run in runs if name in run.samples)
            by_part.setdefault((str(sample.get("kind")), _part(sample)), []).append(name)
    turns = [name for turn in zip_longest(*by_part.values()) for name in turn if name is not None]
    return turns[:MOST]


def _example(name: str, samples: Sequence[tuple[Row, Run, dict[str, Any]]]) -> Example:
    first = samples[0][2]
    kind = str(first.get("kind") or "")
    language = first.get("language") or str(first.get("direction") or "").rpartition("-")[2]
    given = [
        (key, _short(value))
        for key, value in first.items()
        if key not in _ABOUT and isinstance(value, str) and value
    ]
    return Example(
        about=" · ".join(filter(None, (name, _part(first), kind))),
        kind=kind,
        language=str(language) if language else None,
        given=tuple(given),
        reference=_short(str(first["reference"])) if first.get("reference") else None,
        outputs=tuple(
            (row, _short(text)) for row, _, sample in samples if (text := _output(sample)) is not None
        ),
        images=tuple(
            (row, file)
            for row, run, sample in samples
            if (image := sample.get("image", sample.get("picture")))  # the key of earlier versions
            and (file := run.folder / str(image)).is_file()
        ),
    )


def _output(sample: dict[str, Any]) -> str | None:
    """Return the text of the model, which may be empty; None if its output is no text."""
    texts = [str(sample[key]) for key in OUTPUTS if key in sample]
    return texts[0] if texts else None


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
