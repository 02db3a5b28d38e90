"""Sudokus of CSV files, for `dataset.build_sudoku_dataset`: every row is checked, then some drawn.

A file has a header, a column with puzzles and one with solutions: 81 digits row by row, '.' or '0'
for an empty cell. That a puzzle has one solution only is not checked here, as it takes a search.
"""

import csv
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from common.errors import UserError
from dataset.boards import EMPTY, Boards, keeps_given
from dataset.canvas import PAD
from dataset.sudoku import CELLS, SIDE, Puzzles, Sudoku

ROWS_AT_ONCE = 1 << 15

_CHARACTER_TOKENS = np.full(256, PAD, dtype=np.uint8)
_CHARACTER_TOKENS[[ord(character) for character in ".0"]] = EMPTY
_CHARACTER_TOKENS[ord("1") : ord("9") + 1] = EMPTY + np.arange(1, SIDE + 1)


@dataclass(frozen=True)
class CsvFiles:
    """What to import."""

    train: tuple[Path, ...]
    test: Path | None
    """None: both halves come from `train`."""
    puzzle_column: str
    solution_column: str

    @property
    def paths(self) -> list[Path]:
        """All files, in the order in which `Puzzles.lines` counts them."""
        return [*self.train, *([self.test] if self.test else [])]

    def digests(self) -> list[str]:
        """SHA-256 of what each file contains."""
        digests = []
        for path in self.paths:
            with path.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        return digests


def draw_halves(
    files: CsvFiles,
    num_train: int,
    num_test: int,
    train_rng: np.random.Generator,
    test_rng: np.random.Generator,
) -> tuple[Puzzles, Puzzles]:
    """Training and test puzzles drawn from the files, all different.

    Raises:
        UserError: a file is no CSV file of puzzles, by its line, or there are too few puzzles.
    """
    read = [_read_csv(path, number, files) for number, path in enumerate(files.paths)]
    train_pool = Puzzles.join(read[: len(files.train)])
    test_pool = read[-1] if files.test else train_pool
    taken: set[bytes] = set()
    # The test half first: it does not depend on how many puzzles there are to train on.
    test = _choose(test_pool, num_test, test_rng, taken)
    train = _choose(train_pool, num_train, train_rng, taken)
    if not files.test and len(taken) < num_train + num_test:
        raise UserError(
            f"--csv: {len(taken)} different puzzles cannot give --num-train {num_train} "
            f"and --num-test {num_test}: ask for fewer, or name a --test-csv"
        )
    if not len(train.inputs) or not len(test.inputs):
        raise UserError(
            f"--csv and --test-csv leave {len(train.inputs)} puzzles to train on and "
            f"{len(test.inputs)} to test: each half must have one that the other has not"
        )
    return train, test


def _choose(pool: Puzzles, count: int, rng: np.random.Generator, taken: set[bytes]) -> Puzzles:
    """Up to `count` random puzzles that are not `taken` yet, and are now."""
    chosen: list[int] = []
    for row in rng.permutation(len(pool.inputs)).tolist():
        if len(chosen) == count:
            break
        board = pool.inputs[row].tobytes()
        if board not in taken:
            taken.add(board)
            chosen.append(row)
    return pool.take(np.array(chosen, dtype=np.int64))


def _read_csv(path: Path, number: int, files: CsvFiles) -> Puzzles:
    """All puzzles of a file, the `number`-th of `files`.

    Raises:
        UserError: no such column, or a row that is no puzzle with its solution, by its line.
    """
    empty = np.empty((0, CELLS), dtype=np.uint8)
    chunks = [Puzzles(empty, empty, np.empty((0, 2), dtype=np.int64))]
    # Undecodable bytes become characters that no board can have, and so an error with its line.
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        rows = tqdm(_read_rows(file, path, files), desc=f"reading {path.name}", unit="row")
        iterator = iter(rows)  # Of the progress bar, which is no iterator itself.
        while chunk := list(islice(iterator, ROWS_AT_ONCE)):
            lines, puzzles, solutions = zip(*chunk, strict=True)
            boards = Puzzles(
                _to_boards(puzzles),
                _to_boards(solutions),
                np.stack([np.full(len(lines), number), np.array(lines)], axis=1),
            )
            _require_puzzles(boards, path)
            chunks.append(boards)
    return Puzzles.join(chunks)


def _read_rows(file: Iterable[str], path: Path, files: CsvFiles) -> Iterator[tuple[int, str, str]]:
    """Line number, puzzle and solution of every row, the latter two as 81 characters."""
    reader = csv.reader(file)
    try:
        header = next(reader, [])
        columns = [
            _find_column(path, header, "--puzzle-column", files.puzzle_column),
            _find_column(path, header, "--solution-column", files.solution_column),
        ]
        for row in reader:
            if not row:
                continue  # A blank line.
            if len(row) != len(header):
                raise UserError(
                    f"{path}, line {reader.line_num}: {len(row)} columns, but the header has "
                    f"{len(header)}; correct or remove the row"
                )
            puzzle, solution = (row[column].strip() for column in columns)
            for name, cells in (("puzzle", puzzle), ("solution", solution)):
                if len(cells) != CELLS:
                    raise UserError(
                        f"{path}, line {reader.line_num}: the {name} has {len(cells)} cells, "
                        f"expected {CELLS}; correct or remove the row"
                    )
            yield reader.line_num, puzzle, solution
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}; is it a CSV file?") from error


def _find_column(path: Path, header: list[str], flag: str, name: str) -> int:
    if name not in header:
        raise UserError(
            f"{path}: no column '{name}' in its header, which has '{','.join(header)}'; name it "
            f"with {flag}"
        )
    return header.index(name)


def _to_boards(texts: Sequence[str]) -> Boards:
    """Tokens [n, 81] of 81 characters each, PAD for one that means nothing."""
    # One byte for each character, whatever it is.
    characters = np.frombuffer("".join(texts).encode("ascii", "replace"), dtype=np.uint8)
    return _CHARACTER_TOKENS[characters].reshape(len(texts), CELLS)


def _require_puzzles(boards: Puzzles, path: Path) -> None:
    """Raise UserError for the first row that is none."""
    problems = {
        "the puzzle has characters other than 1 to 9, and '.' or '0' for an empty cell": np.any(
            boards.inputs == PAD, axis=1
        ),
        "the solution is no full board that obeys the rules": ~Sudoku().is_valid(boards.labels),
        "the clues contradict the solution": ~keeps_given(boards.inputs, boards.labels),
    }
    bad = np.any(list(problems.values()), axis=0)
    if bad.any():
        row = int(bad.argmax())
        problem = next(text for text, rows in problems.items() if rows[row])
        raise UserError(
            f"{path}, line {boards.lines[row, 1]}: {problem}; correct or remove the row"
        )
