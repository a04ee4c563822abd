"""Documents of corpora as token ids in Arrow tables: what one process does, without the imports of a model.

The columns, a row for each document: `id`; `tokens`, the `</s>` included; `bytes`, the UTF-8 bytes that each token
stands for (null in training); `size`, UTF-8 bytes of the text.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from magneto.data.corpora.base import SPLITS, hash_split
from magneto.data.corpora.text.base import Document, TextReader, why_unusable
from magneto.data.skips import Skips
from magneto.data.table import TableWriter
from magneto.data.tokenizers.text import TextTokenizer

FLUSH_CHARS = 4_000_000  # tokenised at a time
PIECE_CHARS = 100_000  # longer documents are tokenised in pieces, cut before white space
MEASURED = ("val", "test")  # the splits of which the bytes of every token are kept


Skip = Callable[[str, str, str], None]
"""Called with id, file and reason of a document that is not used."""


def split_of(document: Document, fractions: tuple[float, float]) -> str | None:
    """Return the split of a document; None: it cannot be used."""
    if why_unusable(document.text) is not None:
        return None
    val, test = fractions
    return document.split or hash_split(document.group, val=val, test=test, kind="text")


def usable_documents(
    name: str, documents: Iterable[Document], fractions: tuple[float, float], skip: Skip | None = None
) -> Iterator[Document]:
    """Yield the usable documents of a corpus with their splits, and ids that carry its name.

    Args:
        name: of the corpus.
        documents: of the corpus.
        fractions: share of the documents that val and test get where the corpus states no split.
        skip: takes the others.
    """
    for document in documents:
        named = replace(document, id=f"{name}/{document.id}")
        split = split_of(document, fractions)
        if split is not None:
            yield replace(named, split=split)
        elif skip is not None:
            skip(named.id, named.group, why_unusable(document.text) or "")


@dataclass(frozen=True)
class Part:
    """A part of a corpus, of which one process writes the tables."""

    corpus: str
    reader: TextReader
    data_dir: Path
    fractions: tuple[float, float]
    tokenizer: str = ""
    """As JSON."""


def write_part(part: Part, folder: Path) -> dict[str, Any]:
    """Write the tables of a part into a folder; return what was counted and what was skipped."""
    skips, tokenizer = Skips(), TextTokenizer.from_json(part.tokenizer)
    corpus = part.reader.load(part.data_dir)
    with TableWriter(folder, schema(tokenizer)) as tables:
        writer = DocumentWriter(tables, tokenizer)
        for document in usable_documents(part.corpus, corpus.examples, part.fractions, skips.skip):
            writer.add(document)
        writer.flush()
    skips.skip_of(part.corpus, corpus)
    listed = [asdict(item) for item in skips.listed]
    return {"counts": writer.counts | {"rows": tables.rows}, "skipped": skips.skipped, "listed": listed}


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
        counts: of each split `tokens`, the `</s>` of each document included; `bytes` of UTF-8; `unknown`, tokens that are
            `<unk>`; `lossy`, if it is in MEASURED, documents of which the tokens do not give back the text.
    """

    def __init__(self, tables: TableWriter, tokenizer: TextTokenizer) -> None:
        self.tables, self.tokenizer = tables, tokenizer
        self.dtype = tables.schema.field("tokens").type.value_type.to_pandas_dtype()
        self.counts = {name: Counter[str]() for name in ("tokens", "bytes", "unknown", "lossy")}
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
                self.counts["lossy"][split] += self.tokenizer.decode(ids[:-1]) != document.text
            self.counts["tokens"][split] += len(ids)
            self.counts["bytes"][split] += size
            if self.tokenizer.unk_id is not None:
                self.counts["unknown"][split] += int((ids == self.tokenizer.unk_id).sum())
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
