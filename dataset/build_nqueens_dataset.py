r"""Build a dataset of 8-queens boards: 7,200 to train on and 200 to test, as in 2511.16886.

    python -m dataset.build_nqueens_dataset --output-dir data/nqueens

Each board is a uniformly random solution of which 0 to 7 queens are given, the number uniform and
the queens a uniformly random subset. The paper states board size, queens given and the two counts;
that its boards were drawn so is our reading, as it does not say how they were.

`--split paper` draws all boards independently. There are few boards with few queens (the empty one,
64 with one queen), so most of the test boards are training boards too: the summary counts them.

`--split disjoint` tests on boards that are not trained on. Test boards are chosen first, all
different, and training boards are drawn as above from the others: the number of given queens is
drawn before the board, so training has every number as often as without the split. The empty board
is a single one and stays in training; test boards spread evenly over 1 to 7 queens, but for a limit
of half of the boards that exist for a number (32 with one queen), so that training sees the rest.
What is new about them are the given queens: of the 92 solutions, all stand among training labels,
and most test boards are a training board turned or reflected, which the summary counts.
"""

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from common.errors import CommandParser, UserError, exit_cleanly, require_in_range
from common.files import atomic_directory, require_new_directory
from dataset.boards import BoardSplit, write_build_record, write_split
from dataset.nqueens import (
    SIDE,
    VOCAB_SIZE,
    EightQueens,
    draw_distinct_rows,
    draw_rows,
    partial_boards,
    symmetric_images,
)

log = logging.getLogger(__name__)

PUZZLE = "nqueens"
SplitKind = Literal["paper", "disjoint"]
Rows = npt.NDArray[np.int64]
"""Rows of `partial_boards()`."""


@dataclass(frozen=True)
class BuildOptions:
    """The command line, as parsed."""

    output_dir: Path
    split: SplitKind = "paper"
    num_train: int = 7200
    num_test: int = 200
    seed: int = 42


@dataclass(frozen=True)
class GivenSummary:
    """Boards with one number of given queens."""

    train_boards: int
    test_boards: int
    exact_ceiling: float | None
    """Mean over these test boards; None if there are none."""


@dataclass(frozen=True)
class Summary:
    """What was built; printed, and kept in `build.json` beside the options."""

    train_boards: int
    different_train_boards: int
    test_boards: int
    different_test_boards: int
    test_boards_among_training_boards: int
    test_boards_turned_among_training_boards: int
    """Those that are a training board, or one turned or reflected."""
    exact_ceiling: float
    """The best exact match that can be expected on the test half."""
    by_given_queens: dict[str, GivenSummary]

    def lines(self) -> Iterator[str]:
        """One line of text for each figure."""
        yield f"  train boards: {self.train_boards:,} ({self.different_train_boards:,} different)"
        yield f"  test boards: {self.test_boards:,} ({self.different_test_boards:,} different)"
        yield (
            f"  test boards among training boards: {self.test_boards_among_training_boards:,}, "
            f"{self.test_boards_turned_among_training_boards:,} if turned or reflected"
        )
        yield f"  exact match on the test half, at best: {self.exact_ceiling:.1%}"
        for given, boards in self.by_given_queens.items():
            line = f"  {given} given: {boards.train_boards:,} train, {boards.test_boards:,} test"
            if boards.exact_ceiling is not None:
                line += f", exact match at best {boards.exact_ceiling:.1%}"
            yield line


def build(options: BuildOptions) -> Summary:
    """Build the dataset; `options.output_dir` appears only when it is complete.

    Raises:
        UserError: bad options, or an output folder that exists.
    """
    _check(options)
    rng = np.random.default_rng(options.seed)
    train, test = DRAW[options.split](options, rng)
    summary = _summarise(train, test)
    with atomic_directory(options.output_dir) as folder:
        for name, rows in (("train", train), ("test", test)):
            boards = partial_boards()
            alone = np.ones(len(rows), dtype=np.int64)
            split = BoardSplit(boards.inputs[rows], boards.labels[rows], group_sizes=alone)
            write_split(folder, name, split, VOCAB_SIZE)
        described = asdict(options)
        del described["output_dir"]
        write_build_record(folder, PUZZLE, described, asdict(summary))
    return summary


