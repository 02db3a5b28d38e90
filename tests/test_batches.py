"""Sampling: what a batch holds, that it depends on (seed, position) alone, and the test examples.

The data come from `write_split`: puzzle p has the identifier 10 + p, and a canvas four cells.
"""

from collections import Counter
from collections.abc import Callable
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import UserError
from common.settings import validate
from dataset.batches import DataConfig, Sample, TrainingBatches, select_test_examples
from dataset.splits import open_split
from dataset.storage import PuzzleSplit

WriteSplit = Callable[[list[list[int]]], Path]
GROUPS = [[2, 2], [1, 1, 1], [3], [2, 2, 2, 2], [4, 4]]


@pytest.fixture
def split(write_split: WriteSplit) -> PuzzleSplit:
    """Five groups of 2, 3, 1, 4 and 2 variants, in all 12 puzzles and 26 examples."""
    return open_split(write_split(GROUPS), "train")


@pytest.fixture
def threes(write_split: WriteSplit) -> PuzzleSplit:
    """Three puzzles of three pairs each."""
    return open_split(write_split([[3], [3], [3]]), "train")


def puzzles_of(sample: Sample) -> list[int]:
    return (sample.puzzle_ids - 10).tolist()


def group_of(split: PuzzleSplit, puzzle: int) -> int:
    return int(np.searchsorted(split.group_indices, puzzle, side="right")) - 1


def test_every_batch_is_full_and_its_rows_belong_together(split: PuzzleSplit) -> None:
    for sample in islice(TrainingBatches(split, 5, 1, seed=0), 20):
        assert [field.shape for field in sample] == [(5,), (5,), (5,), (5, 2), (5, 4), (5,), (5, 4)]
        assert (sample.examples.dtype, sample.puzzle_ids.dtype) == (np.int64, np.int32)
        assert sample.rows.tolist() == [0, 1, 2, 3, 4]
        for row, puzzle in zip(sample.examples.tolist(), puzzles_of(sample), strict=True):
            assert split.puzzle_indices[puzzle] <= row < split.puzzle_indices[puzzle + 1]


def test_an_epoch_gives_one_whole_random_variant_of_every_group(split: PuzzleSplit) -> None:
    # The pairs of one variant of each group are 2 + 1 + 3 + 2 + 4: a pass is exactly one batch.
    seen: Counter[int] = Counter()
    orders, shuffles = set(), set()
    for batch in islice(TrainingBatches(split, 12, 1, seed=3), 200):
        rows, puzzles = batch.examples.tolist(), puzzles_of(batch)
        chosen = list(dict.fromkeys(puzzles))
        groups = [group_of(split, puzzle) for puzzle in chosen]
        assert sorted(groups) == [0, 1, 2, 3, 4]
        pairs = [range(*split.puzzle_indices[puzzle : puzzle + 2]) for puzzle in chosen]
        assert sorted(rows) == sorted(chain(*pairs))
        seen.update(chosen)
        orders.add(tuple(groups))
        shuffles.add(tuple(row for row, puzzle in zip(rows, puzzles, strict=True) if puzzle == 5))
    # Variants of a group come equally often: 200 / 4 each for the group of four, and so on.
    for puzzle in range(12):
        expected = 200 / len(GROUPS[group_of(split, puzzle)])
        assert abs(seen[puzzle] - expected) < 4 * np.sqrt(expected)
    assert len(orders) > 60, "of 120 orders of five groups"
    assert len(shuffles) == 6, "of 6 orders of the three pairs of puzzle 5"


def test_what_does_not_fit_into_a_batch_is_dropped(threes: PuzzleSplit) -> None:
    """Batches of four from three puzzles: 3 + 1, and then only 3, which is not full."""
    sampler = TrainingBatches(threes, 4, 1, seed=0)
    positions = []
    for batch in islice(sampler, 5):
        first, _, _, last = puzzles_of(batch)
        assert puzzles_of(batch) == [first, first, first, last]
        assert first != last
        positions.append(sampler.position)
    assert positions == [(index, 1) for index in range(5)]


def test_two_epochs_a_pass_carry_over_what_one_would_drop(threes: PuzzleSplit) -> None:
    """Two epochs are 3 + 1, 3 + 1, 3 + 1, and nothing is left over."""
    sampler = TrainingBatches(threes, 4, 2, seed=0)
    puzzles = [puzzles_of(batch) for batch in islice(sampler, 3)]
    assert sampler.position == (0, 3)
    assert [row[:3] for row in puzzles] == [[row[0]] * 3 for row in puzzles]
    order = [puzzle for row in puzzles for puzzle in (row[0], row[3])]
    assert sorted(order[:3]) == sorted(order[3:]) == [0, 1, 2]
    next(iter(sampler))
    assert sampler.position == (1, 1)


def test_one_pair_of_each_visited_puzzle_stays_where_it_is(split: PuzzleSplit) -> None:
    """Its share of the room is zero; that of the others is not. Which one stays is random."""
    stayed: Counter[int] = Counter()
    # A pass is exactly one batch, so that every puzzle is there with all its pairs.
    for sample in islice(TrainingBatches(split, 12, 1, seed=3), 300):
        still = (sample.shifts == 0).all(axis=1)
        assert sorted(sample.puzzle_ids[still]) == sorted(set(sample.puzzle_ids))
        assert (sample.shifts[~still] > 0).all()
        stayed.update(sample.examples[still].tolist())
    # Puzzle 5 has the rows 7 to 9 and is the only one of its group: 100 times each.
    for row in (7, 8, 9):
        assert abs(stayed[row] - 100) < 4 * np.sqrt(300 * 2 / 9)


