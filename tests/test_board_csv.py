"""CSV files of Sudokus and mazes: what is written is read, what is no puzzle is named by line."""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from boards import solved_mazes
from common.errors import UserError
from dataset import board_csv, maze, sudoku
from dataset.board_csv import draw_halves, write_csv
from dataset.boards import Rules
from dataset.build_boards import Half, PuzzleOptions


class Kind(NamedTuple):
    """A puzzle, as files of it are read, and 60 examples."""

    alphabet: dict[str, int]
    rules: Rules
    cells: int | None
    puzzles: Half

    def write(self, path: Path, start: int = 0, stop: int = 60) -> Path:
        rows = slice(start, stop)
        write_csv(path, Half(self.puzzles.inputs[rows], self.puzzles.labels[rows]), self.alphabet)
        return path

    def draw(self, *paths: Path, **options: Any) -> tuple[Half, Half]:
        values = PuzzleOptions(output_dir=Path("out"), csv=paths, **options)
        return draw_halves(values, self.alphabet, self.rules, self.cells)


@pytest.fixture
def mazes() -> Kind:
    return Kind(maze.ALPHABET, maze.RULES, None, solved_mazes())


@pytest.fixture
def sudokus(generated_sudokus: tuple[np.ndarray, np.ndarray]) -> Kind:
    return Kind(sudoku.ALPHABET, sudoku.RULES, sudoku.CELLS, Half(*generated_sudokus))


@pytest.fixture(params=["sudokus", "mazes"])
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.getfixturevalue(request.param)
    return found


def solution_of(*halves: Half) -> dict[bytes, bytes]:
    return {
        puzzle.tobytes(): solution.tobytes()
        for half in halves
        for puzzle, solution in zip(half.inputs, half.labels, strict=True)
    }


def keys(half: Half) -> list[bytes]:
    return [board.tobytes() for board in half.inputs]


# ---- what is read ----------------------------------------------------------------------------


def test_what_is_written_is_drawn_at_random_into_two_halves(kind: Kind, tmp_path: Path) -> None:
    """The test half first, so that it does not depend on how many there are to train on."""
    path = kind.write(tmp_path / "all.csv")
    assert path.read_text().splitlines()[0] == "source,question,answer,rating"
    train, test = kind.draw(path, num_train=40, num_test=20)
    assert (len(train.inputs), len(test.inputs)) == (40, 20)
    assert solution_of(train, test) == solution_of(kind.puzzles)
    order = [keys(kind.puzzles).index(puzzle) for puzzle in keys(test)]
    assert order != sorted(order)
    assert keys(kind.draw(path, num_train=1, num_test=20)[1]) == keys(test)
    other, _ = kind.draw(path, num_train=40, num_test=20, seed=1)
    assert set(keys(other)) != set(keys(train))


def test_an_empty_cell_of_a_sudoku_is_a_dot_or_a_nought(sudokus: Kind, tmp_path: Path) -> None:
    path = sudokus.write(tmp_path / "all.csv")
    lines = path.read_text().splitlines()
    assert "." in lines[1]
    lines[1::2] = [line.replace(".", "0") for line in lines[1::2]]
    path.write_text("\n".join(lines))
    halves = sudokus.draw(path, num_train=40, num_test=20)
    assert solution_of(*halves) == solution_of(sudokus.puzzles)


def test_spaces_at_the_ends_of_a_maze_are_cells(mazes: Kind, tmp_path: Path) -> None:
    path = tmp_path / "all.csv"
    path.write_text("question,answer\n#S ## ##G,#So##o##G\n S    G  ,oS o  G  \n")
    assert solution_of(*mazes.draw(path, num_train=1, num_test=1)) == {
        bytes([1, 3, 2, 1, 1, 2, 1, 1, 4]): bytes([1, 3, 5, 1, 1, 5, 1, 1, 4]),
        bytes([2, 3, 2, 2, 2, 2, 4, 2, 2]): bytes([5, 3, 2, 5, 2, 2, 4, 2, 2]),
    }


