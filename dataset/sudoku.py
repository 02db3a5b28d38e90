"""Sudoku: every row, column and box of a 9x9 board holds the digits 1 to 9 once each.

A puzzle shows some digits, its clues, of a solution that they determine: unlike in 8-queens there
is one right answer. Here are the rules, a solver, a generator and the symmetries for augmentation;
boards of tokens are numpy's, while the solver works on plain lists, where a digit is one bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dataset.boards import EMPTY, Boards

SIDE = 9
BOX = 3
CELLS = SIDE * SIDE
VOCAB_SIZE = 11
FEWEST_CLUES = 17
"""No puzzle of fewer clues has a single solution (McGuire et al., 1201.0749)."""

_ALL_DIGITS = 0b111111111
_ROWS, _COLUMNS = np.divmod(np.arange(CELLS), SIDE)
_BOXES = _ROWS // BOX * BOX + _COLUMNS // BOX
_UNITS_OF = list(
    zip(_ROWS.tolist(), (SIDE + _COLUMNS).tolist(), (2 * SIDE + _BOXES).tolist(), strict=True)
)
"""Of each cell its row, column and box, as three of 27 units."""
_CELLS_OF = np.array(
    [np.flatnonzero(of == i) for of in (_ROWS, _COLUMNS, _BOXES) for i in range(9)]
)
"""[27, 9] cells of each unit."""
_TOKEN_BITS = np.zeros(256, dtype=np.uint16)
_TOKEN_BITS[EMPTY + 1 : EMPTY + 1 + SIDE] = 1 << np.arange(SIDE)
"""The bit that stands for a token's digit; none for tokens that are no digit."""


class Sudoku:
    """The `Rules` of the puzzle."""

    solution_tokens = range(EMPTY + 1, EMPTY + 1 + SIDE)

    def is_valid(self, boards: Boards) -> npt.NDArray[np.bool_]:
        """Whether each board [N] has every digit once in each row, column and box."""
        # Nine cells show nine digits only if each shows another one.
        shown = np.bitwise_or.reduce(_TOKEN_BITS[boards][:, _CELLS_OF], axis=2)
        return np.all(shown == _ALL_DIGITS, axis=1)

    def exact_ceiling(self, inputs: Boards) -> npt.NDArray[np.float64]:
        """1 for each of the puzzles [N]: a Sudoku has one solution."""
        return np.ones(len(inputs))


class Puzzles(NamedTuple):
    """Puzzles as generated or read, each with its only solution."""

    inputs: Boards
    """[N, 81]."""
    labels: Boards
    """[N, 81]."""
    lines: npt.NDArray[np.int64]
    """[N, 2]: which CSV file and which line of it; zeros for generated ones."""

    def take(self, rows: npt.NDArray[np.int64]) -> "Puzzles":
        """Those at the given rows [n]."""
        return Puzzles(self.inputs[rows], self.labels[rows], self.lines[rows])

    @staticmethod
    def join(parts: "Sequence[Puzzles]") -> "Puzzles":
        """The puzzles of all parts, of which there must be one."""
        inputs, labels, lines = zip(*parts, strict=True)
        return Puzzles(np.concatenate(inputs), np.concatenate(labels), np.concatenate(lines))


# ---- solver ----------------------------------------------------------------------------------


class Verdict(NamedTuple):
    """What the solver says of a puzzle."""

    num_solutions: int
    """0, 1, or 2 for two and more."""
    guesses: int
    """How hard it was: digits tried to find the solution and to prove that it is the only one.

    0 where singles alone suffice. Which cell is tried depends on where it stands, so that a
    symmetric puzzle may take some guesses more or fewer.
    """
    solution: Boards | None
    """[81] tokens of the first one."""


def solve(puzzle: Boards) -> Verdict:
    """Solve one puzzle [81]: singles, and where they decide nothing, the cell of fewest digits."""
    search = _search(_TOKEN_BITS[puzzle].tolist(), limit=2)
    solution = _to_tokens(search.solutions[0]) if search.solutions else None
    return Verdict(len(search.solutions), search.guesses, solution)


@dataclass
class _Search:
    """A puzzle's solutions, and what it took to find them."""

    limit: int
    """The search ends once it has so many solutions."""
    digit_order: list[list[int]] | None = None
    """[81][9] digits 0-8 in the order in which each cell tries them; None: rising."""
    solutions: list[list[int]] = field(default_factory=list)
    """Digits as bits [81]."""
    guesses: int = 0
    """Digits that were tried in a cell where singles decide nothing."""

    def run(self, cells: list[int], free: list[int], empty: list[int]) -> None:
        """Search from a state, which is used up.

        `cells` [81] holds digits as bits, 0 in the cells `empty`; `free` [27] the digits that each
        unit still lacks.
        """
        left = _fill_singles(cells, free, empty)
        if left is None:
            return
        if not left:
            self.solutions.append(cells)
            return
        cell = min(left, key=lambda cell: _candidates(free, cell).bit_count())
        mask = _candidates(free, cell)
        left.remove(cell)
        for digit in range(SIDE) if self.digit_order is None else self.digit_order[cell]:
            if mask >> digit & 1 and len(self.solutions) < self.limit:
                self.guesses += 1
                tried, still_free = cells.copy(), free.copy()
                _put(tried, still_free, cell, 1 << digit)
                self.run(tried, still_free, left)


