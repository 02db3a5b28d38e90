"""Mazes as Maze-30x30-hard of HRM and TRM has them: the shortest path from start to goal.

A maze is a square of any side: walls, free cells, one start and one goal. Its solution marks the
free cells of a shortest path between them, from neighbour to neighbour in four directions. Several
paths may be shortest, of which a dataset stores one.
"""

from itertools import count

import numpy as np
import numpy.typing as npt

from dataset.augmentation import NUM_DIHEDRALS, transform
from dataset.boards import Boards, Rules
from dataset.canvas import canvas_side

ALPHABET = {character: token for token, character in enumerate("# SGo", start=1)}
"""The token of each character of a CSV file."""
WALL, FREE, START, GOAL, PATH = ALPHABET.values()
VOCAB_SIZE = 6
MOST_VARIANTS = NUM_DIHEDRALS - 1


def is_valid(inputs: Boards, answers: Boards) -> npt.NDArray[np.bool_]:
    """Whether each answer [N] is its maze with a shortest path marked: all of it, nothing else."""
    is_path = answers == PATH
    is_right = np.all(np.where(is_path, FREE, answers) == inputs, axis=1)
    for end in (START, GOAL):
        is_right &= np.sum(inputs == end, axis=1) == 1
    # Searches take long: only where the maze itself is unchanged.
    mazes, is_path = inputs[is_right], is_path[is_right]
    length, _ = shortest_paths(mazes)
    marked, _ = shortest_paths(np.where(is_path | (mazes != FREE), mazes, WALL))
    # A path through marked cells alone that takes all of them.
    is_right[is_right] = (length > 0) & (marked == length) & (is_path.sum(axis=1) == length - 1)
    return is_right


def exact_ceiling(inputs: Boards) -> npt.NDArray[np.float64]:
    """One over the number of shortest paths of each maze [N]; 0 where there is none."""
    _, number = shortest_paths(inputs)
    return np.where(number > 0, 1 / np.maximum(number, 1), 0.0)


RULES = Rules(range(WALL, PATH + 1), FREE, is_valid, exact_ceiling)


def shortest_paths(mazes: Boards) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Steps of the shortest path from start to goal [N] and number of such paths [N]; 0 for none.

    All mazes are searched at once, breadth first, and the paths to a cell are counted on the way.
    """
    side = canvas_side(mazes.shape[1])
    # A frame of walls, so that every cell that is entered has four neighbours.
    frame = ((0, 0), (1, 1), (1, 1))
    grids = np.pad(mazes.reshape(-1, side, side), frame, constant_values=WALL)
    cells = grids.reshape(-1)
    neighbours = np.array([-1, 1, -side - 2, side + 2])
    is_new = (cells == FREE) | (cells == GOAL)
    steps, paths = np.zeros(len(cells), dtype=np.int64), np.zeros(len(cells))
    reached = np.flatnonzero(cells == START)
    paths[reached] = 1
    for step in count(1):
        onward = reached[:, None] + neighbours
        is_met = is_new[onward]
        if not is_met.any():
            break
        # A cell is met once for each cell before it: so many paths lead to it.
        before = np.broadcast_to(reached[:, None], onward.shape)[is_met]
        np.add.at(paths, onward[is_met], paths[before])
        reached = np.unique(onward[is_met])
        steps[reached] = step
        is_new[reached] = False
    is_goal = grids == GOAL
    return (
        np.sum(steps.reshape(grids.shape), axis=(1, 2), where=is_goal),
        np.sum(paths.reshape(grids.shape), axis=(1, 2), where=is_goal),
    )


def draw_variants(boards: Boards, count: int, rng: np.random.Generator) -> Boards:
    """Boards [n, cells] under `count` different dihedral transforms, all alike: [count, n, cells].

    The identity is none of them, so that there are `MOST_VARIANTS`.
    """
    side = canvas_side(boards.shape[1])
    grids = boards.reshape(-1, side, side)
    dihedrals = 1 + rng.permutation(MOST_VARIANTS)[:count]
    variants = np.empty((count, *boards.shape), dtype=boards.dtype)
    for variant, dihedral in zip(variants, dihedrals, strict=True):
        variant[:] = transform(grids, int(dihedral)).reshape(boards.shape)
    return variants
