"""What tests of boards look at, and small mazes with their solutions."""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from dataset.boards import Rules
from dataset.build_boards import Half
from dataset.splits import open_split


def boards_of(folder: Path, half: str) -> list[bytes]:
    """The inputs of a half, one after the other."""
    return [tokens.tobytes() for tokens in open_split(folder, half).inputs]


def is_valid(rules: Rules, answers: np.ndarray) -> list[bool]:
    """What rules that look at no input say of answers."""
    valid: list[bool] = rules.is_valid(np.ones_like(answers), answers).tolist()
    return valid


# ---- mazes: 1 wall, 2 free, 3 start, 4 goal, 5 path ------------------------------------------


def shortest_paths(maze: Any) -> list[list[int]]:
    """Every shortest path from start to goal, as its cells, by extending all of them at once."""
    side = round(len(maze) ** 0.5)
    tokens = [int(token) for token in maze]
    paths, seen = [[tokens.index(3)]], {tokens.index(3)}
    while paths and tokens[paths[0][-1]] != 4:
        longer = [[*path, cell] for path in paths for cell in _beside(path[-1], side)]
        paths = [p for p in longer if p[-1] not in seen and tokens[p[-1]] in (2, 4)]
        seen |= {path[-1] for path in paths}
        paths = [p for p in paths if tokens[p[-1]] == 4] or paths
    return paths


def _beside(cell: int, side: int) -> Iterator[int]:
    row, column = divmod(cell, side)
    for r, c in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
        if 0 <= r < side and 0 <= c < side:
            yield side * r + c


def marked(maze: np.ndarray, path: list[int]) -> np.ndarray:
    """The maze [cells] with the cells between the ends of a path marked."""
    solution = maze.copy()
    solution[path[1:-1]] = 5
    return solution


def random_maze(side: int, rng: np.random.Generator) -> np.ndarray:
    """Tokens [side * side]: a third walls; there need not be a way from start to goal."""
    maze = rng.choice(np.array([1, 2, 2], dtype=np.uint8), side * side)
    maze[rng.choice(side * side, 2, replace=False)] = [3, 4]
    return maze


@lru_cache
def solved_mazes(count: int = 60, side: int = 6) -> Half:
    """Different mazes with one of their shortest paths each."""
    rng = np.random.default_rng(5)
    solved: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}
    while len(solved) < count:
        maze = random_maze(side, rng)
        if paths := shortest_paths(maze):
            solved[maze.tobytes()] = maze, marked(maze, paths[rng.integers(len(paths))])
    mazes, solutions = zip(*solved.values(), strict=True)
    return Half(np.stack(mazes), np.stack(solutions))
