"""The row of tokens on disk: what is written is what is read, and windows score every token once."""

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from magneto.data.corpora.text.base import Document
from magneto.data.table import SplitTable, TableWriter
from magneto.data.text import documents
from magneto.data.text.documents import DocumentWriter, pieces, schema
from magneto.data.text.packing import TokenRow, evaluation_pieces, training_pieces
from magneto.data.tokenizers.text import TextTokenizer

TEXTS = [f"the war of {number}; a long peace.\n\nNaïve people " * (1 + number % 7) for number in range(40)]
SIDES = ("train", "train", "val", "test")


@pytest.fixture(scope="module", params=["byte_bpe", "bpe"])
def tokenizer(request) -> TextTokenizer:
    size = {"byte_bpe": 275, "bpe": 60}[request.param]
    return TextTokenizer.train(TEXTS, kind=request.param, vocab_size=size)


def write(folder: Path, tokenizer: TextTokenizer, texts: list[str] = TEXTS) -> DocumentWriter:
    with TableWriter(folder, schema(tokenizer)) as tables:
        writer = DocumentWriter(tables, tokenizer)
        for number, text in enumerate(texts):
            writer.add(Document(id=str(number), text=text, group="", split=SIDES[number % 4]))
        writer.flush()
    return writer


def row(folder: Path, split: str) -> TokenRow:
    return TokenRow(SplitTable(folder, split))


def test_documents_end_with_an_end_token(tmp_path, tokenizer, monkeypatch):
    """Documents follow one another with an end after each."""
    monkeypatch.setattr(documents, "FLUSH_CHARS", 500)  # many flushes: they must not show
    written = write(tmp_path, tokenizer)
    for split in ("train", "val", "test"):
        mine = [text for number, text in enumerate(TEXTS) if SIDES[number % 4] == split]
        expected = [[*tokenizer.encode(text), tokenizer.eos_id] for text in mine]
        found = row(tmp_path, split)
        assert found.tokens(0, len(found)).tolist() == sum(expected, [])
        assert found.offsets.tolist() == np.cumsum([0, *map(len, expected)])[:-1].tolist()
        assert (written.tables.rows[split], written.counts["tokens"][split]) == (len(mine), len(found))
        assert written.counts["bytes"][split] == sum(len(text.encode()) for text in mine)
        if split != "train":
            widths = found.bytes(0, len(found))
            starts = found.offsets
            assert np.add.reduceat(widths, starts).tolist() == [len(text.encode()) for text in mine]
            assert not widths[np.append(starts[1:], len(found)) - 1].any(), "an end stands for no text"
        table = found.table
        assert len(table.values("tokens").parts) > 1, "one part: nothing is tested of several"
        ids = [str(number) for number in range(len(TEXTS)) if SIDES[number % 4] == split]
        assert [table.row(n)["id"] for n in range(len(table))] == ids
        assert table.list("tokens", 2).tolist() == expected[2]


def test_row_is_circular_and_pickles(tmp_path, tokenizer):
    """The row is a circle and travels to workers."""
    write(tmp_path, tokenizer)
    found = row(tmp_path, "val")
    assert found.tokens(-1, 3).tolist() == [tokenizer.eos_id, *found.tokens(0, 2)]
    around = found.tokens(len(found) - 2, 5).tolist()
    assert around == [*found.tokens(len(found) - 2, 2), *found.tokens(0, 3)]
    again = pickle.loads(pickle.dumps(found))
    assert len(pickle.dumps(found)) < 1000 and again.tokens(-1, 3).tolist() == found.tokens(-1, 3).tolist()


def test_large_vocabularies_need_four_bytes(tokenizer):
    class Large:
        vocab_size = 65_537

    types = [schema(one).field("tokens").type.value_type for one in (tokenizer, Large())]  # type: ignore[arg-type]
    assert types == [pa.uint16(), pa.uint32()]


def test_pieces_give_the_same_tokens(tmp_path, tokenizer, monkeypatch):
    """A long document in pieces has the same tokens."""
    text = " \n ".join(TEXTS)
    monkeypatch.setattr(documents, "PIECE_CHARS", 100)
    write(tmp_path, tokenizer, [text] * 4)
    found = row(tmp_path, "val")
    assert found.tokens(0, len(found)).tolist() == [*tokenizer.encode(text), tokenizer.eos_id]
    assert found.bytes(0, len(found)).sum() == len(text.encode())


@pytest.mark.parametrize("text", ["", "a", "word " * 100, "x" * 1000, " " * 1000, "a" * 99 + " " + "b" * 200])
def test_pieces_are_bounded(text):
    """Pieces are bounded and cut before white space."""
    parts = list(pieces(text, 100))
    assert "".join(parts) == text and max(map(len, parts)) <= 100
    if text.startswith("word"):
        assert all(part.startswith(" word") and part.endswith("word") for part in parts[1:-1])


def test_dropped_white_space_counts(tmp_path, tokenizer, monkeypatch):
    """White space of which nothing is kept still counts."""
    monkeypatch.setattr(documents, "PIECE_CHARS", 50)
    text = "the war" + " " * 300 + "of peace"
    write(tmp_path, tokenizer, [text] * 4)
    found = row(tmp_path, "test")
    assert found.bytes(0, len(found)).sum() == len(text)


def test_packed_and_separate_blocks(tmp_path, tokenizer):
    """Packed blocks are full and separate ones stay in their documents."""
    write(tmp_path, tokenizer)
    found = row(tmp_path, "train")
    packed = training_pieces(found, 32, separate=False)
    assert len(packed) == len(found) // 32 and (packed.length == 32).all()
    separate = training_pieces(found, 32, separate=True)
    bounds = np.append(found.offsets, len(found))
    document = np.searchsorted(bounds, separate.start, side="right") - 1
    assert (separate.start + separate.length <= bounds[document + 1]).all()
    covered = np.concatenate(
        [np.arange(s, s + n) for s, n in zip(separate.start, separate.length, strict=True)]
    )
    assert covered.tolist() == list(range(len(found)))
    assert (separate.length <= 32).all() and (separate.length < 32).any()


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize(("block", "stride"), [(32, 32), (32, 8), (32, 1), (10_000, 100)])
def test_windows_score_every_token_once(tmp_path, tokenizer, separate, block, stride):
    """Windows score every token once with enough context."""
    write(tmp_path, tokenizer)
    found = row(tmp_path, "val")
    windows = evaluation_pieces(found, block, stride, separate)
    assert (windows.length <= block).all()
    stop = windows.start + windows.length
    scored = np.concatenate([np.arange(e - n, e) for e, n in zip(stop, windows.scored, strict=True)])
    assert scored.tolist() == list(range(len(found)))
    first = np.append(found.offsets, len(found)) if separate else np.array([0])
    later = ~np.isin(windows.start, first)
    assert (windows.length[later] - windows.scored[later] >= block - stride).all()
