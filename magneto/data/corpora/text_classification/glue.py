"""The nine tasks of GLUE (Wang et al., arXiv 1804.07461) in the benchmark's TSV files.

Their exceptions: CoLA's train and dev have no line of column names; texts of MRPC and others hold single quotation marks,
so nothing may be unquoted; QQP has incomplete lines; MNLI has two dev and two test sets and a few examples without an
agreed label ("-"). The labels of the test sets are not published: `mode=predict` writes files for the benchmark's server.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magneto.data.corpora.base import Skipped, hash_split
from magneto.data.corpora.text_classification.base import LabelledCorpus, LabelledText
from magneto.data.corpora.text_classification.tsv import TsvColumns, read_examples, read_table
from magneto.data.io.digest import listing_digest
from magneto.errors import ConfigError, DataError, nearest

BINARY = ("0", "1")
ENTAILMENT = ("entailment", "not_entailment")


@dataclass(frozen=True, kw_only=True)
class GlueTask:
    """Layout and metrics of one task; `dev` maps the names of its evaluation sets to their files."""

    columns: TsvColumns
    labels: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    dev: tuple[tuple[str, str], ...] = (("dev", "dev.tsv"),)
    test_index: str = "index"
    """Column of the test file that numbers its examples."""


def _pair(text: str, pair: str, label: str) -> TsvColumns:
    return TsvColumns(text=text, pair=pair, label=label)


TASKS = {
    "CoLA": GlueTask(
        columns=TsvColumns(text="sentence", label="label", names=("source", "label", "star", "sentence")),
        labels=BINARY,
        metrics=("matthews",),
    ),
    "SST-2": GlueTask(columns=TsvColumns(text="sentence", label="label"), labels=BINARY),
    "MRPC": GlueTask(
        columns=_pair("#1 String", "#2 String", "Quality"), labels=BINARY, metrics=("accuracy", "f1")
    ),
    "QQP": GlueTask(
        columns=_pair("question1", "question2", "is_duplicate"),
        labels=BINARY,
        metrics=("accuracy", "f1"),
        test_index="id",
    ),
    "STS-B": GlueTask(
        columns=_pair("sentence1", "sentence2", "score"), labels=(), metrics=("pearson", "spearman")
    ),
    "MNLI": GlueTask(
        columns=_pair("sentence1", "sentence2", "gold_label"),
        labels=("contradiction", "entailment", "neutral"),
        dev=(("matched", "dev_matched.tsv"), ("mismatched", "dev_mismatched.tsv")),
    ),
    "QNLI": GlueTask(columns=_pair("question", "sentence", "label"), labels=ENTAILMENT),
    "RTE": GlueTask(columns=_pair("sentence1", "sentence2", "label"), labels=ENTAILMENT),
    "WNLI": GlueTask(columns=_pair("sentence1", "sentence2", "label"), labels=BINARY),
}


def glue_task(name: str) -> GlueTask:
    """Return the task of that name. Raises `DataError` for any other."""
    if name not in TASKS:
        raise DataError(f"{name!r} is no task of GLUE.{nearest(name, TASKS)} Choose from {', '.join(TASKS)}.")
    return TASKS[name]


class GlueReader:
    """One task of GLUE from its folder.

    Args:
        task: a key of TASKS.
        folder: the folder of train.tsv, or its parent GLUE folder.
        val_fraction: share of train.tsv, fixed by a hash of the text, that is held out for validation; dev is then the
            test set alone. With 0, as in the literature, dev is both the validation and the test set: the best checkpoint
            is chosen on the reported set.
    """

    def __init__(self, task: str, folder: str | None = None, val_fraction: float = 0.0) -> None:
        self.name, self.task = task, glue_task(task)
        if folder is None:
            raise ConfigError(
                f"data.corpus.folder is missing: name the folder with {task}'s train.tsv, or the GLUE folder above it "
                "(https://gluebenchmark.com/tasks)."
            )
        if not 0 <= val_fraction < 1:
            raise ConfigError(f"data.corpus.val_fraction={val_fraction} must be at least 0 and below 1.")
        above = Path(folder).expanduser()
        self.folder = above if (above / "train.tsv").is_file() else above / task
        self.val_fraction = val_fraction

    def fingerprint(self) -> dict[str, Any]:
        """See `Reader`; of the files sizes and times."""
        return {
            "recipe": 1,
            "task": self.name,
            "val_fraction": self.val_fraction,
            "files": listing_digest(self.folder, ("train.tsv", *(file for _, file in self.task.dev))),
        }

    def load(self, data_dir: Path) -> LabelledCorpus:
        """Return the training and dev sets. Raises `DataError` if a file is missing."""
        for file in ("train.tsv", *(file for _, file in self.task.dev)):
            if not (self.folder / file).is_file():
                raise DataError(
                    f"{self.folder}: {file} of GLUE's {self.name} is missing. Set data.corpus.folder to its folder "
                    "(the data: https://gluebenchmark.com/tasks)."
                )
        skipped: list[Skipped] = []
        return LabelledCorpus(
            examples=list(self._examples(skipped)),
            labels=self.task.labels,
            metrics=self.task.metrics,
            skipped=skipped,
            origin={
                "corpus": f"GLUE {self.name}",
                "validation": "dev" if not self.val_fraction else "held out of train",
            },
        )

    def _examples(self, skipped: list[Skipped]) -> Iterator[LabelledText]:
        columns, labels = self.task.columns, self.task.labels
        for example in read_examples(self.folder / "train.tsv", columns, labels, "train", skipped):
            if (
                self.val_fraction
                and hash_split(example.text, val=self.val_fraction, test=0.0, kind="text") == "val"
            ):
                # Of the main subset, like the dev set that is the validation otherwise.
                yield LabelledText(**{**vars(example), "split": "val", "subset": self.task.dev[0][0]})
            else:
                yield example
        for subset, file in self.task.dev:
            for split in ("test",) if self.val_fraction else ("val", "test"):
                bad = skipped if split == "test" else []
                yield from read_examples(self.folder / file, columns, labels, split, bad, subset=subset)


def read_test_file(file: Path, name: str) -> Iterator[tuple[str, str, str | None]]:
    """Yield the examples of an unlabelled GLUE test file: index, text, second text or None.

    Raises:
        DataError: the file has another form, or a line is broken: the server needs every index.
    """
    task = glue_task(name)
    required: Sequence[str] = [
        n for n in (task.test_index, task.columns.text, task.columns.pair) if n is not None
    ]
    broken: list[Skipped] = []
    rows = [row for _, row in read_table(file, None, broken)]
    if broken:
        raise DataError(f"{file}: damaged, {broken[0].reason} at {broken[0].id} ({len(broken)} such lines).")
    if missing := [column for column in required if column not in rows[0]]:
        raise DataError(
            f"{file}: not the test file of GLUE's {name}, it has no column {missing[0]!r} but {', '.join(rows[0])}."
        )
    for row in rows:
        pair = None if task.columns.pair is None else row[task.columns.pair]
        yield row[task.test_index], row[task.columns.text], pair
