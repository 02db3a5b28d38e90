"""Windows: by hand on small canvases, as laws on random ones, and around the grids of tasks."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.segments import PAD
from dataset.canvas import place
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
EMPTY = np.zeros_like(INPUT)
CORNER = canvas(".....", ".....", ".....", ".....", "....7")


# ---- by hand ---------------------------------------------------------------------------------


def test_a_ladder_ends_with_the_whole_canvas() -> None:
    assert lengths_for(900)[-3:].tolist() == [640, 768, 900]
    assert lengths_for(100).tolist() == [64, 80, 96, 100]
    assert lengths_for(96).tolist() == [64, 80, 96]
    assert lengths_for(36).tolist() == [36]
    for side in range(1, 31):
        assert (np.diff(lengths_for(side**2)) > 0).all()


def test_a_box_holds_input_and_output_and_their_borders() -> None:
    inputs = np.concatenate([INPUT, LABEL, EMPTY, EMPTY, EMPTY])
    labels = np.concatenate([LABEL, LABEL, INPUT, EMPTY, CORNER])
    assert shown_boxes(inputs, labels, 5).tolist() == [
        [1, 0, 4, 4], [1, 1, 3, 3], [1, 0, 4, 4], [0, 0, 0, 0], [4, 4, 5, 5]
    ]  # fmt: skip
    assert shown_extents(inputs, 5)[:3].tolist() == [[2, 3], [1, 1], [0, 0]], "colours alone"


def test_edges_move_outwards_within_the_canvas() -> None:
    boxes = np.array([[2, 1, 3, 4], [0, 0, 5, 5], [2, 2, 3, 3]])
    margins = np.array([[1, 2, 0, 3], [1, 1, 1, 1], [0, 1, 2, 0]])
    assert widen(boxes, margins, 5).tolist() == [[1, 0, 3, 5], [0, 0, 5, 5], [2, 1, 5, 3]]
    assert areas(boxes).tolist() == [3, 25, 1]


def test_segments_are_cut_where_the_cells_saved_are_worth_one_more() -> None:
    def cut(sizes: list[int], segment_cost: int) -> list[tuple[list[int], int]]:
        segments = cut_into_segments(np.array(sizes), np.array([4, 6, 9]), segment_cost)
        return [(members.tolist(), length) for members, length in segments]

    # 3 * 4 + 6 + 9 = 27 cells in three segments; 3 * 4 + 2 * 9 = 30 or 33 in two; 45 in one.
    sizes = [9, 1, 4, 5, 3]
    assert cut(sizes, 2) == [([1, 2, 4], 4), ([3], 6), ([0], 9)]
    assert cut(sizes, 4) == cut(sizes, 14) == [([1, 2, 4], 4), ([0, 3], 9)]
    assert cut(sizes, 100) == [([0, 1, 2, 3, 4], 9)]
    # A length that nothing needs is not used.
    assert cut([2, 9, 3], 1) == [([0, 2], 4), ([1], 9)]
    assert cut([5, 2], 100) == [([0, 1], 6)]


# ---- laws ------------------------------------------------------------------------------------


@st.composite
def boxes_on_a_canvas(draw: st.DrawFn) -> tuple[Array, int, int, Array]:
    """Boxes [N, 4], a side, a length that is enough for them, and priorities: one row or N."""
    side = draw(st.integers(1, 8))
    edges = st.lists(st.integers(0, side), min_size=2, max_size=2).map(sorted)
    spans = draw(st.lists(st.tuples(edges, edges), min_size=1, max_size=4))
    boxes = np.array([(top, left, bottom, right) for (top, bottom), (left, right) in spans])
    length = draw(st.integers(max(1, int(areas(boxes).max())), side * side))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows = draw(st.sampled_from([1, len(boxes)]))
    return boxes, side, length, rng.random((rows, side * side), dtype=np.float32)


@given(boxes_on_a_canvas())
def test_chosen_cells_hold_the_box_and_the_lowest_priorities(
    case: tuple[Array, int, int, Array],
) -> None:
    boxes, side, length, priorities = case
    chosen = choose_cells(boxes, length, side, priorities)
    rows = np.broadcast_to(priorities, (len(boxes), side * side))
    for (top, left, bottom, right), cells, priority in zip(boxes, chosen, rows, strict=True):
        box = {row * side + col for row in range(top, bottom) for col in range(left, right)}
        others = sorted(set(range(side * side)) - box, key=priority.__getitem__)
        assert cells.tolist() == sorted(box | set(others[: length - len(box)]))


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
        runs = [ordered[a:b] for a, b in pairwise([0, *marks, len(ordered)])]
        cells = sum(len(run) * int(ladder[ladder >= run[-1]].min()) for run in runs)
        costs.append(cells + segment_cost * len(runs))
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
    return open_split(small_dataset, "train")


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


def test_windows_are_the_same_in_both_layouts(
    full: PuzzleSplit, small_compact_dataset: Path
) -> None:
    """Where the compact grids are moved to the places of the stored ones."""
    compact = open_split(small_compact_dataset, "train")
    rows = np.random.default_rng(0).permutation(full.num_examples)
    stored = StoredSource(full).select(rows, np.zeros((len(rows), 2)))
    room = 30 - compact.extents(rows).max(axis=1)
    origins = shown_boxes(*full.read(rows), 30)[:, :2]
    shifts = (origins + 0.5) / (room + 1)
    assert (shifts < 1).all()
    made = CompactSource(compact, torch.device("cpu")).select(rows, shifts)
    assert np.array_equal(made.boxes(), stored.boxes())
