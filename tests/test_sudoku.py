"""Sudoku against sets, and its solver against trying every filling."""

from collections import Counter
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sudokus import EASY, HARD, UNITS, board, is_right

from dataset.boards import keeps_given
from dataset.sudoku import Sudoku, draw_symmetries, generate, solve


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


def test_the_digits_are_the_tokens_of_a_solution(
    generated_sudokus: tuple[np.ndarray, np.ndarray],
) -> None:
    assert list(Sudoku().solution_tokens) == list(range(2, 11))
    assert np.unique(generated_sudokus[1]).tolist() == list(range(2, 11))
    assert Sudoku().exact_ceiling(generated_sudokus[0]).tolist() == [1.0] * 60


@given(
    st.integers(0, 59),
    st.lists(
        st.tuples(st.integers(0, 80), st.sampled_from([0, 1, 2, 5, 9, 10, 11, 255])), max_size=3
    ),
    st.tuples(st.integers(0, 80), st.integers(0, 80)),
)
def test_changed_boards_are_judged_as_by_reading_out_the_rules(
    generated_sudokus: tuple[np.ndarray, np.ndarray],
    index: int,
    changes: list[tuple[int, int]],
    swapped: tuple[int, int],
) -> None:
    tokens = generated_sudokus[1][index].copy()
    if not changes:
        tokens[list(swapped)] = tokens[list(swapped[::-1])]
    for cell, token in changes:
        tokens[cell] = token
    assert Sudoku().is_valid(tokens[None]).tolist() == [is_right(tokens)]


