"""Sudokus as they are written, and their rules read out: what tests of both parts go by."""

from typing import Any

import numpy as np

# A puzzle that singles solve, and one that they do not (both are from Project Euler 96).
EASY = "003020600900305001001806400008102900700000008006708200002609500800203009005010300"
HARD = "100007090030020008009600500005300900010080002600004000300000010040000007007000300"


def board(text: str) -> np.ndarray:
    """Tokens [81] of a puzzle as it is written."""
    return np.array([1 + int(cell.replace(".", "0")) for cell in text], dtype=np.uint8)


def text(tokens: Any) -> str:
    """A board as it is written, '.' for an empty cell."""
    return "".join("." if token == 1 else str(token - 1) for token in tokens)


def units() -> list[list[int]]:
    rows = [[9 * i + j for j in range(9)] for i in range(9)]
    columns = [[9 * i + j for i in range(9)] for j in range(9)]
    boxes = [[27 * a + 3 * b + 9 * i + j for i in range(3) for j in range(3)]
             for a in range(3) for b in range(3)]  # fmt: skip
    return [*rows, *columns, *boxes]


UNITS = units()


def is_right(tokens: Any) -> bool:
    """The rules, read out: every unit is the set of the nine digits."""
    return all({int(tokens[cell]) for cell in unit} == set(range(2, 11)) for unit in UNITS)