def test_the_test_half_comes_from_the_file_named_and_training_leaves_it_out(
    kind: Kind, tmp_path: Path
) -> None:
    first = kind.write(tmp_path / "first.csv", 0, 40)
    second = kind.write(tmp_path / "second.csv", 35, 50)
    test_csv = kind.write(tmp_path / "test.csv", 45, 60)
    train, test = kind.draw(first, second, test_csv=test_csv)
    # 15 to test, and of 50 different ones to train on (5 stand in both files) 5 are among these.
    puzzles = keys(kind.puzzles)
    assert sorted(keys(test)) == sorted(puzzles[45:])
    assert sorted(keys(train)) == sorted(puzzles[:45])
    train, test = kind.draw(first, test_csv=test_csv, num_train=7, num_test=4)
    assert (len(set(keys(train))), len(set(keys(test)))) == (7, 4)


def test_files_that_cannot_give_both_halves_are_refused(kind: Kind, tmp_path: Path) -> None:
    # Ten rows, but five puzzles.
    twice = Half(*(np.tile(boards[:5], (2, 1)) for boards in kind.puzzles[:2]))
    write_csv(path := tmp_path / "all.csv", twice, kind.alphabet)
    with pytest.raises(UserError, match="5 different puzzles cannot give --num-train 4 and"):
        kind.draw(path, num_train=4, num_test=2)
    kind.draw(path, num_train=3, num_test=2)
    with pytest.raises(UserError, match="no puzzle is left to train on"):
        kind.draw(path, test_csv=path)


def test_columns_go_by_the_names_given(kind: Kind, tmp_path: Path) -> None:
    path, renamed = kind.write(tmp_path / "all.csv"), tmp_path / "renamed.csv"
    # With a byte order mark, other line ends and a blank line at the end, as some programs write.
    content = path.read_bytes().replace(b"question,answer", b"quizzes,solutions")
    renamed.write_bytes(b"\xef\xbb\xbf" + content.replace(b"\r\n", b"\n") + b"\n")
    names = {"puzzle_column": "quizzes", "solution_column": "solutions"}
    numbers = {"num_train": 40, "num_test": 20}
    assert solution_of(*kind.draw(renamed, **names, **numbers)) == solution_of(kind.puzzles)
    with pytest.raises(UserError, match=r"no column 'question' .*'source,quizzes,.*--puzzle-col"):
        kind.draw(renamed)
    with pytest.raises(UserError, match=r"no column 'answer' .*--solution-column"):
        kind.draw(renamed, puzzle_column="quizzes")