def _check(options: BuildOptions) -> None:
    limits = (
        ("--num-train", options.num_train, 1),
        ("--num-test", options.num_test, 1),
        ("--seed", options.seed, 0),
    )
    for limit in limits:
        require_in_range(*limit)
    most = int(_held_out_limits().sum())
    if options.split == "disjoint" and options.num_test > most:
        raise UserError(
            f"--num-test {options.num_test}: with --split disjoint it must be {most} or fewer, "
            f"half of all boards with at least one queen; ask for fewer"
        )
    require_new_directory(options.output_dir, "--output-dir", "remove it or choose another folder")


def _held_out_limits() -> npt.NDArray[np.int64]:
    """How many boards [8] with 0 to 7 queens a disjoint test half may have."""
    boards = partial_boards()
    return np.array(
        [len(np.unique(boards.board_ids[boards.num_given == given])) // 2 for given in range(SIDE)]
    )


def _draw_paper(options: BuildOptions, rng: np.random.Generator) -> tuple[Rows, Rows]:
    """Training and test rows, drawn alike."""
    everything = np.ones(len(partial_boards().inputs), dtype=np.bool_)
    train, test = (
        draw_rows(rng.integers(SIDE, size=count), everything, rng)
        for count in (options.num_train, options.num_test)
    )
    return train, test


def _draw_disjoint(options: BuildOptions, rng: np.random.Generator) -> tuple[Rows, Rows]:
    """Training and test rows without a common board."""
    counts = spread_evenly(options.num_test, _held_out_limits())
    chosen = [draw_distinct_rows(given, count, rng) for given, count in enumerate(counts.tolist())]
    # In no order: any part of the test half is one of all numbers of queens.
    test = rng.permutation(np.concatenate(chosen))
    board_ids = partial_boards().board_ids
    allowed = ~np.isin(board_ids, board_ids[test])
    return draw_rows(rng.integers(SIDE, size=options.num_train), allowed, rng), test


DRAW = {"paper": _draw_paper, "disjoint": _draw_disjoint}


def spread_evenly(total: int, limits: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Counts [n] that add up to `total`, as equal as their limits allow; it must fit into them."""
    counts = np.zeros_like(limits)
    # The tightest limits first: what they do not take is shared by those that follow.
    order = np.argsort(limits, kind="stable")
    for place, index in enumerate(order):
        counts[index] = min(limits[index], (total - counts.sum()) // (len(limits) - place))
    assert counts.sum() == total, f"{total} do not fit into {limits}"
    return counts


def _summarise(train: Rows, test: Rows) -> Summary:
    boards = partial_boards()
    ceilings = EightQueens().exact_ceiling(boards.inputs[test])
    by_given = {}
    for given in range(SIDE):
        of_test = boards.num_given[test] == given
        by_given[str(given)] = GivenSummary(
            train_boards=int(np.count_nonzero(boards.num_given[train] == given)),
            test_boards=int(np.count_nonzero(of_test)),
            exact_ceiling=float(ceilings[of_test].mean()) if of_test.any() else None,
        )
    train_ids, test_ids = boards.board_ids[train], boards.board_ids[test]
    seen = {board.tobytes() for board in boards.inputs[train]}
    looks = symmetric_images(boards.inputs[test]).swapaxes(0, 1)
    turned = [any(board.tobytes() in seen for board in of_board) for of_board in looks]
    return Summary(
        train_boards=len(train),
        different_train_boards=len(np.unique(train_ids)),
        test_boards=len(test),
        different_test_boards=len(np.unique(test_ids)),
        test_boards_among_training_boards=int(np.count_nonzero(np.isin(test_ids, train_ids))),
        test_boards_turned_among_training_boards=sum(turned),
        exact_ceiling=float(ceilings.mean()),
        by_given_queens=by_given,
    )


def parse_arguments() -> BuildOptions:
    parser = CommandParser(
        prog="python -m dataset.build_nqueens_dataset",
        description="Build a dataset of 8-queens boards with 0 to 7 queens given.",
    )
    add = parser.add_argument
    add("--output-dir", required=True, type=Path, help="folder to create; must not exist")
    add("--split", choices=get_args(SplitKind), default="paper",
        help="paper: all boards drawn independently, so that most test boards are training boards "
        "too; disjoint: no test board is a training board")  # fmt: skip
    add("--num-train", type=int, default=7200, help="training boards")
    add("--num-test", type=int, default=200, help="test boards")
    add("--seed", type=int, default=42, help="same seed, same bytes")
    return BuildOptions(**vars(parser.parse_args()))


@exit_cleanly
def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = parse_arguments()
    summary = build(options)
    log.info("Built %s:", options.output_dir)
    for line in summary.lines():
        log.info(line)


if __name__ == "__main__":
    main()
