r"""Build a dataset of Sudokus: generated ones, or those of CSV files.

    python -m dataset.build_sudoku_dataset --output-dir data/sudoku
    python -m dataset.build_sudoku_dataset --output-dir data/sudoku-extreme \
        --csv train.csv --test-csv test.csv

Training puzzles come with `--num-aug` random variants each, a group together; variants are drawn
independently, so that two may be equal, if very seldom. Test puzzles come as they are, and none is
the board of a training puzzle or variant. All that is random about a generated puzzle comes from
(seed, half, number), so the bytes do not depend on the number of workers.

A CSV file has a header, a column with puzzles and one with solutions: 81 digits row by row, '.' or
'0' for an empty cell. The defaults are the columns of Sudoku-Extreme. Every row's
solution is checked; that there is no other takes a search, done for 1,000 puzzles of each half.
`--num-train` and `--num-test` different puzzles are drawn from the rows: both halves from the files
of `--csv`, which must have so many, or the test half from `--test-csv`; then a half has all puzzles
of its files where they are fewer, and training leaves out what is in the test half.
"""

import logging
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from common.errors import CommandParser, UserError, exit_cleanly, require_in_range
from common.files import atomic_directory, require_new_directory
from common.processes import num_cpus, worker_processes
from dataset.boards import EMPTY, Boards, BoardSplit, write_build_record, write_split
from dataset.import_sudoku import CsvFiles, draw_halves
from dataset.sudoku import (
    CELLS,
    FEWEST_CLUES,
    VOCAB_SIZE,
    Puzzles,
    draw_symmetries,
    generate,
    solve,
)

log = logging.getLogger(__name__)

PUZZLE = "sudoku"
TRAIN, TEST, AUGMENTATION = range(3)
"""Independent streams of random numbers."""
DEFAULT_CLUES = (24, 40)
MEASURED = 1000
"""Puzzles of a half whose difficulty is measured: a large file's would take hours."""
_QUANTILES = {"least": 0.0, "10%": 0.1, "median": 0.5, "90%": 0.9, "most": 1.0}


@dataclass(frozen=True)
class BuildOptions:
    """The command line, as parsed."""

    output_dir: Path
    num_train: int = 1000
    num_test: int = 1000
    num_aug: int = 100
    clues: tuple[int, int] = DEFAULT_CLUES
    """Fewest and most, for generated puzzles."""
    csv: tuple[Path, ...] = ()
    """Files to import; none: generate."""
    test_csv: Path | None = None
    puzzle_column: str = "question"
    solution_column: str = "answer"
    seed: int = 42
    workers: int = 1

    @property
    def files(self) -> CsvFiles:
        """What to import; empty: generate."""
        return CsvFiles(self.csv, self.test_csv, self.puzzle_column, self.solution_column)


@dataclass(frozen=True)
class Spread:
    """How a figure is distributed over puzzles."""

    mean: float
    quantiles: dict[str, float]

    @classmethod
    def of(cls, values: npt.NDArray[np.int64]) -> "Spread":
        levels = np.quantile(values, list(_QUANTILES.values()), method="nearest").tolist()
        return cls(float(np.mean(values)), dict(zip(_QUANTILES, levels, strict=True)))

    def __str__(self) -> str:
        quantiles = ", ".join(f"{name} {value:,}" for name, value in self.quantiles.items())
        return f"mean {self.mean:.1f}, {quantiles}"


@dataclass(frozen=True)
class HalfSummary:
    """The train or test half."""

    puzzles: int
    boards: int
    """Puzzles and variants."""
    clues: Spread
    difficulty_measured_of: int
    """Puzzles, the first ones: they stand in random order."""
    difficulty: Spread
    """Guesses of the solver, see `dataset.sudoku.Verdict`."""
    solved_by_singles: float
    """Share of the measured puzzles that take no guess."""

    def lines(self, name: str) -> Iterator[str]:
        """One line of text for each figure."""
        yield f"  {name}: {self.puzzles:,} puzzles, {self.boards:,} boards"
        yield f"    clues: {self.clues}"
        yield f"    guesses (of {self.difficulty_measured_of:,} puzzles): {self.difficulty}"
        yield f"    solved by singles alone: {self.solved_by_singles:.1%}"


