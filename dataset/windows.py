"""Which cells of a canvas matter: windows around a pair, and segments of windows of one length.

Four fifths of a 30x30 canvas are PAD in the ARC-AGI-1 mix. A window keeps the cells that matter,
each with its place on the canvas. It spans the input, the output, and the largest output among the
puzzle's pairs, with their EOS border: at test time, when the output is unknown, the
demonstrations tell the last of these, so that a window shows little more about the size of the
answer in training than it does then (it shows more where an output is the largest of its puzzle,
which the random margin blurs). The margin and cells of PAD drawn from around the window fill the
sequence up to one of a few lengths; so no sequence needs padding, and attention no mask.

Boxes are int64 [N, 4]: top, left, bottom, right on the canvas, the last two exclusive.
"""

import numpy as np
import numpy.typing as npt

from common.segments import PAD
from dataset.canvas import COLOUR_OFFSET, Canvases

Boxes = npt.NDArray[np.int64]
Extents = npt.NDArray[np.int64]
"""[N, 2] rows and columns."""

_TYPICAL_WINDOW = 320
_LENGTHS = (64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768)


def lengths_for(cells: int) -> npt.NDArray[np.int64]:
    """The numbers of cells that windows on a canvas of `cells` may have; the last is all of them.

    They are few, so that compiled kernels are, and close enough to waste a tenth or so.
    """
    return np.array([*(length for length in _LENGTHS if length < cells), cells])


def typical_length(canvas: str, cells: int) -> int:
    """Cells that a sequence typically shows of a canvas of `cells`, "whole" or by "window".

    A window's are about the mean over the ARC-AGI-1 mix.
    """
    return min(_TYPICAL_WINDOW, cells) if canvas == "window" else cells


def shown_boxes(inputs: Canvases, labels: Canvases, side: int) -> Boxes:
    """The smallest boxes that hold all that is not PAD of inputs and labels [N, side * side]."""
    return _bounds(np.logical_or(inputs != PAD, labels != PAD), side)


def shown_extents(canvases: Canvases, side: int) -> Extents:
    """Rows and columns [N, 2] of the grids that canvases show, wherever they lie; 0 without one."""
    boxes = _bounds(canvases >= COLOUR_OFFSET, side)
    return boxes[:, 2:] - boxes[:, :2]


def boxes_around(origins: npt.NDArray[np.int64], extents: Extents, side: int) -> Boxes:
    """Boxes of grids at `origins` [N, 2], EOS border included where the canvas reaches that far."""
    return np.concatenate([origins, np.minimum(origins + extents + 1, side)], axis=1)


def widen(boxes: Boxes, margins: npt.NDArray[np.int64], side: int) -> Boxes:
    """Move the four edges [N, 4] outwards, within the canvas."""
    outwards = np.array([-1, -1, 1, 1])
    return np.clip(boxes + outwards * margins, 0, side)


def areas(boxes: Boxes) -> npt.NDArray[np.int64]:
    """Cells [N] in each box."""
    rows, cols = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    return rows * cols


def choose_cells(
    boxes: Boxes, length: int, side: int, priorities: npt.NDArray[np.float32]
) -> npt.NDArray[np.int64]:
    """The cells [N, length] of each box, in ascending order, and as many around it as are missing.

    Args:
        boxes: each of at most `length` cells.
        length: cells to choose.
        side: of the canvas.
        priorities: [N or 1, side * side] non-negative; of the cells outside, the lowest are taken.
    """
    axis = np.arange(side)
    in_rows = (axis >= boxes[:, :1]) & (axis < boxes[:, 2:3])
    in_cols = (axis >= boxes[:, 1:2]) & (axis < boxes[:, 3:])
    inside = (in_rows[:, :, None] & in_cols[:, None, :]).reshape(len(boxes), side * side)
    order = np.where(inside, np.float32(-1), priorities)
    if length < side * side:
        chosen = np.argpartition(order, length - 1, axis=1)[:, :length]
    else:
        chosen = np.tile(np.arange(side * side), (len(boxes), 1))
    return np.sort(chosen, axis=1)


def cut_into_segments(
    sizes: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], segment_cost: int
) -> list[tuple[npt.NDArray[np.int64], int]]:
    """Group examples of `sizes` [N] cells into segments: their positions, and their common length.

    Of all ways to cut the examples, ordered by size, it is the one of the fewest cells, a segment
    itself counting as `segment_cost` of them. Every example is in one segment of at least its size.
    """
    level_of = np.searchsorted(lengths, sizes)
    counts = np.bincount(level_of, minlength=len(lengths))
    # best[k]: the lowest cost of the first k lengths, and where its last segment begins.
    best: list[tuple[float, int]] = [(0.0, 0)]
    for end in range(1, len(lengths) + 1):
        costs = [
            (best[first][0] + _cost(counts[first:end].sum(), lengths[end - 1], segment_cost), first)
            for first in range(end)
        ]
        best.append(min(costs))
    segments = []
    end = len(lengths)
    while end > 0:
        first = best[end][1]
        members = np.flatnonzero((level_of >= first) & (level_of < end))
        if len(members):
            segments.append((members, int(lengths[level_of[members].max()])))
        end = first
    return segments[::-1]


def _cost(count: int, length: int, segment_cost: int) -> float:
    return float(count * length + segment_cost) if count else 0.0


def _bounds(shown: npt.NDArray[np.bool_], side: int) -> Boxes:
    """Bounding boxes of the marked cells [N, side * side]; 0, 0, 0, 0 without any."""
    squares = shown.reshape(-1, side, side)
    edges = []
    for axis in (2, 1):
        line = np.any(squares, axis=axis)
        first, last = line.argmax(axis=1), side - line[:, ::-1].argmax(axis=1)
        edges.append((first, np.where(line.any(axis=1), last, 0)))
    (top, bottom), (left, right) = edges
    return np.stack([top, left, bottom, right], axis=1)
