"""8-queens: its rules, and a dataset of 7,200 boards to train on and 200 to test (2511.16886).

    python -m dataset.build_nqueens_dataset --output-dir data/nqueens

Eight queens stand on an 8x8 board, no two in one row, column or diagonal. A label is a uniformly
random solution, its input shows a random subset of the queens, 0 to 7: the number uniform, then the
subset. The paper states board size, queens given and the two counts; how boards are drawn is our
reading. Few queens leave several solutions open, of which a dataset stores one: `exact_ceiling`
says how likely the best answer is to be that one. Of boards with several, a network that knows all
probabilities and answers each cell by itself solves next to none: it would have to choose. The
summary says how many have one solution.

`--split paper` draws all boards independently. There are few boards with few queens (64 with one),
so that most test boards are training boards too: the summary counts them.

`--split disjoint` tests on boards that are not trained on. They are chosen first, all different,
evenly over 1 to 7 queens but at most half of the boards that exist for a number (32 with one
queen), and training boards are drawn as above from the others. What is new about test boards are
the given queens: all 92 solutions stand among training labels, and most test boards are a training
board turned or reflected, which the summary counts.

`--num-aug 7` adds every training board turned and reflected, as the rules hold for all eight forms.
With `--split disjoint` a form that is a test board is not one of them.
"""

import logging
from functools import lru_cache
from itertools import permutations, product
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from common.errors import UserError, exit_cleanly
from common.flags import parse_flags
from dataset import build_boards
from dataset.augmentation import NUM_DIHEDRALS, transform
from dataset.boards import Boards, Rules
from dataset.build_boards import Half, Summary, write_dataset

SIDE = 8
CELLS = SIDE * SIDE
EMPTY = 1
QUEEN = 2
VOCAB_SIZE = 3

Rows = npt.NDArray[np.int64]
"""Rows of `partial_boards()`."""


# ---- rules -----------------------------------------------------------------------------------


def is_valid(inputs: Boards, answers: Boards) -> npt.NDArray[np.bool_]:
    """Whether each answer [N, 64] holds eight queens, none of which attacks another."""
    is_queen = (answers == QUEEN).reshape(-1, SIDE, SIDE)
    is_right = np.all((answers == QUEEN) | (answers == EMPTY), axis=1)
    for axis in (1, 2):
        is_right &= np.all(is_queen.sum(axis=axis) == 1, axis=1)
    for offset in range(1 - SIDE, SIDE):
        for boards in (is_queen, is_queen[:, :, ::-1]):
            is_right &= boards.diagonal(offset, axis1=1, axis2=2).sum(axis=1) <= 1
    return is_right


def exact_ceiling(inputs: Boards) -> npt.NDArray[np.float64]:
    """One over the number of solutions [N] that contain the given queens; 0 if none does.

    All of these are equally likely to be the one that is stored.
    """
    given = (inputs == QUEEN).astype(np.float32)
    shared = given @ (solutions() == QUEEN).T.astype(np.float32)
    counts = np.sum(shared == given.sum(axis=1, keepdims=True), axis=1)
    return np.where(counts > 0, 1 / np.maximum(counts, 1), 0.0)


RULES = Rules(range(EMPTY, QUEEN + 1), EMPTY, is_valid, exact_ceiling)


@lru_cache
def solutions() -> Boards:
    """All solutions [92, 64], ordered by the columns of their queens; read-only."""
    # A queen in each row and column is a permutation: few enough to look at them all.
    columns = np.array(list(permutations(range(SIDE))))
    boards = np.full((len(columns), CELLS), EMPTY, dtype=np.uint8)
    np.put_along_axis(boards, SIDE * np.arange(SIDE) + columns, QUEEN, axis=1)
    found = boards[is_valid(boards, boards)]
    found.flags.writeable = False
    return found


# ---- boards to draw from ---------------------------------------------------------------------


class PartialBoards(NamedTuple):
    """Every way to give 0 to 7 of a solution's queens: a board once for each of its solutions.

    A uniform row among those of k given queens is a uniform solution and a uniform subset of it.
    """

    inputs: Boards
    labels: Boards
    """[23460, 64]: 92 solutions with 255 proper subsets each."""
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
    # Boards list their queens row by row, and so do the subsets.
    inputs = np.full_like(labels, EMPTY)
    inputs[labels == QUEEN] = np.where(is_given, QUEEN, EMPTY).ravel()
    _, board_ids = np.unique(inputs, axis=0, return_inverse=True)
    boards = PartialBoards(inputs, labels, is_given.sum(axis=1), board_ids.reshape(-1))
    for array in boards:
        array.flags.writeable = False
    return boards


def draw_rows(count: int, allowed: npt.NDArray[np.bool_], rng: np.random.Generator) -> Rows:
    """Rows [count] that are `allowed` [23460]: the number of queens uniform, then the row."""
    num_given = rng.integers(SIDE, size=count)
    rows = np.empty_like(num_given)
    for given in np.unique(num_given):
        candidates = np.flatnonzero(allowed & (partial_boards().num_given == given))
        wanted = num_given == given
        rows[wanted] = rng.choice(candidates, size=np.count_nonzero(wanted))
    return rows


