"""Sudoku: every row, column and box of a 9x9 board holds the digits 1 to 9 once each.

A puzzle shows some digits, its clues, of a solution that they determine: unlike in 8-queens there
is one right answer. Here are the rules, a generator with the solver that it needs, and the
symmetries for augmentation.
"""

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt

from dataset.boards import Boards, Rules

SIDE = 9
BOX = 3
CELLS = SIDE * SIDE
EMPTY = 1
DIGITS = range(EMPTY + 1, EMPTY + 1 + SIDE)
"""Tokens of the digits 1 to 9."""
VOCAB_SIZE = 11
ALPHABET = {".": EMPTY, "0": EMPTY} | {str(token - EMPTY): token for token in DIGITS}
"""The token of each character of a CSV file."""
FEWEST_CLUES = 17
"""No puzzle of fewer clues has a single solution (McGuire et al., 1201.0749)."""

_ALL_DIGITS = sum(1 << token for token in DIGITS)
"""Sets of digits are the bits of an integer."""
_ROWS, _COLUMNS = np.divmod(np.arange(CELLS), SIDE)
_BOXES = _ROWS // BOX * BOX + _COLUMNS // BOX
_UNITS_OF: list[list[int]] = np.stack([_ROWS, SIDE + _COLUMNS, 2 * SIDE + _BOXES], axis=1).tolist()
"""[81][3]: of each cell its row, column and box, as three of 27 units."""
_CELLS_OF = np.argsort(np.transpose(_UNITS_OF), axis=1, kind="stable").reshape(-1, SIDE)
"""[27, 9] cells of each unit."""


def is_valid(inputs: Boards, answers: Boards) -> npt.NDArray[np.bool_]:
    """Whether each answer [N, 81] has every digit once in each row, column and box."""
    # Nine cells show nine digits only if each shows another one; no digit has the bit 15.
    bits = np.left_shift(1, np.minimum(answers, 15), dtype=np.uint16)
    return np.all(np.bitwise_or.reduce(bits[:, _CELLS_OF], axis=2) == _ALL_DIGITS, axis=1)


def exact_ceiling(inputs: Boards) -> npt.NDArray[np.float64]:
    """1 for each of the puzzles [N]: a Sudoku has one solution."""
    return np.ones(len(inputs))


RULES = Rules(DIGITS, EMPTY, is_valid, exact_ceiling)


# ---- generator -------------------------------------------------------------------------------


def generate(clues: Sequence[int], rng: np.random.Generator) -> tuple[Boards, Boards]:
    """A random puzzle [81] and its only solution [81].

    Cells are emptied in random order, each if the solution stays the only one, until a target is
    reached, drawn uniformly from the range `clues` (both ends included). Where no further cell can
    be emptied, more clues stay: below some 25 that is the rule.
    """
    # Not all full boards are equally likely, but every one is possible.
    order = rng.permuted(np.tile(DIGITS, (CELLS, 1)), axis=1).tolist()
    solution = next(solutions(np.full(CELLS, EMPTY, dtype=np.uint8), order))
    puzzle = solution.copy()
    surplus = CELLS - int(rng.integers(clues[0], clues[1], endpoint=True))
    for cell in rng.permutation(CELLS):
        if surplus == 0:
            break
        puzzle[cell] = EMPTY
        if has_one_solution(puzzle):
            surplus -= 1
        else:
            puzzle[cell] = solution[cell]
    return puzzle, solution


def has_one_solution(puzzle: Boards) -> bool:
    """Whether a puzzle [81] has exactly one."""
    return len(list(islice(solutions(puzzle), 2))) == 1


def solutions(
    puzzle: Boards, token_order: Sequence[Sequence[int]] = (DIGITS,) * CELLS
) -> Iterator[Boards]:
    """All solutions [81] of a puzzle [81], one by one: an empty board has some 10^21.

    Each cell tries the digits in the order of `token_order` [81][9].
    """
    # Lists, whose items are read several times quicker than an array's.
    cells: list[int] = puzzle.tolist()
    free = [_ALL_DIGITS] * len(_CELLS_OF)  # Digits that each unit still lacks.

    def toggle(cell: int, bit: int) -> None:
        """Take a digit from the units of a cell, or give it back."""
        row, column, box = _UNITS_OF[cell]
        free[row] ^= bit
        free[column] ^= bit
        free[box] ^= bit

    def fill(empty: list[int]) -> Iterator[Boards]:
        """Try the digits of the cell that has the fewest, and fill the others after it."""
        if not empty:
            yield np.array(cells, dtype=np.uint8)
            return
        fewest = SIDE + 1
        for candidate in empty:
            row, column, box = _UNITS_OF[candidate]
            possible = free[row] & free[column] & free[box]
            if possible.bit_count() < fewest:
                cell, digits, fewest = candidate, possible, possible.bit_count()
                if fewest <= 1:
                    break
        left = [other for other in empty if other != cell]
        for token in token_order[cell]:
            if digits >> token & 1:
                cells[cell] = token
                toggle(cell, 1 << token)
                yield from fill(left)
                toggle(cell, 1 << token)

    for cell, token in enumerate(cells):
        if token != EMPTY:
            if any(not free[unit] >> token & 1 for unit in _UNITS_OF[cell]):
                return  # Two clues contradict each other.
            toggle(cell, 1 << token)
    yield from fill([cell for cell, token in enumerate(cells) if token == EMPTY])


# ---- symmetries ------------------------------------------------------------------------------


def draw_variants(boards: Boards, count: int, rng: np.random.Generator) -> Boards:
    """Boards [n, 81] under `count` uniformly random symmetries, all alike: [count, n, 81].

    Symmetries keep the rules: what was a puzzle with one solution stays one. Each permutes the
    digits, the three bands of rows and the rows in each, the three stacks of columns and the
    columns in each, and transposes the board or does not. Draws are independent, so that two
    variants may be equal, if very seldom.
    """

    def lines() -> npt.NDArray[np.int64]:
        """Nine rows or columns [count, 9] in an order that keeps bands together."""
        bands = rng.permuted(np.tile(np.arange(BOX), (count, 1)), axis=1)
        within = rng.permuted(np.tile(np.arange(BOX), (count, BOX, 1)), axis=2)
        return (BOX * bands[:, :, None] + within).reshape(count, SIDE)

    cells = SIDE * lines()[:, :, None] + lines()[:, None, :]
    transposed = rng.random(count) < 0.5
    cells = np.where(transposed[:, None, None], cells.swapaxes(1, 2), cells)
    tokens = np.tile(np.arange(VOCAB_SIZE, dtype=np.uint8), (count, 1))
    tokens[:, DIGITS.start :] = rng.permuted(tokens[:, DIGITS.start :], axis=1)
    moved = boards[:, cells.reshape(count, CELLS)].swapaxes(0, 1)
    return tokens[np.arange(count)[:, None, None], moved]
