"""Open a split of a dataset (train, validation or test), in whichever layout it is."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from common.errors import UserError
from dataset.canvas import VOCAB_SIZE, canvas_side, place
from dataset.compact import CompactSplit, open_compact
from dataset.storage import (
    ORIGINALS,
    PuzzleSplit,
    SplitIndex,
    open_canvases,
    open_index,
    read_metadata,
)
from dataset.task_files import FILLER

Split = PuzzleSplit | CompactSplit


def open_split(dataset_path: Path, split: str, option: str = "data.path=") -> Split:
    """Open `dataset_path/split`, checking everything that can be checked without reading it all.

    `option` is how the user names the dataset, for the error that there is none.

    Raises:
        UserError: a part is missing, truncated or inconsistent, or the vocabulary is another one.
    """
    path = dataset_path / split
    if not path.is_dir():
        raise UserError(
            f"{option}{dataset_path}: no dataset there, as there is no folder {path}; correct the "
            f"path or build one with 'python -m dataset.build_arc_dataset' (or "
            f"build_nqueens_dataset, build_sudoku_dataset, build_maze_dataset)"
        )
    metadata = read_metadata(path)
    if any(path.glob(f"{ORIGINALS}__*.npy")):
        return open_compact(path, metadata)
    inputs, labels = open_canvases(path, metadata)
    index = open_index(path, metadata, len(inputs))
    are_hidden = split != "train" and _are_fillers(index, labels)
    return PuzzleSplit(**vars(index), inputs=inputs, labels=labels, are_hidden=are_hidden)


def _are_fillers(index: SplitIndex, labels: npt.NDArray[np.integer]) -> bool:
    """Whether every task's original has FILLER for all its solutions, as `hide_fillers` has it."""
    cells, originals = index.metadata.seq_len, index.group_indices[:-1]
    if index.metadata.vocab_size != VOCAB_SIZE or not _is_square(cells):
        return False
    filler = place(np.array([FILLER], dtype=np.uint8), canvas_side(cells))
    spans = zip(index.puzzle_indices[originals], index.puzzle_indices[originals + 1], strict=True)
    return all((labels[start:end] == filler).all() for start, end in spans)


def require_square(split: Split, why: str) -> None:
    """Raise UserError, with `why` it matters, if the split's canvases are no squares."""
    if not _is_square(cells := split.metadata.seq_len):
        raise UserError(f"{why}: {split.path} has canvases of {cells} cells, which is no square")


def _is_square(cells: int) -> bool:
    return round(cells**0.5) ** 2 == cells
