"""What a language model must beat: compressors, unigram and trigram, on the held-out text of a prepared corpus.

    python benchmarks/text_baselines.py                               # State of the Union, test split
    python benchmarks/text_baselines.py --split val data=wikitext103

Prepares the corpus as `task=causal_lm` and as `task=mlm` do with these overrides, unless that is done, and prints

bits per byte: gzip -9 and xz -9e of the split as one stream, nothing else given (they are not shown the training text);
    unigram and trigram models of the training split's tokens, over the tokens of the causal task, `</s>` included, as
    the models are scored.
accuracy of masked tokens: over the very masks of the MLM task's evaluation, from what the model sees: [MASK]s, random
    and kept tokens. The unigram takes the most frequent token, the trigram the token w with the highest
    p(w | two before), the two-sided trigram the one with the highest p(w | two before) p(next | one before, w)
    p(after next | w, next), neighbours as they are shown; a factor whose outcome is a [MASK] is left out, and where its
    context has one, a shorter context is taken. The second number also knows the recipe of the masks: a token that is
    shown in a place was kept or drawn at random, in known shares.

The trigram is interpolated: l3 f(w | u v) + l2 f(w | v) + l1 (c(w) + 1) / (N + V), weights by deleted interpolation
(Brants 2000, TnT, section 2.2); where a context was never seen, its weight falls to the shorter ones.
"""

import argparse
import gzip
import lzma
from collections.abc import Sequence

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from magneto.commands.build import prepared_data
from magneto.data.collate import IGNORE
from magneto.data.text.dataset import TextDataset
from magneto.data.text.module import TextDataModule
from magneto.data.transforms.mask_tokens import Masking

UNKNOWN = -1  # a neighbour that is masked, or beyond the block


class Ranges:
    """Rows of an array grouped by a key: `rows[ranges.slice(key)]` are those with that key."""

    def __init__(self, keys: np.ndarray) -> None:
        self.order = np.argsort(keys, kind="stable")
        self.unique, self.starts = np.unique(keys[self.order], return_index=True)
        self.stops = np.append(self.starts[1:], len(keys))

    def rows(self, key: int) -> np.ndarray:
        """Indices of the rows with this key; none is an empty array."""
        place = int(np.searchsorted(self.unique, key))
        if place == len(self.unique) or self.unique[place] != key:
            return self.order[:0]
        return self.order[self.starts[place] : self.stops[place]]


