"""How a prepared folder of parallel text is made; the flow is drawn in magneto/data/translation/module.py."""

import itertools
import json
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from magneto.data.corpora.base import SPLITS, Skipped, hash_split
from magneto.data.corpora.text.base import LINES
from magneto.data.corpora.translation.base import Pair, TranslationReader
from magneto.data.tokenizers.text import TextTokenizer
from magneto.data.translation.cleaning import (
    MAX_CHARACTERS,
    VERDICTS,
    Cleaning,
    Columns,
    SkipLog,
    decide,
    tidy,
    unusable,
)
from magneto.data.translation.dataset import TranslationInfo, tag_token, token_dtype
from magneto.errors import ConfigError, DataError

TOKENIZER_PAIRS = 1_000_000  # training pairs at most that a tokenizer is learnt from, evenly spread
CHUNK = 20_000  # pairs that are tokenised at a time
FEW = 20  # groups, of which a hash may well give none to a split

Row = dict[str, Any]  # a line of pairs.jsonl: id, direction, split, group, source, target


@dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """How texts become tokens.

    kind and vocab_size: of a vocabulary that is learnt from the training pairs. shared: one vocabulary for both sides,
    or one of that size for each. file: a tokenizer.json instead; where not shared, a list of two.
    """

    kind: str = "unigram"
    vocab_size: int = 8_000
    shared: bool = True
    file: str | Sequence[str] | None = None

    def __post_init__(self) -> None:
        wanted = "one tokenizer.json" if self.shared else "two tokenizer.json files, [source, target]"
        if self.file is not None and len(self.files) != (1 if self.shared else 2):
            raise ConfigError(
                f"data.tokenizer.file={self.file}: with tokenizer.shared={str(self.shared).lower()} name {wanted}."
            )

    @property
    def files(self) -> list[str]:
        """The given files."""
        return [] if self.file is None else [self.file] if isinstance(self.file, str) else list(self.file)

    def fingerprint(self) -> dict[str, Any]:
        """What decides the tokens: of given files, their contents."""
        if self.file is None:
            return asdict(self)
        return {
            "shared": self.shared,
            "files": [TextTokenizer.from_file(file).to_json() for file in self.files],
        }

    def tokenizers(self, pairs: Iterator[tuple[str, str]], tags: Sequence[str]) -> list[TextTokenizer]:
        """For source and target (the same one when shared); tags: tokens that corpora may begin with."""
        if self.file is not None:
            made = [TextTokenizer.from_file(file) for file in self.files]
        else:
            corpora, targets = map(list, zip(*pairs, strict=True))
            texts = [corpora + targets] if self.shared else [corpora, targets]
            made = [
                TextTokenizer.train(
                    side, kind=self.kind, vocab_size=self.vocab_size, extra=() if place else tags
                )
                for place, side in enumerate(texts)
            ]
        return made * 2 if self.shared else made


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What the prepared folder is made of and how.

    given: the tokenizers of a checkpoint's model, in place of those of `tokenizer`. splits: those that must not be empty.
    """

    corpora: Mapping[str, TranslationReader]
    tokenizer: TokenizerSettings
    tag: bool
    clean: Cleaning
    max_tokens: int
    max_ratio: float
    fractions: tuple[float, float]  # of val and of test
    fingerprint: dict[str, Any]
    key: str
    given: Sequence[TextTokenizer] | None = None
    splits: Sequence[str] = SPLITS


@dataclass
class Gathered:
    """The outcome of the first pass; the pairs themselves stand in `file`, one JSON object a line."""

    file: Path
    columns: Columns
    skips: SkipLog = field(default_factory=SkipLog)
    directions: list[str] = field(default_factory=list)
    corpora: dict[str, dict[str, Any]] = field(default_factory=dict)

    def rows(self) -> Iterator[Row]:
        """The pairs in the order in which they came."""
        with self.file.open(encoding="utf-8") as file:
            yield from map(json.loads, file)


def build(recipe: Recipe, data_dir: Path, folder: Path) -> None:
    """Write info.json, prepare_report.json, pairs.jsonl, index.npz and tokens.bin into `folder`.

    data_dir: where corpora keep what they fetch. Raises `MagnetoError` when a split stays empty.
    """
    gathered = _gather(recipe, data_dir, folder / "all.jsonl")
    verdict = decide(gathered.columns, recipe.clean, recipe.max_ratio)
    split = np.array(gathered.columns.side)
    published = np.array(gathered.columns.stated, bool) & (split != SPLITS.index("train"))
    _require_splits(recipe.splits, split[verdict == 0], gathered, verdict)
    if not recipe.tag:
        _require_one_target(gathered.directions)
    tokenizers = recipe.given or _learn(recipe, gathered, np.flatnonzero((verdict == 0) & (split == 0)))
    writer = Writer(folder, tokenizers, gathered.directions, recipe.max_tokens)
    for row, judged, whole in zip(gathered.rows(), verdict, published, strict=True):
        if judged:
            gathered.skips.add(Skipped(row["id"], row["group"], VERDICTS[judged]))
        else:
            writer.add(row, gathered.skips, whole=bool(whole))
    writer.close(gathered.skips)
    _require_splits(recipe.splits, np.array(writer.index["split"]), gathered)
    gathered.file.unlink()
    per_direction = {
        name: {side: writer.counts[name, side] for side in SPLITS} for name in gathered.directions
    }
    info = TranslationInfo(
        source_tokenizer=tokenizers[0].to_json(),
        target_tokenizer=tokenizers[1].to_json(),
        shared=recipe.tokenizer.shared,
        directions=gathered.directions,
        tag=recipe.tag,
        max_tokens=recipe.max_tokens,
        pairs={side: sum(counts[side] for counts in per_direction.values()) for side in SPLITS},
        per_direction=per_direction,
        words=writer.words,
        tokens=writer.tokens,
        corpora=gathered.corpora,
        key=recipe.key,
    )
    report = {
        "used": info.pairs,
        "words": info.words,
        "per_direction": per_direction,
        "shortened": writer.shortened,
        "corpora": gathered.corpora,
        "settings": recipe.fingerprint,
        "skipped_by_reason": gathered.skips.by_reason(),
        "skipped": [asdict(item) for item in gathered.skips.listed],
    }
    for name, values in (("info.json", info.to_dict()), ("prepare_report.json", report)):
        text = json.dumps(values, indent=1, ensure_ascii=False) + "\n"
        (folder / name).write_text(text, encoding="utf-8")


def _learn(recipe: Recipe, gathered: Gathered, train: np.ndarray) -> list[TextTokenizer]:
    """Tokenizers of source and target; train: the numbers of the training pairs."""
    tags = sorted({tag_token(name.split("-")[1]) for name in gathered.directions}) if recipe.tag else []
    chosen = np.zeros(len(gathered.columns), bool)
    chosen[train[:: -(-len(train) // TOKENIZER_PAIRS)]] = True
    return recipe.tokenizer.tokenizers(
        ((row["source"], row["target"]) for row in itertools.compress(gathered.rows(), chosen)), tags
    )


def _gather(recipe: Recipe, data_dir: Path, path: Path) -> Gathered:
    """All pairs that are usable by themselves, with tidy text; ids carry the corpus's name."""
    gathered = Gathered(path, Columns(recipe.clean.templates))
    numbers: dict[str, int] = {}
    val, test = recipe.fractions
    with path.open("w", encoding="utf-8") as file:
        for name, corpus_source in recipe.corpora.items():
            corpus = corpus_source.load(data_dir)
            for pair in corpus.pairs:
                fingerprint = f"{name}/{pair.id}"
                source, target, reason = _read(pair, recipe.clean)
                if reason:
                    gathered.skips.add(Skipped(fingerprint, pair.group, reason))
                    continue
                languages = (pair.source_language, pair.target_language)
                direction = "-".join(languages)
                split = pair.split or hash_split(pair.group, val=val, test=test)
                number = numbers.setdefault(direction, len(numbers))
                gathered.columns.add(
                    source, target, languages, number, SPLITS.index(split), pair.split is not None
                )
                row = {"id": fingerprint, "direction": direction, "split": split, "group": pair.group}
                file.write(json.dumps({**row, "source": source, "target": target}, ensure_ascii=False) + "\n")
            gathered.skips.extend(
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


class Writer:
    """Tokenises rows, `CHUNK` at a time, and writes those whose sides have at most `max_tokens` tokens.

    Rows to be kept whole are written in any case: of longer ones the first `max_tokens` tokens, and all of their text.
    `shortened` counts them.
    """

    def __init__(
        self, folder: Path, tokenizers: Sequence[TextTokenizer], directions: Sequence[str], max_tokens: int
    ) -> None:
        self.folder, self.tokenizers, self.directions, self.max_tokens = (
            folder,
            tokenizers,
            directions,
            max_tokens,
        )
        self.dtype = token_dtype(max(tokenizer.vocab_size for tokenizer in tokenizers))
        self.index = {
            name: array(code)
            for name, code in (
                ("start", "q"),
                ("text", "q"),
                ("source", "i"),
                ("target", "i"),
                ("direction", "h"),
                ("split", "b"),
            )
        }
        self.counts: Counter[tuple[str, str]] = Counter()
        self.words, self.tokens = ({split: [0, 0] for split in SPLITS} for _ in range(2))
        self._texts = (folder / "pairs.jsonl").open("wb")
        self._tokens = (folder / "tokens.bin").open("wb")
        self._waiting: list[tuple[Row, bool]] = []
        self.shortened = 0
        self._written = 0

    def add(self, row: Row, skips: SkipLog, whole: bool = False) -> None:
        """Take a row, write when there are enough."""
        self._waiting.append((row, whole))
        if len(self._waiting) >= CHUNK:
            self._flush(skips)

    def close(self, skips: SkipLog) -> None:
        """Write the rest and the index."""
        self._flush(skips)
        self._texts.close()
        self._tokens.close()
        columns: dict[str, Any] = {name: np.array(column) for name, column in self.index.items()}
        np.savez(self.folder / "index.npz", **columns)

    def _flush(self, skips: SkipLog) -> None:
        rows, self._waiting = self._waiting, []
        encoded = [
            tokenizer.encode_batch([row[side] for row, _ in rows])
            for tokenizer, side in zip(self.tokenizers, ("source", "target"), strict=True)
        ]
        for (row, whole), *sides in zip(rows, *encoded, strict=True):
            if whole:
                self.shortened += max(map(len, sides)) > self.max_tokens
                self._write(row, [side[: self.max_tokens] for side in sides])
            elif not all(sides):
                skips.add(Skipped(row["id"], row["group"], "no token of the vocabulary in it"))
            elif max(map(len, sides)) > self.max_tokens:
                skips.add(Skipped(row["id"], row["group"], f"longer than {self.max_tokens} tokens"))
            else:
                self._write(row, sides)

    def _write(self, row: Row, sides: Sequence[Sequence[int]]) -> None:
        values = {
            "start": self._written,
            "text": self._texts.tell(),
            "source": len(sides[0]),
            "target": len(sides[1]),
            "direction": self.directions.index(row["direction"]),
            "split": SPLITS.index(row["split"]),
        }
        for name, value in values.items():
            self.index[name].append(value)
        self._texts.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        for place, (side, ids) in enumerate(zip(("source", "target"), sides, strict=True)):
            self._tokens.write(np.array(ids, self.dtype).tobytes())
            self._written += len(ids)
            self.words[row["split"]][place] += len(row[side].split())
            self.tokens[row["split"]][place] += len(ids)
        self.counts[row["direction"], row["split"]] += 1


def _require_one_target(directions: Sequence[str]) -> None:
    corpora = Counter(name.split("-")[0] for name in directions)
    for source, count in corpora.items():
        if count > 1:
            raise DataError(
                f"The pairs from {source!r} go to {count} languages ({', '.join(directions)}), and nothing tells the "
                "model which is wanted: set data.tag=true."
            )


def _require_splits(
    required: Sequence[str], splits: np.ndarray, gathered: Gathered, verdict: np.ndarray | None = None
) -> None:
    """Raise `DataError` unless each split has a pair; verdict: on the pairs, where not yet in the log of skips."""
    missing = [name for name in required if not (splits == SPLITS.index(name)).any()]
    if not missing:
        return
    reasons = Counter(gathered.skips.counts)
    looked_at = len(gathered.columns) + sum(reasons.values())
    if verdict is None:
        looked_at = len(splits) + sum(reasons.values())
    else:
        reasons.update(
            {VERDICTS[n]: int((verdict == n).sum()) for n in range(1, len(VERDICTS)) if n in verdict}
        )
    raise DataError(
        f"No usable pair is left for the {missing[0]} split ({looked_at} were looked at; skipped: "
        f"{'; '.join(f'{count} {reason}' for reason, count in reasons.most_common(5)) or 'none'}). "
        + _remedy(gathered)
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
    if stated and set(gathered.columns.side) == {SPLITS.index("test")}:
        return "A test set alone is for the evaluation of a trained model: mode=test checkpoint=RUN."
    return (
        "Check the corpus, its files and splits, and data.clean, data.max_tokens, data.max_ratio, data.val_fraction and "
        "data.test_fraction."
    )
