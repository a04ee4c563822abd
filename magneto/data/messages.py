"""Sentences about prepared data for the log: counts of each split, and what was skipped."""

from collections.abc import Mapping
from pathlib import Path


def counts(by_split: Mapping[str, int], unit: str) -> str:
    """Return `train 3,419 · val 208 · test 208 utterances`."""
    return f"{' · '.join(f'{split} {count:,}' for split, count in by_split.items())} {unit}"


def skipped(by_reason: Mapping[str, int], where: Path) -> str:
    """Return how many examples were skipped and why; `where` is the file that lists them."""
    total = sum(by_reason.values())
    if len(by_reason) == 1:
        why = f": {next(iter(by_reason))}"
    else:
        why = f" ({'; '.join(f'{reason}: {count:,}' for reason, count in by_reason.items())})"
    return f"{total:,} skipped{why}; listed in {where}"
