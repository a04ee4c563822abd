"""Batches: every example once an epoch, ranks disjoint and equal, exact to resume, the same for any
sharing-out."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from magneto.data.batching import EvaluationSampler, TokenBudgetSampler, cut
from magneto.errors import MagnetoError

lengths = st.lists(st.integers(1, 400), min_size=8, max_size=120).map(np.array)
common = {
    "budget": st.integers(50, 2_000),
    "seed": st.integers(0, 9),
    "multiple": st.sampled_from([1, 8, 32]),
}


def sampler(data, budget, seed, multiple, epochs=2, **options):
    one = TokenBudgetSampler(
        data, budget=budget, total_batches=0, seed=seed, pad_to_multiple=multiple, **options
    )
    total = epochs * one.batches_per_epoch
    return TokenBudgetSampler(
        data, budget=budget, total_batches=total, seed=seed, pad_to_multiple=multiple, **options
    )


@given(data=lengths, world=st.integers(1, 4), **common)
@settings(deadline=None)
def test_epoch_covers_all_ranks_once(data, world, budget, seed, multiple):
    """Each epoch gives every example to exactly one rank once."""
    ranks = [sampler(data, budget, seed, multiple, rank=rank, world_size=world) for rank in range(world)]
    batches = [list(rank) for rank in ranks]
    assert len({len(own) for own in batches}) == 1 and all(
        len(own) == len(r) for own, r in zip(batches, ranks, strict=True)
    )
    assert all(batch for own in batches for batch in own)
    for epoch in range(2):
        seen = [example for own in batches for batch in own for of, example in batch if of == epoch]
        assert sorted(seen) == list(range(len(data)))
    assert [batch[0][0] for batch in batches[0]] == [ranks[0].epoch_of(n) for n in range(len(ranks[0]))]


@given(data=lengths, world=st.integers(1, 4), micro=st.integers(1, 3), **common)
@settings(deadline=None)
def test_a_step_sees_the_same_however_shared(data, world, micro, budget, seed, multiple):
    """With the budget of a step its examples do not depend on processes and micro-batches, also from the middle on."""
    whole = sampler(data, budget, seed, multiple, micro_batches=1)
    steps = [sorted(batch) for batch in whole]
    if min(len(step) for step in steps) < world * micro:
        with pytest.raises(MagnetoError, match="fewer than"):
            sampler(data, budget, seed, multiple, world_size=world, micro_batches=micro)
        return
    ranks = [
        sampler(data, budget, seed, multiple, rank=rank, world_size=world, micro_batches=micro)
        for rank in range(world)
    ]
    assert {rank.batches_per_epoch for rank in ranks} == {whole.batches_per_epoch * micro}
    half = len(steps) // 2
    for rank in ranks:
        rank.start = half * micro
    batches = [list(rank) for rank in ranks]
    assert all(batch for own in batches for batch in own)
    for number, step in enumerate(steps[half:]):
        parts = [example for own in batches for batch in own[number * micro :][:micro] for example in batch]
        assert sorted(parts) == step
    assert ranks[0].epoch_of(len(steps) * micro - 1) == 1


@given(data=lengths, **common)
@settings(deadline=None)
def test_padded_batch_within_budget(data, budget, seed, multiple):
    """A padded batch stays within the budget unless it is a single example."""
    for batch in sampler(data, budget, seed, multiple):
        longest = max(-(-data[example] // multiple) * multiple for _, example in batch)
        assert len(batch) == 1 or len(batch) * longest <= budget


@given(data=lengths, world=st.integers(2, 4), **common)
@settings(deadline=None)
def test_many_ranks_equal_one(data, world, budget, seed, multiple):
    """Many ranks see together what one rank with their budget sees."""
    one = sampler(data, budget * world, seed, multiple)
    smallest = sorted(len(batch) for batch in one.plan(0))[:2]
    assume(max(data) + multiple <= budget and len(data) >= 2 * world and smallest[0] >= world)
    ranks = [
        list(sampler(data, budget, seed, multiple, rank=rank, world_size=world)) for rank in range(world)
    ]
    together = [sorted(itertools.chain(*batches)) for batches in zip(*ranks, strict=True)]
    assert together == [sorted(batch) for batch in one]


@given(data=lengths, start=st.integers(0, 30), **common)
@settings(deadline=None)
def test_resume_at_the_next_batch(data, start, budget, seed, multiple):
    """A resumed run goes on with the very next batch."""
    whole = list(sampler(data, budget, seed, multiple, epochs=3))
    start = min(start, len(whole))
    rest = TokenBudgetSampler(
        data, budget=budget, total_batches=len(whole), start=start, seed=seed, pad_to_multiple=multiple
    )
    assert len(rest) == len(whole) - start
    assert list(rest) == whole[start:]


def test_epochs_and_seeds_differ():
    data = np.arange(1, 200)
    one, other = sampler(data, 500, 0, 32), sampler(data, 500, 1, 32)
    assert [b.tolist() for b in one.plan(0)] != [b.tolist() for b in one.plan(1)]
    assert [b.tolist() for b in one.plan(0)] != [b.tolist() for b in other.plan(0)]


def test_oversized_example_is_alone():
    """An example beyond the budget is alone in its batch."""
    batches = list(sampler(np.array([10, 10, 900, 10]), 100, 0, 1, epochs=1))
    assert [(0, 2)] in batches


def test_max_batch_size():
    """Max batch size bounds the examples of a rank."""
    data = np.full(50, 4)
    assert max(len(batch) for batch in sampler(data, 1_000, 0, 1, max_batch_size=6)) <= 6
    assert (
        max(len(batch) for batch in sampler(data, 1_000, 0, 1, max_batch_size=6, rank=1, world_size=2)) <= 6
    )


def test_no_tiny_batch_is_left_over():
    sizes = [piece.stop - piece.start for piece in cut(np.full(101, 10), budget=100)]
    assert sum(sizes) == 101 and min(sizes) >= 5


def test_impossible_budget_and_ranks():
    """A budget below one and more ranks than examples are the users mistakes."""
    with pytest.raises(MagnetoError, match="budget"):
        TokenBudgetSampler(np.array([3]), budget=0, total_batches=1)
    with pytest.raises(MagnetoError, match="fewer processes"):
        TokenBudgetSampler(np.array([3]), budget=9, total_batches=1, world_size=2)


@given(data=lengths, world=st.integers(1, 4), **common)
@settings(deadline=None)
def test_evaluation_covers_all_ranks_once(data, world, budget, seed, multiple):
    """Evaluation sees every example once over all ranks longest first."""
    ranks = [
        list(EvaluationSampler(data, budget=budget, rank=rank, world_size=world, pad_to_multiple=multiple))
        for rank in range(world)
    ]
    assert sorted(example for own in ranks for batch in own for _, example in batch) == list(range(len(data)))
    assert len({len(own) for own in ranks}) == 1
    longest = [max(data[example] for _, example in batch) for batch in ranks[0]]
    assert all(later < earlier + multiple for earlier, later in itertools.pairwise(longest))


def test_evaluation_with_few_examples():
    """Evaluation of fewer examples than ranks repeats none."""
    ranks = [
        list(EvaluationSampler(np.array([5, 5]), budget=9, rank=rank, world_size=3)) for rank in range(3)
    ]
    assert [len(own) for own in ranks] == [1, 1, 0]


def test_equal_lengths_are_cut_together() -> None:
    """Cutting by runs of equal lengths gives what cutting one batch after the other gives."""

    def one_by_one(lengths: np.ndarray, budget: int, least: int, most: int | None) -> list[tuple[int, int]]:
        cuts, start = [], 0
        while start < len(lengths):
            count = max(least, budget // max(1, int(lengths[start])))
            stop = start + (count if most is None else max(least, min(count, most)))
            cuts.append((start, min(stop, len(lengths))))
            start = stop
        return cuts

    random = np.random.default_rng(0)
    for _ in range(500):
        lengths = np.sort(random.integers(0, random.integers(2, 30), random.integers(0, 60)))[::-1]
        budget, least = int(random.integers(1, 100)), int(random.integers(1, 5))
        most = None if random.random() < 0.5 else int(random.integers(1, 9))
        cuts = [(piece.start, piece.stop) for piece in cut(lengths, budget, least, most)]
        expected = one_by_one(lengths, budget, least, most)
        assert cuts[:-2] == expected[: max(0, len(cuts) - 2)], "the last two may share their examples"
        assert [start for start, _ in cuts[1:]] == [stop for _, stop in cuts[:-1]]
