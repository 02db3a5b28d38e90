"""Puzzles on one square board (N-Queens, Sudoku, mazes): whose rules a dataset follows.

Tokens: 0 PAD, which no board shows; above that, what stands in a cell. Inputs show the given cells
and hold the puzzle's empty token elsewhere; labels show the solution.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from common.errors import UserError
from dataset.canvas import COLOUR_OFFSET
from dataset.storage import BUILD_FILE, read_build

Boards = npt.NDArray[np.uint8]
"""[N, side * side] tokens."""

_MODULES = {
    "nqueens": "dataset.build_nqueens_dataset",
    "sudoku": "dataset.sudoku",
    "maze": "dataset.maze",
}
"""Where the `RULES` of each puzzle are."""


class Rules(NamedTuple):
    """What makes an answer right, whatever the stored solution."""

    solution_tokens: range
    """Tokens that a solution may hold."""
    empty: int
    """Token of the cells of an input that are to be filled in; all others are given."""
    is_valid: Callable[[Boards, Boards], npt.NDArray[np.bool_]]
    """Of inputs and answers: whether each answer [N] is complete and obeys the rules."""
    exact_ceiling: Callable[[Boards], npt.NDArray[np.float64]]
    """Of inputs: the best chance [N] that an answer can have of being the very solution stored."""


def rules_of(puzzle: str) -> Rules:
    """The rules of a puzzle that `puzzle_of` has named."""
    # Loaded only when asked for: training on ARC needs no solver and no builder.
    rules: Rules = import_module(_MODULES[puzzle]).RULES
    return rules


def keeps_given(rules: Rules, inputs: Boards, answers: Boards) -> npt.NDArray[np.bool_]:
    """Whether each answer [N] leaves the given cells of its input as they are."""
    return np.all((inputs == rules.empty) | (inputs == answers), axis=1)


def puzzle_of(dataset_path: Path) -> str | None:
    """Whose rules a dataset's boards follow: nqueens, sudoku or maze; None for all other datasets.

    Raises:
        UserError: `build.json` names a puzzle that is not known.
    """
    puzzle = read_build(dataset_path).puzzle
    if puzzle is not None and puzzle not in _MODULES:
        raise UserError(
            f"{dataset_path / BUILD_FILE}: no such puzzle as '{puzzle}', there are "
            f"{', '.join(_MODULES)}"
        )
    return puzzle


def solution_tokens(dataset_path: Path, vocab_size: int) -> range:
    """Tokens that cells of a solution may have: by the puzzle's rules, or ARC's colours."""
    puzzle = puzzle_of(dataset_path)
    return rules_of(puzzle).solution_tokens if puzzle else range(COLOUR_OFFSET, vocab_size)
