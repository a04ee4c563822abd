"""Tasks that are made of the State of the Union: a period, a neighbour, a year."""

from collections import Counter
from pathlib import Path

from magneto.data.corpora.text_classification.state_of_the_union_era import (
    StateOfTheUnionEraReader,
    StateOfTheUnionFollowsReader,
    StateOfTheUnionYearReader,
)


def test_periods_by_year_without_numerals(tmp_path: Path) -> None:
    """Periods split by year and numerals hidden."""
    folder = tmp_path / "sotu" / "speeches"
    folder.mkdir(parents=True)
    long = " ".join(["It cost $1,234 in the year before, and every one of us remembers it well."] * 3)
    for year in range(1790, 2027):
        text = f"Fellow citizens:\n\n{long} The {year}th word.\n\n \n{long} {'So be it. ' * (year - 1789)}"
        (folder / f"{year}-Somebody-1.txt").write_text(text)
    corpus = StateOfTheUnionEraReader(folder=str(folder.parent)).load(tmp_path)
    assert corpus.labels == ("1790-1829", "1830-1869", "1870-1909", "1910-1949", "1950-1989", "1990-2029")
    assert not any("Fellow" in e.text or any(c in e.text for c in "123456789") for e in corpus.examples)
    assert "$0,000" in corpus.examples[0].text and len({e.text for e in corpus.examples}) == len(
        corpus.examples
    )
    years = {
        split: {e.group for e in corpus.examples if e.split == split} for split in ("train", "val", "test")
    }
    assert not years["train"] & (years["val"] | years["test"]) and not years["val"] & years["test"]
    for split, members in years.items():
        assert {StateOfTheUnionEraReader().period(int(year)) for year in members if year} == set(
            corpus.labels
        ), split


def test_pairs_and_numbers_of_speeches(tmp_path: Path) -> None:
    """A neighbour and a stranger for each paragraph, all of one speech; the year as a number of centuries."""
    folder = tmp_path / "sotu" / "speeches"
    folder.mkdir(parents=True)
    words = [f"word{chr(97 + number)}" for number in range(16)]
    lengths = {1790: 7, 1890: 9, 2026: 16}
    for year, count in lengths.items():
        paragraphs = [
            f"{words[n]} {'of many things that we have seen and done ' * 3}in {year}" for n in range(count)
        ]
        (folder / f"{year}-Somebody-1.txt").write_text("\n\n".join(["Fellow citizens:", *paragraphs]))
    pairs = StateOfTheUnionFollowsReader(folder=str(folder.parent)).load(tmp_path)
    assert pairs.labels == ("elsewhere", "follows") and pairs.metrics == ("accuracy",)
    assert Counter(one.group for one in pairs.examples) == {"1890": 2 * 8, "2026": 2 * 15}
    for one in pairs.examples:
        assert one.pair is not None
        first, second = words.index(one.text.split()[0]), words.index(one.pair.split()[0])
        assert second == first + 1 if one.label == "follows" else abs(second - first) >= 3
    numbers = StateOfTheUnionYearReader(folder=str(folder.parent)).load(tmp_path)
    assert numbers.labels == () and numbers.metrics == ("pearson", "spearman")
    assert {one.group: one.label for one in numbers.examples} == {"1790": 0.0, "1890": 1.0, "2026": 2.36}
