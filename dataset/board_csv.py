"""Puzzles in CSV files, as Sudoku-Extreme and Maze-30x30-hard of HRM are published.

A file has a header with the columns `source, question, answer, rating`, of which question and
answer are read, by these names or others: a puzzle and its solution, one character per cell, row by
row. Which character means which token is the puzzle's `ALPHABET`. A file without a header, as RRN's
Sudokus have none, is read too: its first row then is a puzzle and its solution.
"""

import csv
import logging
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.progress import EXAMPLE, follow
from common.tokens import PAD
from dataset.boards import Rules, keeps_given
from dataset.build_boards import TEST, TRAIN, Half, PuzzleOptions

ROWS_AT_ONCE = 1 << 12

log = logging.getLogger(__name__)

Alphabet = dict[str, int]
"""The token of each character; of several characters for a token the first is written."""


def write_csv(path: Path, puzzles: Half, alphabet: Alphabet) -> None:
    """Write puzzles and solutions to a file that `draw_halves` reads."""
    characters = {token: character for character, token in reversed(alphabet.items())}
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["source", "question", "answer", "rating"])
        for pair in zip(puzzles.inputs.tolist(), puzzles.labels.tolist(), strict=True):
            question, answer = ("".join(characters[token] for token in board) for board in pair)
            writer.writerow(["", question, answer, 0])


def draw_halves(
    options: PuzzleOptions, alphabet: Alphabet, rules: Rules, cells: int | None = None
) -> tuple[Half, Half]:
    """Training and test puzzles drawn from the files of the options, all different.

    Both come from `options.csv`, which must have as many as are asked for. With `options.test_csv`
    a half has all puzzles of its files where they are fewer, and training leaves out those to test.
    Puzzles have `cells` cells; None: as many as the first, which is a square.

    Raises:
        UserError: a file is no CSV file of such puzzles, by its line, or there are too few.
    """
    train_pool = test_pool = _read_files(options.csv, options, alphabet, rules, cells)
    if options.test_csv:
        cells = train_pool.inputs.shape[1]
        test_pool = _read_files([options.test_csv], options, alphabet, rules, cells)
    taken: set[bytes] = set()
    # The test half first: it does not depend on how many puzzles there are to train on.
    test_rng, train_rng = (np.random.default_rng([options.seed, half]) for half in (TEST, TRAIN))
    test = _choose(test_pool, options.num_test, test_rng, taken)
    train = _choose(train_pool, options.num_train, train_rng, taken)
    if not options.test_csv and len(taken) < options.num_train + options.num_test:
        raise UserError(
            f"--csv: {len(taken)} different puzzles cannot give --num-train {options.num_train} "
            f"and --num-test {options.num_test}: ask for fewer, or name a --test-csv"
        )
    if not len(train.inputs):
        raise UserError(
            "--csv: no puzzle is left to train on, as all are in the test half: name other files"
        )
    return train, test


def _choose(pool: Half, count: int, rng: np.random.Generator, taken: set[bytes]) -> Half:
    """Up to `count` random puzzles that are not `taken` yet, and are now."""
    chosen: list[int] = []
    for row in rng.permutation(len(pool.inputs)).tolist():
        if len(chosen) == count:
            break
        board = pool.inputs[row].tobytes()
        if board not in taken:
            taken.add(board)
            chosen.append(row)
    return Half(pool.inputs[chosen], pool.labels[chosen])