class Trigram:
    """An interpolated trigram model of a row of tokens (N,), over a vocabulary of `size`."""

    def __init__(self, row: np.ndarray, size: int) -> None:
        row = row.astype(np.int64)
        self.size = size
        self.counts = np.bincount(row, minlength=size).astype(float)
        self.unigram = (self.counts + 1) / (len(row) + size)
        self._pairs, self._pair_counts = np.unique(row[:-1] * size + row[1:], return_counts=True)
        triples = (row[:-2] * size + row[1:-1]) * size + row[2:]
        self._triples, self._triple_counts = np.unique(triples, return_counts=True)
        first, second, third = (self._triples // size**2, self._triples // size % size, self._triples % size)
        self._thirds, self._seconds, self._firsts = third, second, first
        self._by_context = Ranges(first * size + second)
        self._by_ends = Ranges(first * size + third)
        self._by_end = Ranges(second * size + third)
        self._pair_by_first = Ranges(self._pairs // size)
        self._pair_by_second = Ranges(self._pairs % size)
        # How often a context was followed by something: less than its count only at the end of the row.
        self._followed = np.bincount(self._pairs // size, self._pair_counts, minlength=size)
        context = self._by_context
        self._contexts, self._context_counts = (
            context.unique,
            np.add.reduceat(self._triple_counts[context.order], context.starts).astype(float),
        )
        self.weights = self._deleted_interpolation()

    def _deleted_interpolation(self) -> np.ndarray:
        """(3,) weights of trigram, bigram, unigram: each trigram votes for the order that foretells it best when one
        of its occurrences is taken away.
        """
        count = self._triple_counts
        cases = [
            (count, self._lookup(self._contexts, self._context_counts, self._triples // self.size)),
            (
                self._lookup(self._pairs, self._pair_counts, self._triples % self.size**2),
                self._followed[self._seconds],
            ),
            (self.counts[self._thirds], np.full(len(count), self.counts.sum())),
        ]
        shares = [np.where(of > 1, (part - 1) / np.maximum(of - 1, 1), 0) for part, of in cases]
        votes: np.ndarray = np.bincount(np.argmax(shares, axis=0), weights=count, minlength=3)
        return np.asarray(votes / votes.sum())

    @staticmethod
    def _lookup(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Values of the sorted `keys` at `wanted`; 0 where there is none."""
        place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.where(keys[place] == wanted, values[place], 0).astype(float)

    def _mix(
        self,
        three: np.ndarray | None,
        two: np.ndarray | None,
        one: np.ndarray,
        seen3: np.ndarray,
        seen2: np.ndarray,
    ) -> np.ndarray:
        """Interpolate; `seen`: where the context of that order was seen in training (else its weight falls down)."""
        l3, l2, l1 = self.weights
        w3 = np.where(seen3, l3, 0.0) if three is not None else np.zeros(np.shape(seen3))
        w2 = np.where(seen2, l2, 0.0) if two is not None else np.zeros(np.shape(seen2))
        total = w3 + w2 + l1
        mixed = l1 / total * one
        if two is not None:
            mixed = mixed + w2 / total * two
        if three is not None:
            mixed = mixed + w3 / total * three
        return np.asarray(mixed)

    def probability(self, before: np.ndarray, last: np.ndarray, word: np.ndarray) -> np.ndarray:
        """p(word | before, last), elementwise; `before` and `last` may be UNKNOWN."""
        last_known = last != UNKNOWN
        both_known = last_known & (before != UNKNOWN)
        context = np.where(both_known, before * self.size + last, 0)
        contexts = np.where(both_known, self._lookup(self._contexts, self._context_counts, context), 0)
        follow = np.where(last_known, self._followed[np.maximum(last, 0)], 0)
        pair = np.where(last_known, last * self.size + word, 0)
        three = self._lookup(self._triples, self._triple_counts, context * self.size + word)
        two = self._lookup(self._pairs, self._pair_counts, pair)
        return self._mix(
            three / np.maximum(contexts, 1),
            two / np.maximum(follow, 1),
            self.unigram[word],
            contexts > 0,
            follow > 0,
        )

    def words(self, before: int, last: int) -> np.ndarray:
        """(V,) p(w | before, last) for every w."""
        seen2 = last != UNKNOWN and self._followed[last] > 0
        two = three = None
        if seen2:
            rows = self._pair_by_first.rows(last)
            two = np.zeros(self.size)
            two[self._pairs[rows] % self.size] = self._pair_counts[rows] / self._followed[last]
        if seen2 and before != UNKNOWN and len(rows := self._by_context.rows(before * self.size + last)):
            three = np.zeros(self.size)
            three[self._thirds[rows]] = self._triple_counts[rows] / self._triple_counts[rows].sum()
        return self._mix(three, two, self.unigram, np.array(three is not None), np.array(seen2))

    def between(self, last: int, following: int) -> np.ndarray:
        """(V,) p(following | last, w) for every w."""
        rows = self._pair_by_second.rows(following)
        two = np.zeros(self.size)
        two[self._pairs[rows] // self.size] = self._pair_counts[rows]
        three = np.zeros(self.size)
        contexts = np.zeros(self.size)
        if last != UNKNOWN:
            rows = self._by_ends.rows(last * self.size + following)
            three[self._seconds[rows]] = self._triple_counts[rows]
            pairs = self._pair_by_first.rows(last)
            second = self._pairs[pairs] % self.size
            contexts[second] = self._lookup(self._contexts, self._context_counts, last * self.size + second)
        return self._mix(
            three / np.maximum(contexts, 1),
            two / np.maximum(self._followed, 1),
            self.unigram[following],
            contexts > 0,
            self._followed > 0,
        )

    def before(self, next_: int, following: int) -> np.ndarray:
        """(V,) p(following | w, next) for every w."""
        pair = self._lookup(self._pairs, self._pair_counts, np.array([next_ * self.size + following]))
        seen2 = self._followed[next_] > 0
        contexts, three = np.zeros(self.size), np.zeros(self.size)
        pairs = self._pair_by_second.rows(next_)
        first = self._pairs[pairs] // self.size
        contexts[first] = self._lookup(self._contexts, self._context_counts, first * self.size + next_)
        rows = self._by_end.rows(next_ * self.size + following)
        three[self._firsts[rows]] = self._triple_counts[rows]
        two = pair / max(self._followed[next_], 1)
        return self._mix(
            three / np.maximum(contexts, 1),
            two,
            self.unigram[following],
            contexts > 0,
            np.full(self.size, seen2),
        )

    def score(self, left: Sequence[int], right: Sequence[int] = (UNKNOWN, UNKNOWN)) -> np.ndarray:
        """(V,) log-probability, up to a constant, of every token between two on the left and two on the right."""
        total: np.ndarray = np.log(self.words(*left))
        if right[0] != UNKNOWN:
            total = total + np.log(self.between(left[1], right[0]))
            if right[1] != UNKNOWN:
                total = total + np.log(self.before(right[0], right[1]))
        return total


def masked_accuracy(
    data: TextDataModule, dataset: TextDataset, model: Trigram
) -> dict[str, tuple[float, float]]:
    """Name -> accuracy of the masked tokens without and with knowledge of how masks are made."""
    masking, mask = data.config.masking, data.tokenizer.require("mask")
    assert isinstance(masking, Masking)
    ordinary = data.tokenizer.ordinary_ids
    text = np.full(data.info.vocab_size, -np.inf)  # log: only tokens that stand for text are asked for
    text[ordinary] = 0
    kept = 1 - masking.mask - masking.random
    names = ("unigram", "trigram", "trigram, two-sided")
    right = {(name, told): 0 for name in names for told in (False, True)}
    total = 0
    for index in range(len(dataset)):
        item = dataset[0, index]
        shown, targets = item["tokens"], item["targets"]
        # A <s> begins a block, but nothing in the row of tokens.
        hidden = (shown == mask) | (shown == data.tokenizer.bos_id)
        seen = np.concatenate([[UNKNOWN] * 2, np.where(hidden, UNKNOWN, shown), [UNKNOWN] * 2])
        for place in np.flatnonzero(targets != IGNORE):
            total += 1
            left, after = seen[place : place + 2].tolist(), seen[place + 3 : place + 5].tolist()
            scores = {
                "unigram": np.log(model.unigram),
                "trigram": model.score(left),
                "trigram, two-sided": model.score(left, after),
            }
            evidence = text
            if shown[place] != mask:
                evidence = text + np.log(masking.random / len(ordinary) + 1e-12)
                evidence[shown[place]] = np.log(masking.random / len(ordinary) + kept + 1e-12)
            for name, score in scores.items():
                right[name, False] += int((score + text).argmax() == targets[place])
                right[name, True] += int((score + evidence).argmax() == targets[place])
    return {name: (right[name, False] / total, right[name, True] / total) for name in names}


def training_row(data: TextDataModule) -> np.ndarray:
    """(tokens,) of the training split."""
    row = data.train_set.row
    return row.tokens(0, len(row))


def bits_per_byte(data: TextDataModule, split: str) -> dict[str, float]:
    """Name -> bits per byte of the split, for the compressors and the models of the training text."""
    text = "\n\n".join(document.text for document in data.documents(split)).encode()
    found = {
        "gzip -9": 8 * len(gzip.compress(text, 9)) / len(text),
        "xz -9e": 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / len(text),
    }
    dataset = {"val": data.val_set, "test": data.test_set}[split]
    row = dataset.row.tokens(
        -2, len(dataset.row) + 2
    )  # with two tokens of context, as if the split were a circle
    row[:2] = UNKNOWN, data.tokenizer.require("eos")
    model = Trigram(training_row(data), data.info.vocab_size)
    size = data.info.bytes[split]
    found["unigram"] = -np.log2(model.unigram[row[2:]]).sum() / size
    found["trigram"] = -np.log2(model.probability(row[:-2], row[1:-1], row[2:])).sum() / size
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", help="of the configuration, such as data=wikitext103")
    parser.add_argument("--split", default="test", choices=("val", "test"))
    arguments = parser.parse_args()
    causal, masked = (prepared_data([f"task={task}", *arguments.overrides]) for task in ("causal_lm", "mlm"))
    bits = bits_per_byte(causal, arguments.split)
    dataset = {"val": masked.val_set, "test": masked.test_set}[arguments.split]
    accuracy = masked_accuracy(masked, dataset, Trigram(training_row(masked), masked.info.vocab_size))
    info = causal.info
    table = Table(
        box=box.SIMPLE,
        title=f"{causal.folder.name}: {info.documents[arguments.split]} documents of {arguments.split}, "
        f"{info.bytes[arguments.split]} bytes",
    )
    columns = ("", "bits per byte", "masked accuracy", "told how masks are made")
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    for name in dict.fromkeys([*bits, *accuracy]):
        shares = (f"{100 * share:.2f} %" for share in accuracy.get(name, ()))
        table.add_row(name, f"{bits[name]:.3f}" if name in bits else "", *shares)
    console = Console()
    console.print(table)
    console.print(
        f"bits per byte: {info.vocab_size} {causal.config.tokenizer.kind} tokens; accuracy: "
        f"{masked.info.vocab_size} {masked.config.tokenizer.kind} tokens, {masked.config.masking.for_evaluation()}",
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
