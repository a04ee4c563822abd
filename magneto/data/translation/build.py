"""Pairs of sentences as token ids in Arrow tables; the flow is drawn in magneto/data/translation/module.py.

The columns, a row for each pair: `row`, its number over all splits; `id`; `direction`, a number; `group`; `source` and
`target`, the texts; `source_tokens` and `target_tokens`, without special tokens.
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from magneto.data.corpora.base import SPLITS, Skipped, hash_split
from magneto.data.corpora.text.base import LINES
from magneto.data.corpora.translation.base import Pair, TranslationReader
from magneto.data.prepared import Preparation
from magneto.data.table import TableWriter, with_classes
from magneto.data.tokenizers.settings import TokenizerSettings
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
from magneto.data.translation.dataset import tag_token
from magneto.errors import ConfigError, DataError

TOKENIZER_PAIRS = 1_000_000  # training pairs at most that a tokenizer is learnt from, evenly spread
CHUNK = 5_000  # pairs that are tokenised at a time
FEW = 20  # groups, of which a hash may well give none to a split

Row = dict[str, Any]  # a pair on its way: id, direction, split, group, source, target


@dataclass(frozen=True, kw_only=True)
class PairTokenizerSettings(TokenizerSettings):
    """One tokenizer for both sides, or one for each.

    Attributes:
        file: a tokenizer.json; where not shared, a list of two, [source, target].
        kind: of a vocabulary that is learnt from the training pairs.
        vocab_size: its entries.
        shared: one vocabulary for both sides, or one of that size for each.
    """

    file: str | Sequence[str] | None = None  # type: ignore[assignment]
    kind: str = "unigram"
    vocab_size: int = 8_000
    shared: bool = True

    def __post_init__(self) -> None:
        files = "one tokenizer.json" if self.shared else "two tokenizer.json files, [source, target]"
        if self.file is not None and len(self.sides) != (1 if self.shared else 2):
            raise ConfigError(
                f"data.tokenizer.file={self.file}: with tokenizer.shared={str(self.shared).lower()} name {files}."
            )

    @property
    def sides(self) -> list[TokenizerSettings]:
        """The settings of both sides, or of the one tokenizer that they share."""
        if self.file is None:
            files: Sequence[str | None] = [None] * (1 if self.shared else 2)
        else:
            files = [self.file] if isinstance(self.file, str) else self.file
        return [TokenizerSettings(file=file, kind=self.kind, vocab_size=self.vocab_size) for file in files]

    def fingerprint(self) -> dict[str, Any]:
        """Return what decides the tokens."""
        return {"shared": self.shared, "sides": [side.fingerprint() for side in self.sides]}

    def tokenizers(self, pairs: Iterator[tuple[str, str]], tags: Sequence[str]) -> list[TextTokenizer]:
        """Return those of source and target (the same one when shared); tags: tokens that sources may begin with."""
        if self.file is not None:
            made = [side.make(()) for side in self.sides]
        else:
            sources, targets = map(list, zip(*pairs, strict=True))
            texts = [sources + targets] if self.shared else [sources, targets]
            made = [
                settings.make(side, extra)
                for settings, side, extra in zip(self.sides, texts, (tags, ()), strict=False)
            ]
        return made * 2 if self.shared else made


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the prepared folder is made of and how.

    Attributes:
        given: the tokenizers of a checkpoint's model, in place of those of `tokenizer`.
    """

    corpora: Mapping[str, TranslationReader]
    data_dir: Path  # where corpora keep what they fetch
    tokenizer: PairTokenizerSettings
    tag: bool
    clean: Cleaning
    max_tokens: int
    max_ratio: float
    fractions: tuple[float, float]  # of val and of test
    given: Sequence[TextTokenizer] | None = None


@dataclass
class Gathered:
    """The outcome of the first pass; the pairs themselves stand in `file`, one JSON object a line."""

    file: Path
    columns: PairColumns
    directions: list[str]
    corpora: dict[str, dict[str, Any]]

    def rows(self) -> Iterator[Row]:
        """Yield the pairs in the order in which they came."""
        with self.file.open(encoding="utf-8") as file:
            yield from map(json.loads, file)