def _read_files(
    paths: Sequence[Path],
    options: PuzzleOptions,
    alphabet: Alphabet,
    rules: Rules,
    cells: int | None,
) -> Half:
    """All puzzles of the files, every row checked."""
    tokens = np.array([alphabet.get(chr(code), PAD) for code in range(256)], dtype=np.uint8)
    parts: list[Half] = []
    for path in paths:
        num_parts, rows = len(parts), _read_rows(path, options, alphabet, cells)
        progress = follow(rows, f"reading {path.name}", EXAMPLE, examples=lambda _: 1)
        while chunk := list(islice(progress, ROWS_AT_ONCE)):
            lines, *texts = zip(*chunk, strict=True)
            # One byte for each character, whatever it is.
            encoded = ["".join(column).encode("ascii", "replace") for column in texts]
            inputs, labels = (
                tokens[np.frombuffer(text, dtype=np.uint8)].reshape(len(lines), -1)
                for text in encoded
            )
            parts.append(Half(inputs, labels))
            _require_puzzles(parts[-1], rules, alphabet, path, lines)
            cells = parts[-1].inputs.shape[1]
        if len(parts) == num_parts:
            raise UserError(f"{path} has no puzzles below its header: name another file")
    return Half(
        np.concatenate([part.inputs for part in parts]),
        np.concatenate([part.labels for part in parts]),
    )


def _read_rows(
    path: Path, options: PuzzleOptions, alphabet: Alphabet, cells: int | None
) -> Iterator[tuple[int, str, str]]:
    """Line number, puzzle and solution of every row, the latter two of one length."""
    # Undecodable bytes become characters that no board can have, and so an error with its line.
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        reader = csv.reader(file)
        try:
            first = next(reader, [])
            if boards := _board_columns(first, alphabet, cells):
                log.info("%s has no header: column %d is read as the puzzle, %d as its solution.",
                         path, *(column + 1 for column in boards))  # fmt: skip
            rows = chain([first] if boards else [], filter(None, reader))  # Without blank lines.
            columns = boards or _named_columns(first, options, path)
            for row in rows:
                if len(row) != len(first):
                    what = "first row" if boards else "header"
                    problem = f"{len(row)} columns, but the {what} has {len(first)}"
                    raise _row_error(path, reader.line_num, problem)
                puzzle, solution = (row[column] for column in columns)
                cells = cells or max(1, round(len(puzzle) ** 0.5) ** 2)
                if not len(puzzle) == len(solution) == cells:
                    problem = (
                        f"{len(puzzle)} cells in the puzzle and {len(solution)} in the solution, "
                        f"expected {cells} in both"
                    )
                    raise _row_error(path, reader.line_num, problem)
                yield reader.line_num, puzzle, solution
        except csv.Error as error:
            raise UserError(
                f"{path}, line {reader.line_num}: {error}; is it a CSV file?"
            ) from error


def _board_columns(row: list[str], alphabet: Alphabet, cells: int | None) -> list[int]:
    """Where a puzzle and its solution stand in a row; none if it is no such row but a header."""
    length = cells or max(map(len, row), default=0)
    boards = [
        column
        for column, text in enumerate(row)
        if len(text) == length and set(text) <= set(alphabet)
    ]
    return boards if length and len(boards) == 2 else []


def _named_columns(header: list[str], options: PuzzleOptions, path: Path) -> list[int]:
    """Where puzzle and solution stand by the header; UserError if it lacks one of them."""
    columns = {"puzzle": options.puzzle_column, "solution": options.solution_column}
    for name, column in columns.items():
        if column not in header:
            raise UserError(
                f"{path}: no column '{column}' in its header, which has "
                f"'{','.join(header)}'; name it with --{name}-column"
            )
    return [header.index(column) for column in columns.values()]


def _require_puzzles(
    puzzles: Half, rules: Rules, alphabet: Alphabet, path: Path, lines: Sequence[int]
) -> None:
    """Raise UserError for the first row that is no puzzle with its solution."""
    inputs, labels, _ = puzzles
    known = "".join(alphabet)
    problems = {
        f"the puzzle has characters that are none of '{known}'": np.any(inputs == PAD, axis=1),
        "the solution contradicts the puzzle": ~keeps_given(rules, inputs, labels),
        "the solution is not complete or breaks the rules": ~rules.is_valid(inputs, labels),
    }
    bad = np.any(list(problems.values()), axis=0)
    if bad.any():
        row = int(bad.argmax())
        problem = next(text for text, rows in problems.items() if rows[row])
        raise _row_error(path, lines[row], problem)


def _row_error(path: Path, line: int, problem: str) -> UserError:
    return UserError(f"{path}, line {line}: {problem}; correct or remove the row")
