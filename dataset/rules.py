"""The rules of each puzzle on a board, and which puzzle a dataset holds."""

from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from common.errors import UserError
from dataset.boards import Boards
from dataset.canvas import COLOUR_OFFSET
from dataset.nqueens import EightQueens
from dataset.storage import BUILD_FILE, read_json, require
from dataset.sudoku import Sudoku


class Rules(Protocol):
    """What makes a board right, whatever the stored solution."""

    @property
    def solution_tokens(self) -> range:
        """Tokens that a solution may hold."""
        ...

    def is_valid(self, boards: Boards) -> npt.NDArray[np.bool_]:
        """Whether each board [N] is complete and obeys the rules."""
        ...

    def exact_ceiling(self, inputs: Boards) -> npt.NDArray[np.float64]:
        """The best chance [N] that an answer can have of being the very solution stored."""
        ...


RULES: dict[str, Rules] = {"nqueens": EightQueens(), "sudoku": Sudoku()}


def puzzle_of(dataset_path: Path) -> str | None:
    """Whose rules a dataset's boards follow, a name in `RULES`; None for ARC and foreign datasets.

    Raises:
        UserError: `build.json` names a puzzle that is not known.
    """
    path = dataset_path / BUILD_FILE
    record = read_json(path) if path.is_file() else {}
    require(isinstance(record, dict), f"{path}: must be an object")
    puzzle: str | None = record.get("puzzle")
    if puzzle is not None and puzzle not in RULES:
        raise UserError(f"{path}: no such puzzle as '{puzzle}', there are {', '.join(RULES)}")
    return puzzle


def solution_tokens(dataset_path: Path, vocab_size: int) -> range:
    """Tokens that cells of a solution may have: by the puzzle's rules, or ARC's colours."""
    puzzle = puzzle_of(dataset_path)
    return RULES[puzzle].solution_tokens if puzzle else range(COLOUR_OFFSET, vocab_size)