def test_boards_right_in_two_kinds_of_units_only_are_invalid() -> None:
    """Rows and columns, rows and boxes, columns and boxes: each kind of unit counts."""
    row, column = np.divmod(np.arange(81), 9)
    latin = (row + column) % 9 + 2
    rows_and_boxes = (3 * (row % 3) + column) % 9 + 2
    columns_and_boxes = rows_and_boxes.reshape(9, 9).T.reshape(-1)
    right = (3 * (row % 3) + row // 3 + column) % 9 + 2
    boards = np.stack([latin, rows_and_boxes, columns_and_boxes, right]).astype(np.uint8)
    assert Sudoku().is_valid(boards).tolist() == [False, False, False, True]
    assert [is_right(tokens) for tokens in boards] == [False, False, False, True]


# ---- solver ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("puzzle", "takes_guesses"), [(EASY, False), (HARD, True)])
def test_puzzles_are_solved_as_without_any_inference(puzzle: str, takes_guesses: bool) -> None:
    verdict = solve(board(puzzle))
    assert verdict.num_solutions == 1
    assert verdict.solution is not None
    assert is_right(verdict.solution)
    assert keeps_given(board(puzzle)[None], verdict.solution[None]).all()
    assert (verdict.guesses > 0) == takes_guesses


def test_few_blanks_have_the_solutions_that_trying_every_filling_finds(
    generated_sudokus: tuple[np.ndarray, np.ndarray],
) -> None:
    """Blanks of two digits in two rows or columns: often they can be exchanged."""
    seen: Counter[int] = Counter()
    for solution in generated_sudokus[1]:
        for first, second in ((2, 3), (4, 9)):
            blanks = np.flatnonzero((solution == first) | (solution == second))
            blanks = blanks[blanks < 36]  # Four rows: eight cells.
            puzzle = solution.copy()
            puzzle[blanks] = 1
            fillings = []
            for tokens in product((first, second), repeat=len(blanks)):
                puzzle[blanks] = tokens
                fillings.append(puzzle.copy())
            puzzle[blanks] = 1
            # The other digits are all there already, so no other filling can be right.
            right = [filling for filling in fillings if is_right(filling)]
            verdict = solve(puzzle)
            assert verdict.num_solutions == min(len(right), 2)
            assert any(np.array_equal(verdict.solution, filling) for filling in right)
            seen[len(right)] += 1
    assert seen[1] > 10
    assert seen[2] > 10


@given(st.integers(0, 59), st.lists(st.integers(0, 80), min_size=20, max_size=40, unique=True))
def test_as_many_solutions_are_found_as_without_any_inference(
    generated_sudokus: tuple[np.ndarray, np.ndarray], index: int, blanks: list[int]
) -> None:
    puzzle = generated_sudokus[1][index].copy()
    puzzle[blanks] = 1
    expected = all_solutions(puzzle)
    verdict = solve(puzzle)
    assert verdict.num_solutions == min(len(expected), 2)
    assert tuple(verdict.solution.tolist()) in expected


@given(st.integers(0, 59), st.integers(0, 80), st.integers(2, 10))
def test_another_digit_in_an_empty_cell_leaves_no_solution(
    generated_sudokus: tuple[np.ndarray, np.ndarray], index: int, cell: int, token: int
) -> None:
    puzzle, solution = generated_sudokus[0][index].copy(), generated_sudokus[1][index]
    assume(puzzle[cell] == 1 and solution[cell] != token)
    puzzle[cell] = token
    verdict = solve(puzzle)
    assert (verdict.num_solutions, verdict.solution) == (0, None)


@pytest.mark.parametrize("cells", [(0, 8), (0, 72), (0, 20)], ids=["row", "column", "box"])
def test_clues_that_contradict_each_other_have_no_solution(cells: tuple[int, int]) -> None:
    puzzle = np.ones(81, dtype=np.uint8)
    puzzle[list(cells)] = 5
    assert solve(puzzle) == (0, 0, None)


def test_an_empty_board_has_more_than_one_solution() -> None:
    verdict = solve(np.ones(81, dtype=np.uint8))
    assert verdict.num_solutions == 2
    assert is_right(verdict.solution)


def after_singles(possible: list[set[int]]) -> list[set[int]] | None:
    """What is possible in each cell once all singles are filled in; None at a contradiction."""
    before = None
    while possible != before:
        before = [set(tokens) for tokens in possible]
        for unit in UNITS:
            for cell in unit:
                if len(possible[cell]) == 1:
                    for other in set(unit) - {cell}:
                        possible[other] = possible[other] - possible[cell]
            for token in range(2, 11):
                places = [cell for cell in unit if token in possible[cell]]
                if not places:
                    return None
                if len(places) == 1:
                    possible[places[0]] = possible[places[0]] & {token}
    return possible if all(possible) else None


def count_guesses(possible: list[set[int]]) -> int:
    """Digits tried, each time in the first cell that has the fewest."""
    left = after_singles(possible)
    if left is None or all(len(tokens) == 1 for tokens in left):
        return 0
    cell = min((c for c in range(81) if len(left[c]) > 1), key=lambda c: len(left[c]))
    return sum(
        1 + count_guesses([*left[:cell], {token}, *left[cell + 1 :]]) for token in left[cell]
    )


def test_guesses_are_those_of_a_search_with_sets(
    generated_sudokus: tuple[np.ndarray, np.ndarray],
) -> None:
    few_clues = [generate((17, 17), np.random.default_rng([6, index]))[0] for index in range(15)]
    guesses = []
    for puzzle in [*generated_sudokus[0], *few_clues, board(EASY), board(HARD)]:
        possible = [{int(token)} if token > 1 else set(range(2, 11)) for token in puzzle]
        guesses.append(solve(puzzle).guesses)
        assert guesses[-1] == count_guesses(possible)
    assert 20 < guesses.count(0) < 70
    assert max(guesses) > 10


# ---- generator -------------------------------------------------------------------------------


def test_generated_puzzles_have_their_solution_alone(
    generated_sudokus: tuple[np.ndarray, np.ndarray],
) -> None:
    puzzles, solutions = generated_sudokus
    assert keeps_given(puzzles, solutions).all()
    for puzzle, solution in zip(puzzles, solutions, strict=True):
        assert is_right(solution)
        verdict = solve(puzzle)
        assert verdict.num_solutions == 1
        assert np.array_equal(verdict.solution, solution)
    assert len({solution.tobytes() for solution in solutions}) == len(solutions)


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
    for index in range(5):
        puzzle, _ = generate((17, 17), np.random.default_rng([9, index]))
        clues = np.flatnonzero(puzzle > 1)
        assert 17 < len(clues) < 32
        for cell in clues:
            fewer = puzzle.copy()
            fewer[cell] = 1
            assert solve(fewer).num_solutions == 2


# ---- symmetries ------------------------------------------------------------------------------


def test_symmetries_keep_rules_clues_and_the_only_solution(
    generated_sudokus: tuple[np.ndarray, np.ndarray],
) -> None:
    puzzles, solutions = generated_sudokus
    symmetries = draw_symmetries(60, np.random.default_rng(10))
    moved, moved_solutions = symmetries.apply(puzzles), symmetries.apply(solutions)
    assert moved.dtype == np.uint8
    assert all(is_right(solution) for solution in moved_solutions)
    assert np.array_equal((moved > 1).sum(axis=1), (puzzles > 1).sum(axis=1))
    assert not np.any(np.all(moved == puzzles, axis=1))
    for before, puzzle, solution in zip(puzzles, moved, moved_solutions, strict=True):
        verdict = solve(puzzle)
        assert verdict.num_solutions == 1
        assert np.array_equal(verdict.solution, solution)
        # How hard it is may change, but not whether singles suffice.
        assert (verdict.guesses == 0) == (solve(before).guesses == 0)


def test_one_board_under_many_symmetries_is_many_boards(
    generated_sudokus: tuple[np.ndarray, np.ndarray],
) -> None:
    symmetries = draw_symmetries(500, np.random.default_rng(11))
    variants = symmetries.apply(generated_sudokus[1][:1])
    assert variants.shape == (500, 81)
    assert Sudoku().is_valid(variants).all()
    assert len({variant.tobytes() for variant in variants}) == 500
    # Cell by cell: what stands in a cell is what stood in the cell it gets, renamed.
    for number in (0, 499):
        expected = [symmetries.tokens[number][generated_sudokus[1][0][cell]] for cell in
                    symmetries.cells[number]]  # fmt: skip
        assert variants[number].tolist() == expected


def test_every_symmetry_of_the_kinds_named_is_drawn_and_no_other() -> None:
    symmetries = draw_symmetries(4000, np.random.default_rng(12))
    assert np.array_equal(np.sort(symmetries.cells, axis=1), np.tile(np.arange(81), (4000, 1)))
    assert (symmetries.tokens[:, :2] == [0, 1]).all()
    assert np.array_equal(np.sort(symmetries.tokens), np.tile(np.arange(11), (4000, 1)))
    rows, columns = np.divmod(symmetries.cells.reshape(-1, 9, 9), 9)
    transposed = rows[:, 0, 0] != rows[:, 0, 1]
    assert 0.45 < transposed.mean() < 0.55
    row_order = np.where(transposed[:, None], columns[:, :, 0], rows[:, :, 0])
    column_order = np.where(transposed[:, None], rows[:, 0, :], columns[:, 0, :])
    for order in (row_order, column_order):
        # Three lines of a band stay together, and all 6 * 6^3 orders are possible.
        assert (order.reshape(-1, 3, 3) // 3 == order[:, ::3, None] // 3).all()
        assert len({tuple(lines) for lines in order.tolist()}) > 1000
    assert (row_order != column_order).any(axis=1).mean() > 0.99
    # Each digit becomes each other as often: five standard deviations.
    for token in range(2, 11):
        counts = np.bincount(symmetries.tokens[:, token], minlength=11)[2:]
        assert np.abs(counts - 4000 / 9).max() < 5 * np.sqrt(4000 / 9)
