"""Sudoku against sets, and its solver against trying every filling."""

from collections import Counter
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from boards import is_valid
from dataset.boards import keeps_given
from dataset.sudoku import RULES, draw_variants, generate, has_one_solution, solutions

Sudokus = tuple[np.ndarray, np.ndarray]
# A puzzle that singles do not solve, from Project Euler 96.
HARD = "100007090030020008009600500005300900010080002600004000300000010040000007007000300"
CELLS = np.arange(81).reshape(9, 9)
UNITS = [
    *CELLS.tolist(),
    *CELLS.T.tolist(),
    *(CELLS[i : i + 3, j : j + 3].ravel().tolist() for i in (0, 3, 6) for j in (0, 3, 6)),
]


def is_right(tokens: Any) -> bool:
    """The rules, read out: every unit is the set of the nine digits."""
    return all({int(tokens[cell]) for cell in unit} == set(range(2, 11)) for unit in UNITS)


def all_solutions(puzzle: Any) -> list[tuple[int, ...]]:
    """By filling the empty cells one by one with whatever is not in their units: no inference."""
    cells = [int(token) for token in puzzle]
    beside = [{c for unit in UNITS if cell in unit for c in unit} - {cell} for cell in range(81)]
    found = []

    def fill() -> None:
        if 1 not in cells:
            found.append(tuple(cells))
            return
        cell = cells.index(1)
        for token in set(range(2, 11)) - {cells[other] for other in beside[cell]}:
            cells[cell] = token
            fill()
        cells[cell] = 1

    fill()
    return found


# ---- rules -----------------------------------------------------------------------------------


def test_the_digits_are_the_tokens_of_a_solution(generated_sudokus: Sudokus) -> None:
    assert list(RULES.solution_tokens) == list(range(2, 11))
    assert np.unique(generated_sudokus[1]).tolist() == list(range(2, 11))
    assert RULES.exact_ceiling(generated_sudokus[0]).tolist() == [1.0] * 60


@given(
    st.integers(0, 59),
    st.lists(
        st.tuples(st.integers(0, 80), st.sampled_from([0, 1, 2, 5, 9, 10, 11, 15, 255])), max_size=3
    ),
    st.tuples(st.integers(0, 80), st.integers(0, 80)),
)
def test_changed_boards_are_judged_as_by_reading_out_the_rules(
    generated_sudokus: Sudokus, index: int, changes: list[tuple[int, int]], swapped: tuple[int, int]
) -> None:
    tokens = generated_sudokus[1][index].copy()
    if not changes:
        tokens[list(swapped)] = tokens[list(swapped[::-1])]
    for cell, token in changes:
        tokens[cell] = token
    assert is_valid(RULES, tokens[None]) == [is_right(tokens)]


