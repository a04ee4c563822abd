"""The baselines of text classification: which accuracies are printed."""

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")

from benchmarks import classification_baselines as baselines

WORDS = ("treaty canal tariff", "budget inflation congress", "terror internet jobs")


def split(count: int, seed: int) -> baselines.Split:
    """Three classes, each with words of its own among words of all; the second is the most frequent."""
    random = np.random.default_rng(seed)
    labels = random.choice(3, count, p=[0.2, 0.5, 0.3])
    noise = " ".join(WORDS).split()
    texts = [
        " ".join([*random.choice(noise, 4), *random.choice(WORDS[label].split(), 4)]) for label in labels
    ]
    return texts, [str(label) for label in labels]


def test_the_majority_is_counted_in_training() -> None:
    train, test = split(400, 0), split(200, 1)
    assert baselines.majority(train, test) == test[1].count("1") / 200


def test_words_predict_and_shuffled_labels_do_not() -> None:
    """Words tell the classes and shuffled labels do not."""
    train, val, test = split(400, 0), split(200, 1), split(200, 2)
    shuffled = (train[0], np.random.default_rng(3).permutation(train[1]).tolist())
    for fit in (baselines.naive_bayes, lambda data: baselines.logistic_regression(data, val)):
        assert fit(train).score(*test) > 0.85
        assert fit(shuffled).score(*test) < 0.65


def test_the_table_of_a_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    corpora = []
    for name, count in (("train", 200), ("val", 60), ("test", 60)):
        texts, labels = split(count, count)
        rows = "".join(f"{text}\t{label}\n" for text, label in zip(texts, labels, strict=True))
        (tmp_path / f"{name}.tsv").write_text("text\tlabel\n" + rows)
        corpora.append(f"data.corpus.{name}={tmp_path / name}.tsv")
    options = ["data=tsv", "data.corpus.label=label", "data.corpus.text=text", "data.tokenizer.vocab_size=60"]
    monkeypatch.setattr(sys, "argv", ["baselines", *options, *corpora, f"data_dir={tmp_path}"])
    baselines.main()
    printed = capsys.readouterr().out
    assert "accuracy on 60 and 60 texts" in " ".join(printed.split())
    (line,) = (line for line in printed.splitlines() if "logistic regression" in line)
    assert float(line.split("|")[3].rstrip(" %")) > 80
