"""What the log says of prepared data."""

from pathlib import Path

import pytest

from magneto.data.messages import counts, skipped


def test_counts() -> None:
    """Splits with their counts, thousands apart."""
    assert counts({"train": 3419, "val": 208, "test": 0}, "utterances") == (
        "train 3,419 · val 208 · test 0 utterances"
    )


@pytest.mark.parametrize(
    ("reasons", "text"),
    [
        ({"no image in the font": 174}, "174 skipped: no image in the font; listed in r.json"),
        (
            {"missing file (named in a.jsonl)": 1},
            "1 skipped: missing file (named in a.jsonl); listed in r.json",
        ),
        ({"too long": 1200, "no words": 2}, "1,202 skipped (too long: 1,200; no words: 2); listed in r.json"),
    ],
)
def test_skipped(reasons: dict[str, int], text: str) -> None:
    """One reason reads as a sentence; several have their counts."""
    assert skipped(reasons, Path("r.json")) == text
