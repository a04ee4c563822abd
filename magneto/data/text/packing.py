"""Documents as one long row of token ids on disk, and the pieces that models see of it.

    doc </s> doc </s> doc </s>      one file a split, memory-mapped; read as a circle, so that the first token of the
    |---block---|---block---|       split follows a `</s>` as all others do

`ShardWriter` never holds more than a few million characters; reading maps the file.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from magneto.data.corpora.base import SPLITS
from magneto.data.corpora.text.base import Document
from magneto.data.tokenizers.text import TextTokenizer

FLUSH_CHARS = 4_000_000  # tokenised at a time
PIECE_CHARS = 100_000  # longer documents are tokenised in pieces, cut before white space
MEASURED = ("val", "test")  # the splits of which the bytes of every token are kept


@dataclass
class Counts:
    """What a split holds."""

    documents: int = 0
    tokens: int = 0  # the `</s>` included
    bytes: int = 0  # UTF-8
    unknown: int = 0  # tokens that are `<unk>`
    lossy: int = 0  # documents of which the tokens do not give back the text; counted in MEASURED


def pieces(text: str, limit: int = PIECE_CHARS) -> Iterator[str]:
    """The text in pieces of at most `limit` characters, cut before white space wherever there is some.

    The tokenizers split text there anyway, so the tokens are those of the whole; memory and time stay bounded for a
    document of any size, one line or many.
    """
    start = 0
    while len(text) - start > limit:
        stop = start + limit
        for place in range(stop, start + limit // 2, -1):
            if text[place].isspace() and not text[place - 1].isspace():
                stop = place
                break
        yield text[start:stop]
        start = stop
    yield text[start:]


class ShardWriter:
    """Tokenises documents and appends them to the files of their splits, in the order in which they come.

    Files in `folder`, for each split: `SPLIT.tokens`, uint16 or uint32 as the vocabulary needs; `SPLIT.offsets`,
    int64, where each document begins in it; for val and test also `SPLIT.bytes`, uint32, the UTF-8 bytes that each
    token stands for. `documents.jsonl` lists the documents of val and test. To be used in a `with` statement.
    """

    def __init__(self, folder: Path, tokenizer: TextTokenizer) -> None:
        self.folder, self.tokenizer = folder, tokenizer
        self.dtype = token_dtype(tokenizer)
        self.counts = {split: Counts() for split in SPLITS}
        self._end = tokenizer.require("eos")
        self._waiting: list[Document] = []
        self._chars = 0
        self._files = ExitStack()

    def __enter__(self) -> "ShardWriter":
        names = [f"{split}.{kind}" for split in SPLITS for kind in ("tokens", "offsets")]
        names += [f"{split}.bytes" for split in MEASURED]
        self._out: dict[str, BinaryIO] = {
            name: self._files.enter_context((self.folder / name).open("wb")) for name in names
        }
        self._list = self._files.enter_context(
            (self.folder / "documents.jsonl").open("w", encoding="utf-8", errors="backslashreplace")
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        with self._files:
            if kind is None:
                self._flush()

    def add(self, document: Document) -> None:
        """Append one document. Its `split` is set."""
        self._waiting.append(document)
        self._chars += len(document.text)
        if self._chars >= FLUSH_CHARS:
            self._flush()

    def _flush(self) -> None:
        for split in SPLITS:
            self._write(split, [document for document in self._waiting if document.split == split])
        self._waiting, self._chars = [], 0

    def _encode(self, texts: list[str], measured: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Ids and, where measured, bytes of each text.

        Not more than FLUSH_CHARS are tokenised at a time: the library needs some hundred bytes for a token.
        """
        start = 0
        while start < len(texts):
            stop, room = start, FLUSH_CHARS
            while stop < len(texts) and room > 0:
                room -= len(texts[stop])
                stop += 1
            if measured:
                for ids, widths in self.tokenizer.encode_batch_bytes(texts[start:stop]):
                    yield np.array(ids, self.dtype), widths
            else:
                for ids in self.tokenizer.encode_batch(texts[start:stop]):
                    yield np.array(ids, self.dtype), np.empty(0, np.int64)
            start = stop

    def _write(self, split: str, documents: list[Document]) -> None:
        texts = [list(pieces(document.text)) for document in documents]
        encoded = self._encode([piece for parts in texts for piece in parts], split in MEASURED)
        counts = self.counts[split]
        for document, parts in zip(documents, texts, strict=True):
            found = [next(encoded) for _ in parts]
            ids = np.concatenate([*(part for part, _ in found), np.array([self._end], self.dtype)])
            self._out[f"{split}.offsets"].write(np.int64(counts.tokens).tobytes())
            self._out[f"{split}.tokens"].write(ids.tobytes())
            size = len(document.text.encode())
            counts.documents += 1
            counts.tokens += len(ids)
            counts.bytes += size
            if self.tokenizer.unk_id is not None:
                counts.unknown += int((ids == self.tokenizer.unk_id).sum())
            if split in MEASURED:
                counts.lossy += self.tokenizer.decode(ids[:-1]) != document.text
                widths = np.concatenate([*(part for _, part in found), [0]])
                widths[-1] = size - widths.sum()  # of a piece of which the tokenizer kept nothing
                self._out[f"{split}.bytes"].write(widths.astype(np.uint32).tobytes())
                row = {"id": document.id, "split": split, "tokens": len(ids), "bytes": size}
                self._list.write(json.dumps(row, ensure_ascii=False) + "\n")