@dataclass(frozen=True)
class Summary:
    """What was built; printed, and kept in `build.json` beside the options."""

    train: HalfSummary
    test: HalfSummary

    def lines(self) -> Iterator[str]:
        """One line of text for each figure."""
        yield from self.train.lines("train")
        yield from self.test.lines("test")


def build(options: BuildOptions) -> Summary:
    """Build the dataset; `options.output_dir` appears only when it is complete.

    Raises:
        UserError: bad options or input files, or an output folder that exists.
    """
    _check(options)
    with (
        worker_processes(options.workers) as executor,
        atomic_directory(options.output_dir) as folder,
    ):
        if options.csv:
            train, test = _import_halves(options)
        else:
            train, test = (_generate_half(options, half, executor) for half in (TRAIN, TEST))
        halves = {"train": _augment(train, options), "test": _alone(test)}
        _require_disjoint(halves["train"].inputs, halves["test"].inputs)
        summary = Summary(
            _summarise(train, halves["train"], options, executor),
            _summarise(test, halves["test"], options, executor),
        )
        for name, split in halves.items():
            write_split(folder, name, split, VOCAB_SIZE)
        write_build_record(folder, PUZZLE, _described(options), asdict(summary))
    return summary


def _check(options: BuildOptions) -> None:
    limits = (
        ("--num-train", options.num_train, 1),
        ("--num-test", options.num_test, 1),
        ("--num-aug", options.num_aug, 0),
        ("--seed", options.seed, 0),
        ("--workers", options.workers, 1),
    )
    for limit in limits:
        require_in_range(*limit)
    fewest, most = options.clues
    if not FEWEST_CLUES <= fewest <= most < CELLS:
        raise UserError(
            f"--clues {fewest} {most}: must be two numbers from {FEWEST_CLUES}, the fewest that "
            f"determine a solution, to {CELLS - 1}, the lower one first"
        )
    if options.test_csv and not options.csv:
        raise UserError("--test-csv needs --csv FILE, the puzzles to train on")
    for path in options.files.paths:
        if not path.is_file():
            raise UserError(f"{path} does not exist or is no file: check --csv and --test-csv")
    require_new_directory(options.output_dir, "--output-dir", "remove it or choose another folder")


def _described(options: BuildOptions) -> dict[str, object]:
    """The options that the bytes depend on: of CSV files that is what they contain."""
    described = asdict(options)
    for irrelevant in ("output_dir", "workers", "csv", "test_csv"):
        del described[irrelevant]
    if not options.csv:
        del described["puzzle_column"], described["solution_column"]
        return described
    del described["clues"]
    described["csv_sha256"] = options.files.digests()
    described["has_test_csv"] = options.test_csv is not None
    return described


# ---- puzzles ---------------------------------------------------------------------------------


def _import_halves(options: BuildOptions) -> tuple[Puzzles, Puzzles]:
    train_rng, test_rng = (np.random.default_rng([options.seed, half]) for half in (TRAIN, TEST))
    return draw_halves(options.files, options.num_train, options.num_test, train_rng, test_rng)


def _generate_half(options: BuildOptions, half: int, executor: Executor) -> Puzzles:
    count = options.num_test if half == TEST else options.num_train
    one = partial(_generate_one, seed=options.seed, half=half, clues=options.clues)
    results = executor.map(one, range(count), chunksize=16)
    name = "test puzzles" if half == TEST else "training puzzles"
    inputs, labels = zip(*tqdm(results, total=count, desc=name, unit="puzzle"), strict=True)
    return Puzzles(np.stack(inputs), np.stack(labels), np.zeros((count, 2), dtype=np.int64))


def _generate_one(
    number: int, seed: int, half: int, clues: tuple[int, int]
) -> tuple[Boards, Boards]:
    return generate(clues, np.random.default_rng([seed, half, number]))


# ---- halves ----------------------------------------------------------------------------------


def _alone(puzzles: Puzzles) -> BoardSplit:
    """Every puzzle a group of its own."""
    sizes = np.ones(len(puzzles.inputs), dtype=np.int64)
    return BoardSplit(puzzles.inputs, puzzles.labels, group_sizes=sizes)


