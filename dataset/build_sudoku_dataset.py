r"""Build a dataset of Sudokus: generated ones, or those of CSV files such as Sudoku-Extreme's.

    python -m dataset.build_sudoku_dataset --output-dir data/sudoku
    python -m dataset.build_sudoku_dataset --output-dir data/sudoku-extreme \
        --csv train.csv --test-csv test.csv

Training puzzles come with `--num-aug` random variants each, a group together; test puzzles come as
they are, and none is the board of a training puzzle or variant. All that is random about a
generated puzzle comes from (seed, half, number), so the bytes do not depend on the number of
workers.

`dataset.board_csv` says what a CSV file looks like and how puzzles are drawn from it; an empty cell
is '.' or '0'. Every solution is checked; that there is no other takes a search, done for the first
1,000 puzzles of each half.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Self

import numpy as np
from pydantic import Field, model_validator

from common.errors import UserError, exit_cleanly
from common.flags import parse_flags
from common.processes import num_cpus, worker_processes
from common.progress import EXAMPLE, follow
from dataset import sudoku
from dataset.board_csv import draw_halves
from dataset.boards import Boards
from dataset.build_boards import TEST, TRAIN, Half, PuzzleOptions, Summary, build_from_puzzles

DEFAULT_CLUES = (24, 40)
SEARCHED = 1000
"""Puzzles of a half that are searched for a second solution: a large file's would take hours."""


class BuildOptions(PuzzleOptions):
    """The command's flags."""

    clues: tuple[int, int] | None = Field(
        None,
        title="FEWEST MOST",
        description="generated puzzles: clues to aim at, drawn uniformly; below some 25 more may "
        f"be left ({DEFAULT_CLUES[0]} {DEFAULT_CLUES[1]} by default)",
    )
    workers: int = Field(default_factory=num_cpus, ge=1, exclude=True, description="processes")

    @model_validator(mode="after")
    def _clues_can_be_had(self) -> Self:
        if self.csv and self.clues:
            raise ValueError("--clues is for generated puzzles: leave it out, or leave out --csv")
        fewest, most = self.clues or DEFAULT_CLUES
        if not sudoku.FEWEST_CLUES <= fewest <= most < sudoku.CELLS:
            raise ValueError(
                f"--clues {fewest} {most}: must be two numbers from {sudoku.FEWEST_CLUES}, the "
                f"fewest that determine a solution, to {sudoku.CELLS - 1}, the lower one first"
            )
        return self


def build(options: BuildOptions) -> Summary:
    """Build the dataset; `options.output_dir` appears only when it is complete.

    Raises:
        UserError: bad input files, or too few puzzles in them.
    """
    with worker_processes(options.workers) as executor:
        if options.csv:
            train, test = draw_halves(options, sudoku.ALPHABET, sudoku.RULES, sudoku.CELLS)
            for puzzles in (train, test):
                _require_one_solution(puzzles.inputs[:SEARCHED], executor)
        else:
            clues = options.clues or DEFAULT_CLUES
            options = options.model_copy(update={"clues": clues})  # As `build.json` has them.
            train = _generate(clues, options.num_train, [options.seed, TRAIN], executor)
            test = _generate(clues, options.num_test, [options.seed, TEST], executor)
    return build_from_puzzles(
        options, "sudoku", sudoku.VOCAB_SIZE, train, test, sudoku.draw_variants
    )


def _require_one_solution(puzzles: Boards, executor: Executor) -> None:
    results = executor.map(sudoku.has_one_solution, puzzles, chunksize=16)
    progress = follow(results, "searching", EXAMPLE, len(puzzles), lambda _: 1)
    for puzzle, is_single in zip(puzzles, progress, strict=True):
        if not is_single:
            text = "".join("." if token == sudoku.EMPTY else str(token - 1) for token in puzzle)
            raise UserError(f"--csv, --test-csv: {text} has several solutions; remove its row")


def _generate(clues: Sequence[int], count: int, seed: Sequence[int], executor: Executor) -> Half:
    rngs = (np.random.default_rng([*seed, number]) for number in range(count))
    results = executor.map(partial(sudoku.generate, clues), rngs, chunksize=16)
    progress = follow(results, "generating", EXAMPLE, count, lambda _: 1)
    inputs, labels = zip(*progress, strict=True)
    return Half(np.stack(inputs), np.stack(labels))


@exit_cleanly
def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    build(parse_flags(BuildOptions, "python -m dataset.build_sudoku_dataset", __doc__))


if __name__ == "__main__":
    main()
