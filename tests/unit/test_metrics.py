"""Error rates and alignments against jiwer and cases made by hand, in one process and in two."""

import doctest
from pathlib import Path

import jiwer
import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st

from magneto.errors import MagnetoError
from magneto.metrics import error_rate
from magneto.metrics.error_rate import ErrorRate, align, mark_errors

WORDS = st.lists(st.sampled_from(["a", "ab", "abc", "ba", "ñu", "д"]), max_size=7).map(" ".join)
CORPUS = [("the red boat", "the bed boat sails"), ("a b", "a"), ("", "x"), ("moon", "moon")]


def score(pairs, groups=None, names=()):
    metric = ErrorRate(groups=names)
    references, hypotheses = zip(*pairs, strict=True)
    metric.update(references, hypotheses, torch.arange(len(pairs)), groups)
    return metric.compute()


def test_hand_made_corpus_score():
    # Words: red -> bed, + sails; - b; + x; none. Reference words 3 + 2 + 0 + 1, errors 2 + 1 + 1 + 0.
    # Characters: r -> b, + 6 (" sails"); - 2 (" b"); + 1; none. Reference characters 12 + 3 + 0 + 4.
    scores = score(CORPUS)
    assert scores["wer"] == pytest.approx(4 / 6)
    assert scores["cer"] == pytest.approx(10 / 19)
    assert scores["substitutions"] == pytest.approx(1 / 19)
    assert scores["deletions"] == pytest.approx(2 / 19)
    assert scores["insertions"] == pytest.approx(7 / 19)


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=5))
def test_corpus_score_equals_jiwer(pairs):
    references, hypotheses = map(list, zip(*pairs, strict=True))
    scores = score(pairs)
    assert scores["wer"] == pytest.approx(jiwer.process_words(references, hypotheses).wer)
    characters = jiwer.process_characters(references, hypotheses)
    assert scores["cer"] == pytest.approx(characters.cer)
    assert scores["cer"] == pytest.approx(
        scores["substitutions"] + scores["deletions"] + scores["insertions"]
    )


@given(WORDS, WORDS, st.sampled_from(["character", "word"]))
def test_alignment_rebuilds_both_texts(reference, hypothesis, unit):
    """Alignment rebuilds both texts at least cost."""
    edits = align(reference, hypothesis, unit)
    space = " " if unit == "word" else ""
    assert space.join(edit.ref for edit in edits if edit.op != "insert") == reference
    assert space.join(edit.hyp for edit in edits if edit.op != "delete") == hypothesis
    process = jiwer.process_words if unit == "word" else jiwer.process_characters
    oracle = process(reference, hypothesis)
    errors = sum(edit.op != "equal" for edit in edits)
    assert errors == oracle.substitutions + oracle.deletions + oracle.insertions


@pytest.mark.parametrize(
    ("reference", "hypothesis", "unit", "marked"),
    [
        ("a b c", "a c", "word", "a [-b-] c"),
        ("a b c d", "a x y d", "word", "a [-b c-]{+x y+} d"),
        ("", "x", "word", "{+x+}"),
        ("x", "", "word", "[-x-]"),
        ("", "", "word", ""),
        ("casa roja", "caza roja", "character", "ca[-s-]{+z+}a roja"),
        ("la casa", "lacasa", "character", "la[- -]casa"),
    ],
)
def test_marked_errors(reference, hypothesis, unit, marked):
    assert mark_errors(reference, hypothesis, unit) == marked


def test_docstring_examples():
    failed, tried = doctest.testmod(error_rate)
    assert tried and not failed


def test_scores_per_group():
    scores = score(
        [("ab", "ab"), ("abcd", "abcx"), ("ab", "")], groups=["es", "ro", "ro"], names=("es", "ro", "fr")
    )
    assert scores["cer/es"] == 0.0
    assert scores["cer/ro"] == pytest.approx(3 / 6)
    assert scores["wer/ro"] == 1.0
    assert "cer/fr" not in scores
    assert scores["cer"] == pytest.approx(3 / 8)


def test_unknown_group_names_the_nearest():
    with pytest.raises(MagnetoError, match=r"'spanisch'.*spanish, romanian\. Did you mean 'spanish'\?"):
        score([("a", "a")], groups=["spanisch"], names=("spanish", "romanian"))


def test_batching_changes_no_rate():
    """Batching and repeated samples change nothing."""
    metric = ErrorRate()
    for i in (0, 1, 1, 2, 3, 0):
        metric.update([CORPUS[i][0]], [CORPUS[i][1]], torch.tensor([i]))
    assert metric.compute() == score(CORPUS)
    metric.reset()
    metric.update(["a"], ["b"], torch.tensor([7]))
    assert metric.compute()["cer"] == 1.0


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_no_sample_gives_no_score():
    assert ErrorRate().compute() == {}


@pytest.mark.parametrize(("hypothesis", "rate"), [("", 0.0), ("two words", 2.0)])
def test_empty_references_only(hypothesis, rate):
    assert score([("", hypothesis)])["wer"] == rate


def _score_on_rank(rank: int, folder: Path) -> None:
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    shared, lonely = ErrorRate(groups=("es", "ro")), ErrorRate(groups=("es", "ro"))
    for i in ([0, 1], [2, 3, 1])[rank]:  # sample 1 is on both ranks
        shared.update([CORPUS[i][0]], [CORPUS[i][1]], torch.tensor([i]), [("es", "ro")[i % 2]])
    for i in ([], [0, 1, 2, 3])[rank]:
        lonely.update([CORPUS[i][0]], [CORPUS[i][1]], torch.tensor([i]), [("es", "ro")[i % 2]])
    torch.save([shared.compute(), lonely.compute()], folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_score_as_one(tmp_path):
    mp.spawn(_score_on_rank, args=(tmp_path,), nprocs=2)
    expected = score(CORPUS, groups=["es", "ro", "es", "ro"], names=("es", "ro"))
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == [expected, expected]
