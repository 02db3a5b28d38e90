"""Windows: by hand on small canvases, as laws on random ones, and around the grids of tasks."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataset.canvas import PAD, place
from dataset.compact import CompactSplit
from dataset.loading import CompactSource, StoredSource
from dataset.splits import open_split
from dataset.storage import PuzzleSplit
from dataset.windows import (
    areas,
    boxes_around,
    choose_cells,
    cut_into_segments,
    lengths_for,
    shown_boxes,
    shown_extents,
    widen,
)

Array = np.ndarray[Any, Any]


def canvas(*rows: str) -> Array:
    """Rows of digits and, for PAD, dots; one canvas [1, cells]."""
    tokens = [[PAD if cell == "." else int(cell) for cell in row] for row in rows]
    return np.array(tokens, dtype=np.uint8).reshape(1, -1)


# A 2x3 grid at (1, 0) and a 1x1 grid at (1, 1) with their EOS borders, on a canvas of 5x5.
INPUT = canvas(".....", "2341.", "5671.", "111..", ".....")
LABEL = canvas(".....", ".91..", ".1...", ".....", ".....")
EMPTY = canvas(".....", ".....", ".....", ".....", ".....")


# ---- by hand ---------------------------------------------------------------------------------


def test_a_ladder_ends_with_the_whole_canvas() -> None:
    assert lengths_for(900)[-3:].tolist() == [640, 768, 900]
    assert lengths_for(100).tolist() == [64, 80, 96, 100]
    assert lengths_for(96).tolist() == [64, 80, 96]
    assert lengths_for(36).tolist() == [36]
    for cells in (side**2 for side in range(1, 31)):
        assert (np.diff(lengths_for(cells)) > 0).all()


def test_a_box_holds_input_and_output_and_their_borders() -> None:
    assert shown_boxes(INPUT, LABEL, 5).tolist() == [[1, 0, 4, 4]]
    assert shown_boxes(LABEL, LABEL, 5).tolist() == [[1, 1, 3, 3]]
    assert shown_boxes(EMPTY, INPUT, 5).tolist() == [[1, 0, 4, 4]]
    assert shown_boxes(EMPTY, EMPTY, 5).tolist() == [[0, 0, 0, 0]]
    corner = canvas(".....", ".....", ".....", ".....", "....7")
    assert shown_boxes(EMPTY, corner, 5).tolist() == [[4, 4, 5, 5]]
    many = shown_boxes(np.concatenate([INPUT, EMPTY]), np.concatenate([LABEL, LABEL]), 5)
    assert many.tolist() == [[1, 0, 4, 4], [1, 1, 3, 3]]


def test_extents_count_colours_alone() -> None:
    both = np.concatenate([INPUT, LABEL, EMPTY])
    assert shown_extents(both, 5).tolist() == [[2, 3], [1, 1], [0, 0]]


def test_a_box_around_a_grid_has_its_border_where_the_canvas_reaches_that_far() -> None:
    origins = np.array([[1, 0], [3, 2], [0, 0]])
    extents = np.array([[2, 3], [2, 3], [0, 0]])
    assert boxes_around(origins, extents, 5).tolist() == [[1, 0, 4, 4], [3, 2, 5, 5], [0, 0, 1, 1]]


def test_edges_move_outwards_within_the_canvas() -> None:
    boxes = np.array([[2, 1, 3, 4], [0, 0, 5, 5], [2, 2, 3, 3]])
    margins = np.array([[1, 2, 0, 3], [1, 1, 1, 1], [0, 1, 2, 0]])
    assert widen(boxes, margins, 5).tolist() == [[1, 0, 3, 5], [0, 0, 5, 5], [2, 1, 5, 3]]
    assert areas(boxes).tolist() == [3, 25, 1]


def test_cells_are_those_of_the_box_and_the_lowest_outside() -> None:
    """On 3x3: the box is the cells 1, 2, 4, 5; outside, 8 comes before 0 and 3 before 6 and 7."""
    priorities = np.array([[0.2, 0, 0, 0.3, 0, 0, 0.9, 0.8, 0.1]], dtype=np.float32)
    box = np.array([[0, 1, 2, 3]])

    def chosen(length: int) -> list[list[int]]:
        return choose_cells(box, length, 3, priorities).tolist()

    assert chosen(4) == [[1, 2, 4, 5]]
    assert chosen(5) == [[1, 2, 4, 5, 8]]
    assert chosen(6) == [[0, 1, 2, 4, 5, 8]]
    assert chosen(7) == [[0, 1, 2, 3, 4, 5, 8]]
    assert chosen(9) == [list(range(9))]
    two = np.concatenate([box, box])
    assert choose_cells(two, 5, 3, priorities).tolist() == [[1, 2, 4, 5, 8]] * 2, "one row for all"


def test_segments_are_cut_where_the_cells_saved_are_worth_one_more() -> None:
    ladder = np.array([4, 6, 9])
    sizes = np.array([9, 1, 4, 5, 3])

    def cut(segment_cost: int) -> list[tuple[list[int], int]]:
        segments = cut_into_segments(sizes, ladder, segment_cost)
        return [(members.tolist(), length) for members, length in segments]

    # 3 * 4 + 6 + 9 = 27 cells in three segments; 3 * 4 + 2 * 9 = 30 or 33 in two; 45 in one.
    assert cut(2) == [([1, 2, 4], 4), ([3], 6), ([0], 9)]
    assert cut(4) == [([1, 2, 4], 4), ([0, 3], 9)]
    assert cut(14) == [([1, 2, 4], 4), ([0, 3], 9)]
    assert cut(100) == [([0, 1, 2, 3, 4], 9)]
    # A length that nothing needs is not used.
    assert [
        (members.tolist(), length)
        for members, length in cut_into_segments(np.array([2, 9, 3]), ladder, 1)
    ] == [([0, 2], 4), ([1], 9)]
    assert [length for _, length in cut_into_segments(np.array([5, 2]), ladder, 100)] == [6]


# ---- laws ------------------------------------------------------------------------------------


@st.composite
def boxes_on_a_canvas(draw: st.DrawFn) -> tuple[Array, int, int, Array]:
    """Boxes [N, 4], a side, a length that is enough for them, and priorities."""
    side = draw(st.integers(1, 8))
    edge = st.integers(0, side)
    boxes = []
    for _ in range(draw(st.integers(1, 4))):
        top, bottom = sorted((draw(edge), draw(edge)))
        left, right = sorted((draw(edge), draw(edge)))
        boxes.append((top, left, bottom, right))
    sizes = areas(np.array(boxes))
    length = draw(st.integers(max(1, int(sizes.max())), side * side))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    priorities = rng.random((len(boxes), side * side), dtype=np.float32)
    return np.array(boxes), side, length, priorities


@given(boxes_on_a_canvas())
def test_chosen_cells_hold_the_box_and_the_lowest_priorities(
    case: tuple[Array, int, int, Array],
) -> None:
    boxes, side, length, priorities = case
    chosen = choose_cells(boxes, length, side, priorities)
    assert chosen.shape == (len(boxes), length)
    assert (np.diff(chosen, axis=1) > 0).all(), "distinct and ascending"
    assert chosen.min() >= 0
    assert chosen.max() < side * side
    for (top, left, bottom, right), cells, priority in zip(boxes, chosen, priorities, strict=True):
        box = {row * side + col for row in range(top, bottom) for col in range(left, right)}
        assert box <= set(cells.tolist())
        others = sorted(set(range(side * side)) - box, key=priority.__getitem__)
        assert set(cells.tolist()) - box == set(others[: length - len(box)])


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=8),
    st.sets(st.integers(1, 29), max_size=5),
    st.integers(0, 60),
)
def test_no_other_cut_costs_less(sizes: list[int], lengths: set[int], segment_cost: int) -> None:
    """Against all ways to cut the examples, ordered by size, into runs: by brute force."""
    ladder = np.array([*sorted(lengths), 30])
    segments = cut_into_segments(np.array(sizes), ladder, segment_cost)
    members = np.concatenate([part for part, _ in segments])
    assert sorted(members) == list(range(len(sizes))), "each is in one segment"
    for part, length in segments:
        assert length in ladder
        assert max(sizes[i] for i in part) <= length
    assert [length for _, length in segments] == sorted({length for _, length in segments})
    found = sum(len(part) * length + segment_cost for part, length in segments)
    assert found == cheapest(sorted(sizes), ladder, segment_cost)


def cheapest(ordered: list[int], ladder: Array, segment_cost: int) -> int:
    costs = []
    for cuts in range(2 ** (len(ordered) - 1)):
        marks = [i for i in range(1, len(ordered)) if cuts >> (i - 1) & 1]
        runs = pairwise([0, *marks, len(ordered)])
        costs.append(
            sum(
                (end - start) * int(ladder[ladder >= ordered[end - 1]].min()) + segment_cost
                for start, end in runs
            )
        )
    return min(costs)


@given(st.integers(0, 2**32))
def test_a_box_is_what_the_placed_grids_need(seed: int) -> None:
    """`boxes_around` the larger extents is `shown_boxes` of what `place` draws, wherever it is."""
    rng = np.random.default_rng(seed)
    side = int(rng.integers(1, 9))
    shapes = rng.integers(1, side + 1, size=(2, 2))
    extents = shapes.max(axis=0)
    origin = rng.integers(0, side - extents + 1)
    drawn = [place(np.zeros((1, *shape), dtype=np.uint8), side, *origin) for shape in shapes]
    assert (
        shown_boxes(*drawn, side).tolist()
        == boxes_around(origin[None], extents[None], side).tolist()
    )
    assert shown_extents(drawn[0], side).tolist() == [shapes[0].tolist()]


# ---- real tasks ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full(small_dataset: Path) -> PuzzleSplit:
    split = open_split(small_dataset, "train")
    assert isinstance(split, PuzzleSplit)
    return split


@pytest.fixture(scope="module")
def compact(small_compact_dataset: Path) -> CompactSplit:
    split = open_split(small_compact_dataset, "train")
    assert isinstance(split, CompactSplit)
    return split


def test_a_window_holds_all_that_is_shown(full: PuzzleSplit) -> None:
    rows = np.arange(full.num_examples)
    boxes = StoredSource(full).select(rows, np.zeros((len(rows), 2))).boxes()
    ladder = lengths_for(900)
    hidden_cells = 0
    for members, length in cut_into_segments(areas(boxes), ladder, 0):
        cells = choose_cells(boxes[members], length, 30, np.zeros((1, 900), np.float32))
        outside = np.ones((len(members), 900), dtype=bool)
        np.put_along_axis(outside, cells, False, axis=1)
        hidden_cells += outside.sum()
        for half in full.read(members):
            assert (half[outside] == PAD).all()
    assert hidden_cells > 0.4 * 900 * len(rows), "windows are much smaller than canvases"


def test_a_window_has_room_for_the_largest_output_of_the_puzzle(full: PuzzleSplit) -> None:
    """And for no more than that and the input."""
    rows = np.arange(full.num_examples)
    boxes = StoredSource(full).select(rows, np.zeros((len(rows), 2))).boxes()
    inputs, labels = full.read(rows)
    shown = shown_boxes(inputs, labels, 30)
    outputs = shown_extents(labels, 30)
    wider = 0
    for first, end in pairwise(full.puzzle_indices.tolist()):
        largest = outputs[first:end].max(axis=0)
        for row in range(first, end):
            top, left = shown[row, :2]
            bottom = max(shown[row, 2], min(top + largest[0] + 1, 30))
            right = max(shown[row, 3], min(left + largest[1] + 1, 30))
            assert boxes[row].tolist() == [top, left, bottom, right]
            wider += (bottom, right) != tuple(shown[row, 2:])
    assert wider > 0, "of some pair the output is smaller than another's"


def test_windows_are_the_same_in_both_layouts(full: PuzzleSplit, compact: CompactSplit) -> None:
    """Where the compact grids are moved to the places of the stored ones."""
    rows = np.random.default_rng(0).permutation(full.num_examples)
    stored = StoredSource(full).select(rows, np.zeros((len(rows), 2)))
    room = 30 - compact.extents(rows).max(axis=1)
    origins = shown_boxes(*full.read(rows), 30)[:, :2]
    shifts = (origins + 0.5) / (room + 1)
    assert (shifts < 1).all()
    made = CompactSource(compact, torch.device("cpu")).select(rows, shifts)
    assert np.array_equal(made.boxes(), stored.boxes())