@pytest.mark.parametrize("columns", [slice(1, 3), slice(None)], ids=["two", "all four"])
def test_a_file_without_header_is_read_from_its_first_row_on(
    kind: Kind, columns: slice, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, bare = kind.write(tmp_path / "all.csv"), tmp_path / "bare.csv"
    rows = [line.split(",")[columns] for line in path.read_text().splitlines()]
    bare.write_text("\n".join(map(",".join, rows[1:])))
    with caplog.at_level(logging.INFO):
        halves = kind.draw(bare, num_train=40, num_test=20)
    assert solution_of(*halves) == solution_of(kind.puzzles)
    first = 1 if columns.start else 2
    said = f"bare.csv has no header: column {first} is read as the puzzle, {first + 1} as its"
    assert said in caplog.messages[0]
    # A row is still checked, and named by its line.
    bare.write_text("\n".join(",".join(row) for row in [rows[1], rows[2][-1:]]))
    with pytest.raises(UserError, match=r"bare\.csv, line 2: 1 columns, but the first row has"):
        kind.draw(bare)
    # Solution and puzzle exchanged are no puzzle with its solution.
    bare.write_text(",".join(reversed(rows[1])))
    with pytest.raises(UserError, match=r"bare\.csv, line 1: "):
        kind.draw(bare)


def test_all_mazes_have_the_size_of_the_first(mazes: Kind, tmp_path: Path) -> None:
    large = mazes.write(tmp_path / "large.csv")
    write_csv(small := tmp_path / "small.csv", solved_mazes(4, 5), maze.ALPHABET)
    with pytest.raises(UserError, match=r"large\.csv, line 2: 36 cells .* expected 25 in both"):
        mazes.draw(small, test_csv=large)


# ---- what is refused -------------------------------------------------------------------------

Change = Callable[[list[str]], list[str]]


def replaced(column: int, cell: int, character: str) -> Change:
    def change(row: list[str]) -> list[str]:
        text = row[column][:cell] + character + row[column][cell + 1 :]
        return [text if number == column else old for number, old in enumerate(row)]

    return change


def other_clue(row: list[str]) -> list[str]:
    cell = next(cell for cell in range(81) if row[0][cell] != ".")
    return replaced(0, cell, "9" if row[0][cell] != "9" else "8")(row)


def swapped(row: list[str]) -> list[str]:
    """Two empty cells of the solution exchanged."""
    first, second, *_ = (cell for cell in range(81) if row[0][cell] == ".")
    changed = replaced(1, first, row[1][second])(row)
    return replaced(1, second, row[1][first])(changed)


def exchanged_ends(row: list[str]) -> list[str]:
    return [row[0], row[1].translate(str.maketrans("SG", "GS"))]


RULES_BROKEN = "the solution is not complete or breaks the rules"
UNKNOWN = "the puzzle has characters that are none of"
BAD_ROWS: dict[str, tuple[str, Change, str]] = {
    "short": ("sudokus", lambda row: [row[0][1:], row[1]], "80 cells in the puzzle and 81 in"),
    "long": ("sudokus", lambda row: [row[0], row[1] + "1"], "and 82 in the solution, expected"),
    "letter": ("sudokus", replaced(0, 0, "x"), f"{UNKNOWN} '.0123456789'"),
    "no ASCII": ("sudokus", replaced(0, 0, "٣"), UNKNOWN),
    "other clue": ("sudokus", other_clue, "the solution contradicts the puzzle"),
    "swapped": ("sudokus", swapped, RULES_BROKEN),
    "no solution": ("sudokus", lambda row: row[:1], "1 columns, but the header has 2"),
    "short maze": ("mazes", lambda row: [row[0][1:], row[1]], "35 cells in the puzzle and 36 in"),
    "letter in maze": ("mazes", replaced(0, 0, "x"), f"{UNKNOWN} '# SGo'"),
    "ends": ("mazes", exchanged_ends, "the solution contradicts the puzzle"),
    "no path": ("mazes", lambda row: [row[0], row[1].replace("o", " ")], RULES_BROKEN),
}


@pytest.mark.parametrize(
    ("kind", "change", "complaint"), BAD_ROWS.values(), ids=BAD_ROWS, indirect=["kind"]
)
@pytest.mark.parametrize("portion", [3, 100])
def test_a_row_that_is_no_puzzle_is_named_by_file_and_line(
    kind: Kind,
    change: Change,
    complaint: str,
    portion: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(board_csv, "ROWS_AT_ONCE", portion)
    good, bad = kind.write(tmp_path / "good.csv", 8, 12), tmp_path / "bad.csv"
    kind.write(bad, 0, 8)
    rows = [line.split(",")[1:3] for line in bad.read_text().splitlines()]
    # Line 6, as the header is line 1; of mazes one whose ends are no neighbours.
    position = next(p for p in range(1, 9) if kind.cells or "o" in rows[p][1])
    rows[5] = change(rows[position])
    bad.write_text("\n".join(map(",".join, rows)))
    with pytest.raises(UserError, match=r"bad\.csv, line 6: .*remove the row") as error:
        kind.draw(good, test_csv=bad)
    assert complaint in str(error.value)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "no column 'question' in its header"),
        (b"question\n", "no column 'answer' in its header, which has 'question'; name it with "),
        (b"question,answer\n", "has no puzzles below its header"),
        (b"question,answer\n\xff\xfe,1\n", "line 2: 2 cells in the puzzle and 1 in the solution"),
        (b"question,answer\n,\n", "line 2: 0 cells in the puzzle and 0 in the solution"),
        (b'question,answer\n"' + b"1" * 200_000 + b'",2\n', "is it a CSV file?"),
    ],
    ids=["nothing", "one column", "no rows", "no text", "empty cells", "one field"],
)
def test_a_file_without_puzzles_is_refused(
    kind: Kind, content: bytes, complaint: str, tmp_path: Path
) -> None:
    (tmp_path / "all.csv").write_bytes(content)
    with pytest.raises(UserError, match=rf"all\.csv.*{re.escape(complaint)}"):
        kind.draw(tmp_path / "all.csv")
