"""Open a split of a dataset (train, validation or test), in whichever layout it is."""

from pathlib import Path

from common.errors import UserError
from dataset.compact import CompactSplit, open_compact
from dataset.storage import ORIGINALS, PuzzleSplit, open_canvases, open_index, read_metadata

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
    return PuzzleSplit(**vars(index), inputs=inputs, labels=labels)


def require_square(split: Split, why: str) -> None:
    """Raise UserError, with `why` it matters, if the split's canvases are no squares."""
    cells = split.metadata.seq_len
    if round(cells**0.5) ** 2 != cells:
        raise UserError(f"{why}: {split.path} has canvases of {cells} cells, which is no square")