def _search(digits: list[int], limit: int, digit_order: list[list[int]] | None = None) -> _Search:
    """Search for the solutions of digits as bits [81], 0 for empty; leaves `digits` alone."""
    cells, free = digits.copy(), [_ALL_DIGITS] * len(_CELLS_OF)
    search = _Search(limit, digit_order)
    for cell, bit in enumerate(cells):
        if bit:
            if bit & ~_candidates(free, cell):
                return search  # Two clues contradict each other.
            _put(cells, free, cell, bit)
    search.run(cells, free, [cell for cell, bit in enumerate(cells) if not bit])
    return search


def _candidates(free: list[int], cell: int) -> int:
    row, column, box = _UNITS_OF[cell]
    return free[row] & free[column] & free[box]


def _put(cells: list[int], free: list[int], cell: int, bit: int) -> None:
    row, column, box = _UNITS_OF[cell]
    cells[cell] = bit
    free[row] ^= bit
    free[column] ^= bit
    free[box] ^= bit


def _fill_singles(cells: list[int], free: list[int], empty: list[int]) -> list[int] | None:
    """Fill in what is forced until nothing is; the cells left empty, or None at a contradiction.

    Forced is the only digit that a cell can take (a naked single), and the only cell of a unit
    that can take a digit (a hidden single).
    """
    while True:
        left: list[int] | None = _fill_naked_singles(cells, free, empty)
        if left is not None and len(left) == len(empty):
            left = _fill_hidden_singles(cells, free, empty)
        if left is None or len(left) == len(empty):
            return left
        empty = left


def _fill_naked_singles(cells: list[int], free: list[int], empty: list[int]) -> list[int] | None:
    left = []
    for cell in empty:
        mask = _candidates(free, cell)
        if mask & (mask - 1):
            left.append(cell)
        elif mask:
            _put(cells, free, cell, mask)
        else:
            return None  # No digit fits.
    return left


def _fill_hidden_singles(cells: list[int], free: list[int], empty: list[int]) -> list[int] | None:
    once, twice = [0] * len(free), [0] * len(free)
    for cell in empty:
        mask = _candidates(free, cell)
        for unit in _UNITS_OF[cell]:
            twice[unit] |= once[unit] & mask
            once[unit] |= mask
    if once != free:
        return None  # Some digit has no place left in some unit.
    left = []
    for cell in empty:
        row, column, box = _UNITS_OF[cell]
        # `twice` ages as cells are filled, but a digit that had one place never gets another;
        # where it loses that one to a cell filled here, the next round meets the contradiction.
        mask = _candidates(free, cell) & ~(twice[row] & twice[column] & twice[box])
        if mask & (mask - 1):
            return None  # Two digits have their only place here.
        if mask:
            _put(cells, free, cell, mask)
        else:
            left.append(cell)
    return left


def _to_tokens(digits: list[int]) -> Boards:
    """Tokens [81] of digits as bits, 0 for empty."""
    return np.array([EMPTY + bit.bit_length() for bit in digits], dtype=np.uint8)


# ---- generator -------------------------------------------------------------------------------


def generate(clues: tuple[int, int], rng: np.random.Generator) -> tuple[Boards, Boards]:
    """A random puzzle [81] and its only solution [81].

    Cells are emptied in random order, each if the solution stays the only one, until a target is
    reached, drawn uniformly from the range `clues` (both ends included). Where no further cell can
    be emptied, more clues stay: below some 25 that is the rule.
    """
    # Not all full boards are equally likely, but every one is possible.
    order = rng.permuted(np.tile(np.arange(SIDE), (CELLS, 1)), axis=1).tolist()
    (solution,) = _search([0] * CELLS, limit=1, digit_order=order).solutions
    puzzle = solution.copy()
    cells = rng.permutation(CELLS).tolist()
    surplus = CELLS - int(rng.integers(clues[0], clues[1], endpoint=True))
    while surplus and cells:
        next_cells, cells = cells[:surplus], cells[surplus:]
        surplus -= _empty_cells(puzzle, next_cells)
    return _to_tokens(puzzle), _to_tokens(solution)


def _empty_cells(puzzle: list[int], cells: list[int]) -> int:
    """Empty those cells, one after the other, without which the solution is the only one still.

    All at once where they can be, and by halves where they cannot: if the solution is the only one
    in the end, it was so all the time, so that the outcome is the same. Returns their number.
    """
    digits = [puzzle[cell] for cell in cells]
    for cell in cells:
        puzzle[cell] = 0
    if len(_search(puzzle, limit=2).solutions) == 1:
        return len(cells)
    for cell, digit in zip(cells, digits, strict=True):
        puzzle[cell] = digit
    if len(cells) == 1:
        return 0
    half = len(cells) // 2
    return _empty_cells(puzzle, cells[:half]) + _empty_cells(puzzle, cells[half:])


# ---- symmetries ------------------------------------------------------------------------------


class Symmetries(NamedTuple):
    """Changes of a board that keep the rules: what was a puzzle with one solution stays one."""

    cells: npt.NDArray[np.int64]
    """[N, 81]: the cell whose content each cell gets."""
    tokens: Boards
    """[N, 11]: what each token becomes."""

    def apply(self, boards: Boards) -> Boards:
        """Boards [N, 81], or one board [1, 81] under all N."""
        rows = np.arange(len(boards))[:, None]
        return np.take_along_axis(self.tokens, boards[rows, self.cells], axis=1)


def draw_symmetries(count: int, rng: np.random.Generator) -> Symmetries:
    """Uniformly random ones [count].

    Each permutes the digits, the three bands of rows and the rows in each, the three stacks of
    columns and the columns in each, and transposes the board or does not.
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
    tokens[:, EMPTY + 1 :] = rng.permuted(tokens[:, EMPTY + 1 :], axis=1)
    return Symmetries(cells.reshape(count, CELLS), tokens)