def test_boards_right_in_two_kinds_of_units_only_are_invalid() -> None:
    """Rows and columns, rows and boxes, columns and boxes: each kind of unit counts."""
    row, column = np.divmod(np.arange(81), 9)
    latin = (row + column) % 9 + 2
    rows_and_boxes = (3 * (row % 3) + column) % 9 + 2
    columns_and_boxes = rows_and_boxes.reshape(9, 9).T.reshape(-1)
    right = (3 * (row % 3) + row // 3 + column) % 9 + 2
    boards = np.stack([latin, rows_and_boxes, columns_and_boxes, right]).astype(np.uint8)
    assert is_valid(RULES, boards) == list(map(is_right, boards)) == [False, False, False, True]


# ---- solver ----------------------------------------------------------------------------------


def test_a_hard_puzzle_has_its_one_solution() -> None:
    puzzle = np.array([1 + int(cell) for cell in HARD], dtype=np.uint8)
    (solution,) = solutions(puzzle)
    assert is_right(solution)
    assert keeps_given(RULES, puzzle[None], solution[None]).all()
    assert has_one_solution(puzzle)


def test_the_solutions_found_are_those_without_any_inference(generated_sudokus: Sudokus) -> None:
    """Blanks at random, and blanks of two digits in four rows, which can often be exchanged."""
    rng, seen = np.random.default_rng(0), Counter[bool]()
    for solution in generated_sudokus[1]:
        of_digits = [np.flatnonzero(np.isin(solution[:36], two)) for two in ((2, 3), (4, 9))]
        for blanks in (*of_digits, rng.choice(81, 40, replace=False)):
            puzzle = solution.copy()
            puzzle[blanks] = 1
            expected = all_solutions(puzzle)
            assert sorted(map(tuple, np.array([*solutions(puzzle)]).tolist())) == sorted(expected)
            assert has_one_solution(puzzle) == (len(expected) == 1)
            seen[len(expected) == 1] += 1
    assert min(seen[True], seen[False]) > 10


@given(st.integers(0, 59), st.integers(0, 80), st.integers(2, 10))
def test_another_digit_in_an_empty_cell_leaves_no_solution(
    generated_sudokus: Sudokus, index: int, cell: int, token: int
) -> None:
    puzzle, solution = generated_sudokus[0][index].copy(), generated_sudokus[1][index]
    assume(puzzle[cell] == 1 and solution[cell] != token)
    puzzle[cell] = token
    assert list(solutions(puzzle)) == []
    assert not has_one_solution(puzzle)


@pytest.mark.parametrize("cells", [(0, 8), (0, 72), (0, 20)], ids=["row", "column", "box"])
def test_clues_that_contradict_each_other_have_no_solution(cells: tuple[int, int]) -> None:
    puzzle = np.ones(81, dtype=np.uint8)
    puzzle[list(cells)] = 5
    assert next(solutions(puzzle), None) is None


def test_an_empty_board_has_more_solutions_than_one_can_wait_for() -> None:
    found = list(islice(solutions(np.ones(81, dtype=np.uint8)), 50))
    assert len({solution.tobytes() for solution in found}) == 50
    assert all(is_right(solution) for solution in found)


# ---- generator -------------------------------------------------------------------------------


def test_generated_puzzles_have_their_solution_alone(generated_sudokus: Sudokus) -> None:
    puzzles, labels = generated_sudokus
    assert keeps_given(RULES, puzzles, labels).all()
    assert all(map(is_right, labels))
    assert np.array_equal([solution for p in puzzles for solution in solutions(p)], labels)
    assert len({label.tobytes() for label in labels}) == len(labels)


def test_targets_are_uniform_in_their_range() -> None:
    clues = Counter(
        int((generate((36, 40), np.random.default_rng([8, index]))[0] > 1).sum())
        for index in range(150)
    )
    assert set(clues) == {36, 37, 38, 39, 40}
    # Five standard deviations of a binomial count.
    assert max(abs(count - 30) for count in clues.values()) < 5 * np.sqrt(30 * 4 / 5)


def test_where_a_target_is_out_of_reach_no_clue_is_superfluous() -> None:
    """What was kept one by one is needed: without it there is a second solution."""
    for index in range(3):
        puzzle, _ = generate((17, 17), np.random.default_rng([9, index]))
        clues = np.flatnonzero(puzzle > 1)
        assert 17 < len(clues) < 32
        for cell in clues:
            assert not has_one_solution(np.where(np.arange(81) == cell, 1, puzzle))


# ---- symmetries ------------------------------------------------------------------------------


def test_every_symmetry_of_the_kinds_named_is_drawn_and_no_other() -> None:
    """Boards with one PAD show where each cell moves, boards of one token what it becomes."""
    one_cell = np.where(np.eye(81, dtype=bool), 0, 1)
    one_token = np.tile(np.arange(11)[:, None], 81)
    boards = np.concatenate([one_cell, one_token]).astype(np.uint8)
    variants = draw_variants(boards, 4000, np.random.default_rng(12))
    assert (variants.shape, variants.dtype) == ((4000, 92, 81), np.uint8)
    cells, tokens = (variants[:, :81] == 0).argmax(axis=1), variants[:, 81:, 0]
    assert np.array_equal(np.sort(cells, axis=1), np.tile(np.arange(81), (4000, 1)))
    assert (tokens[:, :2] == [0, 1]).all()
    assert np.array_equal(np.sort(tokens), np.tile(np.arange(11), (4000, 1)))
    rows, columns = np.divmod(cells.reshape(-1, 9, 9), 9)
    transposed = rows[:, 0, 0] != rows[:, 0, 1]
    assert 0.45 < transposed.mean() < 0.55
    row_order = np.where(transposed[:, None], columns[:, :, 0], rows[:, :, 0])
    column_order = np.where(transposed[:, None], rows[:, 0, :], columns[:, 0, :])
    for order in (row_order, column_order):
        # Three lines of a band stay together, and all 6 * 6^3 orders are possible.
        assert (order.reshape(-1, 3, 3) // 3 == order[:, ::3, None] // 3).all()
        assert len({tuple(lines) for lines in order.tolist()}) > 1000
        assert (order == np.arange(9)).all(axis=1).mean() < 0.01
    assert (row_order != column_order).any(axis=1).mean() > 0.99
    # Each digit becomes each other as often: five standard deviations.
    for token in range(2, 11):
        counts = np.bincount(tokens[:, token], minlength=11)[2:]
        assert np.abs(counts - 4000 / 9).max() < 5 * np.sqrt(4000 / 9)
