"""What a classifier of texts must beat: the most frequent class, naive Bayes and logistic regression on words.

    python benchmarks/classification_baselines.py                     # periods of the State of the Union
    python benchmarks/classification_baselines.py data=tsv data.corpus.train=...

Prepares the corpus as `task=text_classification` does with these overrides, unless that is done, and prints the accuracy on
validation and test of

the majority: the class that is most frequent in training;
naive Bayes: multinomial, of the counts of words (scikit-learn's defaults);
logistic regression: of tf-idf weights of words with sublinear counts, with the L2 penalty that is best in validation.

They read whole texts, which `data.max_tokens` cuts for a Transformer; pairs are read as one text.
"""

import argparse
from collections import Counter
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import Pipeline, make_pipeline

from magneto.commands.build import prepared_data
from magneto.data.text_classification.module import TextClassificationDataModule

STRENGTHS = (1.0, 10.0, 100.0)
"""Of the data beside the penalty (scikit-learn's C)."""

Split = tuple[list[str], list[str]]
"""Texts and labels."""


def read(data: TextClassificationDataModule, split: str) -> Split:
    """The table of a split as `prepare` wrote it."""
    rows = data.table(split).arrow.select(["text", "pair", "label"]).to_pylist()
    return [f"{row['text']} {row['pair'] or ''}" for row in rows], [str(row["label"]) for row in rows]


def majority(train: Split, split: Split) -> float:
    """Accuracy of the most frequent class."""
    ((label, _),) = Counter(train[1]).most_common(1)
    return split[1].count(label) / len(split[1])


def naive_bayes(train: Split) -> Pipeline:
    """Fitted to `train`."""
    return make_pipeline(CountVectorizer(), MultinomialNB()).fit(*train)


def logistic_regression(train: Split, val: Split, strengths: Sequence[float] = STRENGTHS) -> Pipeline:
    """Fitted to `train`, the best of several on `val`."""
    fitted = [
        make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(C=c, max_iter=1000)).fit(*train)
        for c in strengths
    ]
    return max(fitted, key=lambda model: float(model.score(*val)))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", help="of the configuration, such as data=glue")
    data = prepared_data(["task=text_classification", *parser.parse_args().overrides])
    if not data.info.labels:
        parser.error("the labels of this data are numbers: these baselines tell classes apart.")
    train, val, test = (read(data, split) for split in ("train", "val", "test"))
    regression = logistic_regression(train, val)
    rows = {
        "most frequent class": [majority(train, split) for split in (val, test)],
        "naive Bayes on words": [naive_bayes(train).score(*split) for split in (val, test)],
        f"logistic regression on words, C = {regression[-1].C:g}": [
            regression.score(*split) for split in (val, test)
        ],
    }
    title = f"{data.folder.name}: accuracy on {len(val[1])} and {len(test[1])} texts"
    table = Table("", "validation", "test", box=box.MARKDOWN, title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, scores in rows.items():
        table.add_row(name, *(f"{100 * score:.1f} %" for score in scores))
    Console().print(table)


if __name__ == "__main__":
    main()
