"""Labelled texts: GLUE's layouts good and broken, framing, batches, GLUE's metrics."""

import gzip
import json
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
        odd = [*row[:3], "a\u2028b\x0cc \0", "d", "1"]  # no line ends, these
        table.write("\t".join(odd).encode() + b"\n")
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


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.train([TEXT], kind="bpe", vocab_size=90)


def test_texts_and_pairs_are_framed(tokenizer: TextTokenizer) -> None:
    a, b = tokenizer.encode("the cat"), tokenizer.encode("a mat")
    bos, eos = tokenizer.require("bos"), tokenizer.require("eos")
    found = encode(tokenizer, ["the cat", " the  cat\t"], ["a mat", None], 50)
    assert [one.tolist() for one in found.tokens] == [[bos, *a, eos, *b, eos], [bos, *a, eos]]
    assert found.second.tolist() == [len(a) + 2] * 2 and found.truncated == 0


@pytest.mark.parametrize(("first", "second"), [(40, 2), (2, 40), (40, 40), (12, 11), (40, None)])
def test_truncation_of_the_longer_text(tokenizer: TextTokenizer, first: int, second: int | None) -> None:
    """What is too long loses the end of its longer text."""
    a, b = " ".join(["cat"] * first), None if second is None else " ".join(["dog"] * second)
    limit = 20
    (whole,) = encode(tokenizer, [a], [b], 10_000).tokens
    found = encode(tokenizer, [a], [b], limit)
    (cut,), size = found.tokens, int(found.second[0]) - 2
    assert len(cut) == min(limit, len(whole)) and found.truncated == (len(whole) > limit)
    assert cut[1 : size + 1].tolist() == tokenizer.encode(a)[:size]
    assert cut[-1] == tokenizer.require("eos") and cut[size + 1] == tokenizer.require("eos")
    if b is not None:
        rest = len(cut) - size - 3
        assert cut[size + 2 : -1].tolist() == tokenizer.encode(b)[:rest]
        # A text is cut only as far as the other one needs the room.
        shorter, longer = sorted((len(tokenizer.encode(a)), len(tokenizer.encode(b))))
        assert min(size, rest) == min(shorter, (limit - 3) // 2) and longer >= max(size, rest)


def test_batches_are_padded_and_marked() -> None:
    items = [{"tokens": np.array([1, 7, 2, 8, 2]), "second": [0, 0, 0, 1, 1], "label": 1, "text": "a"},
             {"tokens": np.array([1, 7, 2]), "second": [0, 0, 0], "label": 0, "text": "c"}]  # fmt: skip
    batch = padding(9, multiple=4)(items)
    assert batch["tokens"].tolist() == [[1, 7, 2, 8, 2, 9, 9, 9], [1, 7, 2, 9, 9, 9, 9, 9]]
    assert batch["mask"].sum(1).tolist() == [5, 3] and batch["second"].sum(1).tolist() == [2, 0]
    assert batch["label"].tolist() == [1, 0] and batch["text"] == ["a", "c"]


def test_evaluation_sets_of_a_task(tmp_path: Path) -> None:
    """Both of MNLI's stand in the batches of one split."""
    data = module(GlueReader("MNLI", str(make("MNLI", tmp_path))), tmp_path)
    data.prepare()
    seen = list(data.val_dataloader())
    assert data.info.subsets == ["matched", "mismatched"] and data.info.examples["val"] == 12
    assert torch.cat([batch["subset"] for batch in seen]).sum() == 6
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
        for row, mask, expected in zip(batch["tokens"], batch["mask"], wanted.tokens, strict=True):
            assert row[mask].tolist() == expected.tolist()
    assert found == {text: ("air", "land", "water").index(label) for text, label in rows}
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
