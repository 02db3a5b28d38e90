"""Open the train or test half of a dataset, in whichever layout it is."""

from pathlib import Path

from common.errors import UserError
from dataset.compact import CompactSplit, open_compact
from dataset.storage import (
    ORIGINALS,
    PuzzleSplit,
    open_canvases,
    open_index,
    read_metadata,
)

Split = PuzzleSplit | CompactSplit


def open_split(dataset_path: Path, split: str) -> Split:
    """Open `dataset_path/split`, checking everything that can be checked without reading it all.

    Raises:
        UserError: a part is missing, truncated or inconsistent, or the vocabulary is another one.
    """
    path = dataset_path / split
    if not path.is_dir():
        raise UserError(
            f"data.path={dataset_path}: no folder {path}; build the dataset with "
            f"'python -m dataset.build_arc_dataset --output-dir {dataset_path} ...'"
        )
    metadata = read_metadata(path)
    if any(path.glob(f"{ORIGINALS}__*.npy")):
        return open_compact(path, metadata)
    inputs, labels = open_canvases(path, metadata)
    index = open_index(path, metadata, len(inputs))
    return PuzzleSplit(path, metadata, *index, inputs=inputs, labels=labels)


def require_square(split: Split, why: str) -> None:
    """Raise UserError, with `why` it matters, if the split's canvases are no squares."""
    cells = split.metadata.seq_len
    if round(cells**0.5) ** 2 != cells:
        raise UserError(f"{why}: {split.path} has canvases of {cells} cells, which is no square")
