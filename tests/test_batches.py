"""Sampling: what an epoch and a batch hold, who computes it, and the test examples.

The data come from `write_split`: puzzle p has the identifier 10 + p, and a canvas four cells.
"""

from collections import Counter
from collections.abc import Callable
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from common.settings import validate
from dataset.batches import (
    NUM_SHARDS,
    DataConfig,
    TrainingBatches,
    deal,
    places_in_cycles,
    require_shares,
    select_test_examples,
)
from dataset.splits import open_split
from dataset.storage import PuzzleSplit

WriteSplit = Callable[[list[list[int]]], Path]
GROUPS = [[2, 2], [1, 1, 1], [3], [2, 2, 2, 2], [4, 4]]
EPOCH = 12
"""Examples of one: the pairs of one variant of each group are 2 + 1 + 3 + 2 + 4."""


@pytest.fixture
def split(write_split: WriteSplit) -> PuzzleSplit:
    """Five groups of 2, 3, 1, 4 and 2 variants, in all 12 puzzles and 26 examples."""
    return open_split(write_split(GROUPS), "train")


class Drawn(NamedTuple):
    """One example of the stream."""

    row: int
    puzzle: int
    stays: bool
    """Whether its grids are left at the top-left."""


def stream(split: PuzzleSplit, batch_size: int, count: int, seed: int = 3) -> list[Drawn]:
    """The first examples, from batches of a size."""
    samples = list(islice(TrainingBatches(split, batch_size, seed), -(-count // batch_size)))
    rows, puzzles, shifts, *_ = map(np.concatenate, zip(*samples, strict=True))
    stays = (shifts == 0).all(axis=1)
    columns = (column.tolist() for column in (rows, puzzles - 10, stays))
    return [Drawn(*drawn) for drawn in zip(*columns, strict=True)][:count]


def check_epoch(split: PuzzleSplit, drawn: list[Drawn]) -> list[int]:
    """All pairs of one variant of every group, one after another, one of which stays.

    Returns the variants in their order.
    """
    runs = [(puzzle, list(run)) for puzzle, run in groupby(drawn, lambda one: one.puzzle)]
    for puzzle, run in runs:
        assert sorted(one.row for one in run) == list(range(*split.puzzle_indices[puzzle:][:2]))
        assert sum(one.stays for one in run) == 1
    puzzles = [puzzle for puzzle, _ in runs]
    groups = np.searchsorted(split.group_indices, puzzles, side="right") - 1
    assert sorted(groups.tolist()) == list(range(len(split.group_indices) - 1))
    return puzzles


# ---- epochs ----------------------------------------------------------------------------------


def test_an_epoch_gives_one_whole_random_variant_of_every_group(split: PuzzleSplit) -> None:
    """In a random order; and one random pair of each variant stays where it is."""
    seen: Counter[int] = Counter()
    stayed: Counter[int] = Counter()
    orders, shuffles = set(), set()
    examples = stream(split, EPOCH, 300 * EPOCH)
    for start in range(0, len(examples), EPOCH):
        epoch = examples[start : start + EPOCH]
        puzzles = check_epoch(split, epoch)
        seen.update(puzzles)
        stayed.update(one.row for one in epoch if one.stays)
        orders.add(tuple(np.searchsorted(split.group_indices, puzzles, side="right")))
        shuffles.add(tuple(one.row for one in epoch if one.puzzle == 5))
    # Variants of a group come equally often: 300 / 4 each for the group of four, and so on.
    for puzzle, size in enumerate(chain(*([len(group)] * len(group) for group in GROUPS))):
        assert abs(seen[puzzle] - 300 / size) < 4 * np.sqrt(300 / size)
    assert len(orders) > 80, "of 120 orders of five groups"
    assert len(shuffles) == 6, "of 6 orders of the three pairs of puzzle 5"
    # Puzzle 5 has the rows 7 to 9 and is the only one of its group: 100 times each.
    for row in (7, 8, 9):
        assert abs(stayed[row] - 100) < 4 * np.sqrt(300 * 2 / 9)


def test_cycled_no_variant_comes_again_before_all_others_have_come(split: PuzzleSplit) -> None:
    """Each group of n in its own order; a run that is resumed goes on in it."""
    batches = TrainingBatches(split, EPOCH, 3, "cycled")
    epochs = [set((sample.puzzle_ids - 10).tolist()) for sample in islice(batches, 24)]
    orders = set()
    for first, end in zip(split.group_indices, split.group_indices[1:], strict=False):
        variants = set(range(first, end))
        shown = [next(iter(epoch & variants)) for epoch in epochs]
        assert all(len(epoch & variants) == 1 for epoch in epochs)
        size = len(variants)
        for start in range(24 - size):
            assert set(shown[start : start + size]) == variants
        orders.add(tuple(variant - first for variant in shown))
    assert len(orders) == len(GROUPS)
    later = TrainingBatches(split, EPOCH, 3, "cycled")
    later.position = (7, 0)
    assert set((next(iter(later)).puzzle_ids - 10).tolist()) == epochs[7]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(0, 9))
def test_a_cycle_goes_through_every_place_once(sizes: list[int], seed: int) -> None:
    for group, size in enumerate(sizes):
        places = [places_in_cycles(np.array(sizes), epoch, seed)[group] for epoch in range(size)]
        assert sorted(places) == list(range(size))


@pytest.mark.parametrize("batch_size", [1, 5, 7, 30])
def test_epochs_follow_each_other_whatever_the_batches(split: PuzzleSplit, batch_size: int) -> None:
    """Nothing is dropped at the end of one, and a batch may be larger than several."""
    count = 20 * EPOCH
    assert stream(split, batch_size, count) == stream(split, EPOCH, count)


def test_an_epoch_ends_where_its_last_variant_ends(write_split: WriteSplit) -> None:
    """Another builder may give the variants of a task different numbers of pairs."""
    split = open_split(write_split([[5, 1], [1]]), "train")
    batches = TrainingBatches(split, 1, seed=3)
    epochs: dict[int, list[Drawn]] = {}
    for drawn in stream(split, 1, 200):
        epochs.setdefault(batches.position[0], []).append(drawn)
        next(iter(batches))
    *whole, _ = epochs.values()
    for epoch in whole:
        check_epoch(split, epoch)
    assert list(epochs) == list(range(len(epochs)))
    assert {len(epoch) for epoch in whole} == {2, 6}


def test_optimizer_steps_of_an_epoch_are_counted_as_if_each_used_up_a_batch(
    split: PuzzleSplit,
) -> None:
    """Five groups of 26 / 12 examples on average: 65 in six epochs."""
    assert TrainingBatches(split, 4, seed=0).steps_in(6) == 17
    assert TrainingBatches(split, 65, seed=0).steps_in(6) == 1


def test_the_order_depends_on_the_seed_and_on_the_epoch(split: PuzzleSplit) -> None:
    first, second = (stream(split, EPOCH, 2 * EPOCH, seed) for seed in (0, 1))
    assert first == stream(split, EPOCH, 2 * EPOCH, seed=0)
    assert first[:EPOCH] != second[:EPOCH]
    assert first[:EPOCH] != first[EPOCH:]


# ---- batches ---------------------------------------------------------------------------------


def test_every_batch_is_full_and_its_rows_belong_together(split: PuzzleSplit) -> None:
    for sample in islice(TrainingBatches(split, 5, seed=0), 20):
        assert [field.shape for field in sample] == [(5,), (5,), (5, 2), (5, 4), (5,)]
        assert (sample.examples.dtype, sample.puzzle_ids.dtype) == (np.int64, np.int32)
        for row, identifier in zip(sample.examples, sample.puzzle_ids, strict=True):
            puzzle = identifier - 10
            assert split.puzzle_indices[puzzle] <= row < split.puzzle_indices[puzzle + 1]


def test_random_numbers_are_uniform_and_new_in_each_batch(split: PuzzleSplit) -> None:
    """Within an epoch too."""
    samples = list(islice(TrainingBatches(split, 5, seed=3), 700))
    *_, shifts, edges, coin = map(np.stack, zip(*samples, strict=True))
    for numbers in (shifts[(shifts > 0).all(axis=2)], edges, coin):
        assert len(np.unique(numbers)) > 0.99 * numbers.size
        shares, _ = np.histogram(numbers, bins=10, range=(0, 1))
        assert shares.sum() == numbers.size
        expected = numbers.size / 10
        assert (np.abs(shares - expected) < 5 * np.sqrt(expected)).all()


def test_the_first_batch_is_not_moved_by_the_numbers_that_chose_it(split: PuzzleSplit) -> None:
    """A generator seeded by [seed, epoch] is one seeded by [seed, epoch, 0]."""
    sample = next(iter(TrainingBatches(split, EPOCH, seed=3)))
    drew_the_epoch = np.random.default_rng([3, 0]).random((EPOCH, 7))
    assert not np.isin(sample.edges, drew_the_epoch).any()


def test_a_position_beyond_an_epoch_is_the_beginning_of_the_next(split: PuzzleSplit) -> None:
    """As a checkpoint may have it whose dataset has become smaller: nothing waits forever."""
    beyond, next_epoch = TrainingBatches(split, 5, 3), TrainingBatches(split, 5, 3)
    beyond.position, next_epoch.position = (3, EPOCH + 1), (4, 0)
    ours, theirs = next(iter(beyond)), next(iter(next_epoch))
    assert ours.examples.tolist() == theirs.examples.tolist()
    assert beyond.position == (4, 5)


def test_the_position_counts_the_examples_of_an_epoch(split: PuzzleSplit) -> None:
    batches = TrainingBatches(split, 5, seed=0)
    positions = [batches.position, *(batches.position for _ in islice(batches, 5))]
    assert positions == [(0, 0), (0, 5), (0, 10), (1, 3), (1, 8), (2, 1)]
    exact = TrainingBatches(split, EPOCH, seed=0)
    assert [exact.position for _ in islice(exact, 2)] == [(1, 0), (2, 0)]


@pytest.mark.parametrize("batch_size", [5, EPOCH, 30])
@pytest.mark.parametrize("stop", [0, 1, 4, 11])
def test_batches_set_to_a_position_go_on_as_if_never_stopped(
    split: PuzzleSplit, batch_size: int, stop: int
) -> None:
    """With the same random numbers."""
    uninterrupted, resumed = (TrainingBatches(split, batch_size, seed=7) for _ in range(2))
    iterator = iter(uninterrupted)
    for _ in range(stop):
        next(iterator)
    resumed.position = uninterrupted.position
    for ours, theirs in islice(zip(resumed, iterator, strict=True), 6):
        assert all(map(np.array_equal, ours, theirs))
        assert resumed.position == uninterrupted.position


# ---- ranks -----------------------------------------------------------------------------------

WORLD_SIZES = (1, 2, 4, NUM_SHARDS)


@given(st.sampled_from(WORLD_SIZES), st.lists(st.integers(1, 900), min_size=8, max_size=60))
def test_a_batch_is_dealt_into_shares_of_equal_count_and_nearly_equal_tokens(
    world_size: int, drawn: list[int]
) -> None:
    """Whenever the ranks divide it; shares differ by one largest sequence at most."""
    sizes = np.array(drawn[: len(drawn) // world_size * world_size], dtype=np.int64)
    shares = [deal(sizes, rank, world_size) for rank in range(world_size)]
    assert sorted(np.concatenate(shares).tolist()) == list(range(len(sizes)))
    assert {len(share) for share in shares} == {len(sizes) // world_size}
    for share in shares:
        assert (np.diff(sizes[share]) <= 0).all(), "largest first"
    tokens = [int(sizes[share].sum()) for share in shares]
    assert max(tokens) - min(tokens) <= max(drawn)


@given(st.lists(st.integers(1, 900), max_size=60))
def test_a_rank_of_few_holds_what_several_of_many_hold(drawn: list[int]) -> None:
    """So what a shard holds does not depend on how many ranks there are."""
    sizes = np.array(drawn, dtype=np.int64)
    for few, many in ((1, 2), (2, 4), (2, 8), (4, 8)):
        for rank in range(few):
            parts = [deal(sizes, part, many).tolist() for part in range(rank, many, few)]
            assert sorted(deal(sizes, rank, few).tolist()) == sorted(chain(*parts))


def test_examples_are_dealt_there_and_back() -> None:
    """Ten sizes to eight shards: 10 9 8 7 6 5 4 3 there, 2 and 1 back from the last one."""
    sizes = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    held = [sizes[deal(sizes, rank, 8)].tolist() for rank in range(8)]
    assert held == [[10], [9], [8], [7], [6], [5], [4, 1], [3, 2]]
    assert sizes[deal(sizes, 1, 2)].tolist() == [9, 7, 5, 3, 2]


def test_ranks_that_cannot_share_a_batch_are_refused() -> None:
    for world_size in WORLD_SIZES:
        require_shares(3 * world_size, world_size)
    with pytest.raises(UserError, match=r"nproc_per_node.* 3 ranks .* start 1, 2, 4 or 8"):
        require_shares(6, 3)
    with pytest.raises(UserError, match=r"global_batch_size=6 is not divisible by the 4 ranks"):
        require_shares(6, 4)


# ---- the test set, and what can be configured ------------------------------------------------


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
        ("canvas", "widow", "'whole' or 'window'"),
        ("window_margin", -1, "greater than or equal to 0"),
        ("whole_canvas_share", -0.1, "greater than or equal to 0"),
        ("whole_canvas_share", 1.1, "less than or equal to 1"),
    ],
)
def test_what_is_out_of_range_is_refused(key: str, value: Any, limit: str) -> None:
    with pytest.raises(UserError, match=rf"{key}=.*{value}.* is not allowed.*{limit}"):
        validate(DataConfig, {key: value}, "data")
