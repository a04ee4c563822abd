"""Labelled texts: GLUE's layouts good and broken, framing, batches, GLUE's metrics."""

import gzip
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from magneto.data.corpora.text_classification.glue import TASKS, GlueReader, read_test_file
from magneto.data.corpora.text_classification.state_of_the_union_era import StateOfTheUnionEraReader
from magneto.data.corpora.text_classification.tsv import TsvReader, read_table
from magneto.data.text_classification.dataset import TextClassificationInfo, padding
from magneto.data.text_classification.module import TextClassificationDataModule
from magneto.data.tokenizers.encode import encode
from magneto.data.tokenizers.text import TextTokenizer
from magneto.errors import MagnetoError
from magneto.metrics.glue import GlueScores

TEXT = "the cat sat on a mat while it rained and nobody came to see what the dog had done all day long"
WORDS = TEXT.split()


def sentence(number: int) -> str:
    """Three words, distinct for distinct numbers below len(WORDS) ** 2."""
    return f"{WORDS[number % len(WORDS)]} {WORDS[number // len(WORDS) % len(WORDS)]} {WORDS[number % 7]}"


def write(file: Path, rows: list[list[str]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8", newline="")


MNLI_TRAIN = [
    "index", "promptID", "pairID", "genre", "sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse",
    "sentence2_parse", "sentence1", "sentence2", "label1", "gold_label",
]  # fmt: skip
HEADERS: dict[str, list[str] | None] = {
    "CoLA": None,
    "SST-2": ["sentence", "label"],
    "MRPC": ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"],
    "QQP": ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"],
    "STS-B": [
        "index", "genre", "filename", "year", "old_index", "source1", "source2", "sentence1", "sentence2", "score"
    ],
    "MNLI": MNLI_TRAIN,
    "QNLI": ["index", "question", "sentence", "label"],
    "RTE": ["index", "sentence1", "sentence2", "label"],
    "WNLI": ["index", "sentence1", "sentence2", "label"],
}  # fmt: skip


def layout(task: str, count: int, file: str, first: int = 0) -> list[list[str]]:
    """`count` rows as the benchmark's files have them, with the line of names where there is one."""
    columns = TASKS[task]
    header = HEADERS[task]
    if header is MNLI_TRAIN and file.startswith("dev"):  # five annotators
        header = [*MNLI_TRAIN[:-1], "label2", "label3", "label4", "label5", "gold_label"]
    names = header or list(columns.names or ())
    rows = []
    for number in range(first, first + count):
        labels = TASKS[task].labels
        values = dict.fromkeys(names, f"x{number}")
        values[columns.text] = sentence(number)
        if columns.pair is not None:
            values[columns.pair] = f'he said "{sentence(number + 1)}'  # a single quotation mark is text
        values[columns.label] = labels[number % len(labels)] if labels else f"{number % 11 / 2:.3f}"
        rows.append([values[name] for name in names])
    return [header, *rows] if header else rows


def make(task: str, folder: Path) -> Path:
    write(folder / task / "train.tsv", layout(task, 20, "train.tsv"))
    for number, (_, file) in enumerate(TASKS[task].dev):
        write(folder / task / file, layout(task, 6, file, first=40 + 10 * number))
    return folder


def module(reader: Any, tmp_path: Path, **more: Any) -> TextClassificationDataModule:
    settings = {"tokenizer": {"kind": "bpe", "vocab_size": 90}, "max_tokens": 24, "batch_size": 4, **more}
    return TextClassificationDataModule(reader, data_dir=str(tmp_path / "data"), **settings)


# ------------------------------------------------------------------ GLUE


@pytest.mark.parametrize("task", TASKS)
def test_each_glue_task_is_read(task: str, tmp_path: Path) -> None:
    """Each task of glue is read from its own layout."""
    corpus = GlueReader(task, str(make(task, tmp_path))).load(tmp_path)
    assert not corpus.skipped and corpus.labels == TASKS[task].labels
    train = [e for e in corpus.examples if e.split == "train"]
    assert len(train) == 20 and train[3].text == sentence(3)
    assert train[3].pair == (None if TASKS[task].pair is None else f'he said "{sentence(4)}')
    assert train[3].label == (1.5 if task == "STS-B" else TASKS[task].labels[3 % len(TASKS[task].labels)])
    for split in ("val", "test"):  # the test labels are held back: dev stands for both
        assert [e.text for e in corpus.examples if e.split == split][:6] == [
            sentence(40 + n) for n in range(6)
        ]
    subsets = {e.subset for e in corpus.examples if e.split == "val"}
    assert subsets == ({"matched", "mismatched"} if task == "MNLI" else {"dev"})


def test_validation_can_be_held_out_of_train(tmp_path: Path) -> None:
    folder = make("RTE", tmp_path)
    write(folder / "RTE/train.tsv", layout("RTE", 300, "train.tsv"))
    corpus = GlueReader("RTE", str(folder / "RTE"), val_fraction=0.2).load(tmp_path)
    texts = {
        split: {e.text for e in corpus.examples if e.split == split} for split in ("train", "val", "test")
    }
    assert len(texts["test"]) == 6 and 30 < len(texts["val"]) < 90
    assert not texts["train"] & texts["val"] and len(texts["train"] | texts["val"]) == 300


def test_broken_lines_are_counted_and_named(tmp_path: Path) -> None:
    file = make("QQP", tmp_path) / "QQP/train.tsv"
    row = ["7", "1", "2", "what is it", "what was it", "0"]
    bad = {
        "too few columns": row[:4],
        "too many columns": [*row, "0"],
        "empty text": [*row[:4], "  ", "0"],
        "unknown label 'maybe'": [*row[:5], "maybe"],
    }
    with file.open("ab") as table:
        for values in bad.values():
            table.write("\t".join(values).encode() + b"\r\n")
        table.write("\t".join(row).replace("it", "\xe9").encode("latin-1") + b"\n\n")
        table.write(
            "\t".join([*row[:3], "a\u2028b\x0cc \0", "d", "1"]).encode() + b"\n"
        )  # no line ends, these
    corpus = GlueReader("QQP", str(tmp_path)).load(tmp_path)
    assert [item.reason for item in corpus.skipped] == [*bad, "not UTF-8"]
    assert [item.id for item in corpus.skipped] == [f"train:{number}" for number in range(22, 27)]
    last = [e for e in corpus.examples if e.split == "train"][-1]
    assert (last.id, last.text, last.label) == ("train:28", "a\u2028b\x0cc", "1")
    data = module(GlueReader("QQP", str(tmp_path)), tmp_path)
    data.prepare()
    report = json.loads((data.folder / "prepare_report.json").read_text())
    assert report["skipped_by_reason"]["not UTF-8"] == 1 and len(report["skipped"]) == 5
    data.setup()
    assert len(data.train_set) == 21


def test_a_score_that_is_no_number_is_skipped(tmp_path: Path) -> None:
    file = make("STS-B", tmp_path) / "STS-B/train.tsv"
    rows = [line.split("\t") for line in file.read_text().splitlines()]
    rows[4][-1], rows[5][-1] = "high", "inf"
    write(file, rows)
    corpus = GlueReader("STS-B", str(tmp_path)).load(tmp_path)
    assert [item.reason for item in corpus.skipped] == ["label is no number"] * 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "dev.tsv").unlink(), "dev.tsv of GLUE's RTE is missing"),
        (lambda folder: (folder / "train.tsv").write_text(""), "no example"),
        (
            lambda folder: (folder / "train.tsv").write_text("index\tsentence\tlabel\n0\ta\tb\n"),
            "'sentence1'",
        ),
    ],
)
def test_a_folder_that_is_not_the_task_is_refused(damage: Any, message: str, tmp_path: Path) -> None:
    damage(make("RTE", tmp_path) / "RTE")
    with pytest.raises(MagnetoError, match=message):
        GlueReader("RTE", str(tmp_path)).load(tmp_path)


