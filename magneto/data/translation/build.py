"""Pairs of sentences as token ids in Arrow tables; the flow is drawn in magneto/data/translation/module.py.

The columns, a row for each pair: `row`, its number over all splits; `id`; `direction`, a number; `group`; `source` and
`target`, the texts; `source_tokens` and `target_tokens`, without special tokens.
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from magneto.data.corpora.base import SPLITS, hash_split
from magneto.data.corpora.text.base import LINES
from magneto.data.corpora.translation.base import Pair
from magneto.data.prepared import Preparation
from magneto.data.table import TableWriter, with_classes
from magneto.data.tokenizers.text import TextTokenizer
from magneto.data.translation.cleaning import (
    MAX_CHARACTERS,
    VERDICTS,
    Cleaning,
    PairColumns,
    decide,
    tidy,
    unusable,
)
from magneto.data.translation.config import TranslationConfig
from magneto.data.translation.dataset import tag_token
from magneto.errors import DataError

TOKENIZER_PAIRS = 1_000_000  # training pairs at most that a tokenizer is learnt from, evenly spread
CHUNK = 5_000  # pairs that are tokenised at a time
FEW = 20  # groups, of which a hash may well give none to a split

Row = dict[str, Any]  # a pair on its way: id, direction, split, group, source, target


@dataclass
class Gathered:
    """The outcome of the first pass; the pairs themselves stand in `file`, one JSON object a line."""

    file: Path
    columns: PairColumns
    directions: list[str]

    def rows(self) -> Iterator[Row]:
        """Yield the pairs in the order in which they came."""
        with self.file.open(encoding="utf-8") as file:
            yield from map(json.loads, file)


def build(target: Preparation) -> dict[str, Any]:
    """Write the tables; return the fields of the info that describe the corpus."""
    config: TranslationConfig = target.config
    gathered = _gather(target)
    verdict = decide(gathered.columns, config.clean, config.max_ratio)
    split = np.array(gathered.columns.side)
    published = np.array(gathered.columns.stated, bool) & (split != SPLITS.index("train"))
    usable = {name: int(((split == n) & (verdict == 0)).sum()) for n, name in enumerate(SPLITS)}
    if not all(usable[name] for name in target.splits):
        for row, judged in zip(gathered.rows(), verdict, strict=True):
            if judged:
                target.skip(row["id"], row["group"], VERDICTS[judged])
        target.require(usable, lambda: _remedy(gathered))
    if not config.tag:
        _require_one_target(gathered.directions)
    if target.given is not None:
        tokenizers = [TextTokenizer.from_json(text) for text in target.given.tokenizers]
        shared = tokenizers[0] == tokenizers[1]
    else:
        tokenizers = _learn(config, gathered, np.flatnonzero((verdict == 0) & (split == 0)))
        shared = config.tokenizer.shared
    with target.tables(_schema(tokenizers, gathered.directions)) as tables:
        writer = PairWriter(target, tables, tokenizers, gathered.directions)
        for row, judged, whole in zip(gathered.rows(), verdict, published, strict=True):
            if judged:
                target.skip(row["id"], row["group"], VERDICTS[judged])
            else:
                writer.add(row, whole=bool(whole))
        writer.flush()
    target.require(target.rows, lambda: _remedy(gathered))
    gathered.file.unlink()
    target.report["shortened"] = writer.shortened
    return {
        "source_tokenizer": tokenizers[0].to_json(),
        "target_tokenizer": tokenizers[1].to_json(),
        "shared": shared,
        "directions": gathered.directions,
        "tag": config.tag,
        "max_tokens": config.max_tokens,
        "pairs": dict(target.rows),
        "per_direction": {
            name: {side: writer.counts[name, side] for side in SPLITS} for name in gathered.directions
        },
        "words": writer.words,
        "tokens": writer.tokens,
        "corpora": target.origins,
    }


def _schema(tokenizers: Sequence[TextTokenizer], directions: Sequence[str]) -> pa.Schema:
    large = max(tokenizer.vocab_size for tokenizer in tokenizers) > 1 << 16
    tokens = pa.list_(pa.uint32() if large else pa.uint16())
    columns = {
        "row": pa.int64(),
        "id": pa.string(),
        "direction": pa.int64(),
        "group": pa.string(),
        "source": pa.string(),
        "target": pa.string(),
        "source_tokens": tokens,
        "target_tokens": tokens,
    }
    return with_classes(pa.schema(columns), direction=directions)


def _learn(config: TranslationConfig, gathered: Gathered, train: np.ndarray) -> list[TextTokenizer]:
    """Return the tokenizers of source and target, the same one when shared; train: the numbers of the training pairs."""
    settings = config.tokenizer
    if settings.file is not None:
        made = [side.make(()) for side in settings.sides]
    else:
        # Tokens that sources may begin with.
        tags = sorted({tag_token(name.split("-")[1]) for name in gathered.directions}) if config.tag else []
        chosen = np.zeros(len(gathered.columns), bool)
        chosen[train[:: -(-len(train) // TOKENIZER_PAIRS)]] = True
        rows = list(itertools.compress(gathered.rows(), chosen))
        sources, targets = ([row[side] for row in rows] for side in ("source", "target"))
        texts = [sources + targets] if settings.shared else [sources, targets]
        made = [
            side.make(text, extra)
            for side, text, extra in zip(settings.sides, texts, (tags, ()), strict=False)
        ]
    return made * 2 if settings.shared else made


def _gather(target: Preparation) -> Gathered:
    """Return all pairs that are usable by themselves, with tidy text; ids carry the corpus's name."""
    config: TranslationConfig = target.config
    gathered = Gathered(target.path / "all.jsonl", PairColumns(config.clean.templates), [])
    numbers: dict[str, int] = {}
    val, test = config.fractions
    with gathered.file.open("w", encoding="utf-8") as file:
        for name, corpus in target.load():
            for pair in corpus.examples:
                id = f"{name}/{pair.id}"
                source, translation, reason = _read(pair, config.clean)
                if reason:
                    target.skip(id, pair.group, reason)
                    continue
                languages = (pair.source_language, pair.target_language)
                direction = "-".join(languages)
                split = pair.split or hash_split(pair.group, val=val, test=test)
                number = numbers.setdefault(direction, len(numbers))
                gathered.columns.add(
                    source, translation, languages, number, SPLITS.index(split), pair.split is not None
                )
                row = {"id": id, "direction": direction, "split": split, "group": pair.group}
                row |= {"source": source, "target": translation}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    gathered.directions = list(numbers)
    return gathered


