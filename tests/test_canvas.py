"""Grids stand on the canvas as docs/formats.md says, and are read back by the published rule."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from arc_oracles import canvas_of
from dataset.canvas import canvas_side, grid_mask, place, read_back, read_extents


@st.composite
def placed_grids(draw: st.DrawFn) -> tuple[np.ndarray, int, np.ndarray, np.ndarray]:
    """Some equally large grids [N, r, c], a canvas side, and a position for each of them."""
    side = draw(st.integers(1, 30))
    # Grids that fill the canvas in one direction or both are the interesting ones.
    sides = st.integers(1, side) | st.just(side)
    count, rows, cols = draw(st.integers(1, 3)), draw(sides), draw(sides)
    grids = draw(arrays(np.uint8, (count, rows, cols), elements=st.integers(0, 9)))
    tops = draw(arrays(np.int64, count, elements=st.integers(0, side - rows)))
    lefts = draw(arrays(np.int64, count, elements=st.integers(0, side - cols)))
    return grids, side, tops, lefts


@pytest.mark.parametrize(
    ("grid", "top", "left", "expected"),
    [
        ([[0, 9], [3, 4]], 1, 0, [[0, 0, 0, 0], [2, 11, 1, 0], [5, 6, 1, 0], [1, 1, 0, 0]]),
        ([[5]], 2, 0, [[0, 0, 0], [0, 0, 0], [7, 1, 0]]),
        ([[5]], 0, 2, [[0, 0, 7], [0, 0, 1], [0, 0, 0]]),
        ([[5]], 2, 2, [[0, 0, 0], [0, 0, 0], [0, 0, 7]]),
    ],
)
def test_eos_stands_below_and_right_of_the_grid_where_the_canvas_does_not_end(
    grid: list[list[int]], top: int, left: int, expected: list[list[int]]
) -> None:
    """And not in the corner between."""
    side = len(expected)
    canvas = place(np.array([grid], dtype=np.uint8), side, top, left)
    assert canvas.reshape(side, side).tolist() == expected


@given(placed_grids())
def test_placing_agrees_with_the_specification_cell_by_cell(
    case: tuple[np.ndarray, int, np.ndarray, np.ndarray],
) -> None:
    grids, side, tops, lefts = case
    canvases = place(grids, side, tops, lefts)
    assert canvases.dtype == np.uint8
    assert canvases.shape == (len(grids), side * side)
    for n, grid in enumerate(grids):
        expected = canvas_of(grid, side, int(tops[n]), int(lefts[n]))
        assert np.array_equal(canvases[n].reshape(side, side), expected)


@given(placed_grids())
def test_a_grid_at_the_top_left_is_read_back_whole_and_elsewhere_not_at_all(
    case: tuple[np.ndarray, int, np.ndarray, np.ndarray],
) -> None:
    grids, side, tops, lefts = case
    moved = zip(grids, place(grids, side), place(grids, side, tops, lefts), strict=True)
    for grid, canvas, elsewhere in moved:
        read = read_back(canvas)
        assert read is not None
        assert read.dtype == np.uint8
        assert np.array_equal(read, grid)
        assert np.array_equal(elsewhere, canvas) or read_back(elsewhere) is None


@pytest.mark.parametrize(
    ("canvas", "grid"),
    [
        # An L: 3 x 1 and 1 x 3 tie at 3 cells, 2 x 2 is not all colours.
        ([[2, 3, 4], [5, 1, 0], [6, 0, 0]], [[0, 1, 2]]),
        # 2 x 2 beats the long first row of 3.
        ([[2, 2, 2], [2, 2, 1], [0, 0, 0]], [[0, 0], [0, 0]]),
        # A hole inside: the two full rows on top are the largest.
        ([[2, 3, 4], [5, 6, 7], [8, 0, 9]], [[0, 1, 2], [3, 4, 5]]),
        # Colours apart from the corner's rectangle do not count.
        ([[2, 1, 9], [1, 0, 9], [9, 9, 9]], [[0]]),
        ([[1, 2, 2], [2, 2, 2], [2, 2, 2]], None),
        ([[11, 11, 11], [11, 11, 11], [11, 11, 11]], [[9, 9, 9]] * 3),
        ([[4, 1, 0], [4, 1, 0], [4, 1, 0]], [[2], [2], [2]]),
    ],
)
def test_a_broken_canvas_shows_its_largest_top_left_rectangle_of_colours(
    canvas: list[list[int]], grid: list[list[int]] | None
) -> None:
    read = read_back(np.array(canvas, dtype=np.uint8).reshape(9))
    assert grid is None if read is None else read.tolist() == grid


@given(
    st.integers(1, 6).flatmap(
        lambda side: arrays(
            np.uint8,
            (2, side, side),
            elements=st.sampled_from([0, 1, 2, 2, 3, 3, 11, 11]),
            fill=st.nothing(),
        )
    )
)
def test_extents_agree_with_trying_every_rectangle(canvases: np.ndarray) -> None:
    side = canvases.shape[1]
    all_rows, all_cols = read_extents(canvases.reshape(2, side * side))
    for canvas, rows, cols in zip(canvases, all_rows, all_cols, strict=True):
        areas = {
            (r, c): r * c
            for r in range(1, side + 1)
            for c in range(1, side + 1)
            if (canvas[:r, :c] >= 2).all()
        }
        # The first of the largest in this order is the one with fewer rows.
        assert (rows, cols) == (max(areas, key=areas.__getitem__) if areas else (0, 0))


def test_the_side_of_a_canvas_is_the_root_of_its_cells() -> None:
    assert [canvas_side(cells) for cells in (1, 16, 900)] == [1, 4, 30]
    with pytest.raises(AssertionError, match="a canvas is square"):
        canvas_side(901)


def test_the_mask_covers_the_grid_that_is_read_back() -> None:
    shown = place(np.array([[[1, 2], [3, 4], [5, 6]]], dtype=np.uint8), 6)
    mask = grid_mask(np.concatenate([shown, np.zeros_like(shown)])).reshape(2, 6, 6)
    assert mask[0, :3, :2].all()
    assert mask[0].sum() == 6
    assert not mask[1].any()
