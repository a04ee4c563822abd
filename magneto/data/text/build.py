"""Documents of the corpora as prepared folders: the tokenizer, and the tables, written by one process or by all cores."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from magneto.data.corpora.base import SPLITS, DivisibleReader, Skipped
from magneto.data.corpora.text.base import LINES, Document
from magneto.data.parts import map_parts
from magneto.data.prepared import Preparation
from magneto.data.text.documents import MEASURED, DocumentWriter, Part, schema, usable_documents, write_part
from magneto.data.text.held_out import bounded_documents, undivided_documents
from magneto.data.tokenizers.text import TextTokenizer

FEW = 20  # groups of documents, of which a hash may well give none to a split


def build(target: Preparation) -> dict[str, Any]:
    """Write the tables; return the fields of the info that describe the corpus.

    A corpus that can be divided is read in parts, by one process for each core.
    """
    parts = [] if target.config.streaming else _parts(target)
    if len(parts) > 1:
        tokenizer, counts = _build_parts(target, parts)
    else:
        tokenizer = _tokenizer(target)
        with target.tables(schema(tokenizer)) as tables:
            writer = DocumentWriter(tables, tokenizer)
            for document in _documents(target):
                writer.add(document)
            writer.flush()
        counts = writer.counts
    target.require(target.rows, lambda: _remedy(target, sum(target.rows.values())))
    target.report["lossy"] = {split: counts["lossy"][split] for split in MEASURED}
    return {
        "tokenizer": tokenizer.to_json(),
        "vocab_size": tokenizer.vocab_size,
        "documents": dict(target.rows),
        **{name: {split: counts[name][split] for split in SPLITS} for name in ("tokens", "bytes", "unknown")},
        "corpus": target.origins,
    }


def _tokenizer(target: Preparation) -> TextTokenizer:
    """Return the tokenizer of the model that is evaluated, the user's, or one that is trained."""
    settings = target.config.tokenizer
    if target.given is not None:
        return TextTokenizer.from_json(target.given.tokenizer)
    if settings.file is not None:
        return TextTokenizer.from_file(settings.file)
    sample = list(_sample(target))
    if not sample:
        found = Counter(document.split for document in _documents(target))
        target.require({split: found[split] for split in SPLITS}, lambda: _remedy(target, found.total()))
    return TextTokenizer.train(sample, kind=settings.kind, vocab_size=settings.vocab_size)


def _parts(target: Preparation) -> list[Part]:
    parts = []
    for name, reader in target.corpora.items():
        divided = reader.parts(target.data_dir) if isinstance(reader, DivisibleReader) else [reader]
        parts += [Part(name, one, target.data_dir, target.config.fractions) for one in divided]
    return parts


def _build_parts(target: Preparation, parts: Sequence[Part]) -> tuple[TextTokenizer, dict[str, Counter[str]]]:
    """Write the tables of all parts and join them; return the tokenizer and the sums of what was counted."""
    folder = target.parts([[part.corpus, part.reader.fingerprint()] for part in parts])
    folder.mkdir(exist_ok=True)
    kept = folder / "tokenizer.json"
    if not kept.is_file():
        fresh = kept.with_suffix(".tmp")
        fresh.write_text(_tokenizer(target).to_json(), encoding="utf-8")
        fresh.rename(kept)
    tokenizer = kept.read_text(encoding="utf-8")
    done = map_parts(
        write_part,
        [replace(part, tokenizer=tokenizer) for part in parts],
        folder,
        workers=target.config.prepare_workers,
        description="tokenizing",
    )
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for _, values in done:
        for name, of_split in values["counts"].items():
            counts[name].update(of_split)
        target.add(values["skipped"], (Skipped(**item) for item in values["listed"]))
    target.join([path for path, _ in done], {split: counts["rows"][split] for split in SPLITS})
    for name, reader in target.corpora.items():
        target.origins[name] = reader.load(target.data_dir).origin
    return TextTokenizer.from_json(tokenizer), counts


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
