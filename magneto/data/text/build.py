"""Documents of the corpora as token ids in Arrow tables.

The columns, a row for each document: `id`; `tokens`, the `</s>` included; `bytes`, the UTF-8 bytes that each token
stands for (null in training); `size`, UTF-8 bytes of the text.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from magneto.data.corpora.base import SPLITS
from magneto.data.corpora.text.base import LINES, Document
from magneto.data.prepared import Preparation
from magneto.data.table import TableWriter
from magneto.data.text.config import TextConfig
from magneto.data.text.documents import bounded_documents, undivided_documents, usable_documents
from magneto.data.tokenizers.text import TextTokenizer

FEW = 20  # groups of documents, of which a hash may well give none to a split
FLUSH_CHARS = 4_000_000  # tokenised at a time
PIECE_CHARS = 100_000  # longer documents are tokenised in pieces, cut before white space
MEASURED = ("val", "test")  # the splits of which the bytes of every token are kept


def build(target: Preparation) -> dict[str, Any]:
    """Write the tables; return the fields of the info that describe the corpus."""
    config: TextConfig = target.config
    settings = config.tokenizer
    if target.given is not None:
        tokenizer = TextTokenizer.from_json(target.given.tokenizer)
    elif settings.file is not None:
        tokenizer = TextTokenizer.from_file(settings.file)
    else:
        sample = list(_sample(target))
        if not sample:
            found = Counter(document.split for document in _documents(target))
            target.require({split: found[split] for split in SPLITS}, lambda: _remedy(target, found.total()))
        tokenizer = TextTokenizer.train(sample, kind=settings.kind, vocab_size=settings.vocab_size)
        del sample
    with target.tables(schema(tokenizer)) as tables:
        writer = DocumentWriter(tables, tokenizer)
        for document in _documents(target):
            writer.add(document)
        writer.flush()
    target.require(target.rows, lambda: _remedy(target, sum(target.rows.values())))
    target.report["lossy"] = {split: writer.lossy[split] for split in MEASURED}
    return {
        "tokenizer": tokenizer.to_json(),
        "vocab_size": tokenizer.vocab_size,
        "documents": dict(target.rows),
        "tokens": {split: writer.tokens[split] for split in SPLITS},
        "bytes": {split: writer.bytes[split] for split in SPLITS},
        "unknown": {split: writer.unknown[split] for split in SPLITS},
        "corpus": target.origins,
    }


def _documents(target: Preparation) -> Iterator[Document]:
    if target.config.streaming:
        yield from bounded_documents(target)
        return
    for name, corpus in target.load():
        yield from usable_documents(name, corpus.examples, target.config.fractions, target.skip)


def _sample(target: Preparation) -> Iterator[str]:
    """Yield the first training texts of each corpus, to train a tokenizer on."""
    for name, reader in target.corpora.items():
        room = target.config.tokenizer.sample_mb * 1e6
        if target.config.streaming:
            documents = undivided_documents(name, reader.shards(), target.config.fractions)
        else:
            corpus = reader.load(target.data_dir)
            documents = usable_documents(name, corpus.examples, target.config.fractions)
        for document in documents:
            if document.split == "train":
                yield document.text
                room -= len(document.text.encode())
            if room <= 0:
                break


def _remedy(target: Preparation, total: int) -> str:
    """Return what can be done where a split is empty. total: the usable documents."""
    if not total:
        return "Check the files: their format, their encoding, the key of the text."
    groups, stated = set(), True
    for reader in target.corpora.values():
        for document in reader.load(target.data_dir).examples:
            groups.add(document.group)
            stated &= document.split is not None
            if len(groups) >= FEW:
                break
    if not stated and len(groups) < FEW:
        return (
            f"Their texts make {len(groups)} {'group' if len(groups) == 1 else 'groups'}, too few to divide: name the "
            "files of train, val and test each, or, where each line is a text, set per_line=true "
            f"(data.corpora.text_files.per_line=true; blocks of {LINES} lines stay together)."
        )
    return (
        "Check the corpus and its splits; raise data.val_fraction and data.test_fraction, or name the files of each "
        "split."
    )


def schema(tokenizer: TextTokenizer) -> pa.Schema:
    """Return the columns; tokens in the smallest type that holds every id."""
    token = pa.uint16() if tokenizer.vocab_size <= 1 << 16 else pa.uint32()
    return pa.schema(
        {"id": pa.string(), "tokens": pa.list_(token), "bytes": pa.list_(pa.uint32()), "size": pa.int64()}
    )


class DocumentWriter:
    """Tokenises documents and appends them to the tables of their splits, in the order in which they come.

    Never holds more than a few million characters.

    Attributes:
        tokens: of each split, the `</s>` of each document included.
        bytes: of each split, UTF-8.
        unknown: of each split, tokens that are `<unk>`.
        lossy: of each split in MEASURED, documents of which the tokens do not give back the text.
    """

    def __init__(self, tables: TableWriter, tokenizer: TextTokenizer) -> None:
        self.tables, self.tokenizer = tables, tokenizer
        self.dtype = tables.schema.field("tokens").type.value_type.to_pandas_dtype()
        self.tokens, self.bytes, self.unknown, self.lossy = (Counter[str]() for _ in range(4))
        self._end = np.array([tokenizer.require("eos")], self.dtype)
        self._waiting: list[Document] = []
        self._chars = 0

    def add(self, document: Document) -> None:
        """Append one document. Its `split` is set."""
        self._waiting.append(document)
        self._chars += len(document.text)
        if self._chars >= FLUSH_CHARS:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting."""
        for split in SPLITS:
            self._write(split, [document for document in self._waiting if document.split == split])
        self._waiting, self._chars = [], 0

    def _encode(self, texts: list[str], measured: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield ids and, where measured, bytes of each text.

        Not more than FLUSH_CHARS are tokenised at a time: the library needs some hundred bytes for a token.
        """
        for some in portions(texts):
            if measured:
                for ids, widths in self.tokenizer.encode_batch_bytes(some):
                    yield np.array(ids, self.dtype), widths
            else:
                for ids in self.tokenizer.encode_batch(some):
                    yield np.array(ids, self.dtype), np.empty(0, np.int64)

    def _write(self, split: str, documents: list[Document]) -> None:
        texts = [list(pieces(document.text)) for document in documents]
        encoded = self._encode([piece for parts in texts for piece in parts], split in MEASURED)
        columns: dict[str, list[Any]] = {name: [] for name in self.tables.schema.names}
        for document, parts in zip(documents, texts, strict=True):
            found = [next(encoded) for _ in parts]
            ids = np.concatenate([*(part for part, _ in found), self._end])
            size = len(document.text.encode())
            widths = None
            if split in MEASURED:
                widths = np.concatenate([*(part for _, part in found), [0]])
                widths[-1] = size - widths.sum()  # of a piece of which the tokenizer kept nothing
                self.lossy[split] += self.tokenizer.decode(ids[:-1]) != document.text
            self.tokens[split] += len(ids)
            self.bytes[split] += size
            if self.tokenizer.unk_id is not None:
                self.unknown[split] += int((ids == self.tokenizer.unk_id).sum())
            for name, value in zip(columns, (document.id, ids, widths, size), strict=True):
                columns[name].append(value)
        self.tables.write(split, columns)


def portions(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield the texts in portions of FLUSH_CHARS, and not more than one text beyond it."""
    start = 0
    while start < len(texts):
        stop, room = start, FLUSH_CHARS
        while stop < len(texts) and room > 0:
            room -= len(texts[stop])
            stop += 1
        yield texts[start:stop]
        start = stop


def pieces(text: str, limit: int = PIECE_CHARS) -> Iterator[str]:
    """Yield the text in pieces of at most `limit` characters, cut before white space wherever there is some.

    The tokenizers split text there anyway, so the tokens are those of the whole; memory and time stay bounded for a
    document of any size, one line or many.
    """
    start = 0
    while len(text) - start > limit:
        stop = start + limit
        for index in range(stop, start + limit // 2, -1):
            if text[index].isspace() and not text[index - 1].isspace():
                stop = index
                break
        yield text[start:stop]
        start = stop
    yield text[start:]
