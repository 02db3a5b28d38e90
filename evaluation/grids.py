"""Grids as pictures and as text: drawn in ARC's colours, compared, and written for a page."""

import numpy as np
import numpy.typing as npt
from PIL import Image

from dataset.canvas import COLOUR_OFFSET, canvas_side
from dataset.tasks import NUM_COLOURS, Grid

MAX_IMAGE_SIDE, MAX_CELL_SIDE = 150, 20  # Pixels; the grid line that closes an image is on top.

ARC_COLOURS = "000000 0074D9 FF4136 2ECC40 FFDC00 AAAAAA F012BE FF851B 7FDBFF 870C25"
LINE_COLOUR = "707070"
PALETTE = bytes.fromhex(f"{ARC_COLOURS} {LINE_COLOUR} FFFFFF")
BLACK, LINE, WHITE = 0, NUM_COLOURS, NUM_COLOURS + 1
DOT_ON = np.array([WHITE, WHITE, *[BLACK] * 7, WHITE], dtype=np.uint8)
"""[10] whether a dot on a colour is black or white: either alone would vanish on some."""
NO_COLOUR = "."
"""In the text of a grid: a cell that has no colour."""


def changed_cells(previous: Grid | None, grid: Grid) -> npt.NDArray[np.bool_]:
    """Mark the cells of `grid` that `previous` does not have or has in another colour."""
    changed = np.ones(grid.shape, dtype=bool)
    if previous is not None:
        rows, cols = np.minimum(previous.shape, grid.shape)
        changed[:rows, :cols] = previous[:rows, :cols] != grid[:rows, :cols]
    return changed


def draw_grid(
    grid: Grid, changed: npt.NDArray[np.bool_] | None = None, cell: int | None = None
) -> Image.Image:
    """Draw a grid in ARC's colours between grey lines, with a dot on each cell in `changed`.

    `cell` is the side of a cell in pixels; None: as the grid's size allows.
    """
    cell = cell or min(MAX_CELL_SIDE, MAX_IMAGE_SIDE // max(grid.shape))
    pixels = np.full([side * cell + 1 for side in grid.shape], LINE, dtype=np.uint8)
    one_cell = np.ones((cell, cell), dtype=np.uint8)
    pixels[:-1, :-1] = np.kron(grid, one_cell)
    if changed is not None:
        width = (cell - 1) // 3
        width += (cell - 1 - width) % 2  # As odd or even as the room between the lines: centred.
        margin = (cell + 1 - width) // 2
        dot = np.pad(np.ones((width, width), dtype=bool), (margin, cell - width - margin))
        dots = np.kron(changed, dot)
        pixels[:-1, :-1][dots] = np.kron(DOT_ON[grid], one_cell)[dots]
    pixels[::cell] = pixels[:, ::cell] = LINE
    image = Image.fromarray(pixels)
    image.putpalette(PALETTE)
    return image


def grid_text(grid: Grid) -> str:
    """Rows of digits between slashes: a byte a cell, which a script draws when it is looked at."""
    return "/".join("".join(map(str, row)) for row in grid.tolist())


def visible(canvas: npt.NDArray[np.integer], shape: tuple[int, ...]) -> Grid:
    """The top-left of a canvas [cells] as a grid to draw; WHITE where its token is no colour.

    See `canvas_text` for why it is not read back.
    """
    side = canvas_side(len(canvas))
    tokens = canvas.reshape(side, side)[: shape[0], : shape[1]]
    return np.where(tokens >= COLOUR_OFFSET, tokens - COLOUR_OFFSET, WHITE).astype(np.uint8)


def canvas_text(canvas: npt.NDArray[np.uint8], shape: tuple[int, ...]) -> str:
    """The text of the top-left of a canvas [cells]; NO_COLOUR where its token is no colour.

    Unlike a grid that is read back it shows what stands in cells that a half-finished path leaves
    without a colour, or beyond the border of a smaller grid.
    """
    side = canvas_side(len(canvas))
    rows = canvas.reshape(side, side)[: shape[0], : shape[1]].tolist()
    return "/".join(
        "".join(str(t - COLOUR_OFFSET) if t >= COLOUR_OFFSET else NO_COLOUR for t in row)
        for row in rows
    )


def mistakes(grid: Grid, solution: Grid) -> str:
    """How far a grid is from the solution, in words."""
    if grid.shape != solution.shape:
        return f"wrong size, {grid.shape[0]} × {grid.shape[1]}"
    return plural(int((grid != solution).sum()), "cell") + " wrong"


def plural(count: float, noun: str) -> str:
    """A number with its noun."""
    return f"{count:g} {noun}" if count == 1 else f"{count:g} {noun}s"
