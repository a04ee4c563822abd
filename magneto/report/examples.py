"""What the runs of a section made of the same few examples: read from their samples, shown by `page` and `markup`.

A sample is an object of plain values with `id` and `kind`. One of the OUTPUTS is what the model said, `reference` what
is right, `image` a file that shows what it made, and every other text is what the model was given (`source`,
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
"""Of transcripts and translations, continuations, filled masks, classes."""
MOST = 8
LONGEST = 600  # characters of one text that are shown
_PARTS = ("language", "direction")
_ABOUT = {"id", "kind", "split", "marked", "image", "picture", "reference", *_PARTS, *OUTPUTS}


@dataclass(frozen=True)
class Example:
    """One example and what each row's model made of it.

    Attributes:
        about: its id, language or direction, and kind.
        kind: of the sample.
        language: of reference and output; None where it is not known.
        given: (name, text) of what the model saw.
        reference: what is right; None where nothing is.
        outputs: each row and its output, where that is text.
        images: each row and the file of its image, where there is one.
    """

    about: str
    kind: str
    language: str | None
    given: tuple[tuple[str, str], ...]
    reference: str | None
    outputs: tuple[tuple[Row, str], ...]
    images: tuple[tuple[Row, Path], ...]


def examples(section: Section) -> tuple[list[Example], list[Run]]:
    """The examples of a section, and the runs that they come from: of each row the finished one of lowest seed."""
    shown = [(row, run) for row in section.rows if (run := _speaker(row)) is not None]
    runs = [run for _, run in shown]
    return [
        _example(name, [(row, run, run.samples[name]) for row, run in shown if name in run.samples])
        for name in _names(runs)
    ], runs


def _speaker(row: Row) -> Run | None:
    """The run whose examples stand for the row."""
    return next((run for run in (*row.finished, *row.runs) if run.samples), None)


def _part(sample: dict[str, Any]) -> str:
    return next((str(sample[key]) for key in _PARTS if sample.get(key)), "")


def _names(runs: Sequence[Run]) -> list[str]:
    """Ids that the most runs have, by turns over kinds, languages and directions so that each is seen."""
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
    """Empty where the model said nothing, None where it does not speak."""
    said = [str(sample[key]) for key in OUTPUTS if key in sample]
    return said[0] if said else None


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
