"""Which cells of a canvas are shown: windows around a pair.

Four fifths of a 30x30 canvas are PAD in the ARC-AGI-1 mix. A window keeps the cells that matter,
each with its place on the canvas. It spans the input, the output, and the largest output among the
puzzle's pairs, with their EOS border: at test time, when the output is unknown, the
demonstrations tell the last of these, so that a window shows little more about the size of the
answer in training than it does then (it shows more where an output is the largest of its puzzle,
which the random margin blurs).

Boxes are int64 [N, 4]: top, left, bottom, right on the canvas, the last two exclusive.
"""

import numpy as np
import numpy.typing as npt

Boxes = npt.NDArray[np.int64]
Extents = npt.NDArray[np.int64]
"""[N, 2] rows and columns."""


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