def test_random_numbers_are_uniform_and_new_in_each_batch(split: PuzzleSplit) -> None:
    samples = list(islice(TrainingBatches(split, 12, 1, seed=3), 300))
    *_, shifts, edges, coin, priorities = map(np.stack, zip(*samples, strict=True))
    for numbers in (shifts[(shifts > 0).all(axis=2)], edges, coin, priorities):
        assert len(np.unique(numbers)) > 0.99 * numbers.size
        shares, _ = np.histogram(numbers, bins=10, range=(0, 1))
        assert shares.sum() == numbers.size
        expected = numbers.size / 10
        assert (np.abs(shares - expected) < 5 * np.sqrt(expected)).all()


def test_the_first_batch_is_not_moved_by_the_numbers_that_chose_it(split: PuzzleSplit) -> None:
    """A generator seeded by [seed, pass] is one seeded by [seed, pass, 0]."""
    sample = next(iter(TrainingBatches(split, 12, 1, seed=3)))
    drew_the_pass = np.random.default_rng([3, 0]).random((12, 7))
    assert not np.isin(sample.edges, drew_the_pass).any()


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
@pytest.mark.parametrize("stop", [0, 1, 5, 6, 11])
def test_ranks_set_to_a_position_go_on_together_as_one_that_never_stopped(
    split: PuzzleSplit, world_size: int, stop: int
) -> None:
    """A pass is six batches; each rank has its slice of them, at any number of ranks."""
    uninterrupted = TrainingBatches(split, 6, 3, seed=7)
    iterator = iter(uninterrupted)
    for _ in range(stop):
        next(iterator)
    ranks = [TrainingBatches(split, 6, 3, 7, rank, world_size) for rank in range(world_size)]
    for sampler in ranks:
        sampler.position = uninterrupted.position
    for whole, *parts in islice(zip(iterator, *ranks, strict=True), 12):
        assert {len(part.examples) for part in parts} == {6 // world_size}
        for expected, *shares in zip(whole, *parts, strict=True):
            assert np.array_equal(np.concatenate(shares), expected)


def test_the_order_depends_on_the_seed_and_on_the_pass(split: PuzzleSplit) -> None:
    def first_rows(seed: int, pass_index: int) -> Any:
        sampler = TrainingBatches(split, 12, 1, seed)
        sampler.position = (pass_index, 0)
        return next(iter(sampler)).examples.tolist()

    assert first_rows(0, 0) == first_rows(0, 0)
    assert first_rows(0, 0) != first_rows(1, 0)
    assert first_rows(0, 0) != first_rows(0, 1)


def test_a_batch_that_the_ranks_cannot_share_is_refused(split: PuzzleSplit) -> None:
    with pytest.raises(UserError, match=r"global_batch_size=6 is not divisible by the 4 ranks"):
        TrainingBatches(split, 6, 1, 0, rank=0, world_size=4)


def test_a_batch_larger_than_a_pass_is_refused_with_the_number_that_works(
    split: PuzzleSplit,
) -> None:
    # 12 pairs an epoch: 12 fit one, 13 need two epochs a pass, 25 need three.
    TrainingBatches(split, 12, 1, 0)
    with pytest.raises(UserError, match=r"holds 12 examples.*epochs_per_pass to at least 2"):
        TrainingBatches(split, 13, 1, 0)
    with pytest.raises(UserError, match=r"holds 24 examples.*epochs_per_pass to at least 3"):
        TrainingBatches(split, 25, 2, 0)
    assert len(next(iter(TrainingBatches(split, 25, 3, 0))).examples) == 25


def test_the_smallest_variant_decides_whether_a_pass_fills_a_batch(write_split: WriteSplit) -> None:
    """Another builder may give the variants of a task different numbers of pairs."""
    split = open_split(write_split([[5, 1], [1]]), "train")
    with pytest.raises(UserError, match="holds 2 examples"):
        TrainingBatches(split, 3, 1, 0)
    assert len(list(islice(TrainingBatches(split, 2, 1, 0), 20))) == 20


@pytest.mark.parametrize("max_variants", [1, 2, None])
def test_the_first_variants_of_each_task_are_selected_for_the_test(
    split: PuzzleSplit, max_variants: int | None
) -> None:
    expected, puzzle, row = [], 0, 0
    for sizes in GROUPS:
        for variant, size in enumerate(sizes):
            if max_variants is None or variant < max_variants:
                expected += [(row + pair, 10 + puzzle, pair) for pair in range(size)]
            puzzle, row = puzzle + 1, row + size
    selected = select_test_examples(split, max_variants)
    assert list(zip(*selected, strict=True)) == expected
    part = selected.take(np.array([3, 1]))
    assert list(zip(*part, strict=True)) == [expected[3], expected[1]], "columns stay together"


@pytest.mark.parametrize(
    ("key", "value", "limit"),
    [
        ("epochs_per_pass", 0, "greater than or equal to 1"),
        ("canvas", "widow", "'whole' or 'window'"),
        ("window_margin", -1, "greater than or equal to 0"),
        ("whole_canvas_share", -0.1, "greater than or equal to 0"),
        ("whole_canvas_share", 1.1, "less than or equal to 1"),
    ],
)
def test_what_is_out_of_range_is_refused(key: str, value: Any, limit: str) -> None:
    with pytest.raises(UserError, match=rf"{key}=.*{value}.* is not allowed.*{limit}"):
        validate(DataConfig, {key: value}, "data")
