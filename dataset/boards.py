"""Puzzles on one square board (N-Queens, Sudoku): what their datasets have in common.

Tokens: 0 PAD, which no board shows; 1 an empty cell; above that, what stands in a cell. Inputs show
the cells that are given and are empty elsewhere, labels the solution. The files are those of
`dataset.storage`; all puzzles share the blank identifier, as there is no task to name, and
`build.json` says whose rules hold.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dataset.canvas import PAD
from dataset.storage import (
    BLANK_IDENTIFIER,
    BLANK_NAME,
    BUILD_FILE,
    IDENTIFIERS_FILE,
    METADATA_FILE,
    SET_NAME,
    DatasetMetadata,
    save_array,
)

EMPTY = 1

Boards = npt.NDArray[np.uint8]
"""[N, side * side] tokens."""


@dataclass(frozen=True)
class BoardSplit:
    """The train or test half of a dataset of boards."""

    inputs: Boards
    labels: Boards
    group_sizes: npt.NDArray[np.int64]
    """Boards in each group: a puzzle and its augmented variants, one after the other."""


def keeps_given(inputs: Boards, answers: Boards) -> npt.NDArray[np.bool_]:
    """Whether each answer [N] leaves the given cells of its input as they are."""
    return np.all((inputs == EMPTY) | (inputs == answers), axis=1)


def write_split(folder: Path, name: str, split: BoardSplit, vocab_size: int) -> None:
    """Write one half, `folder/name`, of a dataset."""
    path = folder / name
    path.mkdir()
    count = len(split.inputs)
    assert split.group_sizes.sum() == count, "every board is in one group"
    arrays: dict[str, npt.NDArray[Any]] = {
        "inputs": split.inputs,
        "labels": split.labels,
        "puzzle_identifiers": np.full(count, BLANK_IDENTIFIER, dtype=np.int32),
        "puzzle_indices": np.arange(count + 1, dtype=np.int32),
        "group_indices": np.cumsum([0, *split.group_sizes], dtype=np.int32),
    }
    for key, array in arrays.items():
        save_array(path, key, array)
    metadata = DatasetMetadata(
        pad_id=PAD,
        ignore_label_id=PAD,
        blank_identifier_id=BLANK_IDENTIFIER,
        vocab_size=vocab_size,
        seq_len=split.inputs.shape[1],
        num_puzzle_identifiers=1,
        total_groups=len(split.group_sizes),
        mean_puzzle_examples=1.0,
        total_puzzles=count,
        sets=[SET_NAME],
    )
    (path / METADATA_FILE).write_text(metadata.model_dump_json())


def write_build_record(
    folder: Path, puzzle: str, options: dict[str, Any], summary: dict[str, Any]
) -> None:
    """Write what is not in the halves: identifiers, and whose rules hold and how it was built."""
    (folder / IDENTIFIERS_FILE).write_text(json.dumps([BLANK_NAME]))
    record = {"puzzle": puzzle, "options": options, "summary": summary}
    (folder / BUILD_FILE).write_text(json.dumps(record, indent=1))