def test_names_and_settings_are_checked() -> None:
    with pytest.raises(MagnetoError, match="CoLA"):
        GlueReader("COLA", "x")
    with pytest.raises(MagnetoError, match="folder"):
        GlueReader("CoLA")
    with pytest.raises(MagnetoError, match="val and test"):
        TsvReader(train="a.tsv")
    with pytest.raises(MagnetoError, match="years"):
        StateOfTheUnionEraReader(years=10)


def test_a_test_file_is_read_whole_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "test.tsv"
    write(file, [["index", "sentence"], ["0", 'so "it goes'], ["1", "b"]])
    assert list(read_test_file(file, "CoLA")) == [("0", 'so "it goes', None), ("1", "b", None)]
    with pytest.raises(MagnetoError, match="'id'"):
        list(read_test_file(file, "QQP"))
    write(file, [["index", "sentence"], ["0"], ["1", "b"]])
    with pytest.raises(MagnetoError, match="test:2"):
        list(read_test_file(file, "SST-2"))


# ------------------------------------------------------------------ the user's tables


def tables(folder: Path, header: list[str], rows: list[list[str]]) -> dict[str, str]:
    for split in ("train", "val", "test"):
        write(folder / f"{split}.tsv", [header, *rows])
    return {split: str(folder / f"{split}.tsv") for split in ("train", "val", "test")}