def _read(pair: Pair, clean: Cleaning) -> tuple[str, str, str]:
    """A pair's tidy source and target, and why it cannot be used, or ""."""
    published = pair.split in ("val", "test")
    if max(len(pair.source), len(pair.target)) > MAX_CHARACTERS and not published:
        return "", "", f"longer than {MAX_CHARACTERS} characters"
    source, target = tidy(pair.source), tidy(pair.target)
    return source, target, unusable(source, target, clean, published)


class PairWriter:
    """Tokenises rows, `CHUNK` at a time, and writes those whose sides have at most `max_tokens` tokens.

    Rows to be kept whole are written in any case: of longer ones the first `max_tokens` tokens, and all of their text.

    Attributes:
        counts: (direction, split) -> pairs.
        words: split -> [of the sources, of the targets], between spaces.
        tokens: likewise.
        shortened: pairs of which not all tokens are kept.
    """

    def __init__(
        self,
        target: Preparation,
        tables: TableWriter,
        tokenizers: Sequence[TextTokenizer],
        directions: Sequence[str],
    ) -> None:
        self.target, self.tables, self.tokenizers = target, tables, tokenizers
        self.directions, self.max_tokens = directions, target.config.max_tokens
        self.counts: Counter[tuple[str, str]] = Counter()
        self.words, self.tokens = ({split: [0, 0] for split in SPLITS} for _ in range(2))
        self.shortened = 0
        self._waiting: list[tuple[Row, bool]] = []

    def add(self, row: Row, whole: bool = False) -> None:
        """Take a row; write when there are enough."""
        self._waiting.append((row, whole))
        if len(self._waiting) >= CHUNK:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting."""
        rows, self._waiting = self._waiting, []
        encoded = [
            tokenizer.encode_batch([row[side] for row, _ in rows])
            for tokenizer, side in zip(self.tokenizers, ("source", "target"), strict=True)
        ]
        columns: dict[str, dict[str, list[Any]]] = {
            split: {name: [] for name in self.tables.schema.names} for split in SPLITS
        }
        number = sum(self.tables.rows.values())
        for (row, whole), *sides in zip(rows, *encoded, strict=True):
            if not self._keep(row, whole, sides):
                continue
            split, sides = row["split"], [side[: self.max_tokens] for side in sides]
            for index, (side, ids) in enumerate(zip(("source", "target"), sides, strict=True)):
                self.words[split][index] += len(row[side].split())
                self.tokens[split][index] += len(ids)
            self.counts[row["direction"], split] += 1
            values = row | {
                "row": number,
                "direction": self.directions.index(row["direction"]),
                "source_tokens": sides[0],
                "target_tokens": sides[1],
            }
            for name, column in columns[split].items():
                column.append(values[name])
            number += 1
        for split, of_split in columns.items():
            self.tables.write(split, of_split)

    def _keep(self, row: Row, whole: bool, sides: Sequence[Sequence[int]]) -> bool:
        """Return whether the pair is written; note the others."""
        longer = max(map(len, sides)) > self.max_tokens
        reason = ""
        if whole:
            self.shortened += longer
        elif not all(sides):
            reason = "no token of the vocabulary in it"
        elif longer:
            reason = f"longer than {self.max_tokens} tokens"
        if reason:
            self.target.skip(row["id"], row["group"], reason)
        return not reason


def _require_one_target(directions: Sequence[str]) -> None:
    sources = Counter(name.split("-")[0] for name in directions)
    for source, count in sources.items():
        if count > 1:
            raise DataError(
                f"The pairs from {source!r} go to {count} languages ({', '.join(directions)}), and nothing tells the "
                "model which one to write: set data.tag=true."
            )


def _remedy(gathered: Gathered) -> str:
    stated = bool(gathered.columns.stated) and all(gathered.columns.stated)
    if not len(gathered.columns):
        return "Check the corpus and its files."
    groups = len({row["group"] for row in gathered.rows()})
    if not stated and groups < FEW:
        return (
            f"The corpus has {groups} {'group' if groups == 1 else 'groups'} of pairs (such as files, or blocks of {LINES} "
            "lines), too few to divide: name the files of train, val and test each."
        )
    return (
        "Check the corpus, its files and splits, and data.clean, data.max_tokens, data.max_ratio, data.val_fraction and "
        "data.test_fraction."
    )
