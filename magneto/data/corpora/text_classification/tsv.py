"""Labelled texts in tab-separated tables: those of the user, and those of GLUE.

A table is read as GLUE's files need it: one example a line, columns between tabs, no quoting (a quotation mark is text),
a first line with the names of the columns or none.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magneto.data.corpora.base import Skipped, listed, stated_splits
from magneto.data.corpora.text_classification.base import LabelledCorpus, LabelledText
from magneto.data.io.digest import path_digest
from magneto.data.io.text import DAMAGES, open_text
from magneto.errors import DataError, nearest

Row = tuple[str, dict[str, str]]
"""Where it is, `NAME:LINE` with lines from 1, and its values by column."""


def read_table(file: Path, columns: Sequence[str] | None) -> Iterator[Row | Skipped]:
    """Yield the rows of a tab-separated file; `Skipped` for one that is not UTF-8 or has another number of columns.

    Args:
        file: the table, as it is or as .gz or .zst.
        columns: their names; None: the first line has them.

    Raises:
        DataError: the file is missing, empty or damaged, is not UTF-8, or its first line names no columns.
    """
    try:
        with open_text(file) as stream:
            content = stream.read().removeprefix(b"\xef\xbb\xbf")
    except DAMAGES as error:
        raise DataError(
            f"{file}: damaged ({error or type(error).__name__}). Fetch or compress it again."
        ) from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}). Name an existing file.") from error
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{file}: UTF-16, not UTF-8. Save the table as UTF-8.")
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
        raise DataError(f"{file}: it has no example. Name a table with at least one.")
    for number, line in enumerate(lines[start:], start + 1):
        if not line.strip():
            continue
        where, reason, values = f"{file.stem}:{number}", "", []
        try:
            values = line.decode("utf-8").rstrip("\r").replace("\0", "").split("\t")
            if len(values) != len(columns):
                reason = "too few columns" if len(values) < len(columns) else "too many columns"
        except UnicodeDecodeError:
            reason = "not UTF-8"
        if reason:
            yield Skipped(where, str(file), reason)
        else:
            yield where, {name: value.strip() for name, value in zip(columns, values, strict=True)}


@dataclass(frozen=True, kw_only=True)
class TsvColumns:
    """Names of the columns of a table; `names`: all of them, where the first line does not name them."""

    text: str
    label: str
    pair: str | None = None
    names: tuple[str, ...] | None = None


def read_examples(
    file: Path, columns: TsvColumns, labels: Sequence[str] | None, split: str, **more: Any
) -> Iterator[LabelledText | Skipped]:
    """Yield the examples of a table; `Skipped` for one that cannot be used.

    Args:
        file: the table.
        columns: the names of its columns.
        labels: the known classes; empty: labels are numbers; None: any class.
        split: train, val or test.
        more: further fields of every example.

    Raises:
        DataError: the file is missing, or lacks one of the columns.
    """
    for found in read_table(file, columns.names):
        if isinstance(found, Skipped):
            yield found
            continue
        where, row = found
        for name in (columns.text, columns.pair, columns.label):
            if name is not None and name not in row:
                raise DataError(
                    f"{file}: there is no column {name!r}; it has {', '.join(row)}.{nearest(name, row)} Set "
                    "data.corpus.text, pair and label to the names of the columns."
                )
        text, label = row[columns.text], row[columns.label]
        pair = None if columns.pair is None else row[columns.pair]
        reason = "empty text" if not text or pair == "" else _why_unusable(label, labels)
        if reason:
            yield Skipped(where, str(file), reason)
        else:
            value = float(label) if labels is not None and not labels else label
            yield LabelledText(id=where, text=text, pair=pair, label=value, split=split, **more)


def _why_unusable(label: str, labels: Sequence[str] | None) -> str:
    """Return why a label cannot be used, or "". labels: see `read_examples`."""
    if labels is None:
        return "" if label else "empty label"
    if labels:
        return "" if label in labels else f"unknown label {label[:20]!r}"
    try:
        return "" if abs(float(label)) < float("inf") else "label is no number"
    except ValueError:
        return "label is no number"


class TsvReader:
    """Labelled tables of the user: tab-separated, with a first line of column names, no quoting.

    Args:
        train: a file.
        val: likewise.
        test: likewise; alone for the evaluation of a trained model.
        text: the column of the text.
        pair: the column of the second text; None: single texts.
        label: the column of the label.
        regression: labels are numbers.
        metrics: None: accuracy, or Pearson and Spearman for regression.
        positive: of two labels the one that f1 measures; None: the second in alphabetical order.
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
        files = stated_splits("", None, {"train": train, "val": val, "test": test})
        self.files = {str(split): Path(file).expanduser() for split, file in files.items()}
        self.positive = positive
        self.columns = TsvColumns(text=text, pair=pair, label=label)
        self.regression = regression
        self.metrics = tuple(metrics or (("pearson", "spearman") if regression else ("accuracy",)))

    def fingerprint(self) -> dict[str, Any]:
        """See `Reader`; of the files sizes and times."""
        return {
            **({} if self.positive is None else {"positive": self.positive}),
            "recipe": 1,
            "files": {split: path_digest(file) for split, file in self.files.items()},
            "columns": [self.columns.text, self.columns.pair, self.columns.label],
            "regression": self.regression,
            "metrics": list(self.metrics),
        }

    def load(self, data_dir: Path) -> LabelledCorpus:
        """Return all examples. The classes are those of the first table, in alphabetical order."""
        skipped: list[Skipped] = []
        labels: tuple[str, ...] | None = () if self.regression else None
        examples: list[LabelledText] = []
        for split, file in self.files.items():
            found, unusable = listed(read_examples(file, self.columns, labels, split))
            examples += found
            skipped += unusable
            if labels is None:
                names = {str(example.label) for example in found}
                labels = tuple(sorted(names, key=lambda label: (label == self.positive, label)))
        origin = {"files": [file.name for file in self.files.values()]}
        return LabelledCorpus(
            examples=examples, labels=labels or (), metrics=self.metrics, skipped=skipped, origin=origin
        )
