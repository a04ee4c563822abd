"""The nine tasks of GLUE (Wang et al., arXiv 1804.07461) in the benchmark's TSV files.

Their exceptions: CoLA's train and dev have no line of column names; texts of MRPC and others hold single quotation marks,
so nothing may be unquoted; QQP has incomplete lines; MNLI has two dev and two test sets and a few examples without an
agreed label ("-"). The labels of the test sets are not published: `mode=predict` writes files for the benchmark's server.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Lt

from magneto.data.corpora.base import Skipped, hash_split, listed
from magneto.data.corpora.text_classification.base import LabelledCorpus, LabelledText
from magneto.data.corpora.text_classification.tsv import TsvColumns, read_examples, read_table
from magneto.data.io.digest import listing_digest
from magneto.errors import ConfigError, DataError, nearest

BINARY = ("0", "1")
ENTAILMENT = ("entailment", "not_entailment")


ACCURACY_F1 = ("accuracy", "f1")


@dataclass(frozen=True, kw_only=True)
class GlueTask(TsvColumns):
    """Columns and metrics of one task; `dev` maps the names of its evaluation sets to their files."""

    labels: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    dev: tuple[tuple[str, str], ...] = (("dev", "dev.tsv"),)
    test_index: str = "index"
    """Column of the test file that numbers its examples."""


COLA = ("source", "label", "star", "sentence")
MNLI = (("matched", "dev_matched.tsv"), ("mismatched", "dev_mismatched.tsv"))
TASKS = {
    "CoLA": GlueTask(text="sentence", label="label", names=COLA, labels=BINARY, metrics=("matthews",)),
    "SST-2": GlueTask(text="sentence", label="label", labels=BINARY),
    "MRPC": GlueTask(text="#1 String", pair="#2 String", label="Quality", labels=BINARY, metrics=ACCURACY_F1),
    "QQP": GlueTask(
        text="question1",
        pair="question2",
        label="is_duplicate",
        labels=BINARY,
        metrics=ACCURACY_F1,
        test_index="id",
    ),
    "STS-B": GlueTask(
        text="sentence1", pair="sentence2", label="score", labels=(), metrics=("pearson", "spearman")
    ),
    "MNLI": GlueTask(
        text="sentence1",
        pair="sentence2",
        label="gold_label",
        labels=("contradiction", "entailment", "neutral"),
        dev=MNLI,
    ),
    "QNLI": GlueTask(text="question", pair="sentence", label="label", labels=ENTAILMENT),
    "RTE": GlueTask(text="sentence1", pair="sentence2", label="label", labels=ENTAILMENT),
    "WNLI": GlueTask(text="sentence1", pair="sentence2", label="label", labels=BINARY),
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

    def __init__(
        self, task: str, folder: str | None = None, val_fraction: Annotated[float, Ge(0), Lt(1)] = 0.0
    ) -> None:
        self.name, self.task = task, glue_task(task)
        if folder is None:
            raise ConfigError(
                f"data.corpus.folder is missing: name the folder with {task}'s train.tsv, or the GLUE folder above it "
                "(https://gluebenchmark.com/tasks)."
            )
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
        examples, skipped = listed(self._examples())
        return LabelledCorpus(
            examples=examples,
            labels=self.task.labels,
            metrics=self.task.metrics,
            skipped=skipped,
            origin={
                "corpus": f"GLUE {self.name}",
                "validation": "dev" if not self.val_fraction else "held out of train",
            },
        )

    def _examples(self) -> Iterator[LabelledText | Skipped]:
        columns, held = self.task, self.val_fraction
        for one in read_examples(self.folder / "train.tsv", columns, columns.labels, "train"):
            if (
                held
                and isinstance(one, LabelledText)
                and hash_split(one.text, val=held, test=0.0, kind="text") == "val"
            ):
                # Of the main subset, like the dev set that is the validation otherwise.
                yield replace(one, split="val", subset=self.task.dev[0][0])
            else:
                yield one
        for subset, file in self.task.dev:
            for split in ("test",) if held else ("val", "test"):
                found = read_examples(self.folder / file, columns, columns.labels, split, subset=subset)
                yield from (one for one in found if split == "test" or isinstance(one, LabelledText))


def read_test_file(file: Path, name: str) -> Iterator[tuple[str, str, str | None]]:
    """Yield the examples of an unlabelled GLUE test file: index, text, second text or None.

    Raises:
        DataError: the file has another form, or a line is broken: the server needs every index.
    """
    task = glue_task(name)
    rows, broken = listed(read_table(file, None))
    if broken:
        raise DataError(f"{file}: damaged, {broken[0].reason} at {broken[0].id} ({len(broken)} such lines).")
    required = [one for one in (task.test_index, task.text, task.pair) if one is not None]
    if missing := [column for column in required if column not in rows[0][1]]:
        raise DataError(
            f"{file}: not the test file of GLUE's {name}, it has no column {missing[0]!r} but {', '.join(rows[0][1])}."
        )
    for _, row in rows:
        pair = None if task.pair is None else row[task.pair]
        yield row[task.test_index], row[task.text], pair
