"""8-queens: eight queens on an 8x8 board, no two in one row, column or diagonal (2511.16886).

An input shows some queens of a solution, the label all eight. Few queens leave several solutions
open, of which a dataset stores one: no answer can be sure to be that one, and
`EightQueens.exact_ceiling` says how likely the best is.
"""

from functools import lru_cache
from itertools import permutations, product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dataset.augmentation import NUM_DIHEDRALS, transform
from dataset.boards import EMPTY, Boards

SIDE = 8
CELLS = SIDE * SIDE
QUEEN = 2
VOCAB_SIZE = 3


def _lines() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Which cells [64, lines] are on each row and column, and on each diagonal, as 0 and 1."""
    row, column = np.divmod(np.arange(CELLS)[:, None], SIDE)
    straight = [row == np.arange(SIDE), column == np.arange(SIDE)]
    diagonals = [row + column == np.arange(2 * SIDE - 1), row - column == np.arange(1 - SIDE, SIDE)]
    return (
        np.concatenate(straight, axis=1).astype(np.float32),
        np.concatenate(diagonals, axis=1).astype(np.float32),
    )


_STRAIGHT, _DIAGONALS = _lines()


@lru_cache
def solutions() -> Boards:
    """All solutions [92, 64], ordered by the columns of their queens; read-only."""
    # A queen in each row and column is a permutation: few enough to look at them all.
    columns = np.array(list(permutations(range(SIDE))))
    boards = np.full((len(columns), CELLS), EMPTY, dtype=np.uint8)
    np.put_along_axis(boards, SIDE * np.arange(SIDE) + columns, QUEEN, axis=1)
    found = boards[EightQueens().is_valid(boards)]
    found.flags.writeable = False
    return found


def symmetric_images(boards: Boards) -> Boards:
    """The boards [8, N, 64] as they are, turned and reflected: a solution's are solutions."""
    grids = boards.reshape(-1, SIDE, SIDE)
    return np.stack(
        [transform(grids, dihedral).reshape(-1, CELLS) for dihedral in range(NUM_DIHEDRALS)]
    )


class EightQueens:
    """The `Rules` of the puzzle."""

    solution_tokens = range(EMPTY, QUEEN + 1)

    def is_valid(self, boards: Boards) -> npt.NDArray[np.bool_]:
        """Whether each board [N] holds eight queens, none of which attacks another."""
        is_queen = boards == QUEEN
        queens = is_queen.astype(np.float32)
        return (
            np.all(is_queen | (boards == EMPTY), axis=1)
            & np.all(queens @ _STRAIGHT == 1, axis=1)
            & np.all(queens @ _DIAGONALS <= 1, axis=1)
        )

    def exact_ceiling(self, inputs: Boards) -> npt.NDArray[np.float64]:
        """One over the number of solutions [N] that contain the given queens; 0 if none does.

        As `PartialBoards` are drawn, all of these are equally likely to be the one that is stored.
        """
        given = (inputs == QUEEN).astype(np.float32)
        shared = given @ (solutions() == QUEEN).T.astype(np.float32)
        counts = np.sum(shared == given.sum(axis=1, keepdims=True), axis=1)
        return np.where(counts > 0, 1 / np.maximum(counts, 1), 0.0)


class PartialBoards(NamedTuple):
    """Every way to give 0 to 7 of a solution's queens, one row for each way.

    A uniformly drawn row among those of k given queens is a uniformly drawn solution and a
    uniformly drawn subset of k of its queens. A board stands here once for each of its solutions.
    """

    inputs: Boards
    """[23460, 64]: 92 solutions with 255 proper subsets each."""
    labels: Boards
    """[23460, 64]."""
    num_given: npt.NDArray[np.int64]
    """[23460] queens that the input shows."""
    board_ids: npt.NDArray[np.int64]
    """[23460]: equal exactly where the inputs are."""


@lru_cache
def partial_boards() -> PartialBoards:
    """All of them, in a fixed order; read-only."""
    subsets = np.array(list(product((False, True), repeat=SIDE)))[:-1]
    labels = np.repeat(solutions(), len(subsets), axis=0)
    is_given = np.tile(subsets, (len(solutions()), 1))
    queens = np.nonzero(labels == QUEEN)[1].reshape(-1, SIDE)
    inputs = np.full_like(labels, EMPTY)
    shown = np.where(is_given, QUEEN, EMPTY).astype(np.uint8)
    np.put_along_axis(inputs, queens, shown, axis=1)
    _, board_ids = np.unique(inputs, axis=0, return_inverse=True)
    boards = PartialBoards(inputs, labels, is_given.sum(axis=1), board_ids.reshape(-1))
    for array in boards:
        array.flags.writeable = False
    return boards


def draw_rows(
    num_given: npt.NDArray[np.int64], allowed: npt.NDArray[np.bool_], rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """For each entry of `num_given` [n] a row of `partial_boards()` with so many queens.

    Rows are drawn independently and uniformly among those `allowed` [23460].
    """
    rows = np.empty_like(num_given)
    for given in np.unique(num_given):
        candidates = np.flatnonzero(allowed & (partial_boards().num_given == given))
        wanted = num_given == given
        rows[wanted] = rng.choice(candidates, size=np.count_nonzero(wanted))
    return rows


def draw_distinct_rows(
    num_given: int, count: int, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """Rows [count] of `partial_boards()` with `num_given` queens whose boards are all different.

    As if rows were drawn one by one, and those whose board has come up already drawn again.
    """
    boards = partial_boards()
    drawn = rng.permutation(np.flatnonzero(boards.num_given == num_given))
    _, first = np.unique(boards.board_ids[drawn], return_index=True)
    assert count <= len(first), f"{count} of {len(first)} boards"
    return drawn[np.sort(first)[:count]]