def token_dtype(tokenizer: TextTokenizer) -> type[np.uint16] | type[np.uint32]:
    """The smallest type that holds every id."""
    return np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32


class TokenRow:
    """The tokens of one split, memory-mapped and read as a circle. Cheap to send to a worker."""

    def __init__(self, folder: Path, split: str, dtype: type[np.uint16] | type[np.uint32]) -> None:
        self.folder, self.split, self.dtype = folder, split, dtype
        self._tokens: np.ndarray | None = None
        self._bytes: np.ndarray | None = None
        self.length = (folder / f"{split}.tokens").stat().st_size // np.dtype(dtype).itemsize

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_tokens": None, "_bytes": None}

    def __len__(self) -> int:
        return self.length

    @property
    def offsets(self) -> np.ndarray:
        """(documents,) int64: where each begins."""
        return np.fromfile(self.folder / f"{self.split}.offsets", np.int64)

    def tokens(self, start: int, count: int) -> np.ndarray:
        """(count,) int64 from any place on, also -1; after the last token comes the first."""
        if self._tokens is None:
            self._tokens = np.memmap(self.folder / f"{self.split}.tokens", self.dtype, "r")
        return _circular(self._tokens, start, count)

    def bytes(self, start: int, count: int) -> np.ndarray:
        """(count,) int64, likewise: UTF-8 bytes of each token. Only for val and test."""
        if self._bytes is None:
            self._bytes = np.memmap(self.folder / f"{self.split}.bytes", np.uint32, "r")
        return _circular(self._bytes, start, count)


def _circular(row: np.ndarray, start: int, count: int) -> np.ndarray:
    if start >= 0 and start + count <= len(row):
        return row[start : start + count].astype(np.int64)
    return row[np.arange(start, start + count) % len(row)].astype(np.int64)


@dataclass(frozen=True)
class Pieces:
    """Stretches of a split, one for each example, in parallel arrays (examples,) int64.

    start: first token of the stretch; length: its tokens; scored: the last so many of them are scored, what comes
    before is context.
    """

    start: np.ndarray
    length: np.ndarray
    scored: np.ndarray

    def __len__(self) -> int:
        return len(self.start)


def training_pieces(row: TokenRow, block_size: int, separate: bool) -> Pieces:
    """Blocks to train on.

    Packed: all of `block_size`; they are counted from 0, and the reader may shift them around the circle. separate:
    each document is cut into blocks of its own, the last of which is shorter.
    """
    if separate:
        starts, lengths = _cut_documents(row, block_size)
    else:
        starts = np.arange(len(row) // block_size) * block_size
        lengths = np.full(len(starts), block_size)
    return Pieces(starts, lengths, lengths)


def evaluation_pieces(row: TokenRow, block_size: int, stride: int, separate: bool) -> Pieces:
    """Windows in which every token of the split is scored exactly once.

    The first window of the split (separate: of a document) scores all of its tokens; each next one goes `stride`
    tokens on and scores what is new, so that a token has at least `block_size - stride` tokens of context.
    """
    segments = np.append(row.offsets, len(row)) if separate else np.array([0, len(row)])
    starts, lengths, scored = [], [], []
    for first, last in zip(segments[:-1].tolist(), segments[1:].tolist(), strict=True):
        done, stop = first, min(first + block_size, last)
        while done < last:
            start = max(first, stop - block_size)
            starts.append(start)
            lengths.append(stop - start)
            scored.append(stop - done)
            done, stop = stop, min(stop + stride, last)
    return Pieces(np.array(starts, np.int64), np.array(lengths, np.int64), np.array(scored, np.int64))


def _cut_documents(row: TokenRow, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    bounds = np.append(row.offsets, len(row))
    lengths = np.diff(bounds)
    blocks = -(-lengths // block_size)
    document = np.repeat(np.arange(len(lengths)), blocks)
    number = np.arange(len(document)) - np.repeat(np.cumsum(blocks) - blocks, blocks)
    start = bounds[document] + number * block_size
    return start, np.minimum(block_size, bounds[document + 1] - start)