def draw_distinct_rows(num_given: int, count: int, rng: np.random.Generator) -> Rows:
    """Rows [count] with `num_given` queens, drawn one by one: a board that came up is left out."""
    boards = partial_boards()
    drawn = rng.permutation(np.flatnonzero(boards.num_given == num_given))
    _, first = np.unique(boards.board_ids[drawn], return_index=True)
    assert count <= len(first), f"{count} of {len(first)} boards"
    return drawn[np.sort(first)[:count]]


def spread_evenly(total: int, limits: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Counts [n] that add up to `total`, as equal as their limits allow; it must fit into them."""
    counts = np.zeros_like(limits)
    # The tightest limits first: what they do not take is shared by those that follow.
    order = np.argsort(limits, kind="stable")
    for place, index in enumerate(order):
        counts[index] = min(limits[index], (total - counts.sum()) // (len(limits) - place))
    assert counts.sum() == total, f"{total} do not fit into {limits}"
    return counts


# ---- the builder -----------------------------------------------------------------------------


class BuildOptions(build_boards.BuildOptions):
    """The command's flags."""

    num_train: int = Field(7200, ge=1, description="boards to train on")
    num_test: int = Field(200, ge=1, description="boards to test on")
    split: Literal["paper", "disjoint"] = Field(
        "paper",
        description="paper: all boards drawn independently, so that most test boards are training "
        "boards too; disjoint: no test board is a training board",
    )
    num_aug: int = Field(
        0,
        ge=0,
        lt=NUM_DIHEDRALS,
        description="turned or reflected forms of each training board besides itself",
    )


def build(options: BuildOptions) -> Summary:
    """Build the dataset; `options.output_dir` appears only when it is complete.

    Raises:
        UserError: there are not so many boards to test on.
    """
    boards = partial_boards()
    rng = np.random.default_rng(options.seed)
    allowed = np.ones(len(boards.inputs), dtype=np.bool_)
    if options.split == "paper":
        train = draw_rows(options.num_train, allowed, rng)
        test = draw_rows(options.num_test, allowed, rng)
    else:
        # Half of the boards with each number of queens, 0 to 7: the others are for training.
        _, different = np.unique(boards.board_ids, return_index=True)
        limits = np.bincount(boards.num_given[different]) // 2
        if options.num_test > limits.sum():
            raise UserError(
                f"--num-test {options.num_test}: with --split disjoint it must be {limits.sum()} "
                f"or fewer, half of all boards with at least one queen; ask for fewer"
            )
        counts = spread_evenly(options.num_test, limits).tolist()
        chosen = [draw_distinct_rows(given, count, rng) for given, count in enumerate(counts)]
        # In no order: any part of the test half is one of all numbers of queens.
        test = rng.permutation(np.concatenate(chosen))
        allowed = ~np.isin(boards.board_ids, boards.board_ids[test])
        train = draw_rows(options.num_train, allowed, rng)
    train_half, test_half = (
        Half(boards.inputs[rows], boards.labels[rows]) for rows in (train, test)
    )
    hidden = test_half.inputs if options.split == "disjoint" else test_half.inputs[:0]
    train_half = _with_forms(train_half, options.num_aug, hidden)
    return write_dataset(
        options, "nqueens", VOCAB_SIZE, (train_half, test_half), _summarise(train_half, test_half)
    )


def _with_forms(boards: Half, num_aug: int, hidden: Boards) -> Half:
    """Each board followed by forms of it; in place of one that is `hidden` the board once more."""
    dihedrals = range(num_aug + 1)
    # Inputs and labels alike: [2, boards, forms, cells].
    grids = np.stack([boards.inputs, boards.labels]).reshape(2, -1, SIDE, SIDE)
    forms = np.stack([transform(grids, dihedral) for dihedral in dihedrals], axis=2)
    forms = forms.reshape(*forms.shape[:3], CELLS)
    known = {board.tobytes() for board in hidden}
    is_hidden = np.array([[form.tobytes() in known for form in group] for group in forms[0]])
    chosen = np.where(is_hidden, 0, dihedrals)[None, :, :, None]
    inputs, labels = np.take_along_axis(forms, chosen, axis=2).reshape(2, -1, CELLS)
    return Half(inputs, labels, num_aug + 1)


def _summarise(train: Half, test: Half) -> Summary:
    trained = {board.tobytes() for board in train.inputs}
    grids = test.inputs.reshape(-1, SIDE, SIDE)
    met = [
        [board.tobytes() in trained for board in transform(grids, dihedral)]
        for dihedral in range(NUM_DIHEDRALS)
    ]
    ceilings = exact_ceiling(test.inputs)
    return {
        "train_boards": len(train.inputs),
        "test_boards": len(test.inputs),
        "test_boards_among_training_boards": int(np.sum(met[0])),
        "test_boards_turned_or_reflected_among_training_boards": int(np.any(met, axis=0).sum()),
        "exact_ceiling": float(ceilings.mean()),
        "share_with_one_solution": float((ceilings == 1).mean()),
    }


@exit_cleanly
def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    build(parse_flags(BuildOptions, "python -m dataset.build_nqueens_dataset", __doc__))


if __name__ == "__main__":
    main()