def test_tables_of_ones_own(tmp_path: Path) -> None:
    files = tables(tmp_path, ["mood", "words"], [["sad", "no sun"], ["glad", "the sun"], ["sad", "rain"]])
    corpus = TsvReader(**files, text="words", label="mood").load(tmp_path)
    assert corpus.labels == ("glad", "sad") and corpus.metrics == ("accuracy",)
    with pytest.raises(MagnetoError, match="'mod'.*mood"):
        TsvReader(**files, text="words", label="mod").load(tmp_path)


# ------------------------------------------------------------------ State of the Union


def test_periods_by_year_without_numerals(tmp_path: Path) -> None:
    """Periods split by year and numerals hidden."""
    folder = tmp_path / "sotu" / "speeches"
    folder.mkdir(parents=True)
    long = " ".join(["It cost $1,234 in the year before, and every one of us remembers it well."] * 3)
    for year in range(1790, 2027):
        text = f"Fellow citizens:\n\n{long} The {year}th word.\n\n \n{long} {'So be it. ' * (year - 1789)}"
        (folder / f"{year}-Somebody-1.txt").write_text(text)
    corpus = StateOfTheUnionEraReader(folder=str(folder.parent)).load(tmp_path)
    assert corpus.labels == ("1790-1829", "1830-1869", "1870-1909", "1910-1949", "1950-1989", "1990-2029")
    assert not any("Fellow" in e.text or any(c in e.text for c in "123456789") for e in corpus.examples)
    assert "$0,000" in corpus.examples[0].text and len({e.text for e in corpus.examples}) == len(
        corpus.examples
    )
    years = {
        split: {e.group for e in corpus.examples if e.split == split} for split in ("train", "val", "test")
    }
    assert not years["train"] & (years["val"] | years["test"]) and not years["val"] & years["test"]
    for split, members in years.items():
        assert {StateOfTheUnionEraReader().period(int(year)) for year in members if year} == set(
            corpus.labels
        ), split


# ------------------------------------------------------------------ framing and batches


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.train([TEXT], kind="bpe", vocab_size=90)


def test_texts_and_pairs_are_framed(tokenizer: TextTokenizer) -> None:
    a, b = tokenizer.encode("the cat"), tokenizer.encode("a mat")
    bos, eos = tokenizer.require("bos"), tokenizer.require("eos")
    found = encode(tokenizer, ["the cat", " the  cat\t"], ["a mat", None], 50)
    assert found.tokens.tolist() == [bos, *a, eos, *b, eos, bos, *a, eos]
    assert found.start.tolist() == [0, len(a) + len(b) + 3, len(a) * 2 + len(b) + 5]
    assert found.second.tolist() == [len(a) + 2] * 2 and found.truncated == 0


