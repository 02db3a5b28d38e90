"""Grids on a square canvas of tokens, and back: the token layout of HRM and TRM.

A canvas is `side` x `side` cells flattened row-major; `side` is 30 for every published figure.
A grid of r x c cells has its top-left at (row, col); the cells just below it and just right of it
are EOS where the canvas reaches that far, the corner between them and all else is PAD.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from dataset.tasks import Grid

EOS = 1
COLOUR_OFFSET = 2
VOCAB_SIZE = 12
ARC_COLOURS = range(COLOUR_OFFSET, VOCAB_SIZE)
"""Tokens of cells that belong to a grid."""
CANVAS_SIDE = 30

Canvases = npt.NDArray[np.uint8]
"""[N, side * side] tokens."""


def place(grids: Grid, side: int, rows: npt.ArrayLike = 0, cols: npt.ArrayLike = 0) -> Canvases:
    """Place N equally large grids [N, r, c] at (rows[n], cols[n]) of their canvases.

    Returns [N, side * side]. A single grid is `grid[None]`. Positions must leave the grid inside
    the canvas: 0 <= rows <= side - r, 0 <= cols <= side - c.
    """
    count, height, width = grids.shape
    assert height <= side and width <= side, f"a {height}x{width} grid on a canvas of {side}"
    # Every placement is a window into one larger sheet that holds the grid once: copying windows
    # moves whole rows, where writing cell by cell would take an index computation for each.
    top, left = side - height, side - width
    sheet = np.zeros((count, top + side + 1, left + side + 1), dtype=np.uint8)  # All PAD.
    sheet[:, top : top + height, left : left + width] = grids
    sheet[:, top : top + height, left : left + width] += COLOUR_OFFSET
    sheet[:, top + height, left : left + width] = EOS
    sheet[:, top : top + height, left + width] = EOS
    windows = np.lib.stride_tricks.sliding_window_view(sheet, (side, side), axis=(1, 2))
    placed = windows[np.arange(count), top - np.asarray(rows), left - np.asarray(cols)]
    return placed.reshape(count, side * side)


def read_extents(canvases: Canvases) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Rows and columns [N] of the grid that each canvas [N, side * side] shows.

    It is the largest-area rectangle anchored at the top-left that holds only colours; of equal
    areas the one with fewer rows. Both are 0 where the first cell is no colour.
    """
    side = canvas_side(canvases.shape[1])
    is_colour = canvases.reshape(-1, side, side) >= COLOUR_OFFSET
    # Width of the rectangle that reaches down to row i: the shortest run of colours up to there.
    run = np.where(is_colour.all(axis=2), side, is_colour.argmin(axis=2))
    width = np.minimum.accumulate(run, axis=1)
    area = width * np.arange(1, side + 1)
    rows = area.argmax(axis=1)
    cols = width[np.arange(len(width)), rows]
    return np.where(cols > 0, rows + 1, 0), cols


def read_back(canvas: npt.NDArray[np.uint8]) -> Grid | None:
    """The grid that one canvas [side * side] shows, or None where it shows none."""
    side = canvas_side(len(canvas))
    (rows,), (cols,) = read_extents(canvas[None])
    if rows == 0:
        return None
    return canvas.reshape(side, side)[:rows, :cols] - np.uint8(COLOUR_OFFSET)


@lru_cache
def canvas_side(cells: int) -> int:
    """The side of a square canvas of `cells` cells."""
    side = round(cells**0.5)
    assert side * side == cells, f"a canvas is square, {cells} cells are not"
    return side


def grid_mask(canvases: Canvases) -> npt.NDArray[np.bool_]:
    """Which cells [N, cells] belong to the grids that canvases [N, cells] show."""
    count, cells = canvases.shape
    side = canvas_side(cells)
    rows, cols = read_extents(canvases)
    axis = np.arange(side)
    inside = (axis < rows[:, None])[:, :, None] & (axis < cols[:, None])[:, None, :]
    return inside.reshape(count, cells)
