"""Labelled texts and pairs of texts: the example, the corpus, the protocol of its corpora, and tab-separated files.

A table is read as GLUE's files want it: one example a line, columns between tabs, no quoting whatsoever (a quotation
mark is text), a first line with the names of the columns or none.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from magneto.data.corpora.base import SPLITS, Skipped
from magneto.data.corpora.text.text_files import DAMAGES, open_text
from magneto.data.io.digest import path_digest
from magneto.errors import ConfigError, DataError, nearest


@dataclass(frozen=True, kw_only=True)
class LabelledText:
    """One example: a text or a pair of texts, with a class or a number."""

    id: str  # unique in its corpus
    text: str
    label: str | float  # one of the corpus's labels, or a number for regression
    split: str  # train, val or test
    pair: str | None = None
    subset: str | None = (
        None  # an evaluation set of its own within the split, such as MNLI's mismatched genres
    )
    group: str | None = None  # what was kept on one side of the split


@dataclass(frozen=True, kw_only=True)
class LabelledCorpus:
    """The examples of a corpus and what they are measured by.

    labels: the classes in the order of their numbers; empty for regression. metrics: see `classification_metrics`.
    An example may be listed for val and again for test, where a corpus has only one labelled evaluation set.
    zero_digits: digits are written as zeros, here and in all that a model of it is to read.
    """

    examples: list[LabelledText]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    skipped: list[Skipped] = field(default_factory=list)
    origin: dict[str, Any] = field(default_factory=dict)
    zero_digits: bool = False


class LabelledReader(Protocol):
    """A labelled corpus. Its constructor takes plain values."""

    name: str
    """For the prepared folder."""

    def fingerprint(self) -> dict[str, Any]:
        """All settings and versions that decide the examples, as plain values; cheap, without network."""
        ...

    def load(self, data_dir: Path) -> LabelledCorpus:
        """Find or fetch the corpus and list its examples. Raises `MagnetoError` when it cannot be had."""
        ...


def zero_digits(text: str) -> str:
    """The text with zeros for digits, so that no year or sum tells."""
    return re.sub(r"\d", "0", text)


def read_table(
    file: Path, columns: Sequence[str] | None, skipped: list[Skipped]
) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a tab-separated file, with their line numbers (from 1).

    Lines that are empty, are no UTF-8, or have another number of columns than the table go to `skipped`.

    Args:
        file: the table, as it is or as .gz or .zst.
        columns: their names; None: the first line has them.
        skipped: takes what cannot be used.

    Raises:
        DataError: the file is missing, empty or damaged, is no UTF-8, or its first line names no columns.
    """
    try:
        with open_text(file) as stream:
            content = stream.read().removeprefix(b"\xef\xbb\xbf")
    except DAMAGES as error:
        raise DataError(
            f"{file}: damaged ({error or type(error).__name__}). Fetch or compress it anew."
        ) from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}).") from error
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{file}: is UTF-16, not UTF-8. Save the table as UTF-8.")
    # Not splitlines(), nor the csv module: texts hold form feeds, single quotation marks, U+2028.
    lines = content.split(b"\n" if b"\n" in content else b"\r")
    start = 0
    if columns is None:
        columns = lines[0].decode("utf-8", "replace").rstrip("\r").split("\t")
        start = 1
        if len(columns) == 1 and columns[0]:
            raise DataError(
                f"{file}: there is no tab in its first line, {columns[0][:60]!r}. Save the table with tabs between the "
                "columns, and the names of the columns in the first line."
            )
        if twice := [name for name in dict.fromkeys(columns) if columns.count(name) > 1]:
            raise DataError(f"{file}: two columns are called {twice[0]!r}. Rename one of them.")
    if not any(line.strip() for line in lines[start:]):
        raise DataError(f"{file}: there is no example in it.")
    for number, line in enumerate(lines[start:], start + 1):
        if not line.strip():
            continue
        try:
            values = line.decode("utf-8").rstrip("\r").split("\t")
        except UnicodeDecodeError:
            skipped.append(Skipped(f"{file.stem}:{number}", str(file), "not UTF-8"))
            continue
        if len(values) != len(columns):
            reason = "too few columns" if len(values) < len(columns) else "too many columns"
            skipped.append(Skipped(f"{file.stem}:{number}", str(file), reason))
            continue
        yield (
            number,
            {name: value.replace("\0", "").strip() for name, value in zip(columns, values, strict=True)},
        )


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns of a table hold what; `names` are those of a table without a first line of names."""

    text: str
    label: str
    pair: str | None = None
    names: tuple[str, ...] | None = None


def read_examples(
    file: Path,
    columns: Columns,
    labels: Sequence[str] | None,
    split: str,
    skipped: list[Skipped],
    **more: Any,
) -> Iterator[LabelledText]:
    """The usable examples of a table; the others go to `skipped`.

    Args:
        file: the table.
        columns: which columns hold what.
        labels: the known classes; empty: labels are numbers; None: any class.
        split: train, val or test.
        skipped: takes what cannot be used.
        more: further fields of every example.

    Raises:
        DataError: the file is missing, or lacks one of the columns.
    """
    wanted = [name for name in (columns.text, columns.pair, columns.label) if name is not None]
    for number, row in read_table(file, columns.names, skipped):
        for name in wanted:
            if name not in row:
                raise DataError(
                    f"{file}: there is no column {name!r} in it, only {', '.join(row)}.{nearest(name, row)}"
                )
        where = f"{file.stem}:{number}"
        pair = None if columns.pair is None else row[columns.pair]
        label: str | float = row[columns.label]
        reason = None
        if not row[columns.text] or pair == "":
            reason = "empty text"
        elif labels is not None and len(labels) == 0:
            try:
                label = float(label)
                reason = None if abs(label) < float("inf") else "label is no number"
            except ValueError:
                reason = "label is no number"
        elif labels is not None and label not in labels:
            reason = f"unknown label {str(label)[:20]!r}"
        elif not label:
            reason = "empty label"
        if reason is None:
            yield LabelledText(id=where, text=row[columns.text], pair=pair, label=label, split=split, **more)
        else:
            skipped.append(Skipped(where, str(file), reason))


class TsvReader:
    """Any labelled tables of the user's: tab-separated, with a first line of column names, no quoting.

    train, val, test: the files; test alone for the evaluation of a trained model. text, pair, label: names of the
    columns; pair None for single texts. regression: labels are numbers. metrics: None: accuracy, or Pearson and Spearman
    for regression. positive: the label that f1 is of, where there are two; None: the second in alphabetical order.
    """

    name = "tsv"

    def __init__(
        self,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        text: str = "sentence",
        pair: str | None = None,
        label: str = "label",
        regression: bool = False,
        metrics: Sequence[str] | None = None,
        positive: str | None = None,
    ) -> None:
        files: Mapping[str, str | None] = {"train": train, "val": val, "test": test}
        missing = [split for split, file in files.items() if file is None]
        if missing and missing != ["train", "val"]:
            raise ConfigError(
                f"data.corpus.{missing[0]} is missing: name the {' and '.join(missing)} table (tab-separated, its first "
                "line names the columns)."
            )
        self.files = {split: Path(str(files[split])).expanduser() for split in SPLITS if files[split]}
        self.positive = positive
        self.columns = Columns(text=text, pair=pair, label=label)
        self.regression = regression
        self.metrics = tuple(metrics or (("pearson", "spearman") if regression else ("accuracy",)))

    def fingerprint(self) -> dict[str, Any]:
        """Settings, and size and time of the files."""
        return {
            **({} if self.positive is None else {"positive": self.positive}),
            "recipe": 1,
            "files": {split: path_digest(file) for split, file in self.files.items()},
            "columns": [self.columns.text, self.columns.pair, self.columns.label],
            "regression": self.regression,
            "metrics": list(self.metrics),
        }

    def load(self, data_dir: Path) -> LabelledCorpus:
        """The classes are those of the training table (of the test table alone, its own), in alphabetical order."""
        skipped: list[Skipped] = []
        labels: tuple[str, ...] | None = () if self.regression else None
        examples: list[LabelledText] = []
        for split, file in self.files.items():
            examples += read_examples(file, self.columns, labels, split, skipped)
            if labels is None:
                found = {str(example.label) for example in examples}
                labels = tuple(sorted(found, key=lambda label: (label == self.positive, label)))
        return LabelledCorpus(
            examples=examples,
            labels=labels or (),
            metrics=self.metrics,
            skipped=skipped,
            origin={"files": [file.name for file in self.files.values()]},
        )
