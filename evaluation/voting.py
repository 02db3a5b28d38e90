"""Voting over augmentations: every variant's answer, mapped back, is one vote (HRM, TRM).

For each test input the canvases are read back, the augmentation is inverted, and identical grids
are counted. Answers are ranked by votes, ties by mean confidence, and what is still equal by the
grid itself: the result depends neither on the order of the predictions nor on how they were split
over ranks.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dataset.augmentation import INVERSE_DIHEDRAL, transform
from dataset.canvas import COLOUR_OFFSET, canvas_side, read_extents
from dataset.tasks import NUM_COLOURS, Grid
from evaluation.predictions import Predictions

TestInput = tuple[str, int]
"""Task id and index of one of its test inputs."""

OUTSIDE = NUM_COLOURS
"""Marks the cells of a square that are not part of the grid at its top-left."""


class Ranking(NamedTuple):
    """Distinct answers to one test input, best first."""

    grids: list[Grid]
    votes: npt.NDArray[np.int64]
    """[K] predictions that gave each answer."""
    confidences: npt.NDArray[np.float64]
    """[K] mean confidence of those predictions."""


def count_votes(predictions: Predictions) -> dict[TestInput, Ranking]:
    """Rank the answers to every test input that has predictions."""
    rows = rows_by_test_input(predictions.task_id, predictions.test_index)
    # One test input at a time: vectorised over its variants, in the memory of its variants.
    return {
        test_input: rank_answers(predictions.select(of_input))
        for test_input, of_input in rows.items()
    }


def rows_by_test_input(
    task_ids: npt.NDArray[np.str_], test_indices: npt.NDArray[np.integer]
) -> dict[TestInput, npt.NDArray[np.int64]]:
    """The rows of each test input, in order; row n is of task_ids[n] and test_indices[n]."""
    order = np.lexsort((test_indices, task_ids))
    ids, indices = task_ids[order], test_indices[order]
    changes = (ids[1:] != ids[:-1]) | (indices[1:] != indices[:-1])
    starts = [0, *(np.flatnonzero(changes) + 1).tolist(), len(order)]
    return {
        (str(ids[start]), int(indices[start])): order[start:end]
        for start, end in pairwise(starts)
        if end > start
    }


def rank_answers(predictions: Predictions) -> Ranking:
    """Rank the answers to one test input; canvases that show no grid do not vote."""
    squares = invert_canvases(
        predictions.canvas, predictions.dihedral, predictions.colour_permutation
    )
    shown = squares[:, 0, 0] != OUTSIDE
    squares, confidence = squares[shown], predictions.confidence[shown].astype(np.float64)
    side = squares.shape[1]
    # A row of bytes is one item, so that equal squares are equal items.
    items = np.ascontiguousarray(squares).reshape(len(squares), side * side).view(f"V{side * side}")
    distinct, answer_of, votes = np.unique(items.ravel(), return_inverse=True, return_counts=True)
    # Sorted before they are summed: the mean is then the same to the last bit in any order.
    by_confidence = np.argsort(confidence)
    total = np.bincount(
        answer_of[by_confidence], weights=confidence[by_confidence], minlength=len(distinct)
    )
    means = total / np.maximum(votes, 1)
    best_first = np.lexsort((np.arange(len(distinct)), -means, -votes))
    answers = distinct[best_first].view(np.uint8).reshape(-1, side, side)
    return Ranking([_crop(square) for square in answers], votes[best_first], means[best_first])


def invert_canvases(
    canvases: npt.NDArray[np.uint8],
    dihedrals: npt.NDArray[np.int8],
    permutations: npt.NDArray[np.uint8],
) -> npt.NDArray[np.uint8]:
    """Read back canvases [N, cells] and undo each one's augmentation.

    Returns [N, side, side]: the task's own colours with the grid at the top-left, OUTSIDE around
    it; OUTSIDE everywhere where a canvas shows no grid.
    """
    count, cells = canvases.shape
    side = canvas_side(cells)
    inside = grid_mask(canvases)
    inverse = np.argsort(permutations, axis=1).astype(np.uint8)
    colours = np.where(inside, canvases - np.uint8(COLOUR_OFFSET), np.uint8(0))
    colours = np.take_along_axis(inverse, colours, axis=1)
    squares = np.where(inside, colours, np.uint8(OUTSIDE)).reshape(count, side, side)
    inverted = np.full_like(squares, OUTSIDE)
    for dihedral in np.unique(dihedrals):
        rows = np.flatnonzero(dihedrals == dihedral)
        turned = transform(squares[rows], INVERSE_DIHEDRAL[dihedral])
        inverted[rows] = _move_to_top_left(turned)
    return inverted


def grid_mask(canvases: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Which cells [N, cells] belong to the grids that canvases [N, cells] show."""
    count, cells = canvases.shape
    side = canvas_side(cells)
    rows, cols = read_extents(canvases)
    axis = np.arange(side)
    inside = (axis < rows[:, None])[:, :, None] & (axis < cols[:, None])[:, None, :]
    return inside.reshape(count, cells)


def _move_to_top_left(squares: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Shift each square [N, side, side] so that its grid starts in the first row and column."""
    side = squares.shape[1]
    shown = squares != OUTSIDE
    top, left = shown.any(axis=2).argmax(axis=1), shown.any(axis=1).argmax(axis=1)
    padded = np.pad(squares, ((0, 0), (0, side - 1), (0, side - 1)), constant_values=OUTSIDE)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(1, 2))
    return windows[np.arange(len(squares)), top, left]


def _crop(square: npt.NDArray[np.uint8]) -> Grid:
    shown = square != OUTSIDE
    return square[: shown[:, 0].sum(), : shown[0].sum()].copy()
