"""Labelled texts as token ids in Arrow tables.

The columns, a row for each example: `row`, its number over all splits; `id`; `text` and `pair`, with one space for each
white space; `label`, the number of a class, or a number; `subset`, the number of the evaluation set; `tokens`, with
special tokens around the texts; `second`, tokens before the second text.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from magneto.data.corpora.base import SPLITS
from magneto.data.corpora.text_classification.base import LabelledCorpus, LabelledText, zero_digits
from magneto.data.prepared import Preparation
from magneto.data.table import with_classes
from magneto.data.text_classification.config import TextClassificationConfig
from magneto.data.text_classification.dataset import TextClassificationInfo
from magneto.data.tokenizers.encode import encode
from magneto.data.tokenizers.text import TextTokenizer


def build(target: Preparation) -> dict[str, Any]:
    """Write the tables; return the fields of the info that describe the corpus."""
    config: TextClassificationConfig = target.config
    given: TextClassificationInfo | None = target.given
    (reader,) = target.corpora.values()
    corpus: LabelledCorpus = reader.load(target.data_dir)
    for item in corpus.skipped:
        target.skip(item.id, item.file, item.reason)
    by_split = {split: [e for e in corpus.examples if e.split == split] for split in SPLITS}
    counts = {split: len(members) for split, members in by_split.items()}
    target.require(counts, "Check data.corpus and its files.")
    if given is None:
        texts = [text for e in by_split["train"] for text in (e.text, e.pair) if text is not None]
        tokenizer = config.tokenizer.make(texts)
    else:
        tokenizer = TextTokenizer.from_json(given.tokenizer)
    zeros = corpus.zero_digits or (given is not None and given.zero_digits)
    subsets = list(dict.fromkeys(e.subset or "" for split in ("val", "test") for e in by_split[split]))
    known = {label: number for number, label in enumerate(corpus.labels)}
    schema = pa.schema(
        {
            "row": pa.int64(),
            "id": pa.string(),
            "text": pa.string(),
            "pair": pa.string(),
            "label": pa.int64() if known else pa.float64(),
            "subset": pa.int64(),
            "tokens": pa.list_(pa.uint32()),
            "second": pa.int32(),
        }
    )
    schema = with_classes(schema, subset=subsets, **({"label": corpus.labels} if known else {}))
    truncated = 0
    with target.tables(schema) as tables:
        for split, members in by_split.items():
            read = zero_digits if zeros else str
            pairs = [e.pair and read(e.pair) for e in members]
            encoded = encode(tokenizer, [read(e.text) for e in members], pairs, config.max_tokens)
            truncated += encoded.truncated
            first = sum(tables.rows.values())
            columns = {
                "row": range(first, first + len(members)),
                "id": [e.id for e in members],
                "text": [_plain(e.text) for e in members],
                "pair": [None if e.pair is None else _plain(e.pair) for e in members],
                "label": [known[str(e.label)] if known else float(e.label) for e in members],
                "subset": [subsets.index(e.subset or "") if split != "train" else 0 for e in members],
                "tokens": encoded.tokens,
                "second": encoded.second,
            }
            tables.write(split, columns)
    numbers = [] if known else [float(e.label) for e in by_split["train"] or corpus.examples]
    return {
        "tokenizer": tokenizer.to_json(),
        "vocab_size": tokenizer.vocab_size,
        "max_tokens": config.max_tokens,
        "labels": list(corpus.labels),
        "metrics": list(corpus.metrics),
        "subsets": subsets,
        "pairs": any(e.pair is not None for e in corpus.examples),
        "range": [min(numbers), max(numbers)] if numbers else [],
        "examples": counts,
        "label_counts": _count(corpus, by_split),
        "truncated": truncated,
        "corpus": corpus.origin,
        "zero_digits": zeros,
    }


def _plain(text: str) -> str:
    return " ".join(text.split())


def _count(
    corpus: LabelledCorpus, by_split: Mapping[str, Sequence[LabelledText]]
) -> dict[str, dict[str, int]]:
    """Split -> label -> examples."""
    if not corpus.labels:
        return {}
    counts = {split: Counter(str(e.label) for e in members) for split, members in by_split.items()}
    return {split: {label: count[label] for label in corpus.labels} for split, count in counts.items()}