def build(target: Preparation, recipe: Recipe) -> dict[str, Any]:
    """Write the tables; return the fields of the info that describe the corpus."""
    gathered = _gather(recipe, target)
    verdict = decide(gathered.columns, recipe.clean, recipe.max_ratio)
    split = np.array(gathered.columns.side)
    published = np.array(gathered.columns.stated, bool) & (split != SPLITS.index("train"))
    usable = {name: int(((split == n) & (verdict == 0)).sum()) for n, name in enumerate(SPLITS)}
    if not all(usable[name] for name in target.splits):
        for row, judged in zip(gathered.rows(), verdict, strict=True):
            if judged:
                target.skips.add(Skipped(row["id"], row["group"], VERDICTS[judged]))
        target.require(usable, lambda: _remedy(gathered))
    if not recipe.tag:
        _require_one_target(gathered.directions)
    tokenizers = recipe.given or _learn(recipe, gathered, np.flatnonzero((verdict == 0) & (split == 0)))
    with target.tables(_schema(tokenizers, gathered.directions)) as tables:
        writer = PairWriter(target, tables, tokenizers, gathered.directions, recipe.max_tokens)
        for row, judged, whole in zip(gathered.rows(), verdict, published, strict=True):
            if judged:
                target.skips.add(Skipped(row["id"], row["group"], VERDICTS[judged]))
            else:
                writer.add(row, whole=bool(whole))
        writer.flush()
    target.require(target.rows, lambda: _remedy(gathered))
    gathered.file.unlink()
    target.report["shortened"] = writer.shortened
    return {
        "source_tokenizer": tokenizers[0].to_json(),
        "target_tokenizer": tokenizers[1].to_json(),
        "shared": tokenizers[0] == tokenizers[1] if recipe.given else recipe.tokenizer.shared,
        "directions": gathered.directions,
        "tag": recipe.tag,
        "max_tokens": recipe.max_tokens,
        "pairs": dict(target.rows),
        "per_direction": {
            name: {side: writer.counts[name, side] for side in SPLITS} for name in gathered.directions
        },
        "words": writer.words,
        "tokens": writer.tokens,
        "corpora": gathered.corpora,
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


def _learn(recipe: Recipe, gathered: Gathered, train: np.ndarray) -> list[TextTokenizer]:
    """Tokenizers of source and target; train: the numbers of the training pairs."""
    tags = sorted({tag_token(name.split("-")[1]) for name in gathered.directions}) if recipe.tag else []
    chosen = np.zeros(len(gathered.columns), bool)
    chosen[train[:: -(-len(train) // TOKENIZER_PAIRS)]] = True
    return recipe.tokenizer.tokenizers(
        ((row["source"], row["target"]) for row in itertools.compress(gathered.rows(), chosen)), tags
    )


def _gather(recipe: Recipe, target: Preparation) -> Gathered:
    """Return all pairs that are usable by themselves, with tidy text; ids carry the corpus's name."""
    gathered = Gathered(target.path / "all.jsonl", PairColumns(recipe.clean.templates), [], {})
    numbers: dict[str, int] = {}
    val, test = recipe.fractions
    with gathered.file.open("w", encoding="utf-8") as file:
        for name, reader in recipe.corpora.items():
            corpus = reader.load(recipe.data_dir)
            for pair in corpus.examples:
                id = f"{name}/{pair.id}"
                source, translation, reason = _read(pair, recipe.clean)
                if reason:
                    target.skips.add(Skipped(id, pair.group, reason))
                    continue
                languages = (pair.source_language, pair.target_language)
                direction = "-".join(languages)
                split = pair.split or hash_split(pair.group, val=val, test=test)
                number = numbers.setdefault(direction, len(numbers))
                gathered.columns.add(
                    source, translation, languages, number, SPLITS.index(split), pair.split is not None
                )
                row = {"id": id, "direction": direction, "split": split, "group": pair.group}
                file.write(
                    json.dumps({**row, "source": source, "target": translation}, ensure_ascii=False) + "\n"
                )
            target.skips.extend(
                Skipped(f"{name}/{item.id}", item.file, item.reason) for item in corpus.skipped
            )
            gathered.corpora[name] = corpus.origin
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
        max_tokens: int,
    ) -> None:
        self.target, self.tables, self.tokenizers = target, tables, tokenizers
        self.directions, self.max_tokens = directions, max_tokens
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
            self.target.skips.add(Skipped(row["id"], row["group"], reason))
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