def _augment(puzzles: Puzzles, options: BuildOptions) -> BoardSplit:
    """Every puzzle followed by its variants, a group together."""
    size = options.num_aug + 1
    count = len(puzzles.inputs)
    inputs, labels = (np.empty((count, size, CELLS), dtype=np.uint8) for _ in range(2))
    inputs[:, 0], labels[:, 0] = puzzles.inputs, puzzles.labels
    for number in range(count):
        rng = np.random.default_rng([options.seed, AUGMENTATION, number])
        symmetries = draw_symmetries(options.num_aug, rng)
        inputs[number, 1:] = symmetries.apply(puzzles.inputs[number : number + 1])
        labels[number, 1:] = symmetries.apply(puzzles.labels[number : number + 1])
    sizes = np.full(count, size, dtype=np.int64)
    return BoardSplit(inputs.reshape(-1, CELLS), labels.reshape(-1, CELLS), group_sizes=sizes)


def _require_disjoint(train_inputs: Boards, test_inputs: Boards) -> None:
    """Raise UserError if a test puzzle was met by chance, as a training puzzle or a variant."""
    test = {board.tobytes() for board in test_inputs}
    if any(board.tobytes() in test for board in train_inputs):
        raise UserError(
            "a test puzzle is a training puzzle or one of its variants: choose another --seed"
        )


def _summarise(
    puzzles: Puzzles, split: BoardSplit, options: BuildOptions, executor: Executor
) -> HalfSummary:
    """Describe a half, and check that the puzzles measured have one solution each."""
    measured = puzzles.inputs[:MEASURED]
    verdicts = list(executor.map(solve, measured, chunksize=16))
    for verdict, (file, line) in zip(verdicts, puzzles.lines.tolist(), strict=False):
        if verdict.num_solutions != 1:
            assert options.csv, "generated puzzles have one solution"
            raise UserError(
                f"{options.files.paths[file]}, line {line}: the puzzle has more than one solution; "
                f"remove the row"
            )
    guesses = np.array([verdict.guesses for verdict in verdicts])
    return HalfSummary(
        puzzles=len(puzzles.inputs),
        boards=len(split.inputs),
        clues=Spread.of(np.sum(puzzles.inputs != EMPTY, axis=1)),
        difficulty_measured_of=len(verdicts),
        difficulty=Spread.of(guesses),
        solved_by_singles=float(np.mean(guesses == 0)),
    )


# ---- the command line ------------------------------------------------------------------------


def parse_arguments() -> BuildOptions:
    parser = CommandParser(
        prog="python -m dataset.build_sudoku_dataset",
        description="Build a dataset of Sudokus, generated or from CSV files.",
    )
    add = parser.add_argument
    add("--output-dir", required=True, type=Path, help="folder to create; must not exist")
    add("--num-train", type=int, default=1000, help="training puzzles")
    add("--num-test", type=int, default=1000, help="test puzzles")
    add("--num-aug", type=int, default=100, help="variants per training puzzle besides itself")
    add("--clues", type=int, nargs=2, metavar=("FEWEST", "MOST"),
        help="generated puzzles: clues to aim at, drawn uniformly; below some 25 more may be left "
        f"({DEFAULT_CLUES[0]} {DEFAULT_CLUES[1]} by default)")  # fmt: skip
    add("--csv", type=Path, nargs="+", default=[], metavar="FILE",
        help="import the puzzles of these files instead of generating some")  # fmt: skip
    add("--test-csv", type=Path, metavar="FILE",
        help="take the test half from this file; without it both come from --csv")  # fmt: skip
    add("--puzzle-column", default="question", help="the column of a CSV file with the puzzles")
    add("--solution-column", default="answer", help="and the one with their solutions")
    add("--seed", type=int, default=42, help="same seed, same bytes")
    add("--workers", type=int, default=num_cpus(), help="processes")
    args = parser.parse_args()
    if args.csv and args.clues:
        raise UserError("--clues is for generated puzzles: leave it out, or leave out --csv")
    values = {**vars(args), "csv": tuple(args.csv), "clues": tuple(args.clues or DEFAULT_CLUES)}
    return BuildOptions(**values)


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