@pytest.mark.parametrize(("first", "second"), [(40, 2), (2, 40), (40, 40), (12, 11), (40, None)])
def test_truncation_of_the_longer_text(tokenizer: TextTokenizer, first: int, second: int | None) -> None:
    """What is too long loses the end of its longer text."""
    a, b = " ".join(["cat"] * first), None if second is None else " ".join(["dog"] * second)
    whole = encode(tokenizer, [a], [b], 10_000)
    limit = 20
    cut = encode(tokenizer, [a], [b], limit)
    assert len(cut.tokens) == min(limit, len(whole.tokens)) and cut.truncated == (len(whole.tokens) > limit)
    size = int(cut.second[0]) - 2
    assert cut.tokens[1 : size + 1].tolist() == tokenizer.encode(a)[:size]
    assert cut.tokens[-1] == tokenizer.require("eos") and cut.tokens[size + 1] == tokenizer.require("eos")
    if b is not None:
        rest = len(cut.tokens) - size - 3
        assert cut.tokens[size + 2 : -1].tolist() == tokenizer.encode(b)[:rest]
        # A text is cut only as far as the other one needs the room.
        shorter, longer = sorted((len(tokenizer.encode(a)), len(tokenizer.encode(b))))
        assert min(size, rest) == min(shorter, (limit - 3) // 2) and longer >= max(size, rest)


def test_batches_are_padded_and_marked() -> None:
    items = [
        {
            "id": 0,
            "tokens": np.array([1, 7, 2, 8, 2]),
            "second": [0, 0, 0, 1, 1],
            "label": 1,
            "text": "a",
            "pair": "b",
        },
        {"id": 1, "tokens": np.array([1, 7, 2]), "second": [0, 0, 0], "label": 0, "text": "c", "pair": ""},
    ]
    batch = padding(9, multiple=4)(items)
    assert batch["tokens"].tolist() == [[1, 7, 2, 8, 2, 9, 9, 9], [1, 7, 2, 9, 9, 9, 9, 9]]
    assert batch["mask"].sum(1).tolist() == [5, 3] and batch["second"].sum(1).tolist() == [2, 0]
    assert batch["label"].tolist() == [1, 0] and batch["text"] == ["a", "c"]


def test_epoch_covers_all_and_resumes(tmp_path: Path) -> None:
    """Every example is seen once an epoch and a run goes on exactly."""
    reader = GlueReader("MNLI", str(make("MNLI", tmp_path)))
    data = module(reader, tmp_path)
    data.prepare()
    data.setup()
    per_epoch = data.batches_per_epoch()
    data.configure_run(total_batches=2 * per_epoch)
    batches = [batch["id"].tolist() for batch in data.train_dataloader()]
    assert len(batches) == 2 * per_epoch
    for epoch in (batches[:per_epoch], batches[per_epoch:]):
        assert sorted(sum(epoch, [])) == list(range(20))
    loader = data.train_dataloader()
    loader.load_state_dict({"consumed": 3})
    assert [batch["id"].tolist() for batch in loader] == batches[3:]
    seen = [batch for batch in data.val_dataloader()]
    ids = torch.cat([batch["id"] for batch in seen])
    assert len(ids) == len(set(ids.tolist())) == 12 == data.info.examples["val"]
    assert torch.cat([batch["subset"] for batch in seen]).sum() == 6 and data.info.subsets == [
        "matched",
        "mismatched",
    ]
    assert seen[0]["label"].dtype == torch.int64 and seen[0]["pair"][0].startswith("he said")


def test_given_tokenizer_by_content(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    """A given tokenizer is used and known by its content."""
    reader = GlueReader("STS-B", str(make("STS-B", tmp_path)))
    file = tmp_path / "tokenizer.json"
    file.write_text(tokenizer.to_json())
    data = module(reader, tmp_path, tokenizer={"file": str(file), "kind": "unigram", "vocab_size": 8000})
    data.prepare()
    assert (
        data.info.tokenizer == tokenizer.to_json() and data.info.range == [0.0, 5.0] and not data.info.labels
    )
    moved = tmp_path / "elsewhere.json"
    moved.write_text(tokenizer.to_json())
    assert module(reader, tmp_path, tokenizer={"file": str(moved)}).folder == data.folder
    assert module(reader, tmp_path).folder != data.folder
    with pytest.raises(MagnetoError, match=r"nowhere\.json"):
        module(reader, tmp_path, tokenizer={"file": str(tmp_path / "nowhere.json")}).prepare()
    with pytest.raises(MagnetoError, match="vocab_size"):
        module(reader, tmp_path, tokenizer={})


def test_evaluation_uses_the_models_tokens(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    """Evaluation takes the tokens of a checkpoint."""
    reader = GlueReader("MNLI", str(make("MNLI", tmp_path)))
    own = module(reader, tmp_path, tokenizer={"kind": "unigram", "vocab_size": 50})
    other = module(reader, tmp_path, max_tokens=16)
    for data in (own, other):
        data.prepare()
    other.setup()
    own = own.for_model(other.info.to_dict())
    for left, right in zip(own.test_dataloader(), other.test_dataloader(), strict=True):
        assert torch.equal(left["tokens"], right["tokens"]) and torch.equal(left["subset"], right["subset"])
    wrong = other.info.to_dict() | {"labels": ["0", "1"]}
    with pytest.raises(MagnetoError, match="contradiction"):
        own.for_model(wrong)


def table(file: Path, rows: list[tuple[str, str]], names: str = "sentence\tlabel") -> str:
    file.write_text("\n".join([names, *("\t".join(row) for row in rows)]) + "\n", encoding="utf-8")
    return str(file)


def three_classes(folder: Path, **more: Any) -> TsvReader:
    """Three tables of three classes."""
    rows = [(sentence(number), ("air", "land", "water")[number % 3]) for number in range(60)]
    files = {split: table(folder / f"{split}.tsv", rows) for split in ("train", "val", "test")}
    return TsvReader(**files, **more)


def test_a_table_alone_is_read_as_the_model_reads(tmp_path: Path) -> None:
    """With the model's tokenizer and the numbers of its classes, of which the table may lack some."""
    reader = three_classes(tmp_path)
    model = module(reader, tmp_path)
    model.prepare()
    model.setup()
    rows = [(sentence(number), ("land", "water")[number % 2]) for number in range(10)]
    small = TsvReader(test=table(tmp_path / "own.tsv", rows))
    data = module(small, tmp_path, tokenizer={"kind": "bpe", "vocab_size": 8_000}, max_tokens=99)
    data = data.for_model(json.loads(json.dumps(model.info.to_dict())))
    found = {}
    for batch in data.test_dataloader():
        found |= dict(zip(batch["text"], batch["label"].tolist(), strict=True))
        wanted = encode(
            TextTokenizer.from_json(model.info.tokenizer), batch["text"], [None] * len(batch["text"]), 24
        )
        for row, mask, start, stop in zip(
            batch["tokens"], batch["mask"], wanted.start, wanted.start[1:], strict=False
        ):
            assert row[mask].tolist() == wanted.tokens[start:stop].tolist()
    assert found == {text: ("air", "land", "water").index(label) for text, label in rows}
    same = module(reader, tmp_path).for_model(model.info.to_dict())
    assert same.folder == model.folder, "what the model was trained on is not prepared a second time"
    with pytest.raises(
        MagnetoError, match=r"train and val splits.*A test set alone is .*mode=test checkpoint=RUN"
    ):
        data = module(small, tmp_path)
        data.prepare()
    strange = TsvReader(test=table(tmp_path / "strange.tsv", [("a text", "fire")]))
    with pytest.raises(MagnetoError, match=r"tells apart air, land, water; this data has the labels fire"):
        module(strange, tmp_path).for_model(model.info.to_dict())
    pairs = table(tmp_path / "pairs.tsv", [("a", "b", "air")], "sentence\tother\tlabel")
    with pytest.raises(MagnetoError, match="reads single texts; this data has pairs of texts"):
        module(TsvReader(test=pairs, pair="other"), tmp_path).for_model(model.info.to_dict())


def test_digits_are_zeros_in_evaluation_too(tmp_path: Path) -> None:
    """Of a corpus whose digits are written as zeros its model reads all text so."""
    model = module(three_classes(tmp_path), tmp_path)
    model.prepare()
    info = model.info.to_dict() | {"zero_digits": True}
    rows = [[("in 1941 and 7", "air")], [("in 0000 and 0", "air")]]
    tokens = []
    for number, one in enumerate(rows):
        data = module(TsvReader(test=table(tmp_path / f"{number}.tsv", one)), tmp_path)
        data = data.for_model(info)
        tokens.append(next(iter(data.test_dataloader()))["tokens"])
    assert torch.equal(*tokens)
    assert not TextClassificationInfo.from_dict(
        {k: v for k, v in info.items() if k != "zero_digits"}
    ).zero_digits


def test_tables_of_other_programs_are_explained(tmp_path: Path) -> None:
    """Commas, UTF-16, a name given twice; old line ends and compression are read."""
    file = tmp_path / "a.tsv"
    for content, message in (
        (b"sentence,label\na,b\n", r"no tab in its first line, 'sentence,label'.*tabs between the columns"),
        ("sentence\tlabel\na\tb\n".encode("utf-16"), "UTF-16, not UTF-8"),
        (b"sentence\tlabel\tlabel\na\tb\tc\n", "two columns are called 'label'"),
    ):
        file.write_bytes(content)
        with pytest.raises(MagnetoError, match=message):
            list(read_table(file, None))
    file.write_bytes(b"sentence\tlabel\rone\tx\rtwo\ty\r")
    plain = [row for _, row in read_table(file, None)]
    assert plain == [{"sentence": "one", "label": "x"}, {"sentence": "two", "label": "y"}]
    packed = tmp_path / "a.tsv.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    assert [row for _, row in read_table(packed, None)] == plain
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(MagnetoError, match=r"a\.tsv\.gz: damaged \(.*end-of-stream"):
        list(read_table(packed, None))


def test_f1_is_of_the_positive_label(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The second in alphabetical order, or the one that is named; the log says which."""
    rows = [(sentence(number), ("abusive", "ok")[number % 2]) for number in range(20)]
    files = {split: table(tmp_path / f"{split}.tsv", rows) for split in ("train", "val", "test")}
    for positive, second in ((None, "ok"), ("ok", "ok"), ("abusive", "abusive")):
        reader = TsvReader(**files, metrics=["f1"], positive=positive)
        data = module(reader, tmp_path, tokenizer={"kind": "bpe", "vocab_size": 50})
        with caplog.at_level("INFO"):
            data.prepare()
        assert data.info.labels[1] == second and f"f1 is that of the label {second}" in caplog.text
        caplog.clear()


@pytest.mark.parametrize(("key", "value"), [("max_tokens", 3), ("batch_size", 0), ("eval_batch_size", 0)])
def test_impossible_settings_are_refused(tmp_path: Path, key: str, value: int) -> None:
    with pytest.raises(MagnetoError, match=f"data.{key}={value}"):
        module(GlueReader("RTE", str(tmp_path)), tmp_path, **{key: value})


# ------------------------------------------------------------------ metrics


def by_hand(metric: str, predictions: np.ndarray, labels: np.ndarray) -> float:
    """Each metric from its definition, by another road than torchmetrics'."""
    if metric == "accuracy":
        return float((predictions == labels).mean())
    if metric == "f1":
        hits = float(((predictions == 1) & (labels == 1)).sum())
        return 2 * hits / float((predictions == 1).sum() + (labels == 1).sum())
    if metric == "matthews":  # the correlation of one-hot matrices (Gorodkin 2004)
        x, y = (
            np.eye(int(max(predictions.max(), labels.max())) + 1)[v.astype(int)]
            for v in (predictions, labels)
        )
        x, y = x - x.mean(0), y - y.mean(0)
        return float((x * y).sum() / math.sqrt((x * x).sum() * (y * y).sum()))
    if metric == "spearman":
        predictions, labels = (
            np.array([((v < u).sum() + ((v == u).sum() - 1) / 2) for u in v]) for v in (predictions, labels)
        )
    return float(np.corrcoef(predictions, labels)[0, 1])


@pytest.mark.parametrize(
    ("metrics", "classes"),
    [
        (("accuracy", "f1"), 2),
        (("matthews",), 2),
        (("accuracy", "matthews"), 3),
        (("pearson", "spearman"), 0),
    ],
)
def test_metrics_equal_their_definitions(metrics: tuple[str, ...], classes: int) -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, 101) if classes else np.round(random.uniform(0, 5, 101), 1)
    guesses = random.integers(0, classes, 101) if classes else np.round(labels + random.normal(0, 2, 101), 1)
    predictions = np.where(random.random(101) < 0.5, labels, guesses)
    main = random.random(101) < 0.6
    scores = GlueScores(metrics, classes, ("matched", "mismatched"))
    for part in np.array_split(np.arange(101), 7):  # batches, of which one comes twice
        for _ in range(2 if part[0] == 0 else 1):
            columns = (predictions[part], labels[part], part, np.where(main[part], 0, 1))
            scores.update(*map(torch.from_numpy, columns))
    found = scores.compute()
    for name in metrics:
        assert found[name] == pytest.approx(by_hand(name, predictions[main], labels[main]), abs=1e-6)
        assert found[f"{name}/mismatched"] == pytest.approx(
            by_hand(name, predictions[~main], labels[~main]), abs=1e-6
        )
    if len(metrics) > 1:
        assert found["score"] == pytest.approx(sum(found[name] for name in metrics) / len(metrics))
    else:
        assert "score" not in found, "the same number under two names"
    scores.reset()
    assert scores.compute() == {}


@pytest.mark.parametrize(("metrics", "classes"), [(("f1", "matthews"), 2), (("pearson", "spearman"), 0)])
def test_constant_answers_score_zero_and_not_nan(metrics: tuple[str, ...], classes: int) -> None:
    scores = GlueScores(metrics, classes, ("dev",))
    scores.update(torch.zeros(6), torch.arange(6) % 2, torch.arange(6), torch.zeros(6))
    assert scores.compute() == {**dict.fromkeys(metrics, 0.0), "score": 0.0}


def correlation(table: np.ndarray) -> float:
    """Matthews's, of counts (true, predicted), by its definition in whole numbers; 0 where it is 0 / 0."""
    s, c = int(table.sum()), int(table.trace())
    t, p = table.sum(1).tolist(), table.sum(0).tolist()
    below = (s * s - sum(k * k for k in p)) * (s * s - sum(k * k for k in t))
    return (c * s - sum(a * b for a, b in zip(t, p, strict=True))) / math.sqrt(below) if below else 0.0


def small_tables(classes: int, examples: int) -> list[np.ndarray]:
    """Every confusion table up to a number of examples."""
    counts = itertools.product(range(examples + 1), repeat=classes**2)
    return [np.reshape(row, (classes, classes)) for row in counts if 1 <= sum(row) <= examples]


@pytest.mark.parametrize(("classes", "examples"), [(2, 6), (3, 3)])
def test_matthews_of_every_small_table(classes: int, examples: int) -> None:
    """Constant answers or labels correlate with nothing, right or wrong; F1 and accuracy by their definitions."""
    names = ("accuracy", "f1", "matthews") if classes == 2 else ("accuracy", "matthews")
    scores = GlueScores(names, classes, ("dev",))
    for table in small_tables(classes, examples):
        labels = np.repeat(np.arange(classes), table.sum(1))
        predictions = np.repeat(np.tile(np.arange(classes), classes), table.flatten())
        scores.reset()
        zeros = torch.zeros(len(labels))
        scores.update(torch.tensor(predictions), torch.tensor(labels), torch.arange(len(labels)), zeros)
        found = scores.compute()
        assert found["matthews"] == pytest.approx(correlation(table), abs=1e-6), table
        assert found["accuracy"] == pytest.approx(table.trace() / table.sum())
        if classes == 2:
            either = 2 * table[1, 1] + table[0, 1] + table[1, 0]
            assert found["f1"] == pytest.approx(2 * table[1, 1] / either if either else 0.0)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 4.999999, 1e9 + 0.1])
def test_constant_numbers_correlate_with_nothing(value: float) -> None:
    """Also those whose mean, and so whose deviation, is rounded."""
    constant, others = torch.full((10,), value, dtype=torch.float64), torch.arange(10.0) ** 2
    for columns in ((constant, others), (others, constant)):
        scores = GlueScores(("pearson", "spearman"), 0, ("dev",))
        scores.update(*columns, torch.arange(10), torch.zeros(10))
        assert scores.compute() == {"pearson": 0.0, "spearman": 0.0, "score": 0.0}


@pytest.mark.parametrize(
    ("metrics", "classes", "message"),
    [
        (("f1",), 3, "3 classes"),
        (("pearson",), 2, "fit"),
        (("acuracy",), 2, "accuracy"),
        (("f1",), 0, "numbers"),
    ],
)
def test_metrics_that_do_not_fit_are_refused(metrics: tuple[str, ...], classes: int, message: str) -> None:
    with pytest.raises(MagnetoError, match=message):
        GlueScores(metrics, classes, ("dev",))
