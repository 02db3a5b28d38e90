"""Whether canvases show what the names of their puzzles say: each inverts to its task's own grid.

Written apart from what renders canvases (`dataset.build_arc_dataset.render`, `dataset.compact`), so
that a mistake there is found here.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dataset.augmentation import DIHEDRALS, INVERSE_DIHEDRAL, Variants, invert, transform
from dataset.canvas import COLOUR_OFFSET, EOS, Canvases, canvas_side
from dataset.tasks import Grid

FINE, NO_GRID, ANOTHER_GRID = range(3)
"""A canvas shows the variant; no grid of its size with the border around; a grid, but another."""


class Shown(NamedTuple):
    """What N canvases show."""

    verdicts: npt.NDArray[np.int8]
    """[N] FINE, NO_GRID or ANOTHER_GRID."""
    origins: npt.NDArray[np.int64]
    """[N] cell of the grid's top-left; 0 of a canvas without colours."""


def compare_variants(canvases: Canvases, variants: Variants, grid: Grid | None) -> Shown:
    """Compare canvases [N, cells], each of a variant [N] of one grid, with that grid.

    None is for a hidden solution, whose canvases must be all PAD.
    """
    is_colour = canvases >= COLOUR_OFFSET
    origins = is_colour.argmax(axis=1)
    if grid is None:
        return Shown(np.where(canvases.any(axis=1), ANOTHER_GRID, FINE).astype(np.int8), origins)
    num_colours = is_colour.sum(axis=1)
    num_borders = (canvases == EOS).sum(axis=1)
    own_colours = np.argsort(variants.permutations, axis=1).astype(np.uint8)
    verdicts = np.full(len(canvases), NO_GRID, dtype=np.int8)
    for dihedral in np.unique(variants.dihedrals):
        rows = np.flatnonzero(variants.dihedrals == dihedral)
        shape = grid.shape[::-1] if DIHEDRALS[dihedral][0] else grid.shape
        rows = rows[num_colours[rows] == grid.size]
        rows = rows[_have_border(canvases[rows], origins[rows], num_borders[rows], *shape)]
        # In the order of the task's cells, how far each is from the top-left of the variant's.
        side = canvas_side(canvases.shape[1])
        steps = np.arange(shape[0])[:, None] * side + np.arange(shape[1])
        in_task_order = transform(steps, INVERSE_DIHEDRAL[dihedral]).reshape(-1)
        tokens = np.take_along_axis(canvases[rows], origins[rows, None] + in_task_order, axis=1)
        # As many colours as the grid has cells: none is left over elsewhere.
        is_full = (tokens >= COLOUR_OFFSET).all(axis=1)
        rows, tokens = rows[is_full], tokens[is_full]
        found = np.take_along_axis(own_colours[rows], tokens - np.uint8(COLOUR_OFFSET), axis=1)
        is_same = (found == grid.reshape(-1)).all(axis=1)
        verdicts[rows] = np.where(is_same, FINE, ANOTHER_GRID)
    return Shown(verdicts, origins)


def _have_border(
    canvases: Canvases,
    origins: npt.NDArray[np.int64],
    num_borders: npt.NDArray[np.int64],
    rows: int,
    cols: int,
) -> npt.NDArray[np.bool_]:
    """Whether grids of one size lie inside their canvases [n, cells], EOS below and beside only."""
    cells = canvases.shape[1]
    side = canvas_side(cells)
    below, beside = origins // side + rows, origins % side + cols
    is_right = (below <= side) & (beside <= side)
    for reaches, first, step, length in (
        (below < side, origins + rows * side, 1, cols),
        (beside < side, origins + cols, side, rows),
    ):
        # Where the canvas does not reach, or the grid is outside, any cell is looked at.
        border = np.minimum(first[:, None] + step * np.arange(length), cells - 1)
        is_border = (np.take_along_axis(canvases, border, axis=1) == EOS).all(axis=1)
        is_right &= is_border | ~reaches
        num_borders = num_borders - length * reaches
    return is_right & (num_borders == 0)


def read_original(
    canvas: npt.NDArray[np.uint8], dihedral: int, permutation: npt.NDArray[np.uint8]
) -> Grid | None:
    """The task's own grid, from one canvas [cells] of a variant, wherever it lies there.

    None where the canvas shows anything but one grid with its border.
    """
    side = canvas_side(len(canvas))
    rows, cols = np.nonzero(canvas.reshape(side, side) >= COLOUR_OFFSET)
    if not len(rows):
        return None
    box = canvas.reshape(side, side)[rows.min() : rows.max() + 1, cols.min() : cols.max() + 1]
    if (box < COLOUR_OFFSET).any():
        return None
    grid = invert(box - np.uint8(COLOUR_OFFSET), dihedral, permutation)
    variant = Variants(np.array([dihedral], dtype=np.uint8), permutation[None])
    return grid if compare_variants(canvas[None], variant, grid).verdicts[0] == FINE else None
