"""Examples of corpora that are not used: counted exactly, the first ones listed."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from magneto.data.corpora.base import Skipped

LISTED = 1000  # of each reason


class Skips:
    """What is not used of corpora, and why.

    Attributes:
        skipped: reason -> how many examples, exactly.
        listed: the first ones of each reason.
    """

    def __init__(self) -> None:
        self.skipped: Counter[str] = Counter()
        self.listed: list[Skipped] = []

    def skip(self, id: str, file: str, reason: str) -> None:
        """Count an example that is not used; list it unless there are enough with its reason."""
        self.skipped[reason] += 1
        if self.skipped[reason] <= LISTED:
            self.listed.append(Skipped(id, file, reason))

    def skip_of(self, name: str, corpus: Any) -> None:
        """Count what the reader of a corpus skipped, which is known once its examples have been read."""
        for item in corpus.skipped:
            self.skip(f"{name}/{item.id}", item.file, item.reason)

    def add(self, skipped: Mapping[str, int], listed: Iterable[Skipped]) -> None:
        """Add what was skipped elsewhere: see the attributes."""
        for item in listed:
            self.skip(item.id, item.file, item.reason)
            self.skipped[item.reason] -= 1
        self.skipped.update(skipped)
